"""From a trained method to class activation maps on disk: several scales, mirrored, normalised.

One idea: the maps of an image and of its mirror, at several sizes, fail in different places; their sum fails
less. The rule is IRN's (Ahn et al., CVPR 2019): sum over scales of the map and the mirrored map of the
mirror, enlarged to one size, then divide every present class by its maximum, without subtracting a minimum.
Pipelines differ in this rule and then their thresholds cannot be compared, so here there is only this one.
"""

from __future__ import annotations

import copy
import math
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from wsss_lib.backbones.fuse import fuse_conv_bn, fuse_relu6
from wsss_lib.data.samples import batches_of_one_size
from wsss_lib.data.transforms import check_scales, normalize, scale_image
from wsss_lib.errors import DataError, WsssError
from wsss_lib.refine.maps import read_maps
from wsss_lib.runs import atomic_open

if TYPE_CHECKING:
    from wsss_lib.data import VOCFolder
    from wsss_lib.methods.base import Method

SCALES = (1.0, 0.5, 1.5, 2.0)
EPS = 1e-5


def multi_scale_cam(
    method: Method | Callable[[Tensor], Tensor],
    image: Tensor,
    scales: Sequence[float] = SCALES,
    flip: bool = True,
    stride: int = 4,
) -> Tensor:
    r"""Sum the activation maps of an image at several scales and of its mirror.

    .. math:: M = \sum_s U(M(x_s) + \mathrm{flip}\, M(\mathrm{flip}\, x_s))

    where U enlarges bilinearly. Both maps of a scale are added before U, which is linear.

    Parameters
    ----------
    method : Method or callable
        Its `cam`, or a function, that turns images (N, 3, h, w) into maps (N, K, h', w').
    image : Tensor
        (N, 3, H, W) ImageNet-normalised.
    scales : sequence of float
        Factors on the size of the image.
    flip : bool
        Add the mirror's maps.
    stride : int
        Image pixels per cell of the result.

    Returns
    -------
    Tensor
        M (N, K, ceil(H / stride), ceil(W / stride)), not normalised.

    Raises
    ------
    SettingsError
        If there is no scale, or one is not positive.

    Examples
    --------
    >>> def brightness(image):
    ...     return image.mean(1, keepdim=True)
    >>> multi_scale_cam(brightness, torch.ones(1, 3, 8, 10), scales=(1, 2)).shape
    torch.Size([1, 1, 2, 3])
    """
    check_scales(scales)
    cam = getattr(method, "cam", method)
    height, width = image.shape[-2:]
    size = (math.ceil(height / stride), math.ceil(width / stride))
    total = 0
    for scale in scales:
        scaled = scale_image(image, scale)
        maps = _in_parts(cam, scaled)
        if flip:
            maps = maps + _in_parts(cam, scaled.flip(-1)).flip(-1)
        total = total + interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return total


