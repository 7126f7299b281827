r"""Context: deep features (N, C, h, w) that have looked around, (N, d, h, w). WS-FCN's FCA, and what it is compared to.

One idea: a cell knows its class better if it sees what lies about it, near and far. FCA (flexible context aggregation)
looks along strips, :math:`k \times 1` and :math:`1 \times k`, which reach as far as a full kernel for 4k weights in
place of :math:`k^2` (MCLM), then weights channels and cells (SRM). Wang et al., Coupling Global Context and Local
Contents for Weakly-Supervised Semantic Segmentation (WS-FCN), section III-B. The others, non-local, large kernel, PPM
and ASPP, are those of its Table II; ASPP is the baseline's.

Where equations and parameter counts disagree, the counts are followed (+6.42 M for FCA in place of ASPP on 4096
channels; all sizes in Tables I and II come out): strips are dilated, a pooled image stands beside the four branches, E
of equation 4 is a 1 x 1 convolution and BatchNorm, one two-layer network weights the channels of all branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.embedding import embedding

KERNELS, DILATIONS, BINS = (1, 3, 5, 7), (1, 12, 24, 36), (1, 2, 3, 6)


def strip_pair(features: Tensor, first: Sequence[Tensor], second: Sequence[Tensor], dilation: int = 1) -> Tensor:
    r"""Row then column plus column then row, :math:`F^k = f^{k \times 1}(f^{1 \times k}(F)) +
    f^{1 \times k}(f^{k \times 1}(F))`: linear, and the grid stays.

    Parameters
    ----------
    features : Tensor
        F (N, C, h, w).
    first, second : sequence of Tensor
        The two kernels of each summand, (d, C, ...) and (d, d, ...), the inner one first; k is odd.
    dilation : int
        Cells between taps: the strip reaches k // 2 times as many cells to either side; beyond the grid are zeros.

    Returns
    -------
    Tensor
        (N, d, h, w).

    References
    ----------
    WS-FCN, equation 1.

    Examples
    --------
    >>> ones = torch.ones(1, 1, 1, 3), torch.ones(1, 1, 3, 1)
    >>> strip_pair(torch.ones(1, 1, 3, 3), ones, ones[::-1])  # twice the sum over 3 x 3 cells
    tensor([[[[ 8., 12.,  8.],
              [12., 18., 12.],
              [ 8., 12.,  8.]]]])
    """
    for name, kernel in zip(("first", "first", "second", "second"), (*first, *second), strict=True):
        if not all(side % 2 for side in kernel.shape[2:]):
            raise WsssError(f"{name}: a kernel of {' x '.join(map(str, kernel.shape[2:]))} cells: give odd sides")

    def strip(x: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(x, kernel, padding=[side // 2 * dilation for side in kernel.shape[2:]], dilation=dilation)

    return strip(strip(features, first[0]), first[1]) + strip(strip(features, second[0]), second[1])


def channel_attention(features: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    r"""Weight of each channel, :math:`M_c = \sigma(\mathrm{MLP}(\mathrm{mean}_p F) + \mathrm{MLP}(\max_p F))`.

    Parameters
    ----------
    features : Tensor
        F (N, C, h, w).
    inner, outer : Tensor
        The weights (R, C) and (C, R) of the MLP's two layers, ReLU in between.

    Returns
    -------
    Tensor
        (N, C, 1, 1) in (0, 1).

    References
    ----------
    WS-FCN, equation 2, which has one layer; the released code has two, as CBAM (Woo et al., ECCV 2018).

    Examples
    --------
    >>> channel_attention(torch.randn(1, 2, 3, 3), torch.eye(2), torch.zeros(2, 2)).flatten()
    tensor([0.5000, 0.5000])
    """
    pooled = features.mean((2, 3)), features.amax((2, 3))
    return sum(F.linear(F.linear(x, inner).relu(), outer) for x in pooled).sigmoid()[:, :, None, None]


def recalibrate(features: Tensor, kernel: Tensor) -> Tensor:
    r"""SRM: :math:`F^h = (1 + M_s) F`, with :math:`M_s = \sigma(f^{3 \times 3}[\mathrm{mean}_c F; \max_c F])`.

    Parameters
    ----------
    features : Tensor
        F (N, C, h, w).
    kernel : Tensor
        (1, 2, 3, 3).

    Returns
    -------
    Tensor
        (N, C, h, w); each cell is 1 to 2 times what it was.

    References
    ----------
    WS-FCN, equations 5 and 6.

    Examples
    --------
    >>> recalibrate(torch.ones(1, 4, 1, 2), torch.zeros(1, 2, 3, 3))[0, 0]
    tensor([[1.5000, 1.5000]])
    """
    of_channels = torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], 1)
    return (1 + F.conv2d(of_channels, kernel, padding=1).sigmoid()) * features


class FCA(nn.Module):
    """Flexible context aggregation: MCLM, strips of four sizes with channel attention, and SRM.

    Parameters
    ----------
    in_channels, out_channels : int
        C and d.
    kernels, dilations : sequence of int
        k and dilation of each branch; odd kernels. The published 1, 12, 24, 36 are for a grid of 41 cells, and of the
        7 taps 4 never lie in it even there; on small grids give less (1, 2, 3, 4).
    srm : bool
        Recalibrate cells; False: MCLM alone.
    eq4_strict : bool
        E as printed: 3 x 3 convolution, BatchNorm and ReLU on the four branches, without the pooled image.
    dropout : float
        Share of elements dropped at the end, in training.

    Raises
    ------
    SettingsError
        For even kernels, or not as many dilations.
    WsssError
        In `forward`, for other channels.

    References
    ----------
    WS-FCN, equations 1 to 6. The strips' unused BatchNorms of the released code (2048 weights) are left out.

    Examples
    --------
    >>> FCA(64, 16, dilations=(1, 2, 3, 4))(torch.zeros(2, 64, 8, 8)).shape
    torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        kernels: Sequence[int] = KERNELS,
        dilations: Sequence[int] = DILATIONS,
        srm: bool = True,
        eq4_strict: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if (
            not kernels
            or len(kernels) != len(dilations)
            or min(*kernels, *dilations) < 1
            or not all(k % 2 for k in kernels)
        ):
            given = f"kernels={tuple(kernels)}, dilations={tuple(dilations)}"
            raise SettingsError(f"{given}: give odd kernels and as many dilations of 1 or more")
        self.in_channels, self.dilations = in_channels, tuple(dilations)
        self.strips = nn.ModuleList(_strips(in_channels, out_channels, k) for k in kernels)
        self.attention = nn.ModuleList(nn.Linear(out_channels, out_channels, bias=False) for _ in range(2))
        self.image = None if eq4_strict else PooledContext(in_channels, out_channels)
        if eq4_strict:
            self.embed = embedding(len(kernels) * out_channels, out_channels, 3)
        else:
            self.embed = embedding((len(kernels) + 1) * out_channels, out_channels, 1)[:2]  # without ReLU
        self.spatial = nn.Conv2d(2, 1, 3, padding=1, bias=False) if srm else None
        self.dropout = nn.Dropout(dropout)

    def branches(self, features: Tensor) -> list[Tensor]:
        """Return what each strip pair makes of `features`, its channels weighted (equations 1 to 3)."""
        inner, outer = (layer.weight for layer in self.attention)
        found = []
        for kernels, dilation in zip(self.strips, self.dilations, strict=True):
            strips = strip_pair(features, kernels[:2], kernels[2:], dilation)
            found.append(channel_attention(strips, inner, outer) * strips)
        return found

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, out_channels, h, w) for `features` (N, in_channels, h, w)."""
        _check(features, self.in_channels)
        pooled = [] if self.image is None else [self.image(features)]
        found = self.embed(torch.cat([*self.branches(features), *pooled], 1))
        return self.dropout(found if self.spatial is None else recalibrate(found, self.spatial.weight))


class PooledContext(nn.Module):
    """The mean over each of bins x bins parts of the image, 1 x 1 convolution, BatchNorm and ReLU, on the old grid.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels.
    bins : int
        Parts a side; 1: the whole image.

    Raises
    ------
    WsssError
        In training on one image with ``bins=1``: BatchNorm cannot normalise one number.

    References
    ----------
    Zhao et al., Pyramid Scene Parsing Network, CVPR 2017; Chen et al. 2017, the image-level features of ASPP.

    Examples
    --------
    >>> PooledContext(8, 4).eval()(torch.rand(1, 8, 6, 7)).std((2, 3)).max() < 1e-6
    tensor(True)
    """

    def __init__(self, in_channels: int, out_channels: int, bins: int = 1) -> None:
        super().__init__()
        self.bins = bins
        self.embed = embedding(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, out_channels, h, w) for `features` (N, in_channels, h, w)."""
        if self.bins == 1 and len(features) == 1 and self.embed[1].training:
            raise WsssError("batch of one image: training cannot normalise the pooled image; give a (micro) batch of 2")
        pooled = self.embed(F.adaptive_avg_pool2d(features, self.bins))
        return F.interpolate(pooled, features.shape[2:], mode="bilinear", align_corners=True)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: dilated 3 x 3 convolutions side by side, a 1 x 1 one and the pooled image.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels.
    dilations : sequence of int
        Of the branches; the first is the 1 x 1 convolution, whose dilation is of no matter.
    dropout : float
        Share of elements dropped at the end, in training.

    References
    ----------
    Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation, arXiv 2017. Context of SSSS.

    Examples
    --------
    >>> ASPP(64, 16, dilations=(1, 2, 3, 4))(torch.zeros(2, 64, 8, 8)).shape
    torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self, in_channels: int, out_channels: int = 256, dilations: Sequence[int] = DILATIONS, dropout: float = 0.5
    ) -> None:
        super().__init__()
        if not dilations or min(dilations) < 1:
            raise SettingsError(f"dilations={tuple(dilations)}: give one or more, each 1 or more")
        self.in_channels = in_channels
        self.branches = nn.ModuleList([embedding(in_channels, out_channels, 1)])
        self.branches.extend(embedding(in_channels, out_channels, 3, dilation) for dilation in dilations[1:])
        self.branches.append(PooledContext(in_channels, out_channels))
        self.embed = embedding(len(self.branches) * out_channels, out_channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, out_channels, h, w) for `features` (N, in_channels, h, w)."""
        _check(features, self.in_channels)
        return self.dropout(self.embed(torch.cat([branch(features) for branch in self.branches], 1)))


class PPM(nn.Module):
    """Pyramid pooling: means over 1, 2 x 2, 3 x 3 and 6 x 6 parts beside the features, then a 3 x 3 convolution.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels.
    bins : sequence of int
        Parts a side, of each level; each is reduced to its share of `in_channels`.

    References
    ----------
    Zhao et al., Pyramid Scene Parsing Network, CVPR 2017.

    Examples
    --------
    >>> PPM(64, 16)(torch.zeros(2, 64, 8, 8)).shape
    torch.Size([2, 16, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int = 256, bins: Sequence[int] = BINS) -> None:
        super().__init__()
        if not bins or min(bins) < 1 or len(bins) > in_channels:
            raise SettingsError(f"bins={tuple(bins)}: give one or more, each 1 or more, at most in_channels of them")
        self.in_channels = in_channels
        reduced = in_channels // len(bins)
        self.levels = nn.ModuleList(PooledContext(in_channels, reduced, level) for level in bins)
        self.embed = embedding(in_channels + len(bins) * reduced, out_channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, out_channels, h, w) for `features` (N, in_channels, h, w)."""
        _check(features, self.in_channels)
        return self.embed(torch.cat([features, *(level(features) for level in self.levels)], 1))


class NonLocal(nn.Module):
    r"""Each cell gets the mean over all cells, by how much they are alike:
    :math:`F + W_z\, \mathrm{softmax}_q(\theta_p^\top \phi_q)\, g_q`, then a 1 x 1 convolution.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels; theta, phi and g have half as many as come in.

    References
    ----------
    Wang et al., Non-local Neural Networks, CVPR 2018: embedded Gaussian. W_z starts at 0, so the first term is all
    there is at first.

    Examples
    --------
    >>> NonLocal(64, 16)(torch.zeros(2, 64, 8, 8)).shape
    torch.Size([2, 16, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int = 256) -> None:
        super().__init__()
        self.in_channels = in_channels
        inner = max(1, in_channels // 2)
        self.project = nn.Conv2d(in_channels, 3 * inner, 1, bias=False)  # theta, phi and g
        self.expand = nn.Conv2d(inner, in_channels, 1, bias=False)  # W_z
        nn.init.zeros_(self.expand.weight)
        self.embed = embedding(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, out_channels, h, w) for `features` (N, in_channels, h, w)."""
        _check(features, self.in_channels)
        theta, phi, g = (x.flatten(2).mT for x in self.project(features).chunk(3, 1))
        seen = F.scaled_dot_product_attention(theta, phi, g, scale=1.0).mT.unflatten(2, features.shape[2:])
        return self.embed(features + self.expand(seen))


class LargeKernel(nn.Module):
    """One convolution with a large kernel, BatchNorm and ReLU.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels.
    kernel : int
        Side of the kernel, odd; 7 in WS-FCN's Table II.

    Examples
    --------
    >>> LargeKernel(64, 16)(torch.zeros(2, 64, 8, 8)).shape
    torch.Size([2, 16, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int = 256, kernel: int = 7) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise SettingsError(f"kernel={kernel}: give an odd number")
        self.in_channels = in_channels
        self.embed = embedding(in_channels, out_channels, kernel)

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, out_channels, h, w) for `features` (N, in_channels, h, w)."""
        _check(features, self.in_channels)
        return self.embed(features)


CONTEXTS: dict[str, Callable[..., nn.Module]] = {
    "fca": FCA,
    "mclm": partial(FCA, srm=False),
    "fca_strict": partial(FCA, eq4_strict=True),
    "aspp": ASPP,
    "non_local": NonLocal,
    "large_kernel": LargeKernel,
    "ppm": PPM,
}
DILATED = ("fca", "mclm", "fca_strict", "aspp")  # take `dilations` and `dropout`


def _strips(in_channels: int, out_channels: int, k: int) -> nn.ParameterList:
    # 1 x k then k x 1, k x 1 then 1 x k. No BatchNorm follows, so the draw sets how loud a branch is beside the pooled
    # image: He's keeps the size of features, torch's own makes two strips six times weaker.
    shapes = [(in_channels, (1, k)), (out_channels, (k, 1)), (in_channels, (k, 1)), (out_channels, (1, k))]
    convolutions = (nn.Conv2d(width, out_channels, side) for width, side in shapes)
    return nn.ParameterList(nn.init.kaiming_normal_(convolution.weight) for convolution in convolutions)


def _check(features: Tensor, in_channels: int) -> None:
    if features.ndim != 4 or features.shape[1] != in_channels:
        raise WsssError(f"features have shape {tuple(features.shape)}: give (images, {in_channels}, height, width)")
