"""The feature embedding E of WS-FCN: a convolution, BatchNorm and ReLU."""

from __future__ import annotations

from torch import nn


def embedding(in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """A convolution, BatchNorm and ReLU; the grid stays.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels.
    kernel : int
        Side of the kernel, odd.
    dilation : int
        Cells between its taps; beyond the grid are zeros.

    Returns
    -------
    nn.Sequential
        The convolution has no bias: BatchNorm would take it away. ``[:2]`` is the embedding without ReLU.

    References
    ----------
    Wang et al., WS-FCN, below equation 4.

    Examples
    --------
    >>> import torch
    >>> embedding(3, 8, 3, dilation=2)(torch.zeros(1, 3, 5, 6)).shape
    torch.Size([1, 8, 5, 6])
    """
    padding = kernel // 2 * dilation
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())
