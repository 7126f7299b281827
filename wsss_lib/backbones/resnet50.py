"""ResNet-50 as IRN uses it: torchvision's layers, the last stride set to 1 and no dilation.

One idea: a map twice as fine from the same weights. He et al., Deep Residual Learning for Image Recognition,
CVPR 2016; strides 2, 2, 2, 1 after Ahn et al., Weakly Supervised Learning of Instance Segmentation with
Inter-pixel Relations (IRN), CVPR 2019.
"""

from __future__ import annotations

from itertools import accumulate
from operator import mul

from torch import nn
from torchvision import models

from wsss_lib.backbones.base import Backbone, limit_strides
from wsss_lib.errors import WsssError


class ResNet50(Backbone):
    """Five stages: stem (convolution and max pooling), then torchvision's layer1 to layer4.

    Parameters
    ----------
    output_stride : int
        The largest total stride wanted: 32 as published, 16 as in IRN, 8.

    Examples
    --------
    >>> net = ResNet50(output_stride=16)
    >>> net.channels, net.strides
    ((64, 256, 512, 1024, 2048), (4, 4, 8, 16, 16))
    """

    channels = (64, 256, 512, 1024, 2048)

    def __init__(self, output_stride: int = 16) -> None:
        super().__init__()
        net = models.resnet50(weights=None)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        strides = limit_strides((4, 2, 2, 2), output_stride)
        if strides[0] != 4:
            raise WsssError(f"output_stride={output_stride}: the stem has stride 4, give 4, 8, 16 or 32")
        for layer, stride in zip((self.layer2, self.layer3, self.layer4), strides[1:], strict=True):
            layer[0].conv2.stride = layer[0].downsample[0].stride = (stride, stride)
        self.strides = (4, *accumulate(strides, mul))

    def stage_modules(self) -> list[nn.Module]:
        """Return the stem and the four layers."""
        stem = nn.Sequential(self.conv1, self.bn1, self.relu, self.maxpool)
        return [stem, self.layer1, self.layer2, self.layer3, self.layer4]
