r"""SEAM: a smaller copy of an image should give a smaller copy of its maps, and looking alike spreads them.

One idea: an image-level label does not change when the image is scaled, but the map of a classifier does. Equality of
both maps is a supervision that costs no label; maps refined by pixel correlation (PCM) and maps that are not teach
each other across the two views. Wang et al., Self-supervised Equivariant Attention Mechanism for Weakly Supervised
Semantic Segmentation, CVPR 2020, as its released code reads it. The background is computed, not learnt, so the
classifier is CAM's; maps are compared on the smaller view's grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from wsss_lib.errors import SettingsError
from wsss_lib.methods.base import Losses, Progress, check_range
from wsss_lib.methods.refining import Refining
from wsss_lib.nn.class_maps import hardest_mean, keep_strongest, min_max, with_background

if TYPE_CHECKING:
    from wsss_lib.backbones.base import Backbone
    from wsss_lib.data.samples import Batch


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The transform A: bilinear, corner to corner.

    Parameters
    ----------
    maps : Tensor
        (N, K, h, w): images or maps.
    size : tuple of int
        New (height, width).

    Returns
    -------
    Tensor
        (N, K, height, width).

    References
    ----------
    Wang et al. 2020; in the released code the factor is 0.3, before and after the network.

    Examples
    --------
    >>> import torch
    >>> resize(torch.tensor([[[[0.0, 1.0, 2.0, 3.0, 4.0]]]]), (1, 3))
    tensor([[[[0., 2., 4.]]]])
    """
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)


def equivariance_loss(original: Tensor, small: Tensor) -> Tensor:
    r"""How far the maps of the small view are from the small maps of the image:
    :math:`L_{ER} = \overline{|A(\hat y^o) - \hat y^t|}`; both learn.

    Parameters
    ----------
    original : Tensor
        A(y^o) (N, K, h, w) in [0, 1], without background.
    small : Tensor
        y^t (N, K, h, w).

    Returns
    -------
    Tensor
        Scalar, 0 or more.

    References
    ----------
    Wang et al. 2020, the equivariant regularisation loss.

    Examples
    --------
    >>> import torch
    >>> equivariance_loss(torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2, 2), 0.5))
    tensor(0.5000)
    """
    return (original - small).abs().mean()


def cross_loss(
    original: Tensor, small: Tensor, refined_original: Tensor, refined_small: Tensor, share: float = 0.2
) -> Tensor:
    r"""How far each view's refined maps are from the other view's maps before the refinement, over the hardest cells.

    .. math:: L_{ECR} = \mathrm{top}_{20\%} |\mathrm{oh}(\hat y^t) - A(y^o)|
              + \mathrm{top}_{20\%} |\mathrm{oh}(A(\hat y^o)) - y^t|

    where oh keeps the largest class of each cell; only the refined maps learn.

    Parameters
    ----------
    original, small : Tensor
        Maps before the refinement (N, K, h, w) in [0, 1], without background; no gradient flows here.
    refined_original, refined_small : Tensor
        Refined maps (N, 1 + K, h, w) in [0, 1]; channel 0 is background.
    share : float
        How many of an image's errors count, more than 0 up to 1.

    Returns
    -------
    Tensor
        Scalar, 0 or more.

    References
    ----------
    Wang et al. 2020, the equivariant cross regularisation loss; the largest class and the hardest cells are those of
    its released code.

    Examples
    --------
    >>> import torch
    >>> maps = torch.tensor([[[[0.25, 0.75]], [[0.0, 0.0]]]])
    >>> refined = with_background(maps)
    >>> cross_loss(maps, maps, refined, refined), cross_loss(maps, maps, refined, 0 * refined)
    (tensor(0.), tensor(0.7500))
    """
    of_original, of_small = (keep_strongest(with_background(maps.detach())) for maps in (original, small))
    return hardest_mean((of_small - refined_original).abs(), share) + hardest_mean(
        (of_original - refined_small).abs(), share
    )


class SEAM(Refining):
    r"""CAM on two views of each image, with refined maps: :math:`L = L_{cls} + L_{ER} + L_{ECR}`.

    L_cls has two terms, the classification and `min_pooling_loss`, each a mean over both views. Refined maps reach
    only the pixel features, classification and L_ER only the backbone and the classifier.

    Parameters
    ----------
    backbone : Backbone
        Gives the features.
    n_classes : int
        K, the number of foreground classes.
    scale : float
        Size of the second view relative to the image, between 0 and 1.
    share : float
        How many of an image's errors count in L_ECR.
    eps : float
        As in `min_max`, for the scores.
    prcm : bool
        Add CPN's PRCM to the refined maps: SEAM* of CPN's Table 1.

    Raises
    ------
    SettingsError
        For a value out of its range.

    Examples
    --------
    >>> import torch
    >>> from wsss_lib import backbones
    >>> SEAM(backbones.build("tiny"), n_classes=6).cam(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 6, 16, 16])
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int,
        scale: float = 0.3,
        share: float = 0.2,
        eps: float = 0.1,
        prcm: bool = False,
    ) -> None:
        super().__init__(backbone, n_classes, prcm)
        if not 0 < scale < 1:
            raise SettingsError(f"scale={scale}: give a factor between 0 and 1")
        check_range(1e-6, 1, share=share, eps=eps)
        self.scale, self.share, self.eps = scale, share, eps

    def loss(self, batch: Batch, progress: Progress) -> Losses:
        """Return the terms classify, rvmin, er and ecr of a `batch`; they do not change with `progress`."""
        image, label = batch.image, batch.label
        size = tuple(max(1, round(self.scale * side)) for side in image.shape[2:])
        views = self.views(image, resize(image, size))
        # One label a channel; background is in every image.
        with_0 = F.pad(label, (1, 0), value=1)
        grid = views[1][0].shape[2:]
        original, small = (resize(min_max(maps, label, self.eps), grid) for maps, _ in views)
        refined_original, refined_small = (resize(min_max(refined, with_0), grid) for _, refined in views)
        return Losses.weighted(
            {
                "classify": self.classify(views, label),
                "rvmin": self.rvmin(views, label),
                "er": equivariance_loss(original, small),
                "ecr": cross_loss(original, small, refined_original, refined_small, self.share),
            }
        )


def build(backbone: Backbone, n_classes: int, settings: Mapping[str, Any]) -> SEAM:
    """Make a `SEAM` for the registry.

    Parameters
    ----------
    backbone : Backbone
        Gives the features.
    n_classes : int
        K, the number of foreground classes.
    settings : mapping
        The section ``[seam]``.

    Returns
    -------
    SEAM
        The method.

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> from wsss_lib.settings import load
    >>> build(backbones.build("tiny"), 6, load("paper").seam).scale
    0.3
    """
    return SEAM(backbone, n_classes, settings["scale"], settings["share"], settings["eps"], settings["prcm"])
