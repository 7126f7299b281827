"""A copy of a trained network with every BatchNorm folded into the convolution before it.

One idea: at test time BatchNorm is y = a x + b per channel, which a convolution can do by itself: one pass over
the map instead of two. With w the kernel and sigma^2 the running variance, the kernel becomes
w gamma / sqrt(sigma^2 + eps) and the bias beta - mean gamma / sqrt(sigma^2 + eps).
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Network = TypeVar("Network", bound=nn.Module)


def fuse_conv_bn(network: Network) -> Network:
    """Copy `network` in evaluation mode, with the BatchNorms gone that follow a convolution.

    A BatchNorm follows a convolution when it is registered right after it in the same module and has its
    number of channels. That holds for the backbones here and for torchvision's; a network that applies them in
    another order would give other maps, so compare (as `localize.inference_copy` does).

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
            if (
                isinstance(conv, nn.Conv2d)
                and isinstance(bn, nn.BatchNorm2d)
                and conv.out_channels == bn.num_features
            ):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, bn))
                setattr(module, bn_name, nn.Identity())
    return network
