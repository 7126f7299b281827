"""A residual network of 16-32-64 channels and stride 4, for toy scenes of 64 pixels on a CPU.

One idea: small enough to train in under a minute on two cores, fine enough (16 x 16 cells for a 64-pixel
scene) for a map to show which part of an object convinced the classifier. Post-activation basic blocks as in
He et al., Deep Residual Learning for Image Recognition, CVPR 2016 (their CIFAR networks).
"""

from __future__ import annotations

from torch import Tensor, nn

from wsss_lib.backbones.base import Backbone, initialise, limit_strides


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)).

    Parameters
    ----------
    n_in, n_out : int
        Channels of input and output.
    stride : int
        Stride of the first convolution and of the shortcut.

    Examples
    --------
    >>> import torch
    >>> BasicBlock(8, 16, stride=2)(torch.zeros(1, 8, 6, 6)).shape
    torch.Size([1, 16, 3, 3])
    """

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map for `x` (N, n_in, h, w)."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Tiny(Backbone):
    """The network of the toy scenes: a strided stem and three stages of two blocks, maps of stride 2, 4, 4.

    Parameters
    ----------
    output_stride : int
        The largest total stride wanted; 4 at most.

    Examples
    --------
    >>> import torch
    >>> Tiny()(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 64, 16, 16])
    """

    channels = (16, 32, 64)

    def __init__(self, output_stride: int = 4) -> None:
        super().__init__()
        s1, s2 = limit_strides((2, 2), output_stride)
        self.strides = (s1, s1 * s2, s1 * s2)
        self.stage1 = nn.Sequential(
            nn.Conv2d(3, 16, 3, s1, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            BasicBlock(16, 16),
        )
        self.stage2 = nn.Sequential(BasicBlock(16, 32, s2), BasicBlock(32, 32))
        self.stage3 = nn.Sequential(BasicBlock(32, 64), BasicBlock(64, 64))
        initialise(self)

    def stage_modules(self) -> list[nn.Module]:
        """Return the three stages."""
        return [self.stage1, self.stage2, self.stage3]
