r"""Fusion: deep features, coarse and sure, with shallow ones, fine and unsure. Two streams come out, on the fine grid.

One idea: what is multiplied cell by cell should mean the same place. SF2 (semantically consistent feature fusion)
learns from both where each fine cell has to look on the coarse grid, then gives either stream what both agree on. Wang
et al., Coupling Global Context and Local Contents for Weakly-Supervised Semantic Segmentation (WS-FCN), section III-C.
Sum, concatenation and product without the alignment are those of its Table II; their parameter counts say that only
these two things differ. The baseline's fusion (SSSS: Araslanov and Roth, CVPR 2020) gives the shallow stream a cue of
the whole image.

Where equations and parameter counts disagree, the counts are followed (+3.82 M for SF2 in place of the baseline's on
256 channels; all sizes in Tables I and II come out).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.embedding import embedding

COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": torch.mul,
    "sum": torch.add,
    "concatenation": lambda deep, shallow: torch.cat([deep, shallow], 1),
}


def upsample(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear upsampling with aligned corners: the outermost cells' centres stay where they are.

    Parameters
    ----------
    features : Tensor
        (N, C, h, w).
    size : tuple of int
        (H, W).

    Returns
    -------
    Tensor
        (N, C, H, W).

    Examples
    --------
    >>> upsample(torch.tensor([[[[0.0, 1.0]]]]), (1, 3))
    tensor([[[[0.0000, 0.5000, 1.0000]]]])
    """
    return F.interpolate(features, size, mode="bilinear", align_corners=True)


