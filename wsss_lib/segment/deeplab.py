"""DeepLab-v2, trained on pseudo masks.

One idea: dilated classifiers look at one feature map at several ranges, and their scores add up. So a pixel's class
is decided by what is near and by what is far, without losing resolution. There is nothing between the features and
the classes that would have to be learnt first, which suits few images and short trainings.

Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully
Connected CRFs", arXiv:1606.00915, section 3.2 (ASPP).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from wsss_lib.data.classes import IGNORE
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.methods.base import Losses, Progress, backbone_and_rest

if TYPE_CHECKING:
    from wsss_lib.backbones.base import Backbone
    from wsss_lib.data.samples import MaskBatch


def pixel_cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy at the size of the mask, averaged over the pixels that are not 255.

    Parameters
    ----------
    logits : (N,C,h,w) Tensor
        Class scores; brought to the mask's size bilinearly.
    mask : (N,H,W) Tensor of integers
        Labels 0..C-1, or 255 to ignore. If all is ignored the loss is 0 with a gradient of 0, not nan.

    Returns
    -------
    Tensor
        Scalar.

    Raises
    ------
    WsssError
        If a mask holds a label beyond C-1.

    Examples
    --------
    >>> import torch
    >>> float(pixel_cross_entropy(torch.zeros(1, 2, 1, 1), torch.tensor([[[0, 255]]])))
    0.6931471824645996
    >>> float(pixel_cross_entropy(torch.zeros(1, 2, 1, 1), torch.tensor([[[255, 255]]])))
    0.0
    """
    scored = mask != IGNORE
    if scored.any() and (top := int(mask[scored].max())) >= logits.shape[1]:
        raise WsssError(f"mask: holds class {top}, logits {logits.shape[1]} classes; give a larger n_classes")
    logits = F.interpolate(logits.float(), mask.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits, mask.long(), ignore_index=IGNORE, reduction="sum")
    return total / scored.sum().clamp(min=1)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling of DeepLab-v2: the sum of 3x3 classifiers of several dilations.

    Parameters
    ----------
    in_channels : int
        Channels of the feature map.
    n_classes : int
        Classes including background.
    dilations : sequence of int
        One classifier each. The paper's (6, 12, 18, 24) is for a grid of 41 cells; on a smaller one scale them
        along, since beyond the grid's side a 3x3 convolution sees padding only and is a 1x1.

    Raises
    ------
    SettingsError
        If there is no dilation.

    Examples
    --------
    >>> import torch
    >>> ASPP(8, n_classes=3, dilations=(1, 2))(torch.zeros(1, 8, 5, 6)).shape
    torch.Size([1, 3, 5, 6])
    """

    def __init__(self, in_channels: int, n_classes: int, dilations: Sequence[int]):
        super().__init__()
        if not dilations:
            raise SettingsError("dilations=[]: give at least one, [1] is a plain 3x3 classifier")
        self.classifiers = nn.ModuleList(
            nn.Conv2d(in_channels, n_classes, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        for classifier in self.classifiers:
            nn.init.normal_(classifier.weight, std=0.01)
            nn.init.zeros_(classifier.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Scores (N,n_classes,h,w) of `features` (N,in_channels,h,w), before the softmax."""
        return sum(classifier(features) for classifier in self.classifiers)


class DeepLab(nn.Module):
    """A backbone and ASPP.

    Parameters
    ----------
    backbone : Backbone
        Feature extractor with `out_channels` and `out_stride`.
    n_classes : int
        Classes including background.
    dilations : sequence of int
        As in `ASPP`.

    Examples
    --------
    >>> import torch
    >>> class Stub(nn.Conv2d):
    ...     out_channels, out_stride = 8, 4
    >>> backbone = Stub(3, 8, 4, stride=4)
    >>> DeepLab(backbone, n_classes=7, dilations=(1, 2))(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 7, 8, 8])
    """

    def __init__(self, backbone: Backbone, n_classes: int, dilations: Sequence[int] = (6, 12, 18, 24)):
        super().__init__()
        self.n_classes = n_classes
        self.backbone = backbone
        self.aspp = ASPP(backbone.out_channels, n_classes, dilations)

    def forward(self, image: Tensor) -> Tensor:
        """Class scores (N,C,h,w) of `image` (N,3,H,W) on the grid of the backbone, before the softmax."""
        return self.aspp(self.backbone(image))

    def loss(self, batch: MaskBatch, progress: Progress) -> Losses:
        """`pixel_cross_entropy` of a `batch` of images and pseudo masks; `progress` plays no part."""
        return Losses.weighted({"cross_entropy": pixel_cross_entropy(self(batch.image), batch.mask)})

    def parameter_groups(self, head_factor: float = 10.0) -> list[dict]:
        """Parameters that learn: the backbone's at the base rate, the head's at `head_factor` times it."""
        return backbone_and_rest(self, "head", head_factor)
