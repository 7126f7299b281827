"""Masks from a trained segmentation network: several scales and the mirror image, optionally a dense CRF.

One idea: the same picture at several sizes, and mirrored, gives opinions that err differently; average them.
What is averaged differs between code bases: here the softmax probabilities, at image size; the code around
SEAM averages logits, deeplab-pytorch takes their maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from wsss_lib.data.masks import write_mask
from wsss_lib.data.samples import batches_of_one_size
from wsss_lib.data.transforms import normalize, resize_image
from wsss_lib.errors import SettingsError
from wsss_lib.pool import work
from wsss_lib.refine.mean_field import DenseCRFSettings, refined_labels

if TYPE_CHECKING:
    from wsss_lib.data.folder import VOCFolder

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Test scales of the segmentation stage of SEAM and CPN."""


@torch.inference_mode()
def predict(
    model: Callable[[Tensor], Tensor], image: Tensor, scales: Sequence[float] = SCALES, flip: bool = True
) -> Tensor:
    """Mean softmax probability of each class over scales and mirror images.

    Parameters
    ----------
    model : callable
        Takes images (N,3,H,W), returns class scores (N,C,h,w); put it in eval mode first.
    image : (N,3,H,W) Tensor
        Normalised images of one size, on the model's device.
    scales : sequence of float
        Factors on height and width.
    flip : bool
        Also look at the mirror image, in the same batch.

    Returns
    -------
    (N,C,H,W) Tensor
        Probabilities, summing to 1 at each pixel.

    Raises
    ------
    SettingsError
        If there is no scale, or one is not positive.

    Examples
    --------
    >>> predict(torch.nn.Conv2d(3, 5, 1), torch.zeros(2, 3, 6, 8), scales=(0.5, 1)).shape
    torch.Size([2, 5, 6, 8])
    """
    size = image.shape[-2:]
    return mean_over_views(lambda views: enlarge(model(views), size).softmax(dim=1), image, scales, flip)


def mean_over_views(
    maps: Callable[[Tensor], Tensor], image: Tensor, scales: Sequence[float] = SCALES, flip: bool = True
) -> Tensor:
    """Mean of what `maps` makes of images at several scales and of their mirror images.

    Parameters
    ----------
    maps : callable
        Takes images (M,3,h,w), returns maps (M,C,H,W) at the size of `image`, see `enlarge`.
    image : (N,3,H,W) Tensor
        Normalised images of one size.
    scales : sequence of float
        Factors on height and width.
    flip : bool
        Also look at the mirror image, in the same batch: M is 2 N then.

    Returns
    -------
    (N,C,H,W) Tensor

    Raises
    ------
    SettingsError
        If there is no scale, or one is not positive.

    Examples
    --------
    >>> picture = torch.arange(4.0).view(1, 1, 1, 4)
    >>> mean_over_views(lambda views: views, picture, scales=(1,)).flatten()
    tensor([0., 1., 2., 3.])
    """
    check_scales(scales)
    size, total = image.shape[-2:], 0.0
    for scale in scales:
        scaled = resize_image(image, tuple(max(1, round(side * scale)) for side in size))
        found = maps(torch.cat([scaled, scaled.flip(-1)]) if flip else scaled)
        if flip:
            plain, mirrored = found.chunk(2)
            found = (plain + mirrored.flip(-1)) / 2
        total = total + found
    return total / len(scales)


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps to an image's size, bilinearly, in float32.

    Parameters
    ----------
    maps : (N,C,h,w) Tensor
        Scores or soft masks.
    size : tuple of int
        (H, W).

    Returns
    -------
    (N,C,H,W) Tensor

    Examples
    --------
    >>> enlarge(torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16), (8, 6)).dtype
    torch.float32
    """
    return F.interpolate(maps.float(), size, mode="bilinear", align_corners=False)


def check_scales(scales: Sequence[float]) -> None:
    """Refuse test scales that are none or not positive.

    Parameters
    ----------
    scales : sequence of float
        Factors on height and width.

    Raises
    ------
    SettingsError
        For them.

    Examples
    --------
    >>> check_scales((1, 0))
    Traceback (most recent call last):
    wsss_lib.errors.SettingsError: scales=(1, 0): give one or more positive factors
    """
    if not scales or min(scales) <= 0:
        raise SettingsError(f"scales={tuple(scales)}: give one or more positive factors")


def segment(
    model: nn.Module,
    folder: VOCFolder,
    ids: Sequence[str],
    mask_dir: str | Path,
    *,
    scales: Sequence[float] = SCALES,
    flip: bool = True,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    crf: DenseCRFSettings | None = None,
    processes: int = 1,
) -> int:
    """Write the masks of a split as palette PNGs; those that exist are kept, so a broken run goes on.

    Parameters
    ----------
    model : nn.Module
        Returns class scores (N,C,h,w); is moved to `device` and put in eval mode.
    folder : VOCFolder
        Where the images are.
    ids : sequence of str
        Image ids.
    mask_dir : path
        Receives `<id>.png`.
    scales, flip
        As in `predict`.
    batch_size : int
        Images at a time; only images of equal size share a batch.
    device : device
        Where to compute.
    crf : DenseCRFSettings or None
        Refine the probabilities by dense CRF, see `refined_labels`.
    processes : int
        Worker processes for the CRF, beside this one, which goes on predicting.

    Returns
    -------
    int
        Number of masks written now.

    Examples
    --------
    >>> segment(torch.nn.Conv2d(3, 5, 1), None, [], "masks")
    0
    """
    mask_dir = Path(mask_dir)
    missing = [image_id for image_id in ids if not (mask_dir / f"{image_id}.png").is_file()]
    if not missing:
        return 0
    mask_dir.mkdir(parents=True, exist_ok=True)
    model = model.to(device, memory_format=torch.channels_last).eval()
    predictor = partial(predict, model, scales=scales, flip=flip)
    predictions = _predictions(predictor, folder, missing, batch_size, device)
    if crf is None:
        masks = ((i, probability.argmax(0).byte().cpu().numpy()) for i, _, probability in predictions)
    else:
        jobs = ((i, (picture, probability.cpu().numpy())) for i, picture, probability in predictions)
        masks = work(partial(refined_labels, settings=crf), jobs, processes)
    with tqdm(total=len(ids), initial=len(ids) - len(missing), desc="masks", mininterval=1.0) as bar:
        for image_id, mask in masks:
            write_mask(mask_dir / f"{image_id}.png", mask)
            bar.update()
    return len(missing)


def _predictions(predictor, folder, ids, batch_size, device) -> Iterator[tuple[str, np.ndarray, Tensor]]:
    """Yield (id, picture (H,W,3), probability (C,H,W)) image by image."""
    for batch in batches_of_one_size(folder, ids, batch_size):
        pictures = torch.stack([folder.image(image_id) for image_id in batch])
        image = normalize(pictures.to(device)).contiguous(memory_format=torch.channels_last)
        probabilities = predictor(image)
        yield from zip(batch, pictures.permute(0, 2, 3, 1).numpy(), probabilities, strict=True)
