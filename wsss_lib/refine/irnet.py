r"""IRNet: a network that tells where one thing ends and another begins, learnt from labels that say it nowhere.

One idea: where a class map is sure of object or background, pairs of near cells with two labels must have a boundary
between them, and pairs with one label must have none (`nn.boundary`). A random walk then carries the map to the rest of
the object and stops at boundaries (`refine.random_walk`). Ahn, Cho and Kwak, Weakly Supervised Learning of Instance
Segmentation with Inter-pixel Relations, CVPR 2019.

The backbone is a trained classifier's and learns nothing here. Of the paper's two outputs only the boundary is of use
for classes: displacements, which tell one object of a class from another, are learnt beside it by layers of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_lib.data.classes import IGNORE
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.methods.base import Losses, Progress
from wsss_lib.nn.boundary import DISPLACEMENT_WEIGHTS, boundary_affinity, displacement_losses
from wsss_lib.nn.pairs import AFFINITY_WEIGHTS, Pairs, affinity_loss, cell_labels, offsets

if TYPE_CHECKING:
    from wsss_lib.backbones.base import Backbone
    from wsss_lib.data.samples import MaskBatch


class BoundaryBranch(nn.Module):
    """All stages of a backbone, each reduced to 32 channels and brought to one grid, make a boundary's logits.

    Parameters
    ----------
    channels, strides : sequence of int
        Of the backbone's stages.
    stride : int
        Image pixels a cell of the grid.

    Examples
    --------
    >>> branch = BoundaryBranch(channels=(8, 16), strides=(2, 8), stride=4)
    >>> branch([torch.zeros(1, 8, 32, 32), torch.zeros(1, 16, 8, 8)]).shape
    torch.Size([1, 16, 16])
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], stride: int) -> None:
        super().__init__()
        self.factors = [own / stride for own in strides]
        self.reduce = nn.ModuleList(_reduction(n, 32) for n in channels)
        self.classify = nn.Conv2d(32 * len(channels), 1, 1)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Return the logits (N, h, w) of maps `stages`, whose cells tile the grid's."""
        maps = zip(self.reduce, stages, self.factors, strict=True)
        return self.classify(torch.cat([_resized(reduce(x), factor).relu() for reduce, x, factor in maps], 1))[:, 0]


class DisplacementBranch(nn.Module):
    """All stages of a backbone make a field of displacements; those coarser than the grid are joined on the way to it.

    Parameters
    ----------
    channels, strides : sequence of int
        Of the backbone's stages, from fine to coarse.
    stride : int
        Image pixels a cell of the grid.

    In evaluation mode the buffer `mean` is subtracted, so that displacements are 0 on average.

    Examples
    --------
    >>> branch = DisplacementBranch(channels=(8, 16), strides=(2, 8), stride=4)
    >>> branch([torch.zeros(1, 8, 32, 32), torch.zeros(1, 16, 8, 8)]).shape
    torch.Size([1, 2, 16, 16])
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], stride: int) -> None:
        super().__init__()
        widths = [min(n, 64 * 2**k, 256) for k, n in enumerate(channels)]
        self.reduce = nn.ModuleList(_reduction(n, width) for n, width in zip(channels, widths, strict=True))
        self.fine = sum(own <= stride for own in strides)
        joint = min(strides[self.fine :], default=stride)  # the finest of the coarse stages has the grid of their union
        self.factors = [own / (stride if own <= stride else joint) for own in strides]
        self.joint_factor, joined = joint / stride, widths[: self.fine]
        self.join = None
        if self.fine < len(strides):
            self.join = _reduction(sum(widths[self.fine :]), 256)
            joined = [*joined, 256]
        self.mix = _reduction(sum(joined), 256)
        self.point = nn.Conv2d(256, 2, 1, bias=False)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Return displacements (N, 2, h, w), rows down and columns to the right, of maps `stages`."""
        maps = zip(self.reduce, stages, self.factors, strict=True)
        maps = [_resized(reduce(x), factor).relu() for reduce, x, factor in maps]
        if self.join:
            coarse = self.join(torch.cat(maps[self.fine :], 1))
            maps = [*maps[: self.fine], _resized(coarse, self.joint_factor).relu()]
        displacement = self.point(self.mix(torch.cat(maps, 1)).relu())
        return displacement if self.training else displacement - self.mean.view(2, 1, 1)


