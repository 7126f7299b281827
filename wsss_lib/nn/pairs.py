"""Pairs of cells that lie near each other, and what labels teach about them: shared by AffinityNet and IRNet.

One idea: all pairs of a grid that lie (dy, dx) apart are two views of the same maps, one shifted against the other, so
nothing is gathered and a border cell has the pairs that it has. Affinities travel as an iterable of (offset, values),
one entry an offset: (N, h - \\|dy\\|, w - \\|dx\\|), the affinity of the cell with the one dy rows below and dx columns
to its right. The released code of both papers leaves out pairs that start near the border.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_lib.data.classes import IGNORE
from wsss_lib.errors import SettingsError, WsssError

Offset = tuple[int, int]
Pairs = Iterable[tuple[Offset, Tensor]]
EPS = 1e-5


def offsets(radius: float) -> list[Offset]:
    """Half of the neighbours within a radius: of each pair of opposite ones, that which comes later in reading order.

    Parameters
    ----------
    radius : float
        In cells; neighbours are nearer than this, as in both papers' released code. Above 1.

    Returns
    -------
    list of tuple
        (dy, dx), with dy > 0, or dy = 0 and dx > 0.

    Raises
    ------
    SettingsError
        If no cell is that near.

    Examples
    --------
    >>> offsets(2)
    [(0, 1), (1, -1), (1, 0), (1, 1)]
    >>> len(offsets(5)), len(offsets(10))
    (34, 152)
    """
    if not radius > 1:
        raise SettingsError(f"radius={radius}: give more than 1 cell; neighbours are nearer than the radius")
    reach = math.ceil(radius) - 1
    near = ((dy, dx) for dy in range(reach + 1) for dx in range(-reach, reach + 1))
    return [(dy, dx) for dy, dx in near if (dy, dx) > (0, 0) and dy * dy + dx * dx < radius * radius]


def ends(x: Tensor, offset: Offset) -> tuple[Tensor, Tensor]:
    """Both ends of all pairs of one offset, as views.

    Parameters
    ----------
    x : Tensor
        (..., h, w).
    offset : tuple of int
        (dy, dx).

    Returns
    -------
    tuple of Tensor
        First and second ends, each (..., h - |dy|, w - |dx|); empty where the grid is smaller than the offset.

    Examples
    --------
    >>> first, second = ends(torch.arange(6).view(2, 3), (1, -1))
    >>> list(zip(first.flatten().tolist(), second.flatten().tolist()))
    [(1, 3), (2, 4)]
    """
    rows, columns = (_spans(d, n) for d, n in zip(offset, x.shape[-2:], strict=True))
    return x[..., rows[0], columns[0]], x[..., rows[1], columns[1]]


def _spans(d: int, n: int) -> tuple[slice, slice]:
    length = max(0, n - abs(d))
    return slice(max(0, -d), max(0, -d) + length), slice(max(0, d), max(0, d) + length)


def cell_labels(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The label of each cell of a coarser grid: that of the pixel in its middle.

    Parameters
    ----------
    mask : Tensor
        (N, H, W) integers.
    size : tuple of int
        (h, w) of the grid, which covers the mask.

    Returns
    -------
    Tensor
        (N, h, w) int64.

    Examples
    --------
    >>> cell_labels(torch.arange(12).view(1, 1, 12), (1, 3))
    tensor([[[ 2,  6, 10]]])
    """
    return F.interpolate(mask[:, None].float(), size, mode="nearest-exact")[:, 0].long()


def affinity_loss(pairs: Pairs, mask: Tensor) -> dict[str, Tensor]:
    r"""What sure labels teach of affinities: pairs of one label are alike, pairs of two are not.

    .. math:: L^+ = -\frac{1}{|P^+|} \sum_{(i, j) \in P^+} \log(a_{ij} + \varepsilon), \qquad
              L^- = -\frac{1}{|P^-|} \sum_{(i, j) \in P^-} \log(1 + \varepsilon - a_{ij})

    Both papers weigh them as :math:`\frac14 L^+_{bg} + \frac14 L^+_{fg} + \frac12 L^-`, see `AFFINITY_WEIGHTS`.

    Parameters
    ----------
    pairs : iterable of (offset, Tensor)
        Affinities a in [0, 1], each (N, h - |dy|, w - |dx|); their logarithms are taken in float32 at least.
    mask : Tensor
        (N, h, w) integers: 0 background, 1 to K, 255 unsure. Pairs with an unsure end teach nothing.

    Returns
    -------
    dict of str to Tensor
        ``background`` and ``foreground`` of pairs with one label, ``different`` of the others; each a mean over its
        pairs of all images and offsets, 0 with a gradient of 0 where there is none.

    Raises
    ------
    WsssError
        If affinities and mask do not fit together.

    References
    ----------
    Ahn and Kwak, PSA, CVPR 2018, equations 5 to 7; Ahn et al., IRNet, CVPR 2019, equation 7.

    Examples
    --------
    >>> mask = torch.tensor([[[0, 0, 1, 255]]])
    >>> terms = affinity_loss([((0, 1), torch.tensor([[[0.5, 0.25, 0.9]]]))], mask)
    >>> {name: round(float(value), 3) for name, value in terms.items()}
    {'background': 0.693, 'foreground': 0.0, 'different': 0.288}
    """
    total = dict.fromkeys(AFFINITY_WEIGHTS, 0.0)
    count = dict.fromkeys(AFFINITY_WEIGHTS, 0)
    for offset, affinity in pairs:
        first, second = ends(mask, offset)
        if affinity.shape != first.shape:
            raise WsssError(
                f"pairs of offset {offset}: shape {tuple(affinity.shape)}, mask's pairs {tuple(first.shape)};"
                " bring the mask to the affinities' grid"
            )
        affinity = affinity.to(torch.promote_types(affinity.dtype, torch.float32))  # in bfloat16, 1 + EPS is 1
        sure, same = (first != IGNORE) & (second != IGNORE), first == second
        surprise = -(torch.where(same, affinity, 1 - affinity) + EPS).log()
        for name, chosen in (
            ("background", sure & same & (first == 0)),
            ("foreground", sure & same & (first > 0)),
            ("different", sure & ~same),
        ):
            total[name] = total[name] + torch.where(chosen, surprise, 0.0).sum()
            count[name] = count[name] + chosen.sum()
    return {name: total[name] / torch.clamp(torch.as_tensor(count[name]), min=1) for name in total}


AFFINITY_WEIGHTS = {"background": 0.25, "foreground": 0.25, "different": 0.5}
