r"""AffinityNet (PSA): a network that tells which cells near each other show the same thing.

One idea: where a class map is sure of object or background, pairs of near cells teach what belongs together and what
does not; the network then says it of all pairs, whatever their class, and a random walk over them carries the map to
the rest of the object (`refine.random_walk`). Ahn and Kwak, Learning Pixel-level Semantic Affinity with Image-level
Supervision for Weakly Supervised Semantic Segmentation, CVPR 2018.

The affinity is a distance of features alone, so it is symmetric and one half of the neighbours is enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.methods.base import Losses, Progress, backbone_and_rest, check_range
from wsss_lib.nn.pairs import AFFINITY_WEIGHTS, Offset, Pairs, affinity_loss, cell_labels, ends, offsets

if TYPE_CHECKING:
    from wsss_lib.backbones.base import Backbone
    from wsss_lib.data.samples import MaskBatch


class _Likeness(torch.autograd.Function):
    # exp(-mean_c |a - b|). Autograd would keep the difference a - b for the gradient of each offset, together 34 times
    # the features; here only views of the features are kept, and the difference is taken again.

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        likeness = (a - b).abs_().mean(1).neg_().exp_()
        ctx.save_for_backward(a, b, likeness)
        return likeness

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        a, b, likeness = ctx.saved_tensors
        towards = (b - a).sign_().mul_((gradient * likeness / a.shape[1])[:, None])
        return towards, -towards


def feature_affinity(features: Tensor, radius: float = 5) -> Iterator[tuple[Offset, Tensor]]:
    r"""How alike each cell and each of its neighbours within a radius are.

    .. math:: a_{ij} = \exp\Big(-\frac{1}{C} \sum_c |f_{c,i} - f_{c,j}|\Big)

    Parameters
    ----------
    features : Tensor
        f (N, C, h, w). The distance is taken in float32 at least, under autocast too.
    radius : float
        In cells, as in `offsets`.

    Yields
    ------
    tuple of (offset, Tensor)
        (dy, dx), and a in (0, 1] (N, h - \|dy\|, w - \|dx\|); one offset at a time, so that no tensor holds all.

    Raises
    ------
    SettingsError
        If no cell is that near.

    References
    ----------
    Ahn and Kwak 2018, equation 3; the mean, :math:`1/448` of the L1 norm, is the released code's.

    Examples
    --------
    >>> features = torch.tensor([[[[0.0, 0.0, 2.0]], [[1.0, 1.0, 3.0]]]])
    >>> [(offset, values.tolist()) for offset, values in feature_affinity(features, radius=2) if values.numel()]
    [((0, 1), [[[1.0, 0.1353352814912796]]])]
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    for offset in offsets(radius):
        yield offset, _Likeness.apply(*ends(features, offset))


