"""What a network is trained on: an image with its image-level label or, in the last stage, its pseudo mask.

`TrainingSet` keeps the paths of images and a matrix of labels (and, if asked for, the paths of super-pixels, which are
made of images alone), nothing else: no way leads to a true mask.
Every augmentation depends on a seed that comes with the index, so worker count and order change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors

from wsss_lib.data.check import check_images, check_split
from wsss_lib.data.faults import Fault, raise_first
from wsss_lib.data.folder import VOCFolder, read_image
from wsss_lib.data.images import image_size
from wsss_lib.data.layout import MASK_FOLDERS
from wsss_lib.data.masks import mask_fault, read_mask, size_fault
from wsss_lib.data.superpixels import read_superpixels, superpixel_fault
from wsss_lib.data.transforms import Regions
from wsss_lib.errors import SettingsError

MASK_REMEDY = "run the stage that makes the pseudo masks again"


class Sample(NamedTuple):
    """One training image.

    Parameters
    ----------
    image : Tensor
        (3, H, W) float, normalised.
    label : Tensor
        (K,) float in {0, 1}.
    image_id : str
        Its id in the split.
    regions : Tensor, optional
        (H, W) int64: super-pixels from 1, 0 where the crop is padded. None: not asked for.

    Examples
    --------
    >>> Sample(torch.zeros(3, 4, 4), torch.tensor([0.0, 1.0]), "a").image_id
    'a'
    """

    image: Tensor
    label: Tensor
    image_id: str
    regions: Tensor | None = None


class Batch(NamedTuple):
    """Training images stacked: all that a method sees.

    Parameters
    ----------
    image : Tensor
        (N, 3, H, W) float, normalised.
    label : Tensor
        (N, K) float in {0, 1}.
    image_id : tuple of str
        N ids.
    regions : Tensor, optional
        (N, H, W) int64: super-pixels from 1, 0 where the crop is padded. None: not asked for.

    Examples
    --------
    >>> Batch(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5), ("a", "b")).to("cpu").image.shape
    torch.Size([2, 3, 4, 4])
    """

    image: Tensor
    label: Tensor
    image_id: tuple[str, ...]
    regions: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""
        image, label, regions = _moved((self.image, self.label, self.regions), device)
        return Batch(image, label, tuple(self.image_id), regions)


class MaskSample(NamedTuple):
    """One image with its pseudo mask.

    Parameters
    ----------
    image : Tensor
        (3, H, W) float, normalised.
    mask : Tensor
        (H, W) int64: 0 background, 1 to K, 255 ignored.
    image_id : str
        Its id in the split.

    Examples
    --------
    >>> MaskSample(torch.zeros(3, 4, 4), torch.zeros(4, 4).long(), "a").mask.shape
    torch.Size([4, 4])
    """

    image: Tensor
    mask: Tensor
    image_id: str


class MaskBatch(NamedTuple):
    """Images with pseudo masks, stacked.

    Parameters
    ----------
    image : Tensor
        (N, 3, H, W) float, normalised.
    mask : Tensor
        (N, H, W) int64: 0 background, 1 to K, 255 ignored.
    image_id : tuple of str
        N ids.

    Examples
    --------
    >>> MaskBatch(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4).long(), ("a",)).to("cpu").mask.shape
    torch.Size([1, 4, 4])
    """

    image: Tensor
    mask: Tensor
    image_id: tuple[str, ...]

    def to(self, device: torch.device | str) -> MaskBatch:
        """Return the batch on another device."""
        return MaskBatch(*_moved((self.image, self.mask), device), tuple(self.image_id))


def _moved(tensors: Sequence[Tensor | None], device: torch.device | str) -> list[Tensor | None]:
    # Only towards a GPU: a copy to the CPU that does not block may be read before it is there.
    overlap = torch.device(device).type == "cuda"
    return [None if tensor is None else tensor.to(device, non_blocking=overlap) for tensor in tensors]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of equal size.

    Parameters
    ----------
    samples : sequence of Sample
        At least one; all with regions, or none.

    Returns
    -------
    Batch
        In the same order.

    Examples
    --------
    >>> collate([Sample(torch.zeros(3, 4, 4), torch.zeros(2), "a")] * 3).image_id
    ('a', 'a', 'a')
    """
    images, labels, ids, regions = zip(*samples, strict=True)
    stacked = None if regions[0] is None else torch.stack(regions)
    return Batch(torch.stack(images), torch.stack(labels), ids, stacked)


