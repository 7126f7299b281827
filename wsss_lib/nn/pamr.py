r"""Pixel-adaptive mask refinement (PAMR): soft masks are averaged, some times over, with neighbours of like colour.

One idea: a network's masks are coarse and the image knows where the edges are. Each pixel has 48 neighbours, eight
directions at six distances, and a weight for each that falls with the difference in colour. Nothing is learnt and
nothing passes a gradient: what comes out is a target. Araslanov & Roth, Single-Stage Semantic Segmentation from Image
Labels, CVPR 2020.

The memory stays small because no tensor holds all neighbours of all masks: the masks are padded once, a neighbour is a
shifted view of them, and each view is multiplied and added into one buffer. Images are taken a few at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_lib.errors import SettingsError, WsssError

DILATIONS = (1, 2, 4, 8, 12, 24)
EPS = 1e-8
PIXELS = 2**17  # of the images that are worked on together; one image of 321 x 321 has as many


def neighbours(dilations: Sequence[int] = DILATIONS) -> list[tuple[int, int]]:
    """Where a pixel's neighbours lie: eight directions for each dilation, without the pixel itself.

    Parameters
    ----------
    dilations : sequence of int
        Distances in pixels, each 1 or more.

    Returns
    -------
    list of tuple of int
        (rows down, columns to the right), one dilation after the other, each row by row.

    Raises
    ------
    SettingsError
        Without a dilation, or for one below 1.

    Examples
    --------
    >>> neighbours([2])
    [(-2, -2), (-2, 0), (-2, 2), (0, -2), (0, 2), (2, -2), (2, 0), (2, 2)]
    """
    if not len(dilations) or min(dilations) < 1:
        raise SettingsError(f"dilations={list(dilations)}: give one distance or more, each of 1 pixel or more")
    return [(d * down, d * right) for d in dilations for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]


@torch.no_grad()
def affinity(image: Tensor, dilations: Sequence[int] = DILATIONS) -> Tensor:
    r"""How much each neighbour q of a pixel p counts: a soft-max over the likeness of colours.

    .. math:: k_{p,q} = -\frac{1}{C} \sum_c \frac{|x_{c,p} - x_{c,q}|}{10^{-8} + 0.1\, \sigma_{c,p}}, \qquad
              \alpha_{p,q} = \mathrm{softmax}_q\, k_{p,q}

    with sigma the unbiased standard deviation over the 3 x 3 pixels of all dilations, p being counted in each. Beyond
    the edge the image goes on with its outermost pixels. Brightness and contrast do not count, nor does a
    normalisation by channel: sigma divides them out. A flat image has equal weights.

    Parameters
    ----------
    image : Tensor
        x (N, C, H, W) in [0, 1], of any size. Computed in float32 at least, under autocast too.
    dilations : sequence of int
        Distances of the D neighbourhoods in pixels, each 1 or more.

    Returns
    -------
    Tensor
        alpha (N, 8 D, H, W) in [0, 1], sum 1 over the neighbours, in the order of `neighbours`; without a gradient.

    Raises
    ------
    WsssError
        If `image` is no batch of images.
    SettingsError
        Without a dilation, or for one below 1.

    References
    ----------
    Araslanov & Roth 2020; sigma, its factor and the mean over colours are the released code's.

    Examples
    --------
    >>> image = torch.tensor([[[[0.0, 0.0, 1.0]]]])  # above and below, the row goes on
    >>> affinity(image, [1])[0, :, 0, 1].round(decimals=2)  # of the pixel in the middle: none to its right
    tensor([0.2000, 0.2000, 0.0000, 0.2000, 0.0000, 0.2000, 0.2000, 0.0000])
    """
    offsets = neighbours(dilations)
    _check(image, "image")
    return torch.cat([_weights(part, offsets).transpose(0, 1) for part in _parts(image.to(_precision(image)))])


@torch.no_grad()
def pamr(image: Tensor, masks: Tensor, iterations: int = 10, dilations: Sequence[int] = DILATIONS) -> Tensor:
    r"""Refine soft masks: each pixel gets the weighted mean over its neighbours, time and again.

    .. math:: m^{t+1}_{c,p} = \sum_q \alpha_{p,q}\, m^t_{c,q}

    A pixel's own value is not among them, and all classes are averaged alike. So masks that sum to 1 over the classes
    still do, each mask keeps within its range, and a flat mask stays as it is. The weights, 4 * 8 D bytes a pixel, are
    in memory for 131,072 pixels, or one larger image, at a time.

    Parameters
    ----------
    image : Tensor
        x (N, C, H, W) in [0, 1], of the masks' size. Computed in float32 at least, under autocast too.
    masks : Tensor
        m (N, K, H, W), K classes, background among them if there is one.
    iterations : int
        t, 0 or more; 0 gives the masks back.
    dilations : sequence of int
        Distances of the neighbours in pixels, each 1 or more. Smaller grids want smaller ones.

    Returns
    -------
    Tensor
        (N, K, H, W), float32 at least, without a gradient to `masks` or `image`; its memory is its own.

    Raises
    ------
    WsssError
        If one is no batch of images, or both do not have the same number and size.
    SettingsError
        For fewer than 0 iterations, without a dilation, or for one below 1.

    References
    ----------
    Araslanov & Roth 2020; ten iterations are the released code's.

    Examples
    --------
    >>> image = torch.tensor([[[[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]]])
    >>> masks = torch.tensor([[[[0.0, 0.9, 0.9, 0.3, 0.3, 0.0]]]])
    >>> pamr(image, masks, dilations=[1]).round(decimals=2)
    tensor([[[[0.5600, 0.5600, 0.5600, 0.1900, 0.1900, 0.1900]]]])
    """
    offsets = neighbours(dilations)
    if iterations < 0:
        raise SettingsError(f"iterations={iterations}: give 0 or more")
    _check(image, "image")
    _check(masks, "masks")
    if len(image) != len(masks) or image.shape[2:] != masks.shape[2:]:
        shapes = f"image {tuple(image.shape)}, masks {tuple(masks.shape)}"
        raise WsssError(f"{shapes}: give as many masks as images, and resize the image to the masks")
    dtype = _precision(image, masks)
    refined = masks.to(dtype, copy=True, memory_format=torch.contiguous_format)
    for part, mask in zip(_parts(image.to(dtype)), _parts(refined), strict=True):
        weights = _weights(part, offsets)
        for _ in range(iterations):
            views = _shifted(mask, offsets)
            mask.zero_()
            for view, weight in zip(views, weights, strict=True):
                mask.addcmul_(view, weight[:, None])
    return refined


def _parts(x: Tensor) -> Sequence[Tensor]:
    # x (N, C, H, W) in views of as many images as are worked on together.
    return x.split(max(1, PIXELS // (x.shape[2] * x.shape[3])))


def _weights(image: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    # alpha (8 D, N, H, W) of images (N, C, H, W).
    views = _shifted(image, offsets)
    n = len(views) + len(views) // 8
    # The variance by running sums of the differences to the pixel itself. Only 8 of 9 of them can differ from 0, so
    # the second term is at most 8 / 9 of the first: nothing cancels, however bright or flat the image is.
    total, squares = torch.zeros_like(image), torch.zeros_like(image)
    for view in views:
        difference = view - image
        total += difference
        squares.addcmul_(difference, difference)
    sigma = ((squares - total.square() / n) / (n - 1)).sqrt()
    scale = 1 / (image.shape[1] * (EPS + 0.1 * sigma))
    # For the same reason the mean of k is above -32: the exponentials need no maximum subtracted.
    weights = image.new_empty(len(views), len(image), *image.shape[2:])
    for view, weight in zip(views, weights, strict=True):
        torch.sum((view - image).abs_().mul_(scale), 1, out=weight)
    weights.neg_().exp_()
    return weights.div_(weights.sum(0))


def _shifted(x: Tensor, offsets: Sequence[tuple[int, int]]) -> list[Tensor]:
    # For each offset x (N, C, H, W) as its neighbours there have it: views of one copy that is padded with the edge.
    height, width = x.shape[2:]
    pad = max(map(max, offsets))
    padded = F.pad(x, (pad, pad, pad, pad), mode="replicate")
    return [padded[..., pad + y : pad + y + height, pad + x : pad + x + width] for y, x in offsets]


def _check(x: Tensor, name: str) -> None:
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise WsssError(f"{name}: got the shape {tuple(x.shape)}, give (images, channels, height, width)")


def _precision(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
