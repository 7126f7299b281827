"""Where the files of a folder in PASCAL VOC's layout lie; nothing is read here but the names in folders."""

from __future__ import annotations

from pathlib import Path

from wsss_lib.data.faults import Fault

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
LABEL_FILES = ("labels.csv", "image_level_labels.csv")
MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")


def find_voc(root: str | Path) -> Path:
    """Find the folder in VOC's layout: `root` itself, or VOCdevkit/VOC2012 or VOC2012 in it.

    Parameters
    ----------
    root : str or Path
        Where to look.

    Returns
    -------
    Path
        The folder that holds JPEGImages and ImageSets/Segmentation.

    Raises
    ------
    DataError
        When there is none; says what was looked for.

    Examples
    --------
    >>> find_voc("no/such/folder")
    Traceback (most recent call last):
    wsss_lib.errors.DataError: no/such/folder: no such folder -> give the folder that holds JPEGImages
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise Fault(root, "no such folder", "give the folder that holds JPEGImages").error()
    for candidate in (root, root / "VOCdevkit" / "VOC2012", root / "VOC2012"):
        if (candidate / "JPEGImages").is_dir():
            if not (candidate / "ImageSets" / "Segmentation").is_dir():
                remedy = "add the folder, with one list of image ids per split (train.txt, val.txt)"
                raise Fault(candidate, "JPEGImages but no ImageSets/Segmentation", remedy).error()
            return candidate
    problem = "not in VOC layout: no JPEGImages in it, nor in VOCdevkit/VOC2012 or VOC2012 below it"
    raise Fault(root, problem, "give the folder that holds JPEGImages and ImageSets/Segmentation").error()


class Layout:
    """The paths of a folder in VOC's layout.

    Parameters
    ----------
    root : str or Path
        The folder with JPEGImages, or one that holds it as VOCdevkit/VOC2012 or VOC2012.

    Raises
    ------
    DataError
        When there is no such folder.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Path(root, "VOC2012", "JPEGImages").mkdir(parents=True)
    ...     Path(root, "VOC2012", "ImageSets", "Segmentation").mkdir(parents=True)
    ...     Layout(root).mask_path("a").parts[-3:]
    ('VOC2012', 'SegmentationClass', 'a.png')
    """

    def __init__(self, root: str | Path):
        self.given = Path(root).expanduser()
        self.root = find_voc(self.given)

    def _find(self, *names: str) -> Path | None:
        files = (folder / name for folder in (self.given, self.root) for name in names)
        return next((file for file in files if file.is_file()), None)

    @property
    def classes_file(self) -> Path | None:
        """The file with the names of the classes, or None: then they are VOC's."""
        return self._find("classes.txt")

    @property
    def label_file(self) -> Path | None:
        """The CSV file with the labels, or None: then they come from Annotations."""
        return self._find(*LABEL_FILES)

    def no_labels(self) -> list[Fault]:
        """Return a fault when there are neither a CSV file nor annotations."""
        if self.label_file or (self.root / "Annotations").is_dir():
            return []
        problem = f"no image-level labels (neither {' nor '.join(LABEL_FILES)} nor Annotations)"
        return [Fault(self.root, problem, "write labels.csv with the columns image_id,classes")]

    def annotation_path(self, image_id: str) -> Path:
        """Return the XML file with an image's objects."""
        return self.root / "Annotations" / f"{image_id}.xml"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the lists in ImageSets/Segmentation."""
        return tuple(sorted(path.stem for path in (self.root / "ImageSets" / "Segmentation").glob("*.txt")))

    def split_path(self, name: str) -> Path:
        """Return the file that lists a split's image ids; an unknown split is an error that names them."""
        path = self.root / "ImageSets" / "Segmentation" / f"{name}.txt"
        if name not in self.splits:
            remedy = f"use one of: {', '.join(self.splits)}" if self.splits else "write one image id a line"
            raise Fault(path, "no such split", remedy).error()
        return path

    def image_path(self, image_id: str) -> Path:
        """Return the image's file; where there is none, the .jpg that is missing."""
        paths = [self.root / "JPEGImages" / f"{image_id}{ending}" for ending in IMAGE_ENDINGS]
        return next((path for path in paths if path.is_file()), paths[0])

    def mask_path(self, image_id: str) -> Path:
        """Return the file of the true mask: SegmentationClass, else SegmentationClassAug."""
        paths = [self.root / folder / f"{image_id}.png" for folder in MASK_FOLDERS]
        return next((path for path in paths if path.is_file()), paths[0])