def collate_masks(samples: Sequence[MaskSample]) -> MaskBatch:
    """Stack samples with masks, of equal size.

    Parameters
    ----------
    samples : sequence of MaskSample
        At least one.

    Returns
    -------
    MaskBatch
        In the same order.

    Examples
    --------
    >>> collate_masks([MaskSample(torch.zeros(3, 4, 4), torch.zeros(4, 4).long(), "a")]).mask.shape
    torch.Size([1, 4, 4])
    """
    images, masks, ids = zip(*samples, strict=True)
    return MaskBatch(torch.stack(images), torch.stack(masks), ids)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Let torch's default CPU generator draw from `seed` for a while; afterwards it goes on where it was.

    Generators of GPUs stay untouched (`torch.manual_seed` would restart them too, and with them dropout).

    Parameters
    ----------
    seed : int
        From 0 to 2^63 - 1.

    Examples
    --------
    >>> with drawing_from(7):
    ...     first = torch.rand(3)
    >>> with drawing_from(7):
    ...     torch.equal(first, torch.rand(3))
    True
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


class TrainingSet(Dataset[Sample]):
    """Images and image-level labels of a split, augmented; there is no path from here to a mask.

    Indexed by (index, seed): the augmentation's random draw depends on `seed` alone.

    Parameters
    ----------
    folder : VOCFolder
        Asked for paths and labels once, then let go.
    ids : sequence of str
        Image ids, e.g. `folder.split("train")`.
    transform : callable
        uint8 (3, H, W) to a normalised float image, e.g. `train_transform(...)`; with regions, both at once.
    cache : bool
        Keep decoded images in memory (each worker process keeps its own).
    regions : str or Path, optional
        Holds <id>.png for each id, as `make_superpixels` writes them; they move with their images. An image is
        augmented as without.

    Raises
    ------
    DataError
        When an id has no label, or no whole image (`check_split`), or an image no super-pixels of its size: here,
        before anything is trained.

    Examples
    --------
    >>> import tempfile
    >>> from types import SimpleNamespace
    >>> from PIL import Image
    >>> from wsss_lib.data.transforms import train_transform
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Image.new("RGB", (20, 20)).save(f"{root}/a.png")
    ...     a = Path(root, "a.png")
    ...     folder = SimpleNamespace(image_path=lambda _: a, labels=lambda _: torch.ones(1, 2))
    ...     sample = TrainingSet(folder, ["a"], train_transform(None, crop=16))[0, 1234]
    >>> sample.image.shape, sample.label, sample.image_id
    (torch.Size([3, 16, 16]), tensor([1., 1.]), 'a')
    """

    def __init__(
        self,
        folder: VOCFolder,
        ids: Sequence[str],
        transform: Callable[..., Any],
        cache: bool = False,
        regions: str | Path | None = None,
    ):
        self.ids = tuple(ids)
        check_split(folder, self.ids)
        self.labels = folder.labels(self.ids)
        self.transform = transform
        self._paths = [folder.image_path(image_id) for image_id in self.ids]
        self._region_paths = None if regions is None else [Path(regions) / f"{image_id}.png" for image_id in self.ids]
        if self._region_paths:
            pairs = zip(self._region_paths, self._paths, strict=True)
            raise_first([fault for made, image in pairs if (fault := superpixel_fault(made, image))])
        self._images: list[Tensor | None] | None = [None] * len(self.ids) if cache else None
        self._regions: list[np.ndarray | None] | None = [None] * len(self.ids) if cache else None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        index, draw_seed = key
        image = _cached(self._images, index, lambda: read_image(self._paths[index]))
        if self._region_paths is None:
            with drawing_from(draw_seed):
                return Sample(self.transform(image), self.labels[index], self.ids[index])
        # Kept as 16 bits, used as 32: torch knows few operations on unsigned numbers.
        regions = _cached(self._regions, index, lambda: read_superpixels(self._region_paths[index]))
        with drawing_from(draw_seed):
            image, regions = self.transform(tv_tensors.Image(image), Regions(regions.astype(np.int32)))
        image, regions = image.as_subclass(Tensor), regions.as_subclass(Tensor).long()
        return Sample(image, self.labels[index], self.ids[index], regions)


