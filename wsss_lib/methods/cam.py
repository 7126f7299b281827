"""CAM: class activation maps from a classifier that averages its maps, as in IRN's first step.

One idea: averaging over space and a linear classifier commute. So the classifier's weights, applied at
every cell before the average, say how much each place speaks for each class. Zhou et al., Learning Deep
Features for Discriminative Localization, CVPR 2016, equations 1 and 2; without a bias, as in IRN, Ahn et al.,
CVPR 2019.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from wsss_lib.methods.base import Losses, Method, Progress, multi_label_soft_margin
from wsss_lib.nn.class_maps import class_maps

if TYPE_CHECKING:
    from wsss_lib.backbones.base import Backbone
    from wsss_lib.data.samples import Batch


def class_scores(features: Tensor, weight: Tensor) -> Tensor:
    r"""Class scores from the mean feature: :math:`s_k = \theta_k^\top \frac{1}{hw} \sum_p f_p`.

    Parameters
    ----------
    features : Tensor
        f (N, C, h, w).
    weight : Tensor
        theta (K, C).

    Returns
    -------
    Tensor
        Logits s (N, K).

    References
    ----------
    Zhou et al. 2016, equation 1.

    Examples
    --------
    >>> import torch
    >>> class_scores(torch.ones(1, 4, 2, 2), torch.ones(3, 4))
    tensor([[4., 4., 4.]])
    """
    return F.linear(features.mean((2, 3)), weight)


class CAM(Method):
    """A backbone, global average pooling and a 1 x 1 convolution without bias.

    Parameters
    ----------
    backbone : Backbone
        Gives the features f.
    n_classes : int
        K, the number of foreground classes.

    Examples
    --------
    >>> import torch
    >>> from wsss_lib import backbones
    >>> cam = CAM(backbones.build("tiny"), n_classes=6)
    >>> cam.cam(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 6, 16, 16])
    """

    def __init__(self, backbone: Backbone, n_classes: int) -> None:
        super().__init__(n_classes)
        self.backbone = backbone
        self.classifier = nn.Conv2d(backbone.out_channels, n_classes, 1, bias=False)

    @property
    def weight(self) -> Tensor:
        """The classifier's weights theta (K, C)."""
        return self.classifier.weight.flatten(1)

    def logits(self, image: Tensor) -> Tensor:
        """Return the class scores (N, K) before the sigmoid of `image` (N, 3, H, W)."""
        return class_scores(self.backbone(image), self.weight)

    def maps(self, image: Tensor) -> Tensor:
        """Return the class scores at every cell (N, K, h, w) of `image` (N, 3, H, W), of either sign."""
        return class_maps(self.backbone(image), self.weight)

    def loss(self, batch: Batch, progress: Progress) -> Losses:
        """Return the classification loss of a `batch`; it does not change with `progress`."""
        return Losses.weighted({"classify": multi_label_soft_margin(self.logits(batch.image), batch.label)})


def build(backbone: Backbone, n_classes: int, settings: Any = None) -> CAM:
    """Make a `CAM` for the registry.

    Parameters
    ----------
    backbone : Backbone
        Gives the features.
    n_classes : int
        K, the number of foreground classes.
    settings : any
        Not used: CAM has no settings of its own.

    Returns
    -------
    CAM
        The method.

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> build(backbones.build("tiny"), n_classes=6).n_classes
    6
    """
    return CAM(backbone, n_classes)
