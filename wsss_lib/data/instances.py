"""Objects cut out of images by their pseudo masks: what CDA pastes, and where CSD finds its source scenes.

One idea: an image with one class and a mask of believable size shows its object well enough to be trusted. The bank
keeps the masks of these images and a table; pixels are read from the images themselves. Su et al., Context
Decoupling Augmentation for Weakly Supervised Semantic Segmentation, ICCV 2021, section 3.1.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional
from torchvision.utils import make_grid
from tqdm import tqdm

from wsss_lib.data.classes import IGNORE
from wsss_lib.data.folder import VOCFolder, read_image
from wsss_lib.data.masks import read_mask, write_mask
from wsss_lib.data.samples import MaskSample, PseudoMaskSet
from wsss_lib.errors import DataError, SettingsError

TABLE, MASKS = "instances.csv", "masks"  # what a bank's folder holds
COLUMNS = ("image_id", "class", "share", "top", "left", "height", "width")
REMEDY = "run the stage that collects the instances again"


class Instance(NamedTuple):
    """One object, cut out along its bounding box.

    Parameters
    ----------
    image : Tensor
        O (3, h, w) uint8: the object and what surrounds it inside the box.
    mask : Tensor
        A (h, w) bool: where the object is.
    class_index : int
        Its class k, from 0.
    image_id : str
        Where it comes from.

    Examples
    --------
    >>> Instance(torch.zeros(3, 2, 4, dtype=torch.uint8), torch.ones(2, 4, dtype=torch.bool), 0, "a").image_id
    'a'
    """

    image: Tensor
    mask: Tensor
    class_index: int
    image_id: str


def single_class(label: Tensor, mask: np.ndarray, mask_only: bool = False) -> int | None:
    """The class of an image that shows one class only, else None: CDA's first criterion.

    The paper's text asks for one class in the image's label; the released code looks at the mask alone.

    Parameters
    ----------
    label : Tensor
        y (K,) in {0, 1}.
    mask : numpy.ndarray
        (H, W) pseudo mask: 0 background, 1 to K, 255 ignored.
    mask_only : bool
        Look at the mask alone.

    Returns
    -------
    int or None
        Class index from 0.

    References
    ----------
    Su et al. 2021, section 3.1, criterion (i).

    Examples
    --------
    >>> single_class(torch.tensor([0.0, 1.0]), np.array([[0, 2], [255, 2]]))
    1
    >>> single_class(torch.tensor([1.0, 1.0]), np.array([[0, 2]])) is None
    True
    >>> single_class(torch.tensor([1.0, 1.0]), np.array([[0, 2]]), mask_only=True)
    1
    """
    found = np.setdiff1d(np.unique(mask), [0, IGNORE])
    if len(found) != 1:
        return None
    class_index = int(found[0]) - 1
    alone = int(label.sum()) == 1 and bool(label[class_index])
    return class_index if mask_only or alone else None


def object_share(mask: np.ndarray) -> float:
    """The object's part of the image's pixels, m / n of CDA's second criterion.

    Parameters
    ----------
    mask : numpy.ndarray
        (H, W) pseudo mask; 0 and 255 are no object.

    Returns
    -------
    float
        In [0, 1].

    Examples
    --------
    >>> object_share(np.array([[0, 2], [255, 2]]))
    0.5
    """
    return float(((mask > 0) & (mask != IGNORE)).mean())


def collect_instances(
    folder: VOCFolder,
    ids: Iterable[str],
    mask_of: Callable[[str], np.ndarray],
    target: Path,
    epsilon_1: float = 0.1,
    epsilon_2: float = 0.7,
    mask_only: bool = False,
) -> dict[str, int]:
    r"""Keep the masks of images that show one object well: one class, and :math:`\epsilon_1 < m/n < \epsilon_2`.

    Parameters
    ----------
    folder : VOCFolder
        The images and their labels.
    ids : iterable of str
        Images to look at.
    mask_of : callable
        From an id to its pseudo mask (H, W).
    target : path
        The bank's folder: gets ``masks/<id>.png`` and, last, ``instances.csv``.
    epsilon_1, epsilon_2 : float
        Bounds of the object's share of the image's pixels, both excluded.
    mask_only : bool
        As in `single_class`.

    Returns
    -------
    dict of str to int
        Instances of each class, also of those that have none.

    Raises
    ------
    SettingsError
        Unless 0 <= epsilon_1 < epsilon_2 <= 1.

    References
    ----------
    Su et al. 2021, section 3.1.

    Examples
    --------
    >>> import tempfile
    >>> folder = VOCFolder(getfixture("toy_root"))
    >>> square = np.zeros((64, 64), np.uint8)
    >>> square[:32, :32] = 1 + int(folder.label(folder.split("train")[0]).argmax())
    >>> with tempfile.TemporaryDirectory() as target:
    ...     ids = folder.split("train")[:1]
    ...     counts = collect_instances(folder, ids, lambda _: square, Path(target), mask_only=True)
    >>> sum(counts.values())
    1
    """
    if not 0 <= epsilon_1 < epsilon_2 <= 1:
        raise SettingsError(
            f"epsilon_1={epsilon_1}, epsilon_2={epsilon_2}: give shares of the image, 0 <= epsilon_1 < epsilon_2 <= 1"
        )
    target = Path(target)
    (target / MASKS).mkdir(parents=True, exist_ok=True)
    counts, rows = dict.fromkeys(folder.classes, 0), []
    for image_id in tqdm(list(ids), desc="collect instances", unit="image", mininterval=1.0):
        mask = np.asarray(mask_of(image_id))
        class_index, share = single_class(folder.label(image_id), mask, mask_only), object_share(mask)
        if class_index is None or not epsilon_1 < share < epsilon_2:
            continue
        top, left, height, width = bounding_box(mask == class_index + 1)
        write_mask(target / MASKS / f"{image_id}.png", mask)
        rows.append((image_id, folder.classes[class_index], f"{share:.4f}", top, left, height, width))
        counts[folder.classes[class_index]] += 1
    with (target / TABLE).open("w", newline="", encoding="utf-8") as f:
        csv.writer(f, lineterminator="\n").writerows([COLUMNS, *rows])
    return counts


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest box around a mask.

    Parameters
    ----------
    mask : numpy.ndarray
        (H, W) bool, true somewhere.

    Returns
    -------
    tuple of int
        (top, left, height, width) in pixels.

    Examples
    --------
    >>> bounding_box(np.array([[0, 0, 0], [0, 1, 1]], bool))
    (1, 1, 1, 2)
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    return top, left, int(rows[-1]) - top + 1, int(columns[-1]) - left + 1


class InstanceBank:
    """The instances that `collect_instances` kept, by class: as cut-outs for CDA, as whole scenes for CSD.

    Parameters
    ----------
    folder : VOCFolder
        The images.
    path : path
        The bank's folder.
    long_side : int
        Cut-outs are scaled as if the longest side of the image that they come from had so many pixels, so that an
        object covers about as much of the image that it is pasted into as of its own; 0: as they are.
    transform : callable, optional
        Augmentation of `scene`, for (image, mask): as for `PseudoMaskSet`.
    labels : Tensor, optional
        (M, K) of all training images, for methods that ask how often classes come together.
    cache : bool
        Keep cut-outs and scenes in memory.

    Raises
    ------
    DataError
        If the folder holds no bank, or the bank has not a single instance.

    Examples
    --------
    >>> import tempfile
    >>> folder = VOCFolder(getfixture("toy_root"))
    >>> with tempfile.TemporaryDirectory() as path:
    ...     mask = np.pad(np.full((20, 30), 3, np.uint8), ((0, 44), (0, 34)))
    ...     _ = collect_instances(folder, folder.split("train")[:1], lambda _: mask, Path(path), mask_only=True)
    ...     bank = InstanceBank(folder, path)
    ...     bank.available.tolist(), bank[0].mask.shape
    ([False, False, True, False, False, False], torch.Size([20, 30]))
    """

    def __init__(
        self,
        folder: VOCFolder,
        path: str | Path,
        long_side: int = 0,
        transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        labels: Tensor | None = None,
        cache: bool = False,
    ):
        self.path, self.classes, self.long_side, self.labels = Path(path), folder.classes, long_side, labels
        table = self.path / TABLE
        if not table.is_file():
            raise DataError(f"{table.parent.name}/{TABLE}: no such bank of instances; {REMEDY}")
        with table.open(newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        if not rows:
            raise DataError(
                f"{table.parent.name}/{TABLE}: not a single instance; lower instances.epsilon_1, raise"
                " instances.epsilon_2, or train the method that makes the masks longer"
            )
        self.ids = tuple(row["image_id"] for row in rows)
        self.class_indices = [folder.classes.index(row["class"]) for row in rows]
        self.shares = [float(row["share"]) for row in rows]
        self._boxes = [tuple(int(row[name]) for name in COLUMNS[3:]) for row in rows]
        self._images = [folder.image_path(image_id) for image_id in self.ids]
        self.of_class = [[i for i, c in enumerate(self.class_indices) if c == k] for k in range(folder.n_classes)]
        self._cut_outs: list[Instance | None] | None = [None] * len(rows) if cache else None
        self._scenes = PseudoMaskSet(folder, self.ids, self.path / MASKS, transform, cache) if transform else None

    def __len__(self) -> int:
        return len(self.ids)

    def __deepcopy__(self, memo: dict) -> InstanceBank:
        return self  # a copy of a network needs no second bank

    @property
    def available(self) -> Tensor:
        """(K,) bool: the classes that have an instance."""
        return torch.tensor([bool(indices) for indices in self.of_class])

    @property
    def counts(self) -> dict[str, int]:
        """Instances of each class."""
        return {name: len(indices) for name, indices in zip(self.classes, self.of_class, strict=True)}

    def __getitem__(self, index: int) -> Instance:
        if self._cut_outs is None:
            return self._cut(index)
        if self._cut_outs[index] is None:
            self._cut_outs[index] = self._cut(index)
        return self._cut_outs[index]

    def scene(self, index: int, seed: int) -> MaskSample:
        """The whole image that instance `index` was found in, with its mask, augmented by the draw `seed`."""
        if self._scenes is None:
            raise SettingsError("transform: this bank has none; give one to draw scenes")
        return self._scenes[index, seed]

    def _cut(self, index: int) -> Instance:
        class_index, (top, left, height, width) = self.class_indices[index], self._boxes[index]
        image = read_image(self._images[index])
        mask = torch.from_numpy(read_mask(self.path / MASKS / f"{self.ids[index]}.png") == class_index + 1)
        factor = self.long_side / max(image.shape[1:]) if self.long_side else 1.0
        image = image[:, top : top + height, left : left + width]
        mask = mask[top : top + height, left : left + width]
        size = [max(1, round(height * factor)), max(1, round(width * factor))]
        if size != [height, width]:
            image = functional.resize_image(image, size)
            mask = (
                functional.resize_image(mask[None].byte(), size, interpolation=InterpolationMode.NEAREST_EXACT)[0] > 0
            )
        return Instance(image.contiguous(), mask.contiguous(), class_index, self.ids[index])


def contact_sheet(bank: InstanceBank, per_class: int = 10, side: int = 64) -> Tensor:
    """A picture of a bank: a row a class, its first cut-outs on white; a class without instances stays empty.

    Parameters
    ----------
    bank : InstanceBank
        What to show.
    per_class : int
        Cut-outs a row.
    side : int
        Of a cell, in pixels; a cut-out is scaled to fit.

    Returns
    -------
    Tensor
        (3, H, W) uint8.

    Examples
    --------
    >>> import tempfile
    >>> folder = VOCFolder(getfixture("toy_root"))
    >>> mask = np.pad(np.full((20, 30), 3, np.uint8), ((0, 44), (0, 34)))
    >>> with tempfile.TemporaryDirectory() as path:
    ...     _ = collect_instances(folder, folder.split("train")[:1], lambda _: mask, Path(path), mask_only=True)
    ...     contact_sheet(InstanceBank(folder, path), per_class=4).shape
    torch.Size([3, 398, 266])
    """
    cells = torch.full((len(bank.classes), per_class, 3, side, side), 255, dtype=torch.uint8)
    for row, indices in zip(cells, bank.of_class, strict=True):
        for cell, index in zip(row, indices, strict=False):
            one = bank[index]
            factor = side / max(one.mask.shape)
            size = [max(1, round(length * factor)) for length in one.mask.shape]
            picture = torch.where(one.mask, one.image, torch.full_like(one.image, 255))
            cell[:, : size[0], : size[1]] = functional.resize_image(picture, size)
    return make_grid(cells.flatten(0, 1), nrow=per_class, pad_value=200)
