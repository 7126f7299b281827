"""DeepLab-v2, trained on pseudo masks.

One idea: dilated classifiers look at one feature map at several ranges, and their scores add up. So a pixel's class
is decided by what is near and by what is far, without losing resolution. There is nothing between the features and
the classes that would have to be learnt first, which suits few images and short trainings. With `scales` the network
learns from smaller versions of each image, too, and from the largest score that a class has at any size.

Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully
Connected CRFs", arXiv:1606.00915, sections 3.2 (ASPP) and 4.1 (several scales). The masks keep their size and the
scores are enlarged, at every scale; the paper and deeplab-pytorch shrink the masks to the network's grids. That lost
fine detail, as DeepLab-v3 found (arXiv:1706.05587, section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsss_lib.data.classes import IGNORE
from wsss_lib.data.transforms import check_scales, scale_image
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.methods.base import Losses, Progress, backbone_and_rest, check_range
from wsss_lib.segment.predict import enlarge

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
    total = F.cross_entropy(enlarge(logits, mask.shape[-2:]), mask.long(), ignore_index=IGNORE, reduction="sum")
    return total / scored.sum().clamp(min=1)


def multi_scale_scores(model: Callable[[Tensor], Tensor], image: Tensor, scales: Sequence[float]) -> list[Tensor]:
    r"""Class scores of images, of other sizes of them, and the largest that a class has at a cell at any size.

    .. math:: F_c^{max}(p) = \max\{F_c(x)(p), \max_s U(F_c(x_s))(p)\}

    where U brings scores to the grid of F(x), bilinearly.

    Parameters
    ----------
    model : callable
        F: takes images (N,3,H,W), returns class scores (N,C,h,w).
    image : (N,3,H,W) Tensor
        x, normalised.
    scales : sequence of float
        s, factors on height and width; the full size comes by itself.

    Returns
    -------
    list of Tensor
        F(x), each F(x_s) on a grid of its own, and the largest on the grid of F(x); without scales F(x) alone.

    References
    ----------
    Chen et al., arXiv:1606.00915, section 4.1, with scales (0.5, 0.75); each of the outputs has a loss.

    Examples
    --------
    >>> scores = multi_scale_scores(torch.nn.Conv2d(3, 5, 1), torch.zeros(2, 3, 8, 8), scales=(0.5,))
    >>> [tuple(s.shape) for s in scores]
    [(2, 5, 8, 8), (2, 5, 4, 4), (2, 5, 8, 8)]
    """
    scores = [model(image), *(model(scale_image(image, scale)) for scale in scales)]
    if not scales:
        return scores
    grid = scores[0].shape[-2:]
    return [*scores, torch.stack([enlarge(s, grid) for s in scores]).amax(0)]


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
    scales : sequence of float
        Further sizes of the images to learn from, as in `multi_scale_scores`; (0.5, 0.75) in the paper.
    bias_factor : float
        Factor on the learning rate of the head's biases, beside the head's own; another than 1 takes their weight decay
        away. 2 in the released code.

    Raises
    ------
    SettingsError
        If there is no dilation, a scale is not positive or the factor is negative.

    Examples
    --------
    >>> import torch
    >>> class Stub(nn.Conv2d):
    ...     out_channels, out_stride = 8, 4
    >>> backbone = Stub(3, 8, 4, stride=4)
    >>> DeepLab(backbone, n_classes=7, dilations=(1, 2))(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 7, 8, 8])
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int,
        dilations: Sequence[int] = (6, 12, 18, 24),
        scales: Sequence[float] = (),
        bias_factor: float = 1.0,
    ):
        super().__init__()
        if scales:
            check_scales(scales)
        check_range(0, inf, bias_factor=bias_factor)
        self.n_classes, self.scales, self.bias_factor = n_classes, tuple(scales), bias_factor
        self.backbone = backbone
        self.aspp = ASPP(backbone.out_channels, n_classes, dilations)

    def forward(self, image: Tensor) -> Tensor:
        """Class scores (N,C,h,w) of `image` (N,3,H,W) on the grid of the backbone, before the softmax."""
        return self.aspp(self.backbone(image))

    def loss(self, batch: MaskBatch, progress: Progress) -> Losses:
        """`pixel_cross_entropy` of a `batch` of images and pseudo masks, of each of `multi_scale_scores` and as a sum.

        The terms are cross_entropy, cross_entropy_s for each scale s, and cross_entropy_max. `progress` plays no part.
        """
        names = ["cross_entropy", *(f"cross_entropy_{scale:g}" for scale in self.scales), "cross_entropy_max"]
        scores = multi_scale_scores(self, batch.image, self.scales)
        # Of a single size there is no largest: the last name stays unused.
        return Losses.weighted({n: pixel_cross_entropy(s, batch.mask) for n, s in zip(names, scores, strict=False)})

    def parameter_groups(self, head_factor: float = 10.0) -> list[dict]:
        """Parameters that learn: the backbone's at the base rate, the head's at `head_factor` times it."""
        *backbone, head = backbone_and_rest(self, "head", head_factor)
        if self.bias_factor == 1:
            return [*backbone, head]
        weights, biases = ([p for p in head["params"] if (p.ndim == 1) == is_bias] for is_bias in (False, True))
        factor = head_factor * self.bias_factor
        own = {"name": "head biases", "params": biases, "lr_factor": factor, "weight_decay": 0.0}
        return [*backbone, {**head, "params": weights}, own]