class AffinityNet(nn.Module):
    """A backbone whose last three stages, on one grid, make the features that affinities are taken of.

    Each stage goes through a 1 x 1 convolution and ELU, is brought to the grid bilinearly, and all three go through
    another 1 x 1 convolution and ELU. The backbone learns too: freeze what should not, as `Backbone.freeze` does.

    Parameters
    ----------
    backbone : Backbone
        Of three stages or more; best with the weights of a trained classifier.
    stride : float
        Image pixels a cell of the grid, which has ceil(H / stride) rows; the paper's is 8.
    radius : float
        gamma, in cells: pairs are nearer than this, in the loss and in `pairs`.
    reduced : sequence of int
        Channels that the three stages are reduced to; never more than a stage has.

    Raises
    ------
    WsssError
        For a backbone of fewer than three stages.
    SettingsError
        For a value out of its range.

    References
    ----------
    Ahn and Kwak 2018, section 3.2; channels, ELU and initial weights are those of the released code, in which all
    stages of its WideResNet-38 lie on the grid. No convolution has a bias.

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> net = AffinityNet(backbones.build("tiny"), stride=8)
    >>> net(torch.zeros(1, 3, 64, 60)).shape
    torch.Size([1, 112, 8, 8])
    >>> dict(net.pairs(torch.zeros(1, 3, 64, 60)))[1, -4].shape
    torch.Size([1, 7, 4])
    """

    def __init__(
        self, backbone: Backbone, stride: float = 8, radius: float = 5, reduced: Sequence[int] = (64, 128, 256)
    ) -> None:
        super().__init__()
        if len(backbone.channels) < 3:
            raise WsssError(f"channels={tuple(backbone.channels)}: give a backbone of 3 stages or more")
        if len(reduced) != 3 or min(reduced) < 1:
            raise SettingsError(f"reduced={list(reduced)}: give the channels of 3 stages, e.g. [64, 128, 256]")
        check_range(1, math.inf, stride=stride)
        offsets(radius)  # refuses a radius without pairs
        self.backbone, self.stride, self.radius = backbone, stride, radius
        stages = backbone.channels[-3:]
        widths = [min(pair) for pair in zip(stages, reduced, strict=True)]
        self.reduce = nn.ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in zip(stages, widths, strict=True))
        self.embed = nn.Conv2d(sum(widths), sum(widths), 1, bias=False)
        for layer in self.reduce:
            nn.init.kaiming_normal_(layer.weight)
        nn.init.xavier_uniform_(self.embed.weight, gain=4)

    def forward(self, image: Tensor) -> Tensor:
        """Return the features (N, C, ceil(H / stride), ceil(W / stride)) of `image` (N, 3, H, W)."""
        size = [math.ceil(side / self.stride) for side in image.shape[2:]]
        stages = self.backbone.stages(image)[-3:]
        maps = (F.elu(conv(x)) for conv, x in zip(self.reduce, stages, strict=True))
        # Cells tile the image, here and in `cell_labels`: hence not align_corners.
        maps = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in maps]
        return F.elu(self.embed(torch.cat(maps, 1)))

    def pairs(self, image: Tensor) -> Pairs:
        """Return the offsets and affinities (N, h - |dy|, w - |dx|) of `image` (N, 3, H, W), one offset at a time."""
        return feature_affinity(self(image), self.radius)

    def affinities(self, image: Tensor) -> tuple[Pairs, Tensor]:
        """Return `pairs` of `image` (N, 3, H, W), and the factor (N, h, w) on maps before they walk: 1 everywhere."""
        features = self(image)
        return feature_affinity(features, self.radius), torch.ones_like(features[:, 0])

    def loss(self, batch: MaskBatch, progress: Progress) -> Losses:
        """`affinity_loss` of a `batch` of images and sure labels, see `la_ha_mask`; `progress` plays no part."""
        features = self(batch.image)
        # The released code averages the scores of both CRFs over a cell and takes their labels there. Here a cell has
        # the label of its middle pixel, so that labels are written, read and augmented as any masks. On photographs 2
        # cells in 100 differ, nearly all of them by being unsure in one of the two, and as many labels are right.
        mask = cell_labels(batch.mask, features.shape[2:])
        return Losses.weighted(affinity_loss(feature_affinity(features, self.radius), mask), AFFINITY_WEIGHTS)

    def parameter_groups(self, head_factor: float = 10.0) -> list[dict]:
        """Parameters that learn: the backbone's at the base rate, the new layers' at `head_factor` times it."""
        return backbone_and_rest(self, "affinity", head_factor)


def build(backbone: Backbone, settings: Mapping) -> AffinityNet:
    """Make an AffinityNet out of its section of the settings.

    Parameters
    ----------
    backbone : Backbone
        Gives the features.
    settings : mapping
        ``stride, radius, reduced``.

    Returns
    -------
    AffinityNet

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> build(backbones.build("tiny"), {"stride": 4, "radius": 3.0, "reduced": [8, 8, 8]}).stride
    4
    """
    return AffinityNet(backbone, settings["stride"], settings["radius"], settings["reduced"])
