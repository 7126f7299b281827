"""ResNet-50 and ResNet-101: torchvision's layers, with a last map as fine as wanted, dilated or not.

One idea: a finer map from the same weights. Where a stride would make the map too coarse it becomes 1. Then either
nothing else changes, as in IRN (Ahn et al., CVPR 2019), and the layers behind it see less of the image than they were
trained on; or these are dilated, as in DeepLab (Chen et al., arXiv:1606.00915, section 3.1), and see just as much: the
coarse map is in the fine one, in every second or fourth row and column.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, with torchvision's places for strides and dilations.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from operator import mul

from torch import nn
from torchvision import models

from wsss_lib.backbones.base import Backbone, limit_strides
from wsss_lib.errors import WsssError


class ResNet(Backbone):
    """Five stages: stem (convolution and max pooling), then torchvision's layer1 to layer4; a subclass sets `network`.

    Parameters
    ----------
    output_stride : int
        The largest total stride wanted: 32 as published, 16 as in IRN, 8 as in DeepLab.
    dilated : bool
        Put dilations in the place of the strides that are lost.

    Raises
    ------
    WsssError
        If `output_stride` is below the stem's.

    Examples
    --------
    >>> net = ResNet50(output_stride=8, dilated=True)
    >>> net.strides, [layer[-1].conv2.dilation[0] for layer in net.stage_modules()[1:]]
    ((4, 4, 8, 8, 8), [1, 1, 2, 4])
    """

    channels = (64, 256, 512, 1024, 2048)
    network: Callable[..., models.ResNet]

    def __init__(self, output_stride: int = 16, dilated: bool = False) -> None:
        super().__init__()
        strides = limit_strides((4, 2, 2, 2), output_stride)
        if strides[0] != 4:
            raise WsssError(f"output_stride={output_stride}: the stem has stride 4, give 4, 8, 16 or 32")
        lost = [dilated and stride == 1 for stride in strides[1:]]
        net = self.network(weights=None, replace_stride_with_dilation=lost)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        for layer, stride in zip((self.layer2, self.layer3, self.layer4), strides[1:], strict=True):
            layer[0].conv2.stride = layer[0].downsample[0].stride = (stride, stride)
        self.strides = (4, *accumulate(strides, mul))

    def stage_modules(self) -> list[nn.Module]:
        """Return the stem and the four layers."""
        stem = nn.Sequential(self.conv1, self.bn1, self.relu, self.maxpool)
        return [stem, self.layer1, self.layer2, self.layer3, self.layer4]


class ResNet50(ResNet):
    """3, 4, 6 and 3 blocks: the classifier of IRN, CDA and DEFT.

    Examples
    --------
    >>> net = ResNet50(output_stride=16)
    >>> net.channels, net.strides
    ((64, 256, 512, 1024, 2048), (4, 4, 8, 16, 16))
    """

    network = staticmethod(models.resnet50)


class ResNet101(ResNet):
    """3, 4, 23 and 3 blocks: the backbone of DeepLab-v2.

    Examples
    --------
    >>> len(ResNet101().layer3)
    23
    """

    network = staticmethod(models.resnet101)