def sample_at_offsets(features: Tensor, offsets: Tensor) -> Tensor:
    r"""Bilinear upsampling where each fine cell looks beside its place: offsets of 0 are `upsample`.

    .. math:: \hat F_p = \sum_{q \in N(p')} W_q F_q, \qquad
              p' = 2 \frac{p}{(W, H) - 1} - 1 + \frac{\Delta_p}{(W, H)}

    on a grid where -1 and 1 are the centres of the outermost cells, so one unit is nearly half a fine cell.

    Parameters
    ----------
    features : Tensor
        F (N, C, h, w).
    offsets : Tensor
        Delta (N, 2, H, W): to the right, and down.

    Returns
    -------
    Tensor
        (N, C, H, W); beyond the outermost cells features fade to 0.

    Raises
    ------
    WsssError
        If the two do not have the same images, or there are not two offsets.

    References
    ----------
    WS-FCN, equations 9 to 12; the unit is the released code's, and of no matter, as the offsets are learnt.

    Examples
    --------
    >>> features, offsets = torch.tensor([[[[0.0, 1.0, 2.0]]]]), torch.zeros(1, 2, 1, 3)
    >>> offsets[:, 0] = 1.5  # to the right by 1.5 / 3 of a unit, and the cells are 1 unit apart
    >>> sample_at_offsets(features, offsets)
    tensor([[[[0.5000, 1.5000, 1.0000]]]])
    """
    if offsets.ndim != 4 or offsets.shape[1] != 2 or len(offsets) != len(features):
        shapes = f"offsets have shape {tuple(offsets.shape)}, features {tuple(features.shape)}"
        raise WsssError(f"{shapes}: give (N, 2, H, W) and (N, C, h, w)")
    dtype = torch.promote_types(features.dtype, torch.float32)
    offsets = offsets.to(dtype)
    height, width = offsets.shape[2:]
    across, down = (
        torch.linspace(-1, 1, side, dtype=dtype, device=offsets.device) if side > 1 else offsets.new_zeros(1)
        for side in (width, height)
    )
    grid = torch.stack([across + offsets[:, 0] / width, down[:, None] + offsets[:, 1] / height], 3)
    return F.grid_sample(features.to(dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=True)


class Alignment(nn.Module):
    """Where each fine cell looks on the coarse grid: offsets learnt from both streams, and the features found there.

    Parameters
    ----------
    deep_channels, shallow_channels : int
        Channels of the streams.
    reduced : int
        Channels that each is reduced to by a 1 x 1 convolution; never more than it has.

    References
    ----------
    WS-FCN, equation 11, with a linear 3 x 3 convolution for E: with its ReLU, cells could look one way only.

    Examples
    --------
    >>> align = Alignment(16, 8)
    >>> deep, shallow = torch.zeros(1, 16, 4, 4), torch.zeros(1, 8, 8, 8)
    >>> align(deep, shallow).shape, align.offsets(deep, shallow).shape
    (torch.Size([1, 16, 8, 8]), torch.Size([1, 2, 8, 8]))
    """

    def __init__(self, deep_channels: int, shallow_channels: int, reduced: int = 128) -> None:
        super().__init__()
        widths = [min(reduced, channels) for channels in (deep_channels, shallow_channels)]
        self.reduce_deep = nn.Conv2d(deep_channels, widths[0], 1, bias=False)
        self.reduce_shallow = nn.Conv2d(shallow_channels, widths[1], 1, bias=False)
        self.to_offsets = nn.Conv2d(sum(widths), 2, 3, padding=1, bias=False)

    def offsets(self, deep: Tensor, shallow: Tensor) -> Tensor:
        """Return Delta (N, 2, H, W), to the right and down, of streams (N, C, h, w) and (N, C', H, W)."""
        coarse = upsample(self.reduce_deep(deep), shallow.shape[2:])
        return self.to_offsets(torch.cat([coarse, self.reduce_shallow(shallow)], 1))

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        """Return the deep features (N, C, H, W) on the grid of the shallow ones."""
        return sample_at_offsets(deep, self.offsets(deep, shallow))


class TwoStreams(nn.Module):
    r"""Deep and shallow features, each plus what both together say:
    :math:`F' = E(E(F) + E(E(E(\gamma F^h)) \odot E(E(F^l))))` for either F.

    Parameters
    ----------
    deep_channels, shallow_channels : int
        Channels of :math:`F^h` and :math:`F^l`.
    out_channels : int
        Channels of both streams.
    combine : str
        ``product`` (:math:`\odot`), ``sum`` or ``concatenation``.
    align : bool
        :math:`\gamma` samples at learnt offsets; False: it is bilinear upsampling.

    Raises
    ------
    SettingsError
        For another `combine`.
    WsssError
        In `forward`, for other channels, or other images.

    References
    ----------
    WS-FCN, equations 7 and 8; as in the released code each factor goes through E twice and the product through E,
    and what is added is the first E of the own stream.

    Examples
    --------
    >>> deep, shallow = TwoStreams(16, 8, 12)(torch.zeros(2, 16, 4, 4), torch.zeros(2, 8, 8, 8))
    >>> deep.shape, shallow.shape
    (torch.Size([2, 12, 8, 8]), torch.Size([2, 12, 8, 8]))
    """

    def __init__(
        self,
        deep_channels: int,
        shallow_channels: int,
        out_channels: int = 256,
        combine: str = "product",
        align: bool = True,
    ) -> None:
        super().__init__()
        if combine not in COMBINE:
            raise SettingsError(f"combine={combine!r}: choose {', '.join(COMBINE)}")
        self.channels, self.combine = (deep_channels, shallow_channels), combine
        self.align = Alignment(deep_channels, shallow_channels) if align else None
        combined = 2 * out_channels if combine == "concatenation" else out_channels
        self.deep, self.shallow = (
            nn.ModuleDict(
                {
                    "first": embedding(channels, out_channels, 3),
                    "second": embedding(out_channels, out_channels, 3),
                    "combined": embedding(combined, out_channels, 3),
                    "last": embedding(out_channels, out_channels, 3),
                }
            )
            for channels in self.channels
        )

    def forward(self, deep: Tensor, shallow: Tensor) -> tuple[Tensor, Tensor]:
        """Return both streams (N, out_channels, H, W) of features (N, C, h, w) and (N, C', H, W)."""
        _check(deep, shallow, self.channels)
        deep = upsample(deep, shallow.shape[2:]) if self.align is None else self.align(deep, shallow)
        first = self.deep["first"](deep), self.shallow["first"](shallow)
        both = COMBINE[self.combine](self.deep["second"](first[0]), self.shallow["second"](first[1]))
        streams = zip((self.deep, self.shallow), first, strict=True)
        deep, shallow = (stream["last"](own + stream["combined"](both)) for stream, own in streams)
        return deep, shallow


def inject_cue(features: Tensor, cue: Tensor) -> Tensor:
    r"""Scale and shift channels by what is said of the whole image: :math:`(1 + \gamma_c) x_c + \beta_c`.

    Parameters
    ----------
    features : Tensor
        x (N, C, h, w), each channel of mean 0 and variance 1.
    cue : Tensor
        gamma, then beta: (N, 2 C).

    Returns
    -------
    Tensor
        (N, C, h, w).

    References
    ----------
    Huang and Belongie, Arbitrary Style Transfer in Real-Time with Adaptive Instance Normalization, ICCV 2017.

    Examples
    --------
    >>> inject_cue(torch.tensor([[[[-1.0, 1.0]]]]), torch.tensor([[1.0, 0.5]]))
    tensor([[[[-1.5000,  2.5000]]]])
    """
    gamma, beta = cue[:, :, None, None].chunk(2, 1)
    return (1 + gamma) * features + beta


class GCI(nn.Module):
    """The baseline's fusion, with global cue injection: shallow features that are told of the whole image.

    The deep stream is DeepLab v3+'s: deep features beside a few shallow ones. In the shallow stream each channel is
    scaled and shifted by what is largest over the image in an embedding of the deep stream.

    Parameters
    ----------
    deep_channels, shallow_channels : int
        Channels of the features.
    out_channels : int
        Channels of both streams.
    reduced : int
        Channels of the shallow features in the deep stream; never more than they have.

    References
    ----------
    Araslanov and Roth 2020; the structure is that of the released code, which has 0.977 M parameters.

    Examples
    --------
    >>> deep, shallow = GCI(16, 8, 12)(torch.zeros(2, 16, 4, 4), torch.zeros(2, 8, 8, 8))
    >>> deep.shape, shallow.shape
    (torch.Size([2, 12, 8, 8]), torch.Size([2, 12, 8, 8]))
    """

    def __init__(self, deep_channels: int, shallow_channels: int, out_channels: int = 256, reduced: int = 48) -> None:
        super().__init__()
        self.channels = deep_channels, shallow_channels
        reduced = min(reduced, shallow_channels)
        self.reduce = embedding(shallow_channels, reduced, 1)
        self.merge = embedding(deep_channels + reduced, out_channels, 3)
        self.cue = embedding(out_channels, 2 * out_channels, 1)
        self.normalise = nn.Sequential(
            nn.Conv2d(shallow_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels, affine=False)
        )
        self.last = embedding(out_channels, out_channels, 1)

    def forward(self, deep: Tensor, shallow: Tensor) -> tuple[Tensor, Tensor]:
        """Return both streams (N, out_channels, H, W) of features (N, C, h, w) and (N, C', H, W)."""
        _check(deep, shallow, self.channels)
        deep = self.merge(torch.cat([upsample(deep, shallow.shape[2:]), self.reduce(shallow)], 1))
        cue = self.cue(deep).amax((2, 3))
        return deep, self.last(inject_cue(self.normalise(shallow), cue).relu())


FUSIONS: dict[str, Callable[..., nn.Module]] = {
    "gci": GCI,
    "sf2": TwoStreams,
    "sum": partial(TwoStreams, combine="sum", align=False),
    "concatenation": partial(TwoStreams, combine="concatenation", align=False),
    "multiplication": partial(TwoStreams, combine="product", align=False),
}


def _check(deep: Tensor, shallow: Tensor, channels: tuple[int, int]) -> None:
    if (
        deep.ndim != 4
        or shallow.ndim != 4
        or (deep.shape[1], shallow.shape[1]) != channels
        or len(deep) != len(shallow)
    ):
        shapes = f"deep features have shape {tuple(deep.shape)}, shallow {tuple(shallow.shape)}"
        raise WsssError(f"{shapes}: give (N, {channels[0]}, h, w) and (N, {channels[1]}, H, W)")
