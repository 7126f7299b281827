"""How an image becomes the network's input: scaled, jittered, normalised, padded, cropped, mirrored.

Built of torchvision's transforms v2, so that whatever moves an image moves its mask. Padding comes after the
normalisation, so it is 0, the mean colour (as in IRN, Ahn et al. 2019); on masks it is 255, ignored, and in maps of
super-pixels 0, no region.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from wsss_lib.data.classes import IGNORE
from wsss_lib.errors import SettingsError

# ImageNet's mean and standard deviation of red, green, blue in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def _rgb(values: Sequence[float], like: Tensor, scale: float = 1) -> Tensor:
    return torch.tensor([scale * value for value in values], device=like.device).view(3, 1, 1)


def normalize(image: Tensor) -> Tensor:
    """Bring pixel values to ImageNet's mean 0 and standard deviation 1: (image / 255 - mean) / std.

    Parameters
    ----------
    image : Tensor
        (3, H, W) or (N, 3, H, W) uint8, RGB.

    Returns
    -------
    Tensor
        float32 of the same shape, on the same device.

    Raises
    ------
    TypeError
        When `image` is not uint8.

    Examples
    --------
    >>> normalize(torch.zeros(3, 1, 1, dtype=torch.uint8)).flatten()
    tensor([-2.1179, -2.0357, -1.8044])
    """
    if image.dtype != torch.uint8:
        raise TypeError(f"image: got {image.dtype}, give uint8 (a float image is normalised already)")
    return image.float().sub_(_rgb(MEAN, image, scale=255)).div_(_rgb(STD, image, scale=255))


def denormalize(image: Tensor) -> Tensor:
    """Undo `normalize`, for pictures.

    Parameters
    ----------
    image : Tensor
        (3, H, W) or (N, 3, H, W) float, normalised.

    Returns
    -------
    Tensor
        RGB in [0, 1], of the same shape.

    Examples
    --------
    >>> image = torch.full((3, 2, 2), 51, dtype=torch.uint8)
    >>> denormalize(normalize(image)).mean().round(decimals=4)
    tensor(0.2000)
    """
    return (image * _rgb(STD, image) + _rgb(MEAN, image)).clamp(0, 1)


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize normalised images, bicubic with antialiasing (as the multi-scale tests of IRN and SEAM do).

    Parameters
    ----------
    image : Tensor
        (N, 3, H, W) float.
    size : tuple of int
        New (height, width) in pixels.

    Returns
    -------
    Tensor
        (N, 3, height, width).

    Examples
    --------
    >>> resize_image(torch.zeros(2, 3, 8, 8), (4, 6)).shape
    torch.Size([2, 3, 4, 6])
    """
    size = (int(size[0]), int(size[1]))
    if size == tuple(image.shape[-2:]):
        return image
    return interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)


def scale_image(image: Tensor, scale: float) -> Tensor:
    """Resize normalised images by a factor, as `resize_image` does: the views of a multi-scale test.

    Parameters
    ----------
    image : Tensor
        (N, 3, H, W) float.
    scale : float
        Factor on height and width, which are rounded, and never less than 1.

    Returns
    -------
    Tensor
        (N, 3, round(scale H), round(scale W)).

    Examples
    --------
    >>> scale_image(torch.zeros(2, 3, 8, 9), 0.75).shape
    torch.Size([2, 3, 6, 7])
    """
    return resize_image(image, tuple(max(1, round(side * scale)) for side in image.shape[-2:]))


def check_scales(scales: Sequence[float]) -> None:
    """Refuse scales that are none, not positive or not finite.

    Parameters
    ----------
    scales : sequence of float
        Factors on height and width.

    Raises
    ------
    SettingsError
        For them.

    Examples
    --------
    >>> check_scales((1, 0))
    Traceback (most recent call last):
    wsss_lib.errors.SettingsError: scales=(1, 0): give one or more positive factors, for example (1, 0.5, 1.5)
    """
    if not len(scales) or not all(0 < scale < inf for scale in scales):
        raise SettingsError(f"scales={tuple(scales)}: give one or more positive factors, for example (1, 0.5, 1.5)")


