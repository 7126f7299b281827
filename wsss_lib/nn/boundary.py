r"""What lies between two cells: affinities from a map of class boundaries, and fields that point to objects' middles.

One idea: two cells show the same thing if no boundary lies between them. So the affinity of a pair is 1 less the
highest boundary on the way from one to the other, and pairs of labels teach where boundaries are although no label says
it. Ahn, Cho and Kwak, Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations, CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsss_lib.data.classes import IGNORE
from wsss_lib.errors import WsssError
from wsss_lib.nn.pairs import Offset, ends, offsets


@cache
def path(offset: Offset) -> tuple[Offset, ...]:
    """The cells on the way from one cell to another: all that are nearer than 1 to the straight line between the two.

    They lie within the rectangle that has the two at its corners: what is outside of it is 1 or more away.

    Parameters
    ----------
    offset : tuple of int
        (dy, dx) from one to the other, not (0, 0).

    Returns
    -------
    tuple of tuple
        (rows down, columns to the right) from the first cell, both ends among them.

    References
    ----------
    Ahn et al. 2019, the path of a pair; how near is the released code's.

    Examples
    --------
    >>> path((0, 2))
    ((0, 0), (0, 1), (0, 2))
    >>> path((2, 2))  # of nine cells all but two corners
    ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2))
    """
    dy, dx = offset
    rows, columns = (range(min(0, d), max(0, d) + 1) for d in offset)
    return tuple((y, x) for y in rows for x in columns if (dy * x - dx * y) ** 2 < dy * dy + dx * dx)


def boundary_affinity(boundary: Tensor, radius: float = 10) -> Iterator[tuple[Offset, Tensor]]:
    r"""How little boundary there is between each cell and each of its neighbours within a radius.

    .. math:: a_{ij} = 1 - \max_{k \in \Pi_{ij}} \mathcal B_k

    Parameters
    ----------
    boundary : Tensor
        B (N, h, w) in [0, 1]. Computed in float32 at least, under autocast too.
    radius : float
        In cells, as in `offsets`.

    Yields
    ------
    tuple of (offset, Tensor)
        (dy, dx), and a in [0, 1] (N, h - \|dy\|, w - \|dx\|). Its gradient goes to the highest cell of the path, in
        equal shares where there are several.

    Raises
    ------
    SettingsError
        If no cell is that near.
    WsssError
        If `boundary` is no batch of maps.

    References
    ----------
    Ahn et al. 2019, the semantic affinity of a pair.

    Examples
    --------
    >>> boundary = torch.tensor([[[0.0, 0.0, 0.75, 0.0]]])
    >>> [(offset, values.tolist()) for offset, values in boundary_affinity(boundary, radius=3) if values.numel()]
    [((0, 1), [[[1.0, 0.25, 0.25]]]), ((0, 2), [[[0.25, 0.25]]])]
    """
    near = offsets(radius)
    if boundary.ndim != 3:
        raise WsssError(f"boundary: got the shape {tuple(boundary.shape)}, give (images, height, width)")
    boundary = boundary.to(torch.promote_types(boundary.dtype, torch.float32))
    return ((offset, 1 - _HighestOnPath.apply(boundary, offset)) for offset in near)


class _HighestOnPath(torch.autograd.Function):
    # Autograd would keep the running maximum after each of the 2,134 cells of 152 paths. Here the boundary and the
    # result are kept, and which cell it was is looked up again. Comparing into a float tensor is what is fast on a CPU.

    @staticmethod
    def forward(ctx, boundary: Tensor, offset: Offset) -> Tensor:
        first, *others = _along_path(boundary, offset)
        highest = first.clone()
        for cell in others:
            torch.maximum(highest, cell, out=highest)
        ctx.offset = offset
        ctx.save_for_backward(boundary, highest)
        return highest

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        boundary, highest = ctx.saved_tensors
        given, is_it = torch.zeros_like(boundary), torch.empty_like(highest)
        cells, count = _along_path(boundary, ctx.offset), torch.zeros_like(highest)
        for cell in cells:
            count += torch.eq(cell, highest, out=is_it)
        share = gradient / count
        for cell, to in zip(cells, _along_path(given, ctx.offset), strict=True):
            to.addcmul_(share, torch.eq(cell, highest, out=is_it))
        return given, None


def _along_path(maps: Tensor, offset: Offset) -> list[Tensor]:
    # For each cell of the path, maps (N, h, w) as all pairs of the offset have it there: views.
    height, width = (max(0, n - abs(d)) for n, d in zip(maps.shape[1:], offset, strict=True))
    top, left = (max(0, -d) for d in offset)
    return [maps[:, top + y : top + y + height, left + x : left + x + width] for y, x in path(offset)]


def displacement_losses(displacement: Tensor, mask: Tensor, radius: float = 10) -> dict[str, Tensor]:
    r"""What sure labels teach of displacements: an object's cells point to one place, the background's nowhere.

    .. math:: L_{fg} = \frac{1}{|P^+_{fg}|} \sum_{(i, j) \in P^+_{fg}} \frac{|\delta_{ij} - \hat\delta_{ij}|_1}{2},
              \qquad L_{bg} = \frac{1}{|P^+_{bg}|} \sum_{(i, j) \in P^+_{bg}} \frac{|\delta_{ij}|_1}{2}

    with :math:`\delta_{ij} = \mathcal D(x_i) - \mathcal D(x_j)` and :math:`\hat\delta_{ij} = x_j - x_i`. Where the
    first is 0, :math:`x + \mathcal D(x)` is one place for all cells of an object; near ones of the same class count as
    one object. Both weigh 1/2, see `DISPLACEMENT_WEIGHTS`.

    Parameters
    ----------
    displacement : Tensor
        D (N, 2, h, w): rows down and columns to the right, in cells. Computed in float32 at least.
    mask : Tensor
        (N, h, w) integers: 0 background, 1 to K, 255 unsure. Pairs with an unsure end teach nothing.
    radius : float
        In cells, as in `offsets`.

    Returns
    -------
    dict of str to Tensor
        ``displacement_foreground`` and ``displacement_background``; each a mean over its pairs of all images and
        offsets, 0 with a gradient of 0 where there is none.

    Raises
    ------
    SettingsError
        If no cell is that near.
    WsssError
        If displacement and mask do not fit together.

    References
    ----------
    Ahn et al. 2019, the losses of the displacement field; the halves, of two coordinates, are the released code's.

    Examples
    --------
    >>> to_the_middle = torch.tensor([[[[0.0, 0.0, 0.0]], [[1.0, 0.0, -1.0]]]])
    >>> [float(value) for value in displacement_losses(to_the_middle, torch.tensor([[[1, 1, 1]]])).values()]
    [0.0, 0.0]
    >>> [float(value) for value in displacement_losses(to_the_middle, torch.tensor([[[0, 0, 255]]])).values()]
    [0.0, 0.5]
    """
    if displacement.shape != (len(mask), 2, *mask.shape[1:]):
        raise WsssError(
            f"displacement {tuple(displacement.shape)}, mask {tuple(mask.shape)}: give (N, 2, h, w) and (N, h, w)"
        )
    displacement = displacement.to(torch.promote_types(displacement.dtype, torch.float32))
    total, count = dict.fromkeys(DISPLACEMENT_WEIGHTS, 0.0), dict.fromkeys(DISPLACEMENT_WEIGHTS, 0)
    for offset in offsets(radius):
        label, other = ends(mask, offset)
        same = (label == other) & (label != IGNORE)
        here, there = ends(displacement, offset)
        wanted = displacement.new_tensor(offset).view(2, 1, 1) * (label > 0)[:, None]
        error = (here - there - wanted).abs().sum(1) / 2
        for name, chosen in (("foreground", same & (label > 0)), ("background", same & (label == 0))):
            total[f"displacement_{name}"] += torch.where(chosen, error, 0.0).sum()
            count[f"displacement_{name}"] += chosen.sum()
    return {name: total[name] / count[name].clamp(min=1) for name in total}


DISPLACEMENT_WEIGHTS = {"displacement_foreground": 0.5, "displacement_background": 0.5}
