"""What every backbone offers: feature maps stage by stage, and stages or statistics that can be frozen.

One idea: a backbone is a list of stages, from high resolution and few channels to low resolution and many.
Whoever needs only the last map calls the backbone; whoever taps earlier maps (AffinityNet, IRNet, the
patch branches of CPN) calls `stages`. Freezing follows the IRN recipe: the first stages get no gradient
and every BatchNorm may stay on its running statistics.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from wsss_lib.errors import WsssError


class Backbone(nn.Module):
    """A fully convolutional network in stages; a subclass sets `channels`, `strides` and `stage_modules`.

    Attributes
    ----------
    channels : tuple of int
        Channels of each stage's map, high to low resolution.
    strides : tuple of int
        Image pixels per cell of each stage's map; a map has ceil(H / stride) rows.
    out_channels, out_stride : int
        The last entry of both.

    Examples
    --------
    >>> from wsss_lib import backbones
    >>> net = backbones.build("tiny")
    >>> net.channels, net.out_stride
    ((16, 32, 64), 4)
    """

    channels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.frozen_stages = 0
        self.frozen_norm = False

    @property
    def out_channels(self) -> int:
        """Channels of the last map."""
        return self.channels[-1]

    @property
    def out_stride(self) -> int:
        """Image pixels per cell of the last map."""
        return self.strides[-1]

    def stage_modules(self) -> list[nn.Module]:
        """Return one module per stage, in the order in which they are applied."""
        raise NotImplementedError

    def prepare(self, image: Tensor) -> Tensor:
        """Convert the ImageNet-normalised `image` (N, 3, H, W) to what the first stage expects."""
        return image

    def stages(self, image: Tensor) -> list[Tensor]:
        """Return the map of every stage for an ImageNet-normalised `image` (N, 3, H, W)."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise WsssError(f"image has shape {tuple(image.shape)}: give a batch of RGB images (N, 3, H, W)")
        x, maps = self.prepare(image), []
        for stage in self.stage_modules():
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, image: Tensor) -> Tensor:
        """Return the last map (N, out_channels, ceil(H / out_stride), ceil(W / out_stride))."""
        return self.stages(image)[-1]

    def freeze(self, stages: int = 0, norm: bool = False) -> Backbone:
        """Exclude the first stages from learning and, if asked, fix every BatchNorm's statistics.

        Holds until the next call and survives `train()`. With `norm`, scales and shifts of the stages that
        still learn go on learning, as in IRN. IRN's ResNet-50 is `freeze(stages=3, norm=True)`.

        Parameters
        ----------
        stages : int
            How many of the first stages get no gradient (and stay in evaluation mode).
        norm : bool
            Keep every BatchNorm on its running statistics.

        Returns
        -------
        Backbone
            Itself.

        Raises
        ------
        WsssError
            If there are not that many stages.
        """
        if not 0 <= stages <= len(self.channels):
            raise WsssError(f"stages={stages}: give 0 to {len(self.channels)}, the stages of this backbone")
        self.frozen_stages, self.frozen_norm = stages, norm
        for index, stage in enumerate(self.stage_modules()):
            stage.requires_grad_(index >= stages)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Switch to training `mode`, except for what is frozen."""
        super().train(mode)
        for stage in self.stage_modules()[: self.frozen_stages]:
            stage.eval()
        if self.frozen_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


def limit_strides(strides: tuple[int, ...], output_stride: int) -> tuple[int, ...]:
    """Set the strides to 1 from the point on where their product would exceed `output_stride`.

    The map is finer then, and later layers see less of the image (as in IRN) unless they are dilated.

    Parameters
    ----------
    strides : tuple of int
        Strides of the blocks, in order.
    output_stride : int
        The largest total stride wanted, in pixels.

    Returns
    -------
    tuple of int
        The strides to use.

    Raises
    ------
    WsssError
        If `output_stride` is below 1.

    Examples
    --------
    >>> limit_strides((2, 2, 2, 2, 2), 16)
    (2, 2, 2, 2, 1)
    """
    if output_stride < 1:
        raise WsssError(f"output_stride={output_stride}: give 1 or more, for example 16")
    kept: list[int] = []
    for stride in strides:
        kept.append(stride if math.prod(kept) * stride <= output_stride else 1)
    return tuple(kept)


def initialise(module: nn.Module) -> None:
    """Draw the convolutions from He's normal distribution (fan out) and set BatchNorms to the identity.

    Parameters
    ----------
    module : nn.Module
        Changed in place; the draw comes from torch's global generator, so the caller seeds it.

    References
    ----------
    He et al., Delving Deep into Rectifiers, ICCV 2015: standard deviation sqrt(2 / fan_out).

    Examples
    --------
    >>> layer = nn.Conv2d(3, 8, 1)
    >>> initialise(layer)
    >>> float(layer.bias.detach().abs().sum())
    0.0
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            # torch's own initialisation overlooks groups, and depthwise maps would fade from layer to layer.
            fan_out = math.prod(layer.kernel_size) * layer.out_channels / layer.groups
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