def _in_parts(cam: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    # A CPU is fastest while the maps of one forward pass fit its cache, a GPU while they fill it.
    pixels = 2**18 if image.device.type == "cpu" else 2**24
    n = max(1, pixels // (image.shape[-2] * image.shape[-1]))
    return torch.cat([cam(part) for part in image.split(n)])


def normalize_cam(cam: Tensor, label: Tensor) -> Tensor:
    r"""Divide every present class by its maximum over the image and set absent classes to 0 (IRN's rule).

    .. math:: \hat M_k(p) = y_k \frac{M_k(p)}{\max_q M_k(q) + 10^{-5}}

    Parameters
    ----------
    cam : Tensor
        M (N, K, h, w), non-negative.
    label : Tensor
        y (N, K) in {0, 1}.

    Returns
    -------
    Tensor
        (N, K, h, w) in [0, 1); a present class has maximum m / (m + 1e-5).

    Raises
    ------
    WsssError
        If the two do not have the same images and classes.

    Examples
    --------
    >>> cam = torch.tensor([[[[1.0, 4.0]], [[2.0, 2.0]]]])
    >>> normalize_cam(cam, torch.tensor([[1.0, 0.0]])).round(decimals=4)
    tensor([[[[0.2500, 1.0000]],
    <BLANKLINE>
             [[0.0000, 0.0000]]]])
    """
    if cam.ndim != 4 or cam.shape[:2] != label.shape:
        raise WsssError(f"label has shape {tuple(label.shape)}: give {tuple(cam.shape[:2])}, as the cam begins")
    return cam * label.to(cam)[:, :, None, None] / (cam.amax((2, 3), keepdim=True) + EPS)


def seed(cam: Tensor, threshold: float) -> Tensor:
    """Turn normalised maps into a class map: the strongest class where it exceeds the threshold.

    The argmax over [threshold, cam...], so a tie with the threshold is background.

    Parameters
    ----------
    cam : Tensor
        (K, H, W) in [0, 1].
    threshold : float
        The background's constant score, in [0, 1].

    Returns
    -------
    Tensor
        (H, W) uint8, 0 background, k + 1 for class k.

    Examples
    --------
    >>> seed(torch.tensor([[[0.1, 0.5]], [[0.2, 0.9]]]), threshold=0.15)
    tensor([[2, 2]], dtype=torch.uint8)
    """
    strongest, winner = cam.max(0)
    return torch.where(strongest > threshold, winner + 1, 0).to(torch.uint8)


def save_cam(path: str | Path, cam: Tensor, label: Tensor, size: tuple[int, int]) -> None:
    """Write the maps of the classes present, without pickles: whole or not at all.

    Parameters
    ----------
    path : path
        The `.npz` to write: arrays `classes` (n,) int64, `maps` (n, h, w) float16 and `size` (2,) int64.
    cam : Tensor
        (K, h, w) in [0, 1], normalised.
    label : Tensor
        (K,) in {0, 1}.
    size : tuple of int
        (H, W) of the image, in pixels.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_cam(f"{folder}/a.npz", torch.ones(3, 2, 2), torch.tensor([0, 1, 0]), size=(8, 8))
    ...     load_cam(f"{folder}/a.npz", n_classes=3).sum((1, 2))
    tensor([ 0., 64.,  0.])
    """
    classes = label.cpu().nonzero().flatten()
    maps = cam[classes.to(cam.device)].half().cpu().numpy()
    with atomic_open(path, "wb") as file:
        np.savez(file, classes=classes.numpy(), maps=maps, size=np.array(size, np.int64))


def load_cam(path: str | Path, *, n_classes: int, size: tuple[int, int] | None = None) -> Tensor:
    """Read maps and enlarge them bilinearly to the size of the image.

    Parameters
    ----------
    path : path
        What `save_cam` wrote.
    n_classes : int
        K, the number of foreground classes.
    size : tuple of int, optional
        (H, W) in pixels; by default the image's.

    Returns
    -------
    Tensor
        (K, H, W) float32 in [0, 1]; absent classes are 0.

    Raises
    ------
    DataError
        If the file is missing, damaged, or has a class beyond `n_classes`.

    Examples
    --------
    >>> load_cam("nowhere.npz", n_classes=3)
    Traceback (most recent call last):
    wsss_lib.errors.DataError: nowhere.npz: no such file; run the CAM stage
    """
    classes, maps, own_size = read_maps(path)
    if len(classes) and classes.max() >= n_classes:
        raise DataError(f"{path}: has class {classes.max()}, but n_classes={n_classes}; give the dataset's number")
    height, width = own_size if size is None else size
    cam = torch.zeros(n_classes, height, width)
    if len(classes):
        enlarged = interpolate(torch.from_numpy(maps)[None], size=(height, width), mode="bilinear")
        cam[torch.from_numpy(classes)] = enlarged[0]
    return cam


def localize(
    method: Method,
    folder: VOCFolder,
    ids: Iterable[str],
    cam_dir: str | Path,
    *,
    scales: Sequence[float] = SCALES,
    flip: bool = True,
    stride: int = 4,
    batch_size: int = 16,
    device: str | torch.device = "cpu",
) -> int:
    """Write `<id>.npz` with the normalised maps of every image; what is there already is skipped.

    Image-level labels say which classes are present, as in all papers of this field when they make seeds.

    Parameters
    ----------
    method : Method
        Trained; not changed.
    folder : VOCFolder
        Gives images, their sizes and labels.
    ids : iterable of str
        Image ids.
    cam_dir : path
        Where the files go; made if need be.
    scales, flip, stride
        As in `multi_scale_cam`.
    batch_size : int
        Images of one size that are worked on together; changes no result.
    device : str or torch.device
        Where to compute.

    Returns
    -------
    int
        How many files were written.

    Examples
    --------
    >>> import tempfile
    >>> from wsss_lib import backbones, methods
    >>> from wsss_lib.data import VOCFolder
    >>> cam = methods.build("cam", backbones.build("tiny"), n_classes=6)
    >>> folder = VOCFolder(getfixture("toy_root"))
    >>> with tempfile.TemporaryDirectory() as cam_dir:
    ...     localize(cam, folder, folder.split("val")[:2], cam_dir, scales=(1, 0.5), stride=1)
    2
    """
    ids, cam_dir, device = list(dict.fromkeys(ids)), Path(cam_dir), torch.device(device)
    cam_dir.mkdir(parents=True, exist_ok=True)
    missing = {image_id for image_id in ids if not zipfile.is_zipfile(cam_dir / f"{image_id}.npz")}
    if not missing:
        return 0
    network = inference_copy(method, device)
    bar = tqdm(total=len(ids), initial=len(ids) - len(missing), desc="CAMs", unit="image", mininterval=1.0)
    with torch.inference_mode(), bar:
        for group in batches_of_one_size(folder, ids, batch_size):
            if missing.isdisjoint(group):
                continue
            # A batch is computed whole even if one map is missing: in other company its last digits would differ.
            image = normalize(torch.stack([folder.image(image_id) for image_id in group]).to(device))
            label = folder.labels(group).to(device)
            image = image.contiguous(memory_format=torch.channels_last)
            cam = normalize_cam(multi_scale_cam(network, image, scales, flip, stride), label)
            for image_id, one, present in zip(group, cam, label, strict=True):
                if image_id in missing:
                    save_cam(cam_dir / f"{image_id}.npz", one, present, tuple(image.shape[-2:]))
                    bar.update()
    return len(missing)


def inference_copy(method: Method, device: str | torch.device = "cpu") -> Method:
    """Copy a method for inference: evaluation mode, channels last, BatchNorms folded into convolutions.

    Parameters
    ----------
    method : Method
        Not changed.
    device : str or torch.device
        Where the copy goes.

    Returns
    -------
    Method
        Gives the same maps to 1e-4 of their maximum; unfolded where folding would change more.

    Examples
    --------
    >>> from wsss_lib import backbones, methods
    >>> cam = methods.build("cam", backbones.build("tiny"), n_classes=2)
    >>> inference_copy(cam).backbone.stage1[1]
    Identity()
    """
    plain = copy.deepcopy(method).eval().to(device, memory_format=torch.channels_last)
    fused = fuse_conv_bn(plain)
    if torch.device(device).type == "cpu":
        fused = fuse_relu6(fused)
    ramp = torch.linspace(-2, 2, 3 * 64 * 64, device=device).view(1, 3, 64, 64)
    probe = torch.cat([ramp, ramp.transpose(2, 3)])
    with torch.inference_mode():
        for name in ("cam", "logits"):
            expected, got = getattr(plain, name)(probe), getattr(fused, name)(probe)
            if (expected - got).abs().max() > 1e-4 * expected.abs().max():
                return plain
    return fused
