"""Finds what is wrong with a data folder before a training does: all faults at once, or quickly the first."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm.auto import tqdm

from wsss_lib.data.classes import VOC_CLASSES
from wsss_lib.data.faults import Fault
from wsss_lib.data.images import image_size, is_whole, read_pixels
from wsss_lib.data.layout import Layout
from wsss_lib.data.masks import mask_fault, read_mask
from wsss_lib.data.readers import no_label, read_annotation, read_classes, read_ids, read_labels
from wsss_lib.errors import DataError

if TYPE_CHECKING:
    from wsss_lib.data.folder import VOCFolder


class SplitCounts(NamedTuple):
    """What a split holds.

    Parameters
    ----------
    images : int
        Number of ids.
    masks : int
        How many of them have a true mask.
    classes : Counter
        In how many images each class is.

    Examples
    --------
    >>> SplitCounts(2, 0, Counter(cat=2)).classes["cat"]
    2
    """

    images: int
    masks: int
    classes: Counter[str]


class Survey(NamedTuple):
    """What a data folder holds and what is wrong with it.

    Parameters
    ----------
    splits : dict
        `SplitCounts` by the split's name.
    faults : list of Fault
        All of them.

    Examples
    --------
    >>> Survey({}, []).faults
    []
    """

    splits: dict[str, SplitCounts]
    faults: list[Fault]


def check(root: str | Path, progress: bool = False) -> list[Fault]:
    """Find all faults of a data folder; every image and mask of its splits is read in full.

    Parameters
    ----------
    root : str or Path
        A folder in VOC's layout.
    progress : bool
        Show a progress bar, if it takes longer than a second.

    Returns
    -------
    list of Fault
        Empty when all is well. That an image has no mask, or no class, is no fault.

    Raises
    ------
    DataError
        When `root` is not in VOC's layout at all.

    Examples
    --------
    >>> check("no/such/folder")
    Traceback (most recent call last):
    wsss_lib.errors.DataError: no/such/folder: no such folder -> give the folder that holds JPEGImages
    """
    return survey(root, progress).faults


def survey(root: str | Path, progress: bool = False) -> Survey:
    """Count what a data folder holds, and find all its faults (as `check`).

    Parameters
    ----------
    root : str or Path
        A folder in VOC's layout.
    progress : bool
        Show a progress bar, if it takes longer than a second.

    Returns
    -------
    Survey
        Counts and faults.

    Raises
    ------
    DataError
        When `root` is not in VOC's layout at all.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("JPEGImages", "ImageSets/Segmentation", "Annotations"):
    ...         Path(root, name).mkdir(parents=True)
    ...     Image.new("RGB", (8, 6)).save(f"{root}/JPEGImages/a.jpg")
    ...     _ = Path(root, "ImageSets/Segmentation/val.txt").write_text("a")
    ...     _ = Path(root, "Annotations/a.xml").write_text("<x><object><name>cat</name></object></x>")
    ...     survey(root)
    Survey(splits={'val': SplitCounts(images=1, masks=0, classes=Counter({'cat': 1}))}, faults=[])
    """
    layout = Layout(root)
    faults: list[Fault] = []
    classes = _classes(layout, faults)
    splits = _splits(layout, faults)
    ids = list(dict.fromkeys(image_id for split in splits.values() for image_id in split))
    names = _names(layout, ids, classes, faults)

    def check_id(image_id: str) -> list[Fault]:
        return _check_pixels(layout, image_id, len(classes))

    # Pillow decodes outside Python's lock, so threads keep all cores busy.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(check_id, ids)
        for more in tqdm(found, "check", len(ids), unit="image", delay=1, disable=not progress):
            faults += more
    counts = {
        split: SplitCounts(
            images=len(members),
            masks=sum(layout.mask_path(image_id).is_file() for image_id in members),
            classes=Counter(name for image_id in members for name in names.get(image_id, ())),
        )
        for split, members in splits.items()
    }
    return Survey(counts, faults)


def check_split(folder: VOCFolder, ids: Sequence[str], masks: bool = False) -> None:
    """Make sure, quickly, that images, labels and (if asked for) true masks of a split can be used.

    Images are not decoded: their headers and ends are looked at. Masks are read.

    Parameters
    ----------
    folder : VOCFolder
        The data.
    ids : sequence of str
        Image ids.
    masks : bool
        Whether every image must have a mask, of its size and with values of its classes.

    Raises
    ------
    DataError
        One line: the first fault, and how many more there are.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> folder = SimpleNamespace(labels=len, image_path=lambda image_id: Path(f"{image_id}.jpg"))
    >>> check_split(folder, ["a", "b"])
    Traceback (most recent call last):
    wsss_lib.errors.DataError: a.jpg: no such image -> add it, or take its id out of the split (and 1 more)
    """
    folder.labels(ids)
    faults = check_images(folder.image_path(image_id) for image_id in ids)
    if masks and not faults:
        for image_id in ids:
            faults += _check_mask(folder.mask_path(image_id), folder.size(image_id), folder.n_classes)
    if faults:
        raise faults[0].error(more=len(faults) - 1)


def check_images(paths: Iterable[Path]) -> list[Fault]:
    """Look at images' headers and ends; decode only those whose end is not as it should be.

    Parameters
    ----------
    paths : iterable of Path
        Image files.

    Returns
    -------
    list of Fault
        Missing, empty and truncated images, and files that are none.

    Examples
    --------
    >>> print(*check_images([Path("a.jpg")]))
    a.jpg: no such image -> add it, or take its id out of the split
    """
    faults = []
    for path in paths:
        try:
            image_size(path)
            if not is_whole(path):
                read_pixels(path)
        except DataError as error:
            faults.append(_fault(error))
    return faults


def _fault(error: DataError) -> Fault:
    fault = error.args[0]
    if not isinstance(fault, Fault):
        raise error
    return fault


def _classes(layout: Layout, faults: list[Fault]) -> tuple[str, ...]:
    if layout.classes_file is None:
        return VOC_CLASSES
    try:
        classes, more = read_classes(layout.classes_file)
    except DataError as error:
        classes, more = (), [_fault(error)]
    faults += more
    return classes


def _splits(layout: Layout, faults: list[Fault]) -> dict[str, tuple[str, ...]]:
    splits = {}
    for name in layout.splits:
        try:
            splits[name], more = read_ids(layout.split_path(name))
        except DataError as error:
            more = [_fault(error)]
        faults += more
    if not layout.splits:
        remedy = "write train.txt and val.txt, one image id a line"
        faults.append(Fault(layout.root / "ImageSets" / "Segmentation", "no splits", remedy))
    return splits


def _names(
    layout: Layout, ids: Sequence[str], classes: Sequence[str], faults: list[Fault]
) -> dict[str, tuple[str, ...]]:
    """Return the class names of each id that has a label."""
    missing = layout.no_labels()
    faults += missing
    if missing:
        return {}
    if layout.label_file is None:
        names = {}
        for image_id in ids:
            names[image_id], more = read_annotation(layout.annotation_path(image_id), classes)
            faults += more
        return names
    try:
        labels = read_labels(layout.label_file, classes)
    except DataError as error:
        faults.append(_fault(error))
        return {}
    faults += labels.faults
    # Where the columns are wrong, nothing was read: that is one fault, not one an id.
    if labels.classes or not labels.faults:
        faults += [no_label(layout.label_file, image_id) for image_id in ids if image_id not in labels.classes]
    return labels.classes


def _check_pixels(layout: Layout, image_id: str, n_classes: int) -> list[Fault]:
    path = layout.image_path(image_id)
    try:
        height, width, _ = read_pixels(path).shape
    except DataError as error:
        return [_fault(error)]
    mask = layout.mask_path(image_id)
    return _check_mask(mask, (height, width), n_classes) if mask.is_file() else []


def _check_mask(path: Path, size: tuple[int, int], n_classes: int) -> list[Fault]:
    try:
        fault = mask_fault(path, read_mask(path), size, n_classes)
    except DataError as error:
        fault = _fault(error)
    return [fault] if fault else []
