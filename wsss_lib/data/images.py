"""Images as files: decoded to 8-bit RGB whatever they store; a broken one is named with its remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from wsss_lib.data.faults import Fault
from wsss_lib.errors import DataError

# What Pillow raises for files that are truncated, empty, no images, or too large to be meant.
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def image_fault(path: Path, error: Exception, kind: str = "image") -> Fault:
    """Return the fault behind an exception that Pillow raised for a file.

    Parameters
    ----------
    path : Path
        The image or mask.
    error : Exception
        What Pillow raised.
    kind : str
        What the file should be, for the message.

    Returns
    -------
    Fault
        With a remedy that fits.

    Examples
    --------
    >>> image_fault(Path("a.jpg"), FileNotFoundError()).problem
    'no such image'
    """
    if isinstance(error, FileNotFoundError):
        without = path.with_suffix("")  # a.jpg, when a.jpg.jpg was looked for
        if without.suffix and without.is_file():
            return Fault(path, f"no such {kind}", f"write the id without its ending ({without.stem})")
        return Fault(path, f"no such {kind}", "add it, or take its id out of the split")
    if path.is_file() and path.stat().st_size == 0:
        return Fault(path, "empty file", "copy or download it again")
    if isinstance(error, Image.DecompressionBombError):
        return Fault(path, "far too many pixels", "scale it down")
    # Pillow's own words name the file again, or its buffer: only their beginning says something.
    reason = str(error).split(" '")[0].split(":")[0]
    problem = f"truncated {kind}" if "truncated" in reason.lower() else f"broken {kind} ({reason})"
    return Fault(path, problem, "copy or download it again")


def read_pixels(path: str | Path) -> np.ndarray:
    """Decode an image to 8-bit RGB, in the order in which its pixels are stored.

    Grey, CMYK, palette and 16-bit images are converted, transparency is dropped. The EXIF orientation is not
    applied: VOC's masks are drawn on the stored pixels.

    Parameters
    ----------
    path : str or Path
        A JPEG or PNG file.

    Returns
    -------
    numpy.ndarray
        (H, W, 3) uint8.

    Raises
    ------
    DataError
        When the file is missing, empty, truncated or no image.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (6, 4), 200).save(f"{folder}/a.png")
    ...     read_pixels(f"{folder}/a.png").shape
    (4, 6, 3)
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise Fault(path, "stores floating point pixels", "save it as 8-bit JPEG or PNG").error()
            if image.mode.startswith("I"):
                # Pillow's conversion clips 16-bit values instead of scaling them: nearly all becomes white.
                grey = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except DataError:
        raise
    except BROKEN_IMAGE as error:
        raise image_fault(path, error).error() from None


def image_size(path: str | Path) -> tuple[int, int]:
    """Read an image's size from its header, without decoding pixels.

    Parameters
    ----------
    path : str or Path
        A JPEG or PNG file.

    Returns
    -------
    tuple of int
        (height, width) in pixels, as stored.

    Raises
    ------
    DataError
        When the file is missing, empty or no image.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (6, 4)).save(f"{folder}/a.png")
    ...     image_size(f"{folder}/a.png")
    (4, 6)
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except BROKEN_IMAGE as error:
        raise image_fault(path, error).error() from None


def is_whole(path: Path) -> bool:
    """Whether a JPEG or PNG file has its end marker: most of what truncation does, seen without decoding.

    Parameters
    ----------
    path : Path
        An existing file.

    Returns
    -------
    bool
        False also for images of other kinds, and for those with something behind their end.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (6, 4)).save(f"{folder}/a.jpg")
    ...     is_whole(Path(folder, "a.jpg"))
    True
    """
    with open(path, "rb") as file:
        file.seek(-min(12, path.stat().st_size), 2)
        end = file.read()
    return end.endswith(b"\xff\xd9") or end[4:8] == b"IEND"