class Regions(tv_tensors.Mask):
    """A map of super-pixels: it moves as a mask does, but its padding is 0, and its labels may exceed 255.

    Parameters
    ----------
    data : Tensor
        (H, W) int32 or int64, labels from 1; 0 belongs to no region.

    Examples
    --------
    >>> Regions(torch.ones(2, 2, dtype=torch.int32)).shape
    torch.Size([2, 2])
    """


class RandomLongSide(v2.Transform):
    """Resize so that the longest side is drawn uniformly from `low` to `high` pixels; the aspect stays.

    Parameters
    ----------
    long_side : tuple of int
        (low, high) in pixels, both included.

    Raises
    ------
    SettingsError
        When not 1 <= low <= high.

    Examples
    --------
    >>> RandomLongSide((8, 8))(torch.zeros(3, 10, 20, dtype=torch.uint8)).shape
    torch.Size([3, 4, 8])
    """

    def __init__(self, long_side: tuple[int, int]):
        super().__init__()
        low, high = (int(side) for side in long_side)
        if not 1 <= low <= high:
            raise SettingsError(f"long_side={(low, high)}: give (low, high) with 1 <= low <= high, in pixels")
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the new size, once for an image and its mask."""
        height, width = v2.query_size(flat_inputs)
        factor = int(torch.randint(self.low, self.high + 1, ())) / max(height, width)
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one input: images smoothly, masks to the nearest pixel."""
        if isinstance(inpt, tv_tensors.Mask):
            # torchvision's own mask kernel takes the upper left neighbour, half a pixel off the image.
            mask, mode = inpt.as_subclass(Tensor)[None], InterpolationMode.NEAREST_EXACT
            return tv_tensors.wrap(functional.resize_image(mask, params["size"], interpolation=mode)[0], like=inpt)
        return functional.resize(inpt, params["size"], interpolation=InterpolationMode.BICUBIC)


class Normalize(v2.Transform):
    """`normalize` as a step of a transform: images become float, masks pass.

    Examples
    --------
    >>> Normalize()(torch.zeros(3, 2, 2, dtype=torch.uint8)).dtype
    torch.float32
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Normalise one input, unless it is a mask."""
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        image = normalize(inpt.as_subclass(Tensor))
        return tv_tensors.Image(image) if isinstance(inpt, tv_tensors.Image) else image


def train_transform(
    long_side: tuple[int, int] | None,
    crop: int,
    jitter: tuple[float, float, float, float] | None = None,
    flip: bool = True,
    pad: int = 0,
) -> v2.Transform:
    """Build the augmentation of training: scale, jitter colours, normalise, pad, crop, mirror.

    An image smaller than the crop lies at a random place in it. Call the result with an image, or with
    (`tv_tensors.Image`, `tv_tensors.Mask` or `Regions`): both move alike. Its draws come from torch's default
    generator.

    Parameters
    ----------
    long_side : tuple of int or None
        (low, high): range of the longest side, in pixels; None (or empty): images keep their size.
    crop : int
        Side of the square crop, in pixels.
    jitter : tuple of float, optional
        Strength of the changes of (brightness, contrast, saturation, hue), each from 0 (none) up; hue to 0.5.
    flip : bool
        Mirror every second image, by chance.
    pad : int
        Pixels of mean colour (in masks: ignored, in regions: 0) put around each image before the crop: small
        shifts for images that already have the size of the crop.

    Returns
    -------
    v2.Transform
        uint8 (3, H, W) to normalised float32 (3, crop, crop).

    Raises
    ------
    SettingsError
        When a size is not positive.

    Examples
    --------
    >>> transform = train_transform(long_side=(20, 40), crop=32)
    >>> transform(torch.zeros(3, 30, 40, dtype=torch.uint8)).shape
    torch.Size([3, 32, 32])
    """
    if crop < 1 or pad < 0:
        raise SettingsError(f"crop={crop}, pad={pad}: give a crop of 1 pixel or more and a pad of 0 or more")
    steps: list[v2.Transform] = []
    if long_side:
        steps.append(RandomLongSide(long_side))
    if jitter and any(jitter):
        brightness, contrast, saturation, hue = jitter
        steps.append(v2.ColorJitter(brightness, contrast, saturation, hue))
    fill = {tv_tensors.Mask: IGNORE, Regions: 0, "others": 0}
    steps += [Normalize(), v2.RandomCrop(crop, padding=pad or None, pad_if_needed=True, fill=fill)]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose(steps)