class IRNet(nn.Module):
    r"""A frozen backbone, a branch that draws class boundaries, and one that points to the middles of objects.

    The loss is the sum of both branches',

    .. math:: L = \tfrac14 L^+_{bg} + \tfrac14 L^+_{fg} + \tfrac12 L^- + \tfrac12 L^{\mathcal D}_{fg}
                  + \tfrac12 L^{\mathcal D}_{bg}

    see `affinity_loss` and `displacement_losses`. For masks of classes the last two do nothing at all: they teach
    layers that the boundary does not have, and the walk asks for the boundary alone. They are here because the paper
    has them; without them the boundary is the same, and a step on a CPU takes about half the time or less.

    Parameters
    ----------
    backbone : Backbone
        Best with the weights of a trained classifier. Is frozen: it gets no gradient and its BatchNorms stay.
    stride : int
        Image pixels a cell of the grid, which has ceil(H / stride) rows; the paper's is 4. Images are padded with 0,
        the mean colour, to whole cells of every stage.
    radius : float
        gamma, in cells: pairs that teach are nearer than this.
    walk_radius : float
        The same for the pairs of a random walk.
    displacement : bool
        Learn displacements, too; who wants to use them calls `centre_displacement` after the training.

    Raises
    ------
    SettingsError
        For a stride that is no number of pixels, or a radius without pairs.

    References
    ----------
    Ahn et al. 2019; channels and structure of both branches are the released code's, generalised to other backbones.
    Its walk pads the boundary with 1 beyond the image's edge. That is the same: affinities to there are 0, and a path
    between two cells of the grid never leaves it.

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> net = IRNet(backbones.build("tiny")).eval()
    >>> image = torch.zeros(1, 3, 64, 50)
    >>> net.boundary(image).shape, net.displacement(image).shape
    (torch.Size([1, 16, 13]), torch.Size([1, 2, 16, 13]))
    >>> dict(net.pairs(image))[1, -4].shape
    torch.Size([1, 15, 9])
    """

    def __init__(
        self,
        backbone: Backbone,
        stride: int = 4,
        radius: float = 10,
        walk_radius: float = 5,
        displacement: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(stride, int) or stride < 1:
            raise SettingsError(f"stride={stride}: give a whole number of pixels, 1 or more")
        for given in (radius, walk_radius):
            offsets(given)  # refuses a radius without pairs
        self.stride, self.radius, self.walk_radius = stride, radius, walk_radius
        self.backbone = backbone.freeze(len(backbone.channels))
        shape = backbone.channels, backbone.strides, stride
        self.boundary_branch = BoundaryBranch(*shape)
        self.displacement_branch = DisplacementBranch(*shape) if displacement else None

    def boundary(self, image: Tensor) -> Tensor:
        """Return B in [0, 1] (N, h, w) of `image` (N, 3, H, W): the sigmoid of its logits' and its mirror's mean."""
        padded = self._padded(image, 0.0)
        here, there = (self.boundary_branch(self.backbone.stages(x)) for x in (padded, padded.flip(3)))
        return self._cropped(((here + there.flip(2)).float() / 2).sigmoid(), image)

    def affinities(self, image: Tensor) -> tuple[Pairs, Tensor]:
        """Return what a walk over `image` (N, 3, H, W) needs: its `pairs`, and 1 - B (N, h, w), to multiply maps by."""
        boundary = self.boundary(image)
        return boundary_affinity(boundary, self.walk_radius), 1 - boundary

    def pairs(self, image: Tensor) -> Pairs:
        """Return offsets within `walk_radius`, and affinities (N, h - |dy|, w - |dx|), of `image` (N, 3, H, W)."""
        return self.affinities(image)[0]

    def displacement(self, image: Tensor) -> Tensor:
        """Return how far it is from each cell of `image` (N, 3, H, W) to its object's middle (N, 2, h, w), in cells."""
        self._check_displacement()
        stages = self.backbone.stages(self._padded(image, 0.0))
        return self._cropped(self.displacement_branch(stages), image)

    @torch.no_grad()
    def centre_displacement(self, images: Iterable[Tensor]) -> None:
        """Measure the mean displacement over `images`, batches (N, 3, H, W), and subtract it from now on.

        The loss knows differences alone, so a trained branch is off by a constant. To be done after the training.
        """
        self._check_displacement()
        mean = self.displacement_branch.mean
        mean.zero_()
        sums, cells = torch.zeros_like(mean), 0
        for image in images:
            field = self.displacement(image)
            sums += field.sum((0, 2, 3))
            cells += field[:, 0].numel()
        if not cells:
            raise WsssError("images: none to take the mean displacement of; give those that were trained on")
        mean.copy_(sums / cells)

    def loss(self, batch: MaskBatch, progress: Progress) -> Losses:
        """The weighted sum of all terms for a `batch` of images and sure labels; `progress` plays no part."""
        stages = self.backbone.stages(self._padded(batch.image, 0.0))
        boundary = self.boundary_branch(stages).float().sigmoid()
        mask = cell_labels(self._padded(batch.mask, IGNORE), boundary.shape[1:])
        terms, weights = affinity_loss(boundary_affinity(boundary, self.radius), mask), AFFINITY_WEIGHTS
        if self.displacement_branch:
            terms |= displacement_losses(self.displacement_branch(stages), mask, self.radius)
            weights = weights | DISPLACEMENT_WEIGHTS
        return Losses.weighted(terms, weights)

    def parameter_groups(self, displacement_factor: float = 10.0) -> list[dict]:
        """Parameters that learn: the boundary's at the base rate, displacement's at `displacement_factor` times it."""
        groups = [("boundary", self.boundary_branch, 1.0)]
        if self.displacement_branch:
            groups.append(("displacement", self.displacement_branch, displacement_factor))
        return [{"name": name, "params": [*branch.parameters()], "lr_factor": own} for name, branch, own in groups]

    def _padded(self, x: Tensor, value: float) -> Tensor:
        # Below and to the right, to whole cells of every stage: so that one cell of one is so many of another.
        cell = math.lcm(self.stride, *self.backbone.strides)
        height, width = x.shape[-2:]
        return F.pad(x, (0, -width % cell, 0, -height % cell), value=value)

    def _cropped(self, x: Tensor, image: Tensor) -> Tensor:
        height, width = (math.ceil(side / self.stride) for side in image.shape[2:])
        return x[..., :height, :width]

    def _check_displacement(self) -> None:
        if not self.displacement_branch:
            raise WsssError("displacement=False: this network has learnt none; build it with displacement=True")


def build(backbone: Backbone, settings: Mapping) -> IRNet:
    """Make an IRNet out of its section of the settings.

    Parameters
    ----------
    backbone : Backbone
        Gives the features; is frozen.
    settings : mapping
        ``stride, radius, walk_radius, displacement``.

    Returns
    -------
    IRNet

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> own = {"stride": 4, "radius": 3.0, "walk_radius": 2.0, "displacement": False}
    >>> build(backbones.build("tiny"), own).radius
    3.0
    """
    own = (settings[name] for name in ("stride", "radius", "walk_radius", "displacement"))
    return IRNet(backbone, *own)


def _reduction(n_in: int, n_out: int) -> nn.Sequential:
    # Groups of 8 channels or more, at most 16: 4 for 32 channels, 8 for 64, 16 for 128 and for 256.
    groups = math.gcd(n_out, max(1, min(n_out // 8, 16)))
    return nn.Sequential(nn.Conv2d(n_in, n_out, 1, bias=False), nn.GroupNorm(groups, n_out))


def _resized(x: Tensor, factor: float) -> Tensor:
    height, width = (round(side * factor) for side in x.shape[2:])
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