class PseudoMaskSet(Dataset[MaskSample]):
    """Images with the pseudo masks that an earlier stage wrote, augmented together; indexed as `TrainingSet`.

    Parameters
    ----------
    folder : VOCFolder
        Asked for the paths of images once, then let go.
    ids : sequence of str
        Image ids.
    mask_dir : str or Path
        Holds <id>.png for each id, as `write_mask` writes them. The folders of true masks are refused.
    transform : callable
        (uint8 image, uint8 mask) to (normalised float image, mask), e.g. `train_transform(...)`.
    cache : bool
        Keep decoded images and masks in memory (each worker process keeps its own).

    Raises
    ------
    DataError
        When an image or a mask is missing or broken, their sizes differ, or `mask_dir` holds the true masks:
        here, before anything is trained. For a value that is no class: when the mask is read.

    Examples
    --------
    >>> import tempfile
    >>> from types import SimpleNamespace
    >>> from PIL import Image
    >>> from wsss_lib.data import train_transform, write_mask
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Image.new("RGB", (20, 20)).save(f"{root}/a.jpg")
    ...     write_mask(f"{root}/a.png", np.ones((20, 20), np.uint8))
    ...     folder = SimpleNamespace(root=Path(root), n_classes=2, image_path=lambda _: Path(root, "a.jpg"))
    ...     sample = PseudoMaskSet(folder, ["a"], root, train_transform(None, crop=24))[0, 1234]
    >>> sample.image.shape, sample.mask.unique()
    (torch.Size([3, 24, 24]), tensor([  1, 255]))
    """

    def __init__(
        self,
        folder: VOCFolder,
        ids: Sequence[str],
        mask_dir: str | Path,
        transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        cache: bool = False,
    ):
        mask_dir = Path(mask_dir)
        if mask_dir.resolve() in [(folder.root / name).resolve() for name in MASK_FOLDERS]:
            raise Fault(mask_dir, "holds the true masks", "give the folder of a pseudo-mask stage").error()
        self.ids = tuple(ids)
        self.n_classes = folder.n_classes
        self.transform = transform
        self._paths = [folder.image_path(image_id) for image_id in self.ids]
        self._mask_paths = [mask_dir / f"{image_id}.png" for image_id in self.ids]
        raise_first(check_images(self._paths))
        pairs = zip(self._paths, self._mask_paths, strict=True)
        raise_first([fault for image, mask in pairs if (fault := _pair_fault(image, mask))])
        self._pairs: list[tuple[Tensor, Tensor] | None] | None = [None] * len(self.ids) if cache else None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> MaskSample:
        index, draw_seed = key
        image, mask = _cached(self._pairs, index, lambda: self._read(index))
        with drawing_from(draw_seed):
            image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return MaskSample(image.as_subclass(Tensor), mask.as_subclass(Tensor).long(), self.ids[index])

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        path = self._mask_paths[index]
        image, mask = read_image(self._paths[index]), read_mask(path)
        fault = mask_fault(path, mask, tuple(image.shape[1:]), self.n_classes, MASK_REMEDY)
        if fault:
            raise fault.error()
        return image, torch.from_numpy(mask)


