"""DeepLab with atrous spatial pyramid pooling, trained on pseudo masks.

One idea: looking at one feature map through several dilations sees an object and its surroundings at several
sizes without losing resolution. The head is DeepLab-v3's (1x1, dilated 3x3 and image-pooling branches, fused
by 1x1); v2 sums dilated classifiers instead. Groups are normalised where v3 uses BatchNorm, for batches here
are of a few images and the image-pooling branch has one value a channel.

Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv:1706.05587, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss_lib.data.classes import IGNORE
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.methods.base import Losses, Progress

if TYPE_CHECKING:
    from wsss_lib.backbones.base import Backbone
    from wsss_lib.data.samples import MaskBatch
CHANNELS_PER_GROUP = 16


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
    """Atrous spatial pyramid pooling of DeepLab-v3: parallel branches, concatenated and fused.

    Parameters
    ----------
    in_channels : int
        Channels of the feature map.
    hidden : int
        Channels of each branch and of the output; up to 16, or a multiple of 16.
    dilations : sequence of int
        One dilated 3x3 branch each. The paper's (6, 12, 18) is for a grid of 33 cells; on a smaller one scale
        them along, since beyond the grid's side a 3x3 convolution sees padding only and is a 1x1.
    dropout : float
        Share of the fused values dropped in training.

    Raises
    ------
    SettingsError
        If `hidden` cannot be cut into groups.

    Examples
    --------
    >>> ASPP(8, 16, dilations=(1, 2))(torch.zeros(1, 8, 5, 6)).shape
    torch.Size([1, 16, 5, 6])
    """

    def __init__(self, in_channels: int, hidden: int, dilations: Sequence[int], dropout: float = 0.1):
        super().__init__()
        if hidden > CHANNELS_PER_GROUP and hidden % CHANNELS_PER_GROUP:
            raise SettingsError(f"hidden={hidden}: give a multiple of {CHANNELS_PER_GROUP}")
        dilated = [_block(in_channels, hidden, 3, dilation) for dilation in dilations]
        self.branches = nn.ModuleList([_block(in_channels, hidden), *dilated])
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), _block(in_channels, hidden))
        self.fuse = _block(hidden * (len(self.branches) + 1), hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Map `features` (N,in_channels,h,w) to (N,hidden,h,w)."""
        views = [branch(features) for branch in self.branches]
        views.append(self.pooled(features).expand_as(views[0]))
        return self.dropout(self.fuse(torch.cat(views, dim=1)))


class DeepLab(nn.Module):
    """A backbone, ASPP and a 1x1 classifier.

    Parameters
    ----------
    backbone : Backbone
        Feature extractor with `out_channels` and `out_stride`.
    n_classes : int
        Classes including background.
    dilations, hidden, dropout
        As in `ASPP`.

    Examples
    --------
    >>> class Stub(nn.Conv2d):
    ...     out_channels, out_stride = 8, 4
    >>> backbone = Stub(3, 8, 4, stride=4)
    >>> DeepLab(backbone, n_classes=7, dilations=(1, 2), hidden=16)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 7, 8, 8])
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int,
        dilations: Sequence[int] = (6, 12, 18),
        hidden: int = 256,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.n_classes = n_classes
        self.backbone = backbone
        self.aspp = ASPP(backbone.out_channels, hidden, dilations, dropout)
        self.classifier = nn.Conv2d(hidden, n_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Class scores (N,C,h,w) of `image` (N,3,H,W) on the grid of the backbone, before the softmax."""
        return self.classifier(self.aspp(self.backbone(image)))

    def loss(self, batch: MaskBatch, progress: Progress) -> Losses:
        """`pixel_cross_entropy` of a `batch` of images and pseudo masks; `progress` plays no part."""
        return Losses.weighted({"cross_entropy": pixel_cross_entropy(self(batch.image), batch.mask)})

    def parameter_groups(self, head_factor: float = 10.0) -> list[dict]:
        """Parameters that learn: the backbone's at the base rate, the head's at `head_factor` times it."""
        inside = {id(parameter) for parameter in self.backbone.parameters()}
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"name": "backbone", "params": [p for p in learning if id(p) in inside], "lr_factor": 1.0},
            {
                "name": "head",
                "params": [p for p in learning if id(p) not in inside],
                "lr_factor": head_factor,
            },
        ]
        return [group for group in groups if group["params"]]


def _block(in_channels: int, out_channels: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False),
        nn.GroupNorm(max(1, out_channels // CHANNELS_PER_GROUP), out_channels),
        nn.ReLU(inplace=True),
    )
