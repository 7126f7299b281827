"""Masks straight from a single-stage method: several scales and the mirror image, its own classes, optionally a CRF.

One idea: the network says which classes are there and where; what it does not see there has no mask. Who gives it the
true labels at test time measures something else, so both are computed, kept apart and named: ``masks`` from predicted
labels, ``masks_with_labels`` from given ones. The rules are those of SSSS's released code (Araslanov and Roth, CVPR
2020): the mean of the soft masks over all views, a class is there if any view says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from wsss_lib.data.masks import write_mask
from wsss_lib.data.samples import batches_of_one_size
from wsss_lib.data.transforms import check_scales, normalize
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.pool import work
from wsss_lib.refine.dense_crf import MaskSettings, pseudo_mask
from wsss_lib.segment.predict import enlarge, over_views

if TYPE_CHECKING:
    from wsss_lib.data.folder import VOCFolder
    from wsss_lib.methods.base import Method

FOLDERS = ("masks", "masks_with_labels")  # classes as predicted, and as given


@dataclass(frozen=True)
class SingleStageSettings:
    """How a single-stage method's soft masks become masks.

    Parameters
    ----------
    scales : tuple of float
        Factors on height and width.
    flip : bool
        Also look at the mirror image.
    class_cut : float
        A class is there if the largest of its probabilities over the views exceeds this, in [0, 1].
    mask : MaskSettings
        Score of background, and the CRF if there is one.

    Raises
    ------
    SettingsError
        For scales that are not positive, or a cut out of its range.

    Examples
    --------
    >>> SingleStageSettings(class_cut=2.0)
    Traceback (most recent call last):
    wsss_lib.errors.SettingsError: class_cut=2.0: give a probability from 0 to 1
    """

    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    flip: bool = True
    class_cut: float = 0.1
    mask: MaskSettings = field(default_factory=lambda: MaskSettings("constant", threshold=0.25, crf=None))

    def __post_init__(self):
        check_scales(self.scales)
        if not 0 <= self.class_cut <= 1:
            raise SettingsError(f"class_cut={self.class_cut}: give a probability from 0 to 1")


@torch.inference_mode()
def predict_masks(
    method: Method, image: Tensor, scales: Sequence[float] = (1.0,), flip: bool = True
) -> tuple[Tensor, Tensor]:
    """Class probabilities and soft masks of images: the largest and the mean over scales and mirror images.

    Parameters
    ----------
    method : Method
        Has ``segment``, as `wsss_lib.methods.ws_fcn.WSFCN`; in evaluation mode.
    image : Tensor
        (N, 3, H, W) ImageNet-normalised, on the method's device.
    scales : sequence of float
        Factors on height and width.
    flip : bool
        Also look at the mirror image, in the same batch.

    Returns
    -------
    tuple of Tensor
        Probabilities (N, K) in [0, 1], and masks (N, 1 + K, H, W) in [0, 1] that sum to 1 at each pixel.

    Raises
    ------
    SettingsError
        If there is no scale, or one is not positive.

    Examples
    --------
    >>> from wsss_lib import backbones, methods
    >>> from wsss_lib.settings import load
    >>> net = methods.build("ws_fcn", backbones.build("tiny"), 6, load("smoke")).eval()
    >>> probability, masks = predict_masks(net, torch.zeros(1, 3, 32, 48), scales=(1, 0.5))
    >>> probability.shape, masks.shape
    (torch.Size([1, 6]), torch.Size([1, 7, 32, 48]))
    """
    probability = []

    def soft_masks(views: Tensor) -> Tensor:
        y, masks = method.segment(views)
        probability.extend(y.float().sigmoid().split(len(image)))
        return enlarge(masks, image.shape[2:])

    masks = over_views(soft_masks, image, scales, flip)
    return torch.stack(probability).amax(0), masks


def segment_single_stage(
    method: Method,
    folder: VOCFolder,
    ids: Sequence[str],
    out: str | Path,
    settings: SingleStageSettings = SingleStageSettings(),
    *,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    processes: int = 1,
) -> int:
    """Write the masks of images twice, as palette PNGs: from predicted labels and from the given ones.

    Images that have both are passed over, so a broken run goes on.

    Parameters
    ----------
    method : Method
        Has ``segment``; is moved to `device` and put in evaluation mode.
    folder : VOCFolder
        Where images and labels are.
    ids : sequence of str
        Image ids.
    out : path
        Receives ``masks/<id>.png`` and ``masks_with_labels/<id>.png``.
    settings : SingleStageSettings
        Views, classes, background, CRF.
    batch_size : int
        Images at a time; only images of equal size share a batch.
    device : device
        Where to compute.
    processes : int
        Worker processes for the CRF, beside this one, which goes on predicting.

    Returns
    -------
    int
        Number of images whose masks were written now.

    Raises
    ------
    WsssError
        If the method does not segment.

    Examples
    --------
    >>> from wsss_lib import backbones, methods
    >>> segment_single_stage(methods.build("cam", backbones.build("tiny"), 6), None, ["a"], "out")
    Traceback (most recent call last):
    wsss_lib.errors.WsssError: CAM gives no masks itself: take a single-stage method, or train a DeepLab on its seeds
    """
    if not hasattr(method, "segment"):
        name = type(method).__name__
        raise WsssError(f"{name} gives no masks itself: take a single-stage method, or train a DeepLab on its seeds")
    out = Path(out)
    missing = [i for i in ids if not all((out / name / f"{i}.png").is_file() for name in FOLDERS)]
    for name in FOLDERS:
        (out / name).mkdir(parents=True, exist_ok=True)
    method = method.to(device, memory_format=torch.channels_last).eval()
    jobs = _jobs(method, folder, missing, settings, batch_size, device)
    processes = processes if settings.mask.crf else 1  # an argmax is not worth sending pictures to another process
    with tqdm(total=2 * len(ids), initial=2 * (len(ids) - len(missing)), desc="masks", mininterval=1.0) as bar:
        for name, mask in work(partial(pseudo_mask, settings=settings.mask), jobs, processes):
            write_mask(out / f"{name}.png", mask)
            bar.update()
    return len(missing)


def _jobs(method, folder, ids, settings, batch_size, device) -> Iterator[tuple[str, tuple]]:
    """Yield (folder/id, what `pseudo_mask` takes) twice an image."""
    for batch in batches_of_one_size(folder, ids, batch_size):
        pictures = torch.stack([folder.image(image_id) for image_id in batch])
        image = normalize(pictures.to(device)).contiguous(memory_format=torch.channels_last)
        probability, masks = predict_masks(method, image, settings.scales, settings.flip)
        predicted, given = (probability > settings.class_cut).cpu().numpy(), folder.labels(batch).numpy() > 0
        pictures, masks = pictures.permute(0, 2, 3, 1).numpy(), masks[:, 1:].cpu().numpy()
        parts = zip(batch, pictures, masks, predicted, given, strict=True)
        for image_id, picture, soft, *there in parts:
            for name, classes in zip(FOLDERS, map(np.flatnonzero, there), strict=True):
                yield f"{name}/{image_id}", (picture, soft[classes], classes)