def _pair_fault(image: Path, mask: Path) -> Fault | None:
    if not mask.is_file():
        return Fault(mask, "no such pseudo mask", MASK_REMEDY)
    return size_fault(mask, image_size(mask), image_size(image), MASK_REMEDY)


def _cached(store: list[Any] | None, index: int, read: Callable[[], Any]) -> Any:
    if store is None:
        return read()
    if store[index] is None:
        store[index] = read()
    return store[index]


def batches_of_one_size(folder: VOCFolder, ids: Sequence[str], batch_size: int) -> Iterator[list[str]]:
    """Group images of equal size, so that they can go through a network together; read from headers alone.

    Parameters
    ----------
    folder : VOCFolder
        Says how large an image is.
    ids : sequence of str
        Image ids.
    batch_size : int
        Images in a batch, at most.

    Yields
    ------
    list of str
        Ids of images of one size, in the order given; which they are depends on the ids alone.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> folder = SimpleNamespace(size={"a": (4, 6), "b": (6, 4), "c": (4, 6)}.get)
    >>> list(batches_of_one_size(folder, "abc", batch_size=2))
    [['a', 'c'], ['b']]
    """
    by_size: dict[tuple[int, int], list[str]] = {}
    for image_id in ids:
        by_size.setdefault(tuple(folder.size(image_id)), []).append(image_id)
    for same in by_size.values():
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]


class DrawSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (index, draw seed) for a run: shuffled epoch after epoch, a function of seed and step alone.

    An epoch's last, partial batch is dropped. With fewer images than a batch holds, a batch runs on into the
    next shuffles instead, so that it is always full.

    Parameters
    ----------
    n : int
        Number of images.
    seed : int
        Of the run, from 0.
    batch_size : int
        Images per batch.
    steps : int
        Steps of the whole run, i.e. where it ends.
    start_step : int
        Where to begin: a resumed run gets exactly the batches that it would have had.

    Raises
    ------
    SettingsError
        When a number is negative, or nothing can be drawn.

    Examples
    --------
    >>> whole = list(DrawSampler(5, seed=0, batch_size=2, steps=6))
    >>> whole[4:] == list(DrawSampler(5, seed=0, batch_size=2, steps=6, start_step=4))
    True
    """

    def __init__(self, n: int, seed: int, batch_size: int, start_step: int = 0, *, steps: int):
        if n < 1 or batch_size < 1 or min(seed, start_step, steps) < 0:
            given = f"n={n}, seed={seed}, batch_size={batch_size}, start_step={start_step}, steps={steps}"
            raise SettingsError(f"{given}: give n and batch_size of 1 or more, the others of 0 or more")
        self.n, self.seed, self.batch_size = n, seed, batch_size
        self.steps, self.start_step = steps, start_step

    @property
    def steps_per_epoch(self) -> int:
        """Steps that make an epoch: full batches in the split, at least one."""
        return max(1, self.n // self.batch_size)

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shuffled = -1
        for step in range(self.start_step, self.steps):
            batch = []
            for position in range(self.batch_size):
                epoch, place = self._place(step, position)
                if epoch != shuffled:
                    order, draw_seeds = self._shuffle(epoch)
                    shuffled = epoch
                batch.append((order[place], draw_seeds[place]))
            yield batch

    def _place(self, step: int, position: int) -> tuple[int, int]:
        if self.n < self.batch_size:
            return divmod(step * self.batch_size + position, self.n)
        epoch, batch = divmod(step, self.steps_per_epoch)
        return epoch, batch * self.batch_size + position

    def _shuffle(self, epoch: int) -> tuple[list[int], list[int]]:
        # SeedSequence hashes (seed, epoch) to a generator of its own: no state runs from epoch to epoch.
        generator = np.random.default_rng(np.random.SeedSequence((self.seed, epoch)))
        return generator.permutation(self.n).tolist(), generator.integers(0, 2**63 - 1, self.n).tolist()
