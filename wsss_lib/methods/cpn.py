r"""CPN: two complementary halves of an image together show more of an object than the image itself.

One idea: a classifier looks at the telling part. Hide random patches and it has to look elsewhere; hide the other
patches and it finds the rest. The sum of both maps, weighted by how much each half shows, teaches the map of the
whole image, and what one half lacks teaches the refined map of the other. Zhang et al., Complementary Patch for
Weakly Supervised Semantic Segmentation, ICCV 2021, equations 6 to 17. Stop-gradients, the largest class of each cell,
the min-max scaling and L_rvmin are not in the paper; they are those of its released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.methods.base import Losses, Progress, check_range
from wsss_lib.methods.refining import Refining
from wsss_lib.nn.class_maps import hardest_mean, keep_strongest, min_max
from wsss_lib.nn.patches import draw_side, grid_patches, hide, visible_share

if TYPE_CHECKING:
    from wsss_lib.backbones.base import Backbone
    from wsss_lib.data.samples import Batch

PATCHES = ("grid", "superpixel")
BACKGROUNDS = ("weighted", "whole", "code")


class Maps(NamedTuple):
    """The maps of one branch, on one scale.

    Parameters
    ----------
    raw : Tensor
        Y (N, K, h, w) in [0, 1], without background.
    refined : Tensor
        Y after PCM and PRCM (N, 1 + K, h, w) in [0, 1]; channel 0 is background.

    Examples
    --------
    >>> Maps(torch.zeros(1, 6, 4, 4), torch.zeros(1, 7, 4, 4)).raw.shape
    torch.Size([1, 6, 4, 4])
    """

    raw: Tensor
    refined: Tensor


def complementary_pair(image: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
    r"""Split an image in two: :math:`I_h = I \odot S`, :math:`I_{\bar h} = I \odot (1 - S)`; their sum is I exactly.

    Parameters
    ----------
    image : Tensor
        I (N, 3, H, W), normalised: a hidden pixel is 0, the mean colour.
    shown : Tensor
        S (N, 1, H, W) in {0, 1}: the pixels that the first half shows.

    Returns
    -------
    tuple of Tensor
        I_h and I_hbar (N, 3, H, W).

    Raises
    ------
    WsssError
        If S is no mask of these images.

    References
    ----------
    Zhang et al. 2021, section 3.1.

    Examples
    --------
    >>> complementary_pair(torch.full((1, 1, 1, 2), 3.0), torch.tensor([[[[1.0, 0.0]]]]))
    (tensor([[[[3., 0.]]]]), tensor([[[[0., 3.]]]]))
    """
    if shown.shape != (len(image), 1, *image.shape[2:]):
        raise WsssError(f"shown {tuple(shown.shape)}, images {tuple(image.shape)}: give one mask (N, 1, H, W) an image")
    hidden = image * shown
    return hidden, image - hidden


def triplet_loss(original: Maps, hidden: Maps, other: Maps, lam: Tensor) -> Tensor:
    r"""How far the image's maps are from the weighted sum of both halves'.

    .. math:: L_{tcp} = \overline{|\mathrm{sg}[\lambda Y_h + \bar\lambda Y_{\bar h}] - Y_o|}
              + \overline{|\lambda \tilde Y_h + \bar\lambda \tilde Y_{\bar h} - \tilde Y_o|}

    In the first term the halves teach and do not learn; refined maps all learn. Background does not count.

    Parameters
    ----------
    original, hidden, other : Maps
        Of I, I_h and I_hbar.
    lam : Tensor
        lambda (N,) in [0, 1].

    Returns
    -------
    Tensor
        Scalar, 0 or more; means, where the paper writes sums.

    References
    ----------
    Zhang et al. 2021, equation 14.

    Examples
    --------
    >>> zero, one = (Maps(torch.full((1, 2, 2, 2), v), torch.full((1, 3, 2, 2), v)) for v in (0.0, 1.0))
    >>> triplet_loss(one, one, zero, torch.tensor([0.75]))
    tensor(0.5000)
    """
    lam = lam.view(-1, 1, 1, 1)
    raw, refined = (lam * a + (1 - lam) * b for a, b in zip(hidden, other, strict=True))
    return (raw.detach() - original.raw).abs().mean() + (refined - original.refined)[:, 1:].abs().mean()


def remainder(original: Tensor, part: Tensor, weight: Tensor, background: str = "weighted") -> Tensor:
    r"""What a half leaves of the image's maps, for the other half to find: :math:`\mathrm{oh}(Y_o - \lambda Y_h)`.

    Parameters
    ----------
    original : Tensor
        Y_o (N, K, h, w) in [0, 1], without background.
    part : Tensor
        Y_h (N, K, h, w) in [0, 1], or that of the other half.
    weight : Tensor
        lambda (N,) of `part`.
    background : str
        Channel 0 of the result, D being the positive part of the difference. ``weighted``:
        :math:`1 - \lambda - \max_k D_k`, at least 0, the background of a map of weight :math:`1 - \lambda`, so that
        halves of one opinion cost nothing; ``whole``: :math:`1 - \max_k D_k`, as of any map, which no map of weight
        :math:`1 - \lambda` can reach; ``code``: the difference of both backgrounds,
        :math:`\max_k \lambda Y_h - \max_k Y_o`, which has to be the largest of all channels to stay: the target of
        the released code, which compares it with a background made anew from the half's weighted maps, as is not done
        here.

    Returns
    -------
    Tensor
        (N, 1 + K, h, w); of the classes only the largest of each cell stays.

    Raises
    ------
    SettingsError
        For another background.

    References
    ----------
    Zhang et al. 2021, equations 15 and 16, where the background of a difference is left open.

    Examples
    --------
    >>> whole, half = torch.tensor([[[[1.0]], [[0.5]]]]), torch.tensor([[[[0.25]], [[0.0]]]])
    >>> remainder(half, half, torch.tensor([0.5])).flatten()
    tensor([0.3750, 0.1250, 0.0000])
    >>> remainder(whole, half, torch.tensor([1.0]), "whole").flatten()
    tensor([0.2500, 0.7500, 0.0000])
    """
    if background not in BACKGROUNDS:
        raise SettingsError(f"background={background!r}: choose one of {', '.join(BACKGROUNDS)}")
    weight = weight.view(-1, 1, 1, 1)
    part = weight * part
    if background == "code":
        channels = torch.cat([part.amax(1, keepdim=True) - original.amax(1, keepdim=True), original - part], 1)
        return torch.where(channels == channels.amax(1, keepdim=True), channels, 0)
    found = (original - part).relu()
    total = 1 if background == "whole" else 1 - weight
    return keep_strongest(torch.cat([(total - found.amax(1, keepdim=True)).relu(), found], 1))


def cross_loss(
    original: Maps, hidden: Maps, other: Maps, lam: Tensor, share: float = 0.2, background: str = "weighted"
) -> Tensor:
    r"""How far each half's refined map is from what the other half leaves of the image's map, over the hardest cells.

    .. math:: L_{cpcr} = \mathrm{top}_{20\%} |\mathrm{oh}(Y_o - \lambda Y_h) - \bar\lambda \tilde Y_{\bar h}|
              + \mathrm{top}_{20\%} |\mathrm{oh}(Y_o - \bar\lambda Y_{\bar h}) - \lambda \tilde Y_h|

    Parameters
    ----------
    original, hidden, other : Maps
        Of I, I_h and I_hbar; only the refined maps of the halves learn.
    lam : Tensor
        lambda (N,) in [0, 1].
    share : float
        How many of an image's errors count, more than 0 up to 1.
    background : str
        As in `remainder`.

    Returns
    -------
    Tensor
        Scalar, 0 or more.

    References
    ----------
    Zhang et al. 2021, equation 15, and section 4.1 on the hardest 20 %.

    Examples
    --------
    >>> from wsss_lib.nn.class_maps import with_background
    >>> raw = torch.tensor([[[[0.25, 0.75]], [[0.0, 0.0]]]])
    >>> maps = Maps(raw, with_background(raw))
    >>> cross_loss(maps, maps, maps, torch.tensor([0.5]))  # all of one opinion
    tensor(0.)
    """
    raw, weight = original.raw.detach(), lam.view(-1, 1, 1, 1)
    left_by_hidden = remainder(raw, hidden.raw.detach(), lam, background)
    left_by_other = remainder(raw, other.raw.detach(), 1 - lam, background)
    return hardest_mean((left_by_hidden - (1 - weight) * other.refined).abs(), share) + hardest_mean(
        (left_by_other - weight * hidden.refined).abs(), share
    )


class CPN(Refining):
    r"""Three branches of one network, for an image and its halves.

    .. math:: L = L_{cls} + w_2 L_{tcp} + w_3 L_{cpcr} + w L_{rvmin}

    Refined maps reach only the pixel features and phi; the backbone and the classifier learn from the classification
    and from the first term of L_tcp.

    Parameters
    ----------
    backbone : Backbone
        Gives the features.
    n_classes : int
        K, the number of foreground classes.
    patches : str
        ``grid``: squares; ``superpixel``: the regions that come with the batch.
    sides : sequence of int
        K of the paper: sides of the squares in pixels, one drawn for each image.
    p_h : float
        Share of the patches that are hidden, in [0, 1].
    share : float
        How many of an image's errors count in L_cpcr.
    eps : float
        As in `min_max`, for the scores.
    softmax_axis : str
        As in `pixel_region_correlation`.
    background : str
        As in `remainder`.
    w_tcp, w_cpcr : float
        w_2 and w_3 of equation 17, the weights of the two terms.
    w_rvmin : float
        Weight of `min_pooling_loss` of the refined maps. Not in the paper; in its released code, as in SEAM's. Without
        it the pixel features may become all alike.
    prcm : bool
        Add the PRCM to the refined maps; False: PCM alone, as in the paper's Table 2.

    Raises
    ------
    SettingsError
        For a value out of its range.

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> CPN(backbones.build("tiny"), n_classes=6).cam(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 6, 16, 16])
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int,
        patches: str = "grid",
        sides: Sequence[int] = (56, 112),
        p_h: float = 0.5,
        share: float = 0.2,
        eps: float = 0.1,
        softmax_axis: str = "class",
        background: str = "weighted",
        w_tcp: float = 1.0,
        w_cpcr: float = 1.0,
        w_rvmin: float = 1.0,
        prcm: bool = True,
    ) -> None:
        super().__init__(backbone, n_classes, prcm, softmax_axis)
        for name, given, choices in (
            ("patches", patches, PATCHES),
            ("background", background, BACKGROUNDS),
        ):
            if given not in choices:
                raise SettingsError(f"{name}={given!r}: choose one of {', '.join(choices)}")
        if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
            raise SettingsError(f"sides={sides!r}: give the sides of square patches in pixels, e.g. [56, 112]")
        check_range(0, 1, p_h=p_h)
        check_range(1e-6, 1, share=share, eps=eps)
        check_range(0, inf, w_tcp=w_tcp, w_cpcr=w_cpcr, w_rvmin=w_rvmin)
        self.patches, self.sides, self.p_h = patches, tuple(sides), p_h
        self.share, self.eps, self.background = share, eps, background
        self.w_tcp, self.w_cpcr, self.w_rvmin = w_tcp, w_cpcr, w_rvmin

    def draw_patches(self, batch: Batch) -> Tensor:
        """Return to which patch each pixel of a `batch` belongs (N, H, W): regions, or squares of a drawn size."""
        if self.patches == "grid":
            size = tuple(batch.image.shape[2:])
            return torch.stack([grid_patches(size, draw_side(self.sides)) for _ in batch.image])
        if batch.regions is None:
            raise SettingsError("patches='superpixel': the batch has no regions; make super-pixels, or take grid")
        return batch.regions

    def loss(self, batch: Batch, progress: Progress) -> Losses:
        """Return the terms classify, tcp, cpcr and rvmin of a `batch`; they do not change with `progress`."""
        patches = self.draw_patches(batch)
        shown = hide(patches, self.p_h)
        lam = visible_share(shown, patches)
        return self.triplet(batch.image, batch.label, shown.to(batch.image), lam.to(batch.image))

    def triplet(self, image: Tensor, label: Tensor, shown: Tensor, lam: Tensor) -> Losses:
        """Return the terms of `image` (N, 3, H, W), `label` (N, K), split by `shown` (N, 1, H, W), `lam` (N,)."""
        views = self.views(image, *complementary_pair(image, shown))
        # One label a channel; background is in every image.
        with_0 = F.pad(label, (1, 0), value=1)
        branches = [Maps(min_max(scores, label, self.eps), min_max(refined, with_0)) for scores, refined in views]
        return Losses.weighted(
            {
                "classify": self.classify(views, label),
                "tcp": triplet_loss(*branches, lam),
                "cpcr": cross_loss(*branches, lam, self.share, self.background),
                "rvmin": self.rvmin(views, label),
            },
            {"tcp": self.w_tcp, "cpcr": self.w_cpcr, "rvmin": self.w_rvmin},
        )


def build(backbone: Backbone, n_classes: int, settings: Mapping[str, Any]) -> CPN:
    """Make a `CPN` for the registry.

    Parameters
    ----------
    backbone : Backbone
        Gives the features.
    n_classes : int
        K, the number of foreground classes.
    settings : mapping
        The section ``[cpn]``.

    Returns
    -------
    CPN
        The method.

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> from wsss_lib.settings import load
    >>> build(backbones.build("tiny"), 6, load("paper").cpn).sides
    (56, 112)
    """
    names = ("patches", "sides", "p_h", "share", "eps", "softmax_axis", "background", "prcm")
    weights = ("w_tcp", "w_cpcr", "w_rvmin")
    return CPN(backbone, n_classes, **{name: settings[name] for name in names + weights})
