r"""Random walk: maps spread over an image from cell to near cell, as far as affinities let them; PSA's and IRNet's.

One idea: a walker on a cell steps to a cell nearby, or stays, in proportion to the affinity with each. The chances of
:math:`2^t` steps are a power of the matrix of one step's. That power is dense, (h w)^2 numbers, and is never formed:
one step has some 70 chances a cell, and is taken :math:`2^t` times with the few maps of an image. Ahn and Kwak, PSA,
CVPR 2018; Ahn et al., IRNet, CVPR 2019. The two differ in where affinities come from.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.pairs import Offset, Pairs, ends


def random_walk(maps: Tensor, pairs: Pairs, beta: float, t: int) -> Tensor:
    r"""Spread the maps of one image along its affinities.

    .. math:: \mathrm{vec}(M^*) = \mathrm{vec}(M)\, T^{2^t}, \qquad
              T_{ij} = \frac{a_{ij}^\beta}{\sum_k a_{kj}^\beta}

    Each cell gets a mean of the map over all cells, so a map keeps within its range and a flat one stays as it is.
    Nothing crosses a closed line of cells whose affinities are 0.

    Parameters
    ----------
    maps : Tensor
        M (C, h, w), finite.
    pairs : iterable of (offset, Tensor)
        Affinities a in [0, 1] of the image, as `transition` takes them; they are brought to the maps' device.
    beta : float
        Above 0: 8 in PSA's released code, 10 in IRNet's.
    t : int
        0 or more; 8, that is 256 steps, in both.

    Returns
    -------
    Tensor
        M* (C, h, w) where `maps` are and of their type, without a gradient. Computed in float64: equal to the dense
        form to 1e-9, or to the rounding of the maps' type.

    Raises
    ------
    SettingsError
        If beta is not above 0, or t no whole number of 0 or more.
    WsssError
        If maps and affinities do not fit together, or hold what they must not; see `transition` and `walk`.

    References
    ----------
    Ahn and Kwak 2018, "Revising CAMs using AffinityNet"; Ahn et al. 2019, "Synthesizing instance segmentation labels",
    where maps are first multiplied by 1 - boundary. That columns sum to 1 is as in both released codes.

    Examples
    --------
    >>> maps = torch.tensor([[[1.0, 0.0, 0.0, 0.5]]])
    >>> pairs = [((0, 1), torch.tensor([[[1.0, 1.0, 0.0]]]))]
    >>> random_walk(maps, pairs, beta=10, t=8).round(decimals=2)  # cells with 2, 3 and 2 neighbours, and one alone
    tensor([[[0.2900, 0.2900, 0.2900, 0.5000]]])
    """
    return walk(maps, transition(((offset, a.to(maps.device)) for offset, a in pairs), maps.shape[-2:], beta), t)


@torch.no_grad()
def transition(pairs: Pairs, size: tuple[int, int], beta: float) -> Tensor:
    r"""The chances of one step: affinities to a power, divided so that each cell's sum to 1.

    .. math:: T_{ij} = \frac{a_{ij}^\beta}{\sum_k a_{kj}^\beta}

    with :math:`a_{ij} = a_{ji}`, :math:`a_{ii} = 1`, and 0 for cells that are no pair.

    Parameters
    ----------
    pairs : iterable of (offset, Tensor)
        Affinities a in [0, 1] of one image, each (1, h - \|dy\|, w - \|dx\|), see `wsss_lib.nn.pairs`; an offset comes
        once, and its opposite not at all.
    size : tuple of int
        (h, w) of the grid, which may be smaller than an offset.
    beta : float
        Above 0; the higher, the more a step asks for a high affinity.

    Returns
    -------
    Tensor
        T transposed (h w, h w), sparse (CSR, int32 indices): row j is column j of T, and sums to 1. Where `pairs` are,
        in float64, since over hundreds of steps the rounding of float32 adds up to 1e-4; without a gradient.

    Raises
    ------
    SettingsError
        If beta is not above 0.
    WsssError
        If there is no cell or no offset, an offset comes twice, or affinities do not fit the grid or are not in [0, 1].

    References
    ----------
    As of `random_walk`.

    Examples
    --------
    >>> transition([((0, 1), torch.tensor([[[0.5, 0.0]]]))], (1, 3), beta=2).to_dense()
    tensor([[0.8000, 0.2000, 0.0000],
            [0.2000, 0.8000, 0.0000],
            [0.0000, 0.0000, 1.0000]], dtype=torch.float64)
    """
    if not beta > 0:
        raise SettingsError(f"beta={beta}: give more than 0")
    height, width = size
    if height < 1 or width < 1:
        raise WsssError(f"size={(height, width)}: give a grid of one cell or more")
    planes: dict[Offset, Tensor] = {}  # each cell's affinity with its neighbour there, 0 beyond the border
    for offset, affinity in pairs:
        opposite = -offset[0], -offset[1]
        if offset in planes or offset == opposite:
            raise WsssError(f"pairs: offset {offset} comes twice; leave out opposite ones and (0, 0)")
        ahead, behind = torch.zeros(2, height, width, dtype=torch.float64, device=affinity.device)
        first, second = ends(ahead, offset)[0], ends(behind, offset)[1]
        if affinity.shape != (1, *first.shape):
            raise WsssError(
                f"pairs: offset {offset} has the shape {tuple(affinity.shape)}, {(1, *first.shape)} on a grid of"
                f" {height} x {width}; give one image's affinities, on the grid of the maps"
            )
        planes[offset], planes[opposite] = ahead, behind
        first.copy_(affinity[0])
        second.copy_(affinity[0])
    if not planes:
        raise WsssError("pairs: none at all; give the affinities of one offset or more")
    planes[0, 0] = torch.ones_like(ahead)

    order = sorted(planes)  # reading order, so that indices ascend along a row
    rows = torch.stack([planes[offset] for offset in order], -1).flatten(0, 1)
    low, high = rows.aminmax()
    if not (low >= 0 and high <= 1):
        raise WsssError(f"pairs: affinities from {low:.3g} to {high:.3g}; give numbers in [0, 1]")
    rows.pow_(beta)
    rows /= rows.sum(1, keepdim=True)
    kept = rows > 0
    steps = torch.tensor([dy * width + dx for dy, dx in order], dtype=torch.int32, device=rows.device)
    cells = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
    columns = (cells[:, None] + steps)[kept]
    starts = F.pad(kept.sum(1).cumsum(0), (1, 0)).int()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns, rows[kept], (len(rows),) * 2, check_invariants=False)


@torch.no_grad()
def walk(maps: Tensor, T: Tensor, t: int) -> Tensor:
    r"""Take :math:`2^t` steps with all maps of an image: as many products of the sparse matrix with C columns.

    .. math:: \mathrm{vec}(M^*) = \mathrm{vec}(M)\, T^{2^t}

    Parameters
    ----------
    maps : Tensor
        M (C, h, w), finite.
    T : Tensor
        (h w, h w) on the same device, transposed and sparse as `transition` gives it.
    t : int
        0, which is one step, or more.

    Returns
    -------
    Tensor
        M* (C, h, w), of the maps' type, computed in that of `T`; without a gradient.

    Raises
    ------
    SettingsError
        If t is no whole number of 0 or more.
    WsssError
        If maps and `T` do not have the same cells or device, or maps are not finite floating-point numbers.

    References
    ----------
    As of `random_walk`.

    Examples
    --------
    >>> T = transition([((0, 1), torch.tensor([[[1.0]]]))], (1, 2), beta=1)
    >>> walk(torch.tensor([[[1.0, 0.0]], [[0.0, 0.5]]]), T, t=0)
    tensor([[[0.5000, 0.5000]],
    <BLANKLINE>
            [[0.2500, 0.2500]]])
    """
    if not isinstance(t, int) or t < 0:
        raise SettingsError(f"t={t}: give a whole number of 0 or more; there are 2^t steps")
    if maps.ndim != 3 or T.shape != (maps.shape[1] * maps.shape[2],) * 2 or maps.device != T.device:
        here, there = f"{tuple(maps.shape)} on {maps.device}", f"{tuple(T.shape)} on {T.device}"
        raise WsssError(f"maps {here}, T {there}: give maps (C, h, w), T (h w, h w), both on one device")
    if not (maps.is_floating_point() and maps.isfinite().all()):
        raise WsssError(f"maps of {maps.dtype}: give floating-point numbers, all of them finite")
    columns = maps.flatten(1).T.to(T.dtype)
    for _ in range(2**t):
        columns = T @ columns
    return columns.T.to(maps.dtype).contiguous().view(maps.shape)
