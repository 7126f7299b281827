"""Masks from a trained segmentation network: several scales and the mirror image, optionally a dense CRF.

One idea: the same picture at several sizes, and mirrored, gives opinions that err differently; let them speak as one.
How they do differs between code bases, and `COMBINE` names three ways: the mean of the probabilities is the kit's own,
the mean of the scores that of the code around SEAM, the largest score that of deeplab-pytorch. Here all views have the
size of the image when they meet; deeplab-pytorch takes the maximum on the network's grid and enlarges it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from wsss_lib.data.masks import write_mask
from wsss_lib.data.samples import batches_of_one_size
from wsss_lib.data.transforms import check_scales, normalize, scale_image
from wsss_lib.errors import SettingsError
from wsss_lib.pool import work
from wsss_lib.refine.mean_field import DenseCRFSettings, refined_labels

if TYPE_CHECKING:
    from wsss_lib.data.folder import VOCFolder

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Test scales of the segmentation stage of SEAM and CPN."""


COMBINE = ("mean", "mean_logits", "max")
"""Of probabilities the mean; of scores (logits) the mean, or at each place the largest."""


@torch.inference_mode()
def predict(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    scales: Sequence[float] = SCALES,
    flip: bool = True,
    combine: str = "mean",
) -> Tensor:
    r"""Probability of each class at each pixel, from several scales and mirror images.

    With the scores :math:`s_v` of view v at image size, these are, in the order of `COMBINE`,

    .. math:: \frac{1}{V} \sum_v \mathrm{softmax}(s_v), \qquad \mathrm{softmax}(\frac{1}{V} \sum_v s_v), \qquad
              \mathrm{softmax}(\max_v s_v)

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
    combine : str
        One of `COMBINE`.

    Returns
    -------
    (N,C,H,W) Tensor
        Probabilities, summing to 1 at each pixel.

    Raises
    ------
    SettingsError
        If there is no scale, one is not positive, or `combine` is unknown.

    Examples
    --------
    >>> predict(torch.nn.Conv2d(3, 5, 1), torch.zeros(2, 3, 6, 8), scales=(0.5, 1)).shape
    torch.Size([2, 5, 6, 8])
    """
    check_combine(combine)

    def scores(views: Tensor) -> Tensor:
        return enlarge(model(views), image.shape[-2:])

    if combine == "mean":
        return over_views(lambda views: scores(views).softmax(dim=1), image, scales, flip)
    return over_views(scores, image, scales, flip, largest=combine == "max").softmax(dim=1)


def over_views(
    maps: Callable[[Tensor], Tensor],
    image: Tensor,
    scales: Sequence[float] = SCALES,
    flip: bool = True,
    largest: bool = False,
) -> Tensor:
    """Mean, or at each place the largest, of what `maps` makes of images at several scales and of their mirror images.

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
    largest : bool
        The largest in the place of the mean.

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
    >>> over_views(lambda views: views, picture, scales=(1,)).flatten()
    tensor([0., 1., 2., 3.])
    """
    check_scales(scales)
    join = torch.maximum if largest else torch.add

    def at(scale: float) -> Tensor:
        scaled = scale_image(image, scale)
        if not flip:
            return maps(scaled)
        plain, mirrored = maps(torch.cat([scaled, scaled.flip(-1)])).chunk(2)
        return join(plain, mirrored.flip(-1))

    together = reduce(join, map(at, scales))
    return together if largest else together / (len(scales) * (1 + flip))


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


def check_combine(combine: str) -> None:
    """Refuse a way to combine views that is not there.

    Parameters
    ----------
    combine : str
        A name.

    Raises
    ------
    SettingsError
        If it is none of `COMBINE`.

    Examples
    --------
    >>> check_combine("median")
    Traceback (most recent call last):
    wsss_lib.errors.SettingsError: combine='median': choose one of mean, mean_logits, max
    """
    if combine not in COMBINE:
        raise SettingsError(f"combine={combine!r}: choose one of {', '.join(COMBINE)}")


def segment(
    model: nn.Module,
    folder: VOCFolder,
    ids: Sequence[str],
    mask_dir: str | Path,
    *,
    scales: Sequence[float] = SCALES,
    flip: bool = True,
    combine: str = "mean",
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
    scales, flip, combine
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
    predictor = partial(predict, model, scales=scales, flip=flip, combine=combine)
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
