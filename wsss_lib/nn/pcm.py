"""Pixel correlation: maps spread over cells that look alike, and are weighted by the class that a cell looks like.

One idea: a classifier's map marks the telling part of an object, and what else belongs to it has similar early
features. PCM (Wang et al., SEAM, CVPR 2020) averages the map over similar cells; PRCM (Zhang et al., CPN, ICCV 2021)
asks how much each cell resembles the mean feature of each class. Neither teaches the network whose maps they refine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_lib.errors import SettingsError, WsssError

EPS = 1e-5
SOFTMAX_AXES = {"class": 1, "space": 2}


def pixel_correlation(features: Tensor, maps: Tensor) -> Tensor:
    r"""PCM: each cell gets the mean of the maps over the cells that look like it.

    .. math:: a_{ij} = \mathrm{ReLU}\Big(\frac{f_i^\top f_j}{\|f_i\| \|f_j\|}\Big), \qquad
              \tilde y_j = \frac{\sum_i y_i a_{ij}}{\sum_i a_{ij}}

    Parameters
    ----------
    features : Tensor
        f (N, C, h, w).
    maps : Tensor
        y (N, K, h, w).

    Returns
    -------
    Tensor
        (N, K, h, w), within the range of each map: the weights into a cell sum to 1.

    Raises
    ------
    WsssError
        If the two do not have the same images and cells.

    References
    ----------
    Wang et al. 2020, the pixel correlation module; CPN, equations 9 and 10, whose printed denominators are one
    number for the whole image and an L1 norm: read here as SEAM's.

    Examples
    --------
    >>> maps = torch.tensor([[[[1.0, 0.0, 0.0]]]])
    >>> alike = torch.tensor([[[[1.0, 2.0, 0.0]], [[0.0, 0.0, 1.0]]]])  # the first two cells point one way
    >>> pixel_correlation(alike, maps)
    tensor([[[[0.5000, 0.5000, 0.0000]]]])
    """
    if features.shape[0] != maps.shape[0] or features.shape[2:] != maps.shape[2:]:
        raise WsssError(f"features {tuple(features.shape)}, maps {tuple(maps.shape)}: both need the same cells")
    unit = F.normalize(_rows(features), dim=2, eps=EPS)
    alike = (unit @ unit.mT).relu_()
    total = alike.sum(1, keepdim=True).clamp(min=EPS)
    return (maps.flatten(2) @ alike / total).view_as(maps)


def pixel_region_correlation(
    maps: Tensor, features: Tensor, pixels: Tensor, weight: Tensor, softmax_axis: str = "class"
) -> Tensor:
    r"""PRCM: each map times how much each cell resembles the map's mean feature.

    .. math:: Z = \mathrm{softmax}_p(Y) X^\top, \qquad
              \tilde Y = Y \odot \mathrm{softmax}\Big(\frac{\phi(Z)\, g(X)}{\sqrt K}\Big)

    with :math:`\phi(Z) = \mathrm{ReLU}(Z W^\top)` and the ReLU of `pixels` for g(X).

    Parameters
    ----------
    maps : Tensor
        Y (N, K, h, w) in [0, 1], the background among them: soft regions.
    features : Tensor
        X (N, C_1, h, w).
    pixels : Tensor
        g(X) before its ReLU (N, C_2, h, w).
    weight : Tensor
        W (C_2, C_1) of phi.
    softmax_axis : str
        ``class``: the weights of a cell sum to 1 over its classes (OCR, where it comes from); ``space``: those of a
        class sum to 1 over the cells (released code), which makes this term some thousand times smaller than PCM's.

    Returns
    -------
    Tensor
        (N, K, h, w), never above Y.

    Raises
    ------
    SettingsError
        For another axis.

    References
    ----------
    CPN, equations 11 and 12, which leave the axis open and have no :math:`\sqrt K`; that is the released code's.

    Examples
    --------
    >>> maps, features = torch.ones(1, 4, 2, 2), torch.rand(1, 3, 2, 2)
    >>> pixel_region_correlation(maps, features, features, torch.eye(3)).sum(1)  # 4 equal regions: 1/4 each
    tensor([[[1., 1.],
             [1., 1.]]])
    """
    if softmax_axis not in SOFTMAX_AXES:
        raise SettingsError(f"softmax_axis={softmax_axis!r}: choose {' or '.join(SOFTMAX_AXES)}")
    regions = maps.flatten(2).softmax(2) @ _rows(features)
    relation = _rows(pixels).relu() @ F.linear(regions, weight).relu().mT / maps.shape[1] ** 0.5
    return maps * relation.mT.softmax(SOFTMAX_AXES[softmax_axis]).view_as(maps)


class PixelFeatures(nn.Module):
    """What cells look like: the image and the two stages before the last, on the last map's grid.

    The stages are detached, so that what learns from refined maps never reaches the backbone.

    Parameters
    ----------
    channels : sequence of int
        Channels of all stages of the backbone, at least 3.
    reduced : tuple of int
        Channels that the two stages are reduced to, by 1 x 1 convolutions and ReLU; never more than a stage has.

    The embedding is a 1 x 1 convolution to as many channels as both together: 192, as released.

    References
    ----------
    SEAM's released code (f8_3, f8_4 and f9); CPN, section 4.1, stages 3 and 4. No convolution has a bias.

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> net, image = backbones.build("tiny"), torch.zeros(1, 3, 64, 64)
    >>> features, embedding = PixelFeatures(net.channels)(image, net.stages(image))
    >>> features.shape, embedding.shape
    (torch.Size([1, 51, 16, 16]), torch.Size([1, 48, 16, 16]))
    """

    def __init__(self, channels: Sequence[int], reduced: tuple[int, int] = (64, 128)) -> None:
        super().__init__()
        if len(channels) < 3:
            raise WsssError(f"channels={tuple(channels)}: give a backbone of 3 stages or more")
        stages = channels[-3:-1]
        reduced = [min(pair) for pair in zip(stages, reduced, strict=True)]
        self.out_channels = 3 + sum(reduced)
        self.reduce = nn.ModuleList(nn.Conv2d(a, b, 1, bias=False) for a, b in zip(stages, reduced, strict=True))
        self.embed = nn.Conv2d(self.out_channels, sum(reduced), 1, bias=False)
        for layer in (*self.reduce, self.embed):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, image: Tensor, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the features X (N, out_channels, h, w) of `image` and its `stages`, and their embedding f."""
        size = stages[-1].shape[2:]
        image, *early = (
            F.interpolate(x.detach(), size, mode="bilinear", align_corners=True) for x in (image, *stages[-3:-1])
        )
        features = torch.cat([image, *(conv(x).relu() for conv, x in zip(self.reduce, early, strict=True))], 1)
        return features, self.embed(features)


def _rows(features: Tensor) -> Tensor:
    # (N, C, h, w) to (N, h w, C), a row a cell: so maps whose channels lie last need no copy, nor do their gradients.
    return features.flatten(2).mT
