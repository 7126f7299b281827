"""MobileNetV1 of width 0.75 as TensorFlow trained it, for photographs on a CPU.

One idea: a 3 x 3 convolution per channel followed by a 1 x 1 convolution over channels costs about a ninth
of a full 3 x 3 convolution. Howard et al., MobileNets, 2017, arXiv:1704.04861, table 1.

The published weights expect TensorFlow's conventions, kept here: SAME padding, BatchNorm eps 1e-3, ReLU6 and
RGB in [-1, 1]. The names of the parameters (`conv1`, `dw`, `pw`, `fc`) are those of the weight file.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss_lib.backbones.base import Backbone, initialise, limit_strides

BLOCK_CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
BLOCK_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
STAGE_BLOCKS = ((0,), (1, 2), (3, 4), (5, 6, 7, 8, 9, 10), (11, 12))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: ceil(n / stride) outputs, the odd zero at the end.

    With stride 1 this is symmetric padding; with stride 2 and an even size it pads right and bottom only.

    Examples
    --------
    >>> SameConv2d(3, 8, 3, stride=2)(torch.zeros(1, 3, 6, 7)).shape
    torch.Size([1, 8, 3, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of the padded `x` (N, in_channels, h, w)."""
        weight, padding = self.kernel_for(x)
        return F.conv2d(x, weight, self.bias, self.stride, padding, groups=self.groups)

    def kernel_for(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the kernel and the symmetric padding that do as SAME padding of this `x` does."""
        (top, bottom), (left, right) = (
            same_padding(n, k, s) for n, k, s in zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        )
        weight = self.weight
        if (top, left) != (bottom, right):
            # A zero in front of the kernel shifts it by one pixel: no copy of the map only to pad its end.
            weight = F.pad(weight, (right - left, 0, bottom - top, 0))
        return weight, (bottom, right)


def same_padding(n: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return how many zeros TensorFlow's SAME padding adds before and after `n` pixels.

    Parameters
    ----------
    n : int
        Size of the input in pixels.
    kernel, stride : int
        Size and stride of the convolution.

    Returns
    -------
    tuple of int
        Zeros before and after; together max((ceil(n / stride) - 1) * stride + kernel - n, 0).

    Examples
    --------
    >>> same_padding(6, kernel=3, stride=2), same_padding(7, kernel=3, stride=2)
    ((0, 1), (1, 1))
    """
    total = max((math.ceil(n / stride) - 1) * stride + kernel - n, 0)
    return total // 2, total - total // 2


def conv_bn(n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return SAME convolution, BatchNorm (eps 1e-3) and ReLU6 in a row.

    Parameters
    ----------
    n_in, n_out : int
        Channels of input and output.
    kernel, stride, groups : int
        Of the convolution; `groups` equal to `n_in` makes it depthwise.

    Returns
    -------
    nn.Sequential
        The three layers.

    Examples
    --------
    >>> conv_bn(3, 8, kernel=3, stride=2)(torch.zeros(1, 3, 6, 6)).shape
    torch.Size([1, 8, 3, 3])
    """
    return nn.Sequential(
        SameConv2d(n_in, n_out, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(n_out, eps=1e-3),
        nn.ReLU6(inplace=True),
    )


class MobileNetV1(Backbone):
    """Stem, thirteen depthwise-separable blocks in five stages, and the ImageNet classifier for checks.

    Parameters
    ----------
    output_stride : int
        The largest total stride wanted: 32 as published, 16 (block 11 then has stride 1), 8 ...
    width : float
        Factor on every number of channels.
    n_logits : int
        Outputs of `classify`.

    Examples
    --------
    >>> net = MobileNetV1(output_stride=16)
    >>> net.channels, net.strides
    ((48, 96, 192, 384, 768), (2, 4, 8, 16, 16))
    """

    def __init__(self, output_stride: int = 16, width: float = 0.75, n_logits: int = 1000) -> None:
        super().__init__()
        stem_stride, *strides = limit_strides((2, *BLOCK_STRIDES), output_stride)
        stem, *channels = (int(c * width) for c in (32, *BLOCK_CHANNELS))
        self.channels = tuple(channels[blocks[-1]] for blocks in STAGE_BLOCKS)
        self.strides = tuple(stem_stride * math.prod(strides[: blocks[-1] + 1]) for blocks in STAGE_BLOCKS)

        self.conv1 = conv_bn(3, stem, 3, stem_stride)
        n_in = (stem, *channels)
        self.dw = nn.ModuleList(conv_bn(n, n, 3, s, groups=n) for n, s in zip(n_in, strides, strict=False))
        self.pw = nn.ModuleList(conv_bn(n, m, 1) for n, m in zip(n_in, channels, strict=False))
        # Not part of the maps: without gradients, a distributed trainer does not wait for it.
        self.fc = nn.Linear(channels[-1], n_logits).requires_grad_(False)
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        self.register_buffer("input_scale", 2 * std, persistent=False)
        self.register_buffer("input_shift", 2 * mean - 1, persistent=False)
        initialise(self)

    def prepare(self, image: Tensor) -> Tensor:
        """Convert the ImageNet-normalised `image` to [-1, 1]."""
        return image * self.input_scale + self.input_shift

    def stage_modules(self) -> list[nn.Module]:
        """Return the five stages; the stem belongs to the first."""
        stages = [
            nn.Sequential(*(layer for i in blocks for layer in (self.dw[i], self.pw[i]))) for blocks in STAGE_BLOCKS
        ]
        stages[0] = nn.Sequential(self.conv1, *stages[0])
        return stages

    def classify(self, image: Tensor) -> Tensor:
        """Return the ImageNet logits (N, 1000) of an ImageNet-normalised `image` (N, 3, H, W)."""
        return self.fc(self(image).mean((2, 3)))
