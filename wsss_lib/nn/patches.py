r"""Patches that hide parts of an image: squares or super-pixels, as CPN and Hide-and-Seek hide them.

One idea: a map says to which patch each pixel belongs, and whole patches are hidden or shown. Label 0 belongs to no
patch: that is the padding around a crop of super-pixels. It is never hidden (there is nothing to hide) and does not
count as visible either. Draws come from torch's default CPU generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wsss_lib.errors import SettingsError, WsssError


def grid_patches(size: tuple[int, int], side: int) -> Tensor:
    """Square patches, labelled from 1 row by row; those at the right and lower edge may be cut off.

    Parameters
    ----------
    size : tuple of int
        (height, width) of the image, in pixels.
    side : int
        Of a square, in pixels.

    Returns
    -------
    Tensor
        (height, width) int64, labels 1 to ceil(height / side) ceil(width / side).

    Raises
    ------
    SettingsError
        If the side is below 1.

    Examples
    --------
    >>> grid_patches((3, 4), side=2)
    tensor([[1, 1, 2, 2],
            [1, 1, 2, 2],
            [3, 3, 4, 4]])
    """
    if side < 1:
        raise SettingsError(f"side={side}: give the side of a square patch, 1 pixel or more")
    rows, columns = (torch.arange(n) // side for n in size)
    return 1 + rows[:, None] * (columns[-1] + 1) + columns


def draw_side(sides: Sequence[int]) -> int:
    """Draw the side of the squares, each of `sides` equally likely.

    Parameters
    ----------
    sides : sequence of int
        In pixels; CPN's best are 56 and 112 for crops of 448.

    Returns
    -------
    int

    Raises
    ------
    SettingsError
        If there is none.

    Examples
    --------
    >>> draw_side([56])
    56
    """
    if not len(sides):
        raise SettingsError("sides is empty: give the sides of square patches in pixels, e.g. [56, 112]")
    return int(sides[int(torch.randint(len(sides), ()))])


def hide(patches: Tensor, p_h: float) -> Tensor:
    r"""Hide a share of each image's patches: the mask S with which :math:`I_h = I \odot S`.

    Of the n patches that an image has, exactly round(p_h n) are hidden, each set of so many equally likely (without
    replacement; CPN's released code draws with it, so that its 50 % are some 39 %). The complement is 1 - S.

    Parameters
    ----------
    patches : Tensor
        (N, H, W) integers of 0 or more: to which patch a pixel belongs; they need not be consecutive. 0: to none.
    p_h : float
        Share of the patches to hide, in [0, 1].

    Returns
    -------
    Tensor
        S (N, 1, H, W) float32: 1 visible, 0 hidden; 1 where `patches` is 0.

    Raises
    ------
    SettingsError
        For a share out of its range.
    WsssError
        If `patches` is no batch of label maps.

    References
    ----------
    Zhang et al., Complementary Patch for Weakly Supervised Semantic Segmentation, ICCV 2021, section 3.2.

    Examples
    --------
    >>> hide(torch.tensor([[[0, 3, 3, 7]]]), p_h=1.0).flatten()
    tensor([1., 0., 0., 0.])
    >>> int(hide(grid_patches((4, 4), 1)[None], p_h=0.25).sum())
    12
    """
    if not 0 <= p_h <= 1:
        raise SettingsError(f"p_h={p_h}: give the share of patches to hide, from 0 to 1")
    if patches.ndim != 3 or patches.is_floating_point() or patches.numel() == 0:
        given = f"{patches.dtype} of shape {tuple(patches.shape)}"
        raise WsssError(f"patches: got {given}, give integer labels (images, height, width)")
    labels = patches.flatten(1).long()
    lowest, highest = labels.aminmax()
    if lowest < 0:
        raise WsssError(f"patches: has the label {int(lowest)}, give labels of 1 or more, and 0 for no patch")
    n_labels = int(highest) + 1
    present = torch.zeros(len(labels), n_labels, dtype=torch.bool, device=labels.device)
    present.scatter_(1, labels, True)
    present[:, 0] = False
    # Every patch gets a random number, label 0 and those not there a larger one; the smallest are hidden.
    draw = torch.rand(len(labels), n_labels).to(labels.device).masked_fill(~present, 2.0)
    place = draw.argsort(1).argsort(1)
    n_hidden = (p_h * present.sum(1, keepdim=True).double()).round()
    visible = (place >= n_hidden).float()
    return visible.gather(1, labels).view(len(patches), 1, *patches.shape[1:])


def visible_share(visible: Tensor, patches: Tensor | None = None) -> Tensor:
    r"""The visible share of each image's pixels: :math:`\lambda`; of the complement it is :math:`1 - \lambda`.

    CPN's text counts patches and calls them pixels; its code counts pixels for super-pixels. Pixels it is.

    Parameters
    ----------
    visible : Tensor
        S (N, 1, H, W) in {0, 1}, from `hide`.
    patches : Tensor, optional
        (N, H, W), what `hide` was given: pixels of label 0 are not counted. None: all are.

    Returns
    -------
    Tensor
        (N,) float32 in [0, 1]; 1 for an image without any patch.

    References
    ----------
    Zhang et al. 2021, section 3.2.

    Examples
    --------
    >>> patches = torch.tensor([[[0, 0, 1, 1, 1, 2]]])
    >>> visible = torch.tensor([[[[1.0, 1.0, 1.0, 1.0, 1.0, 0.0]]]])
    >>> visible_share(visible, patches), visible_share(visible).round(decimals=2)
    (tensor([0.7500]), tensor([0.8300]))
    """
    if patches is None:
        return visible.flatten(1).mean(1)
    inside = patches.flatten(1) > 0
    shown = (visible.flatten(1).bool() & inside).count_nonzero(1)
    total = inside.count_nonzero(1)
    return torch.where(total > 0, shown / total.clamp(min=1), 1.0)
