"""Super-pixels: each image cut into small regions of like colour, once, and kept as 16-bit PNGs.

One idea: a training step must not wait for a clustering, so the maps are made beforehand by a pool of processes and
looked up. A map's file says of which image it was made and how; where the image, the numbers or a byte of the file
have changed, it is made again. Regions come from pixels alone: no label, no mask. Keep torch out of this module:
worker processes import it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from wsss_lib.data.faults import Fault
from wsss_lib.data.images import BROKEN_IMAGE, image_fault, image_size, read_pixels
from wsss_lib.errors import SettingsError
from wsss_lib.pool import work

REMEDY = "make it with `python -m data_prep superpixels`"
LARGEST = 65535  # what 16 bits hold
_NOTE = "superpixels"  # the PNG's text of this name says of what and how the map was made
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # every PNG ends so; the one part that Pillow's verify does not look at
_WAY = "slic 1"  # another number where the same settings shall give other maps


@dataclass(frozen=True)
class SuperpixelSettings:
    """How an image is cut up; the defaults are CPN's.

    Parameters
    ----------
    n_segments : int
        S_N, about how many super-pixels an image gets; fewer where its colours are smooth.
    compactness : float
        How much nearness counts against colour: higher gives squarer regions.

    Raises
    ------
    SettingsError
        For a value out of its range.

    Examples
    --------
    >>> SuperpixelSettings(n_segments=0)
    Traceback (most recent call last):
    wsss_lib.errors.SettingsError: n_segments=0, compactness=10.0: give 1 to 65535 segments and a compactness above 0
    """

    n_segments: int = 200
    compactness: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.n_segments <= LARGEST or not 0 < self.compactness < float("inf"):
            given = f"n_segments={self.n_segments}, compactness={self.compactness}"
            raise SettingsError(f"{given}: give 1 to {LARGEST} segments and a compactness above 0")


def superpixels(image: np.ndarray, settings: SuperpixelSettings = SuperpixelSettings()) -> np.ndarray:
    """Cut an image into connected regions of like colour, by SLIC: k-means of colour (CIELAB) and place.

    Parameters
    ----------
    image : numpy.ndarray
        (H, W, 3) uint8, RGB.
    settings : SuperpixelSettings
        How many, how compact.

    Returns
    -------
    numpy.ndarray
        (H, W) uint16, labels from 1; 0 is kept for what belongs to no region.

    Raises
    ------
    SettingsError
        If SLIC gives more regions than 16 bits hold.

    References
    ----------
    Achanta et al., SLIC Superpixels Compared to State-of-the-Art Superpixel Methods, TPAMI 2012.

    Examples
    --------
    >>> image = np.zeros((16, 16, 3), np.uint8)
    >>> image[:, 8:] = 255
    >>> regions = superpixels(image, SuperpixelSettings(4))
    >>> set(regions[:, :8].flat) & set(regions[:, 8:].flat)  # none crosses the edge
    set()
    """
    from skimage.segmentation import slic  # takes half a second: only who computes waits for it

    regions = slic(image, settings.n_segments, settings.compactness, start_label=1)
    if regions.max() > LARGEST:  # SLIC may give more than it is asked for
        raise SettingsError(f"n_segments={settings.n_segments} gave {regions.max()} regions: ask for fewer")
    return regions.astype(np.uint16)


def make_superpixels(
    jobs: Iterable[tuple[str, Path]],
    out: str | Path,
    settings: SuperpixelSettings = SuperpixelSettings(),
    processes: int = 1,
) -> int:
    """Write the super-pixels of many images; a map that is there, whole and still right is kept.

    Parameters
    ----------
    jobs : iterable of (str, path)
        Image id and image.
    out : path
        Receives `<id>.png`; made if need be.
    settings : SuperpixelSettings
        As in `superpixels`.
    processes : int
        Worker processes; 1 works in this process.

    Returns
    -------
    int
        Number of maps written now.

    Raises
    ------
    WsssError
        If an image is missing or broken, naming it; what is done by then stays. If an image lies where a map goes:
        nothing is overwritten but maps.

    Examples
    --------
    >>> make_superpixels([], "superpixels")
    0
    """
    out = Path(out)
    notes = {image_id: (Path(path), _note(Path(path), settings)) for image_id, path in jobs}
    missing = [image_id for image_id, (_, note) in notes.items() if not _is_there(out / f"{image_id}.png", note)]
    if not missing:
        return 0
    out.mkdir(parents=True, exist_ok=True)
    waiting = ((image_id, (notes[image_id][0],)) for image_id in missing)
    with tqdm(total=len(notes), initial=len(notes) - len(missing), desc="super-pixels", mininterval=1.0) as bar:
        for image_id, regions in work(partial(_from_file, settings=settings), waiting, processes):
            _write(out / f"{image_id}.png", regions, notes[image_id][1])
            bar.update()
    return len(missing)


def read_superpixels(path: str | Path) -> np.ndarray:
    """Read a map that `make_superpixels` wrote.

    Parameters
    ----------
    path : str or Path
        `<id>.png`.

    Returns
    -------
    numpy.ndarray
        (H, W) uint16, labels from 1.

    Raises
    ------
    DataError
        When the file is missing, damaged, or something else, such as a mask.

    Examples
    --------
    >>> read_superpixels("no/such.png")
    Traceback (most recent call last):
    wsss_lib.errors.DataError: no/such.png: no such super-pixel map -> make it with `python -m data_prep superpixels`
    """
    path = Path(path)
    fault, _ = _look_at(path)
    if fault:
        raise fault.error()
    with Image.open(path) as image:
        return np.array(image).astype(np.uint16)


def superpixel_fault(path: Path, image_path: Path) -> Fault | None:
    """Return what is wrong with the map of an image, or None; the map is read to its end, but not decoded.

    Parameters
    ----------
    path : Path
        The map.
    image_path : Path
        Its image.

    Returns
    -------
    Fault or None

    Examples
    --------
    >>> superpixel_fault(Path("a.png"), Path("a.jpg")).problem
    'no such super-pixel map'
    """
    fault, size = _look_at(path)
    if fault:
        return fault
    (width, height), (image_height, image_width) = size, image_size(image_path)
    if (height, width) != (image_height, image_width):
        return _fault(path, f"super-pixels of {width} x {height}, image of {image_width} x {image_height} pixels")
    return None


def _look_at(path: Path) -> tuple[Fault | None, tuple[int, int]]:
    """What is wrong with the file of a map, and its (width, height)."""
    try:
        note, size = _checked(path)
        fault = None if note else _fault(path, "no super-pixel map")
    except BROKEN_IMAGE as error:
        fault, size = _fault(path, image_fault(path, error, "super-pixel map").problem), (0, 0)
    return fault, size


def _checked(path: Path) -> tuple[str, tuple[int, int]]:
    """The note in a PNG and its (width, height); raises what Pillow raises where a byte is missing or wrong."""
    with Image.open(path) as image:
        note, size = image.info.get(_NOTE, ""), image.size
        image.verify()  # reads a PNG to its end and compares every checksum, which decoding does not
    if note and not path.read_bytes().endswith(_PNG_END):
        raise OSError("truncated")
    return note, size


def _fault(path: Path, problem: str) -> Fault:
    return Fault(path, problem, REMEDY)


def _note(image_path: Path, settings: SuperpixelSettings) -> str:
    """What a map depends on: the way, the numbers, and every byte of the image."""
    try:
        with open(image_path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise image_fault(image_path, error).error() from None
    return f"{_WAY}, n_segments={settings.n_segments}, compactness={float(settings.compactness)}, image {digest}"


def _is_there(path: Path, note: str) -> bool:
    """Whether a map is whole and still right; what is no map at all is not for us to replace."""
    try:
        found, _ = _checked(path)
    except BROKEN_IMAGE:
        return False
    if not found:
        raise Fault(path, "an image that is no super-pixel map is in the way", "give another folder").error()
    return found == note


def _from_file(image_path: Path, settings: SuperpixelSettings) -> np.ndarray:
    return superpixels(read_pixels(image_path), settings)


def _write(path: Path, regions: np.ndarray, note: str) -> None:
    info = PngInfo()
    info.add_text(_NOTE, note)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        Image.fromarray(regions).save(part, format="PNG", pnginfo=info)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
