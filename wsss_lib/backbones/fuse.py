"""Copies of a trained network that do the same with fewer passes over the maps, for inference.

One idea: at test time BatchNorm is y = a x + b per channel, which a convolution can do by itself: one pass
over the map instead of two. With w the kernel and sigma^2 the running variance, the kernel becomes
w gamma / sqrt(sigma^2 + eps) and the bias beta - mean gamma / sqrt(sigma^2 + eps). On a CPU, where maps are
slow to read and write, a ReLU6 can be applied while the convolution writes its map.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wsss_lib.backbones.mobilenet_v1 import SameConv2d

Network = TypeVar("Network", bound=nn.Module)


def fuse_conv_bn(network: Network) -> Network:
    """Copy `network` in evaluation mode, with the BatchNorms gone that follow a convolution.

    A BatchNorm follows a convolution when it is registered right after it in the same module and has its
    number of channels. That holds for the backbones here and for torchvision's; a network that applies them
    in another order would give other maps, so compare (as `localize.inference_copy` does).

    Parameters
    ----------
    network : nn.Module
        Not changed.

    Returns
    -------
    nn.Module
        The copy, for inference only.

    Examples
    --------
    >>> fused = fuse_conv_bn(nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)))
    >>> fused[1], fused[0].bias.shape
    (Identity(), torch.Size([8]))
    """
    network = copy.deepcopy(network).eval()
    for module in list(network.modules()):
        for (conv_name, conv), (bn_name, bn) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d) and conv.out_channels == bn.num_features:
                setattr(module, conv_name, fuse_conv_bn_eval(conv, bn))
                setattr(module, bn_name, nn.Identity())
    return network.eval()  # what was put in, too


def fuse_relu6(network: Network) -> Network:
    """Copy `network` with MobileNet's convolutions writing their maps through ReLU6, by oneDNN on a CPU.

    Parameters
    ----------
    network : nn.Module
        Without BatchNorms, see `fuse_conv_bn`; not changed.

    Returns
    -------
    nn.Module
        The copy, for float32 inference on a CPU; where torch comes without oneDNN, an exact copy.

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> fused = fuse_relu6(fuse_conv_bn(backbones.build("mobilenet_v1")))
    >>> fused(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 768, 2, 2])
    """
    network = copy.deepcopy(network)
    if torch.backends.mkldnn.is_available():
        for module in list(network.modules()):
            if isinstance(module, nn.Sequential) and [type(layer) for layer in module] == [
                SameConv2d,
                nn.Identity,
                nn.ReLU6,
            ]:
                module[0], module[2] = SameConvReLU6(module[0]), nn.Identity()
    return network.eval()


class SameConvReLU6(nn.Module):
    """A `SameConv2d` and the ReLU6 after it as one operation of oneDNN (the one that torch.compile uses).

    Parameters
    ----------
    conv : SameConv2d
        The convolution, its BatchNorm folded in.

    Examples
    --------
    >>> layer = SameConvReLU6(SameConv2d(3, 4, 1))
    >>> _ = nn.init.ones_(layer.conv.weight)
    >>> with torch.inference_mode():
    ...     float(layer(torch.full((1, 3, 2, 2), 1e3)).max())
    6.0
    """

    def __init__(self, conv: SameConv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Return min(max(conv(x), 0), 6) for `x` (N, in_channels, h, w)."""
        conv = self.conv
        weight, padding = conv.kernel_for(x)
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, conv.bias, padding, conv.stride, (1, 1), conv.groups, "hardtanh", [0.0, 6.0], ""
        )
