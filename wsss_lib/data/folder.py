"""A data folder in PASCAL VOC's layout: images, image-level labels, and (for scoring only) masks.

One class for toy scenes, VOC and anybody's photographs. Labels come from a CSV file or from VOC's XML
annotations, never from masks: whoever trains on this folder has seen image-level labels only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from wsss_lib.data.classes import VOC_CLASSES
from wsss_lib.data.faults import raise_first
from wsss_lib.data.images import image_size, read_pixels
from wsss_lib.data.layout import Layout
from wsss_lib.data.masks import read_mask
from wsss_lib.data.readers import (
    ImageContext,
    Labels,
    no_label,
    read_annotation,
    read_classes,
    read_ids,
    read_labels,
)
from wsss_lib.errors import DataError


def read_image(path: str | Path) -> Tensor:
    """Decode an image to 8-bit RGB, in the order in which its pixels are stored (see `read_pixels`).

    Parameters
    ----------
    path : str or Path
        A JPEG or PNG file.

    Returns
    -------
    Tensor
        (3, H, W) uint8.

    Raises
    ------
    DataError
        When the file is missing, empty, truncated or no image.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (6, 4), 200).save(f"{folder}/a.png")
    ...     read_image(f"{folder}/a.png").shape
    torch.Size([3, 4, 6])
    """
    return torch.from_numpy(read_pixels(path)).permute(2, 0, 1).contiguous()


class VOCFolder(Layout):
    """Images, image-level labels and splits of a folder in VOC's layout.

    The folder holds `JPEGImages/<id>.jpg` (or .png), `ImageSets/Segmentation/<split>.txt`, and `labels.csv`
    (or `image_level_labels.csv`, or `Annotations/<id>.xml`); for other classes than VOC's also `classes.txt`;
    for scoring `SegmentationClass/<id>.png` or `SegmentationClassAug/<id>.png`. The small files may also lie
    in the given root.

    Parameters
    ----------
    root : str or Path
        The folder with JPEGImages, or one that holds it as VOCdevkit/VOC2012 or VOC2012.
    name : str
        What the dataset is called in runs and tables; by default the name of `root`.

    Raises
    ------
    DataError
        When `root` is not in VOC's layout, or classes.txt has a fault.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> parent = tempfile.TemporaryDirectory()
    >>> root = Path(parent.name, "pets")
    >>> (root / "JPEGImages").mkdir(parents=True)
    >>> (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    >>> Image.new("RGB", (8, 6)).save(root / "JPEGImages" / "a.jpg")
    >>> _ = (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a")
    >>> _ = (root / "classes.txt").write_text("cat\\ndog")
    >>> _ = (root / "labels.csv").write_text("image_id,classes\\na,dog")
    >>> folder = VOCFolder(root)
    >>> folder.name, folder.classes, folder.split("train")
    ('pets', ('cat', 'dog'), ('a',))
    >>> folder.label("a"), folder.size("a"), folder.image("a").shape
    (tensor([0., 1.]), (6, 8), torch.Size([3, 6, 8]))
    >>> parent.cleanup()
    """

    def __init__(self, root: str | Path, name: str = ""):
        super().__init__(root)
        self.name = name or self.given.resolve().name
        self.classes = VOC_CLASSES
        if self.classes_file:
            self.classes, faults = read_classes(self.classes_file)
            raise_first(faults)

    def __repr__(self) -> str:
        splits = ", ".join(self.splits) or "none"
        return f"VOCFolder({str(self.root)!r}: {self.n_classes} classes; splits: {splits})"

    @property
    def n_classes(self) -> int:
        """Number K of foreground classes."""
        return len(self.classes)

    def split(self, name: str, limit: int = 0) -> tuple[str, ...]:
        """Return a split's image ids in the order of its list, at most `limit` of them (0: all)."""
        ids, faults = read_ids(self.split_path(name))
        raise_first(faults)
        if limit < 0:
            raise DataError(f"limit={limit}: give 0 for the whole split, or a number of images")
        return ids[: limit or None]

    @cached_property
    def _labels(self) -> Labels | None:
        if self.label_file is None:
            raise_first(self.no_labels())
            return None
        labels = read_labels(self.label_file, self.classes)
        raise_first(labels.faults)
        return labels

    @cached_property
    def _annotations(self) -> dict[str, tuple[str, ...]]:
        return {}

    def class_names(self, image_id: str) -> tuple[str, ...]:
        """Return the names of the classes in an image (its image-level label), in the order of the file."""
        if self._labels is not None:
            if image_id not in self._labels.classes:
                raise no_label(self.label_file, image_id).error()
            return self._labels.classes[image_id]
        if image_id not in self._annotations:
            names, faults = read_annotation(self.annotation_path(image_id), self.classes)
            raise_first(faults)
            self._annotations[image_id] = names
        return self._annotations[image_id]

    def label(self, image_id: str) -> Tensor:
        """Return an image's label: (K,) float32, 1 for each class in it, else 0."""
        label = torch.zeros(self.n_classes)
        for name in self.class_names(image_id):
            label[self.classes.index(name)] = 1
        return label

    def labels(self, ids: Iterable[str]) -> Tensor:
        """Return the labels of `ids`: (N, K) float32 in {0, 1}."""
        labels = [self.label(image_id) for image_id in ids]
        return torch.stack(labels) if labels else torch.zeros(0, self.n_classes)

    @property
    def context(self) -> dict[str, ImageContext]:
        """The `ImageContext` of each image id, or nothing where the labels do not say."""
        return self._labels.context if self._labels is not None else {}

    def image(self, image_id: str) -> Tensor:
        """Decode an image: (3, H, W) uint8 RGB, as stored (`read_image`)."""
        return read_image(self.image_path(image_id))

    def size(self, image_id: str) -> tuple[int, int]:
        """Return an image's (height, width) from its header."""
        return image_size(self.image_path(image_id))

    def has_masks(self, ids: Iterable[str]) -> bool:
        """Whether every one of `ids` has a true mask."""
        return all(self.mask_path(image_id).is_file() for image_id in ids)

    def require_masks(self, ids: Iterable[str], why: str) -> None:
        """Raise `DataError`, one line that says `why` they are needed, unless every one of `ids` has a true mask."""
        if not self.has_masks(ids):
            raise DataError(f"{self.name}: no true masks in SegmentationClass/; {why}")

    def mask(self, image_id: str) -> Tensor:
        """Read the true pixel mask, for scoring only: (H, W) uint8, 0 background, 1 to K, 255 void."""
        return torch.from_numpy(read_mask(self.mask_path(image_id)))

    def fingerprint(self, *splits: str) -> str:
        """Return 12 hex digits of the classes and of the ids, labels and contexts of `splits`.

        The same on every machine; pixels are not part of it.
        """
        digest = hashlib.sha256(" ".join(self.classes).encode())
        for split in splits:
            digest.update(f"\n\n{split}".encode())
            for image_id in self.split(split):
                names = " ".join(sorted(self.class_names(image_id)))
                context = self.context.get(image_id, "")
                digest.update(f"\n{image_id},{names},{tuple(context)}".encode())
        return digest.hexdigest()[:12]
