"""The small text files of a data folder: class names, splits, image-level labels, VOC's XML annotations.

Each reader returns what it read together with the faults it met, so that a check can list all of them.
"""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from wsss_lib.data.faults import Fault, nearest


class ImageContext(NamedTuple):
    """Where an object stands, as labels.csv may say (toy scenes do).

    Parameters
    ----------
    context : str
        Name of the surroundings, e.g. "water".
    agrees : bool
        Whether it is the usual one of the image's objects.

    Examples
    --------
    >>> ImageContext("water", agrees=False).context
    'water'
    """

    context: str
    agrees: bool


class Labels(NamedTuple):
    """Image-level labels read from a CSV file.

    Parameters
    ----------
    classes : dict
        Names of the classes in each image, by image id.
    context : dict
        The `ImageContext` of each image id, or nothing when the file does not say.
    faults : list of Fault
        What is wrong with the file.

    Examples
    --------
    >>> Labels({"a": ("cat",)}, {}, []).classes["a"]
    ('cat',)
    """

    classes: dict[str, tuple[str, ...]]
    context: dict[str, ImageContext]
    faults: list[Fault]


def read_lines(path: Path) -> list[str]:
    """Read a text file's lines, stripped; Windows line ends, blank lines and a byte order mark do not matter.

    Parameters
    ----------
    path : Path
        A UTF-8 text file.

    Returns
    -------
    list of str
        The lines that are not blank.

    Raises
    ------
    DataError
        When the file cannot be read as UTF-8.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "train.txt")
    ...     _ = path.write_bytes(b"a\\r\\n\\r\\nb\\r\\n")
    ...     read_lines(path)
    ['a', 'b']
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise Fault(path, "not UTF-8 text", "save it as UTF-8").error() from None
    except OSError as error:
        raise Fault(path, f"cannot be read ({error.strerror})", "check its permissions").error() from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_classes(path: Path) -> tuple[tuple[str, ...], list[Fault]]:
    """Read the names of the foreground classes, one a line; the first is pixel value 1.

    Parameters
    ----------
    path : Path
        classes.txt.

    Returns
    -------
    tuple
        The names, and what is wrong with them (list of Fault).

    Raises
    ------
    DataError
        When the file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "classes.txt").write_text("cat\\ndog\\n")
    ...     read_classes(Path(folder, "classes.txt"))
    (('cat', 'dog'), [])
    """
    names = tuple(read_lines(path))
    faults = []
    if not names:
        faults.append(Fault(path, "no class names", "write one name a line, without background"))
    if len(names) > 254:
        faults.append(Fault(path, f"{len(names)} classes", "masks hold at most 254 (255 is ignored)"))
    for name in dict.fromkeys(names):
        if len(name.split()) > 1:
            faults.append(Fault(path, f"space in class name '{name}'", f"write {'_'.join(name.split())}"))
        if names.count(name) > 1:
            faults.append(Fault(path, f"class {name} twice", "name each class once"))
        if name.lower() == "background":
            faults.append(Fault(path, "names the background", "leave it out: pixel value 0 is background"))
    return names, faults


def read_ids(path: Path) -> tuple[tuple[str, ...], list[Fault]]:
    """Read a split: one image id a line, further columns (VOC's class lists have them) are passed over.

    Parameters
    ----------
    path : Path
        A list in ImageSets/Segmentation.

    Returns
    -------
    tuple
        The ids, and what is wrong with the list (list of Fault).

    Raises
    ------
    DataError
        When the file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "train.txt").write_text("2007_000033  1\\n2007_000032 -1\\n")
    ...     read_ids(Path(folder, "train.txt"))
    (('2007_000033', '2007_000032'), [])
    """
    ids: dict[str, None] = {}
    faults = []
    for line in read_lines(path):
        image_id = line.split()[0]
        if "/" in image_id or "\\" in image_id:
            plain = Path(image_id.replace("\\", "/")).stem
            faults.append(Fault(path, f"'{image_id}' is a path", f"write the image id alone ({plain})"))
        elif image_id in ids:
            faults.append(Fault(path, f"id {image_id} twice", "list each image once"))
        else:
            ids[image_id] = None
    if not ids and not faults:
        faults.append(Fault(path, "empty split", "write one image id a line"))
    return tuple(ids), faults


def read_labels(path: Path, classes: Sequence[str]) -> Labels:
    """Read image-level labels from a CSV file: columns image_id, classes and, where known, context, agrees.

    Parameters
    ----------
    path : Path
        labels.csv; its column `classes` has the names of an image's classes, space separated, or nothing.
    classes : sequence of str
        The names that exist.

    Returns
    -------
    Labels
        What the file says, and what is wrong with it.

    Raises
    ------
    DataError
        When the file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "labels.csv").write_text("image_id,classes\\na,cat dog\\nb,\\n")
    ...     read_labels(Path(folder, "labels.csv"), ["cat", "dog"]).classes
    {'a': ('cat', 'dog'), 'b': ()}
    """
    labels = Labels({}, {}, [])
    rows = csv.DictReader(read_lines(path))
    columns = [(column or "").strip() for column in rows.fieldnames or ()]
    rows.fieldnames = columns
    missing = [column for column in ("image_id", "classes") if column not in columns]
    if missing:
        problem = f"no column {' and '.join(missing)} (has: {', '.join(columns) or 'nothing'})"
        labels.faults.append(Fault(path, problem, "begin with the line image_id,classes (with commas)"))
        return labels
    for row in rows:
        image_id = (row["image_id"] or "").strip()
        names = tuple((row["classes"] or "").split())
        if None in row:
            remedy = "separate class names by spaces, not commas"
            labels.faults.append(Fault(path, f"id {image_id}: more columns than the first line", remedy))
        if image_id in labels.classes:
            labels.faults.append(Fault(path, f"id {image_id} twice", "keep one row per image"))
        labels.faults.extend(unknown_names(path, image_id, names, classes))
        labels.classes[image_id] = names
        if "context" in columns and "agrees" in columns:
            agrees = (row["agrees"] or "").strip().lower()
            if agrees not in ("1", "0", "true", "false"):
                labels.faults.append(Fault(path, f"id {image_id}: agrees='{agrees}'", "write 1 or 0"))
            labels.context[image_id] = ImageContext((row["context"] or "").strip(), agrees in ("1", "true"))
    return labels


def read_annotation(path: Path, classes: Sequence[str]) -> tuple[tuple[str, ...], list[Fault]]:
    """Read the names of the objects in a VOC annotation; difficult objects count as present.

    Parameters
    ----------
    path : Path
        Annotations/<id>.xml.
    classes : sequence of str
        The names that exist.

    Returns
    -------
    tuple
        Each name once, in the order of the file, and what is wrong (list of Fault).

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    ...     read_annotation(Path(folder, "a.xml"), ["cat", "dog"])
    (('cat',), [])
    """
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        return (), [Fault(path, "no such annotation", "add it, or write labels.csv")]
    except (ElementTree.ParseError, OSError, ValueError) as error:
        return (), [Fault(path, f"broken XML ({error})", "copy or download it again")]
    # Only the objects themselves: VOC's persons have parts with names of their own (head, hand, foot).
    objects = [(thing.findtext("name") or "").strip() for thing in root.findall("object")]
    names = tuple(dict.fromkeys(objects))
    return names, unknown_names(path, path.stem, names, classes)


def no_label(path: Path, image_id: str) -> Fault:
    """Return the fault of an image that the file of labels does not name.

    Parameters
    ----------
    path : Path
        labels.csv.
    image_id : str
        The image.

    Returns
    -------
    Fault
        With the row to add.

    Examples
    --------
    >>> no_label(Path("labels.csv"), "a").problem
    'no label for id a'
    """
    remedy = f"add a row {image_id},<class names>, or take the id out of the split"
    return Fault(path, f"no label for id {image_id}", remedy)


def unknown_names(path: Path, image_id: str, names: Sequence[str], classes: Sequence[str]) -> list[Fault]:
    """Return a fault for each name that is no class.

    Parameters
    ----------
    path : Path
        The file that has the names.
    image_id : str
        The image that they belong to.
    names : sequence of str
        The names in the file.
    classes : sequence of str
        The names that exist.

    Returns
    -------
    list of Fault
        Each with the nearest class as remedy.

    Examples
    --------
    >>> print(unknown_names(Path("labels.csv"), "a", ["cat", "dgo"], ["cat", "dog"])[0])
    labels.csv: id a: unknown class dgo -> did you mean dog?
    """
    known = set(classes)
    return [
        Fault(path, f"id {image_id}: unknown class {name or '(empty)'}", nearest(name, classes))
        for name in names
        if name not in known
    ]
