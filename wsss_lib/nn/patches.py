"""Patches of an image, and which of them are hidden."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def grid_patches(size: tuple[int, int], sides: Sequence[int]) -> Tensor:
    """Square patches whose side is drawn from `sides`.

    Parameters
    ----------
    size : tuple of int
        (height, width) of the image, in pixels.
    sides : sequence of int
        Sides to draw from, in pixels.

    Returns
    -------
    Tensor
        (H, W) int64: the number of each pixel's patch.

    Examples
    --------
    >>> grid_patches((2, 4), sides=[2])
    tensor([[0, 0, 1, 1],
            [0, 0, 1, 1]])
    """
    side = sides[int(torch.randint(len(sides), ()))]
    rows, columns = (torch.arange(length) // side for length in size)
    return rows[:, None] * (int(columns[-1]) + 1) + columns


def hide(patches: Tensor, p_h: float = 0.5) -> Tensor:
    """Hide a share of each image's patches, drawn without replacement.

    Parameters
    ----------
    patches : Tensor
        (N, H, W) integers: the number of each pixel's patch.
    p_h : float
        Share of the patches that are hidden, in [0, 1].

    Returns
    -------
    Tensor
        S (N, 1, H, W) float: 0 where hidden, 1 elsewhere.

    Examples
    --------
    >>> hide(torch.arange(4).view(1, 2, 2)).sum()
    tensor(2.)
    """
    seen = []
    for one in patches.cpu():
        ids, place = one.unique(return_inverse=True)
        shown = torch.ones(len(ids))
        shown[torch.randperm(len(ids))[: round(p_h * len(ids))]] = 0
        seen.append(shown[place])
    return torch.stack(seen)[:, None].to(patches.device)
