"""Masks as files: palette PNGs in PASCAL VOC's colours whose pixel values are class indices."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from wsss_lib.data.classes import IGNORE
from wsss_lib.data.faults import Fault
from wsss_lib.data.images import BROKEN_IMAGE, image_fault

REMEDY = "draw or export it again"


@cache
def _palette_bytes() -> bytes:
    return palette().tobytes()


def palette() -> np.ndarray:
    """Return VOC's colour of each of the 256 pixel values.

    Of each three bits of the value one goes to red, one to green, one to blue, lowest first.

    Returns
    -------
    numpy.ndarray
        (256, 3) uint8, RGB.

    References
    ----------
    `VOClabelcolormap` of the PASCAL VOC development kit.

    Examples
    --------
    >>> palette()[[0, 1, 15, 255]].tolist()
    [[0, 0, 0], [128, 0, 0], [192, 128, 128], [224, 224, 192]]
    """
    value = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((value >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask's class indices, as they are stored (no colours, no rotation).

    Parameters
    ----------
    path : str or Path
        A palette or 8-bit grey PNG.

    Returns
    -------
    numpy.ndarray
        (H, W) uint8: 0 background, 1 to K classes, 255 ignored.

    Raises
    ------
    DataError
        When the file is missing, empty, broken, or stores colours instead of indices.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_mask(f"{folder}/a.png", np.array([[0, 3], [255, 3]]))
    ...     read_mask(f"{folder}/a.png").tolist()
    [[0, 3], [255, 3]]
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            mode, mask = image.mode, np.array(image)
    except BROKEN_IMAGE as error:
        raise image_fault(path, error, "mask").error() from None
    if mode not in ("P", "L"):
        remedy = "save class indices as a palette PNG (wsss_lib.data.write_mask)"
        raise Fault(path, f"mask of mode {mode} stores no class indices", remedy).error()
    return mask


def size_fault(path: Path, size: tuple[int, int], image_size: tuple[int, int], remedy: str = REMEDY) -> Fault | None:
    """Return a fault when a mask has not the size of its image, else None.

    Parameters
    ----------
    path : Path
        The mask's file.
    size, image_size : tuple of int
        (height, width) of the mask and of its image, in pixels.
    remedy : str
        What mends it.

    Returns
    -------
    Fault or None

    Examples
    --------
    >>> print(size_fault(Path("a.png"), (4, 6), (4, 8)))
    a.png: mask of 6 x 4, image of 8 x 4 pixels -> draw or export it again
    """
    if tuple(size) == tuple(image_size):
        return None
    (height, width), (image_height, image_width) = size, image_size
    problem = f"mask of {width} x {height}, image of {image_width} x {image_height} pixels"
    return Fault(path, problem, remedy)


def mask_fault(
    path: Path, mask: np.ndarray, size: tuple[int, int], n_classes: int, remedy: str = REMEDY
) -> Fault | None:
    """Return what is wrong with a mask's size or values, or None.

    Parameters
    ----------
    path : Path
        The mask's file.
    mask : numpy.ndarray
        (H, W) uint8.
    size : tuple of int
        (height, width) of its image, in pixels.
    n_classes : int
        K: values 0 to K and 255 are right.
    remedy : str
        What mends it.

    Returns
    -------
    Fault or None
        The first fault.

    Examples
    --------
    >>> print(mask_fault(Path("a.png"), np.full((4, 6), 7, np.uint8), (4, 6), n_classes=5))
    a.png: mask has the value 7, classes go from 0 to 5 (255: ignored) -> draw or export it again
    """
    fault = size_fault(path, mask.shape, size, remedy)
    if fault:
        return fault
    wrong = mask[(mask > n_classes) & (mask != IGNORE)]
    if wrong.size:
        values = ", ".join(map(str, np.unique(wrong)[:5]))
        problem = f"mask has the value {values}, classes go from 0 to {n_classes} ({IGNORE}: ignored)"
        return Fault(path, problem, remedy)
    return None


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write class indices as a palette PNG in VOC's colours; the file is whole or not there.

    Parameters
    ----------
    path : str or Path
        Where to; its folder must exist.
    mask : numpy.ndarray
        (H, W) integers 0 to 255 (255 = ignored).

    Raises
    ------
    DataError
        When `mask` is not a matrix of integers from 0 to 255.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_mask(f"{folder}/a.png", np.zeros((4, 6), np.uint8))
    ...     Image.open(f"{folder}/a.png").mode
    'P'
    """
    path = Path(path)
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.size == 0 or not (mask.dtype == bool or np.issubdtype(mask.dtype, np.integer)):
        problem = f"got {mask.dtype} of shape {mask.shape}"
        raise Fault(path, problem, "give a (H, W) array of class indices").error()
    if mask.dtype != np.uint8:
        if mask.min() < 0 or mask.max() > 255:
            problem = f"values {mask.min()} to {mask.max()}"
            raise Fault(path, problem, "give class indices from 0 to 255").error()
        mask = mask.astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(mask))
    image.putpalette(_palette_bytes())
    # Written beside its place and moved: an interrupted run leaves no half file that the next believes done.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        image.save(part, format="PNG")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
