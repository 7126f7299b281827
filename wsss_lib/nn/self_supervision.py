r"""Pseudo-truth: what refined masks are sure of, as labels of pixels that the same network learns from.

One idea: a network may teach itself if it keeps to what it is sure of. A pixel belongs to a class whose mask there
comes near the mask's own maximum; claimed by two classes or by none, it is ignored. An image teaches only if all of
its classes, and background, have a pixel: or the missing ones would be unlearnt. Frequent classes count less. Araslanov
and Roth, Single-Stage Semantic Segmentation from Image Labels, CVPR 2020 (SSSS), which WS-FCN takes over.

The paper leaves open, and is read as: "near" is strictly above the threshold; thresholds and counts are each image's
own; an image is judged after the conflicts have gone; the loss is a mean over all pixels of all images, where
ignored pixels and images that do not count are 0, so what is seldom sure teaches little.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_lib.data.classes import IGNORE
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.pooling import check_label, present_only


@torch.no_grad()
def pseudo_truth(
    masks: Tensor, label: Tensor, background: float = 0.7, foreground: float = 0.6, floor: float = 0.2
) -> Tensor:
    r"""The class of each pixel whose mask is above :math:`\max(\mathrm{floor}, \mathrm{share} \cdot \max_p m_c(p))`.

    Parameters
    ----------
    masks : Tensor
        m (N, 1 + K, h, w) in [0, 1], refined; channel 0 is background. Absent classes are left out here.
    label : Tensor
        y (N, K): 0 where the class is absent.
    background, foreground : float
        Share of the mask's maximum that a pixel needs: 0.7 (COCO 0.8) and 0.6.
    floor : float
        What it needs however low the maximum is: 0.2 (COCO 0.1). A class that is nowhere above it has no pixel.

    Returns
    -------
    Tensor
        (N, h, w) int64: 0 is background, 255 (`IGNORE`) what two claim, or none. No gradient flows through it.

    Raises
    ------
    WsssError
        If the two do not have the same images and classes.
    SettingsError
        For a cutoff outside of [0, 1].

    References
    ----------
    Araslanov and Roth 2020.

    Examples
    --------
    >>> masks = torch.tensor([[[[0.9, 0.6, 0.1, 0.6]], [[0.1, 0.4, 0.9, 0.6]]]])
    >>> pseudo_truth(masks, torch.ones(1, 1))  # the second and the last: none, or class 1 but no background
    tensor([[[  0, 255,   1,   1]]])
    """
    for name, cutoff in {"background": background, "foreground": foreground, "floor": floor}.items():
        if not 0 <= cutoff <= 1:
            raise SettingsError(f"{name}={cutoff}: give a number from 0 to 1")
    masks = present_only(masks, label)
    share = torch.full_like(masks[:1, :, :1, :1], foreground)
    share[:, 0] = background
    claimed = (masks > (share * masks.amax((2, 3), keepdim=True)).clamp(min=floor)).byte()
    names = torch.arange(claimed.shape[1], dtype=torch.uint8, device=masks.device)[:, None, None]
    claims, name = (x.sum(1, dtype=torch.uint8) for x in (claimed, claimed * names))  # bytes: a third of the time
    return torch.where(claims == 1, name.long(), IGNORE)


def pixels_of_classes(truth: Tensor, n_classes: int) -> Tensor:
    """How many pixels background and each class have in each image.

    Parameters
    ----------
    truth : Tensor
        (N, h, w) int: 0 to `n_classes`, or 255 (`IGNORE`).
    n_classes : int
        K.

    Returns
    -------
    Tensor
        (N, 1 + K) int64.

    Examples
    --------
    >>> pixels_of_classes(torch.tensor([[[0, 0, 2, 255]]]), 2)
    tensor([[2, 0, 1]])
    """
    image = torch.arange(len(truth), device=truth.device)[:, None]
    values = (truth.flatten(1) + (IGNORE + 1) * image).flatten()
    counts = values.bincount(minlength=(IGNORE + 1) * len(truth))
    return counts.view(len(truth), IGNORE + 1)[:, : 1 + n_classes]


def complete(truth: Tensor, label: Tensor) -> Tensor:
    """Which images count: background and every present class have at least one pixel.

    Parameters
    ----------
    truth : Tensor
        (N, h, w) int, from `pseudo_truth`.
    label : Tensor
        y (N, K).

    Returns
    -------
    Tensor
        (N,) bool.

    References
    ----------
    The released code of SSSS.

    Examples
    --------
    >>> complete(torch.tensor([[[0, 1]], [[1, 1]]]), torch.ones(2, 1))
    tensor([ True, False])
    """
    needed = torch.cat([torch.ones_like(label[:, :1]), label], 1) > 0
    return (pixels_of_classes(truth, label.shape[1]) > 0).logical_or(~needed).all(1)


def share_supervised(truth: Tensor, label: Tensor) -> Tensor:
    """Share of the batch's pixels that teach: neither ignored, nor in an image that does not count.

    Parameters
    ----------
    truth : Tensor
        (N, h, w) int, from `pseudo_truth`.
    label : Tensor
        y (N, K).

    Returns
    -------
    Tensor
        Scalar from 0 to 1.

    Examples
    --------
    >>> share_supervised(torch.tensor([[[0, 1, 1, 255]], [[1, 1, 1, 1]]]), torch.ones(2, 1))
    tensor(0.3750)
    """
    return ((truth != IGNORE) & complete(truth, label)[:, None, None]).float().mean()


def balanced_cross_entropy(logits: Tensor, truth: Tensor, label: Tensor) -> Tensor:
    r"""Cross-entropy with the pseudo-truth, each pixel weighted against its class's frequency in its image.

    .. math:: L = \frac{1}{B} \sum_{n\ \mathrm{complete}} \frac{1}{hw} \sum_{p:\, t_p \ne 255}
              \frac{N_n - N_{n, t_p}}{1 + N_n} \, (-\log \mathrm{softmax}(x_p)_{t_p})

    :math:`N_n` counts the pixels of image n that are not ignored, :math:`N_{n,c}` those of class c; B is the number of
    images, those that do not count among them.

    Parameters
    ----------
    logits : Tensor
        x (N, 1 + K, h, w), with the score of background.
    truth : Tensor
        t (N, h, w) int, from `pseudo_truth`; on the same grid.
    label : Tensor
        y (N, K).

    Returns
    -------
    Tensor
        Scalar, 0 or more; its gradient is that of the logits only.

    Raises
    ------
    WsssError
        If labels, logits and truth do not fit.

    References
    ----------
    Araslanov and Roth 2020; the weights are the released code's.

    Examples
    --------
    >>> truth = torch.tensor([[[0, 0, 1, 255]]])
    >>> loss = balanced_cross_entropy(torch.zeros(1, 2, 1, 4), truth, torch.ones(1, 1))
    >>> round(float(loss / torch.tensor(2.0).log()), 4)  # weights 1/4, 1/4, 2/4 and 0: their mean is 1/4
    0.25
    """
    check_label(logits, label)
    if truth.shape != logits[:, 0].shape:
        shapes = f"truth has shape {tuple(truth.shape)}, logits {tuple(logits.shape)}"
        raise WsssError(f"{shapes}: bring the logits to the grid of the truth")
    pixels = pixels_of_classes(truth, label.shape[1])
    total = pixels.sum(1, keepdim=True)
    weight = (total - pixels) / (1 + total) * complete(truth, label)[:, None]
    sure = truth != IGNORE
    of_pixel = weight.gather(1, truth.where(sure, 0).flatten(1)).view(truth.shape)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return (of_pixel * F.cross_entropy(logits, truth, ignore_index=IGNORE, reduction="none")).mean()
