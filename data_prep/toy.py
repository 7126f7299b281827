"""Toy scenes: small drawn pictures with three dials for the failures that weak supervision suffers from.

The one idea: in a drawing, the cause of a failure can be turned up and down. Six objects, each with a body of
any colour and one small, very telling part, stand on six contexts. `context_bias` ties objects to contexts: a
classifier may look at the context instead (CDA, DEFT). `pair_bias` ties classes to one another: it may look
at the partner (CSD). `part_contrast` makes the small part stand out: it need not look any further (CPN).

Scene `i` of a split is a function of (seed, split, i) and the dials, never of the number of scenes. Its
random numbers are drawn in one order, the context's last: a dial changes only what that dial is about.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from data_prep.drawing import TEXTURES, paint_object
from wsss_lib.data.masks import palette
from wsss_lib.errors import WsssError

CLASSES = ("aeroplane", "boat", "sheep", "train", "car", "sofa")
CONTEXTS = ("sky", "water", "grass", "rails", "road", "room")
OWN_CONTEXT = dict(zip(CLASSES, CONTEXTS, strict=True))
PARTNER = dict(zip(CLASSES, ("boat", "aeroplane", "sofa", "car", "train", "sheep"), strict=True))
SPLITS = ("train", "val")
DRAWING = 2  # raise it when the same dials give other pixels: older folders are then refused, not reused


@dataclass(frozen=True)
class ToyScenes:
    """How many scenes, how large, and the three dials.

    In the train split, with `b` = context_bias and `p` = pair_bias:

    - the first object's class is uniform over the six; the scene's context is that object's own with
      probability ``b + (1 - b) / 6``, and each other one with ``(1 - b) / 6``;
    - a second object of another class joins with probability ``p``: the first one's `PARTNER` with
      ``(1 + p) / 2``, each of the other four classes with ``(1 - p) / 8``;
    - a scene *agrees* when its context is the own context of one of its objects:
      ``b + (1 - b) (1 + p) / 6`` of the scenes do.

    The val split shows what was learnt, not what is frequent: two objects are as frequent as in train, but
    contexts and second classes are uniform (``b = 0``, and 1/5 for each second class).

    Parameters
    ----------
    n_train, n_val : int
        Scenes in each split, 1 or more.
    size : int
        Height and width in pixels, 32 to 512.
    context_bias : float
        In [0, 1]: 0 any object on any context, 1 always on its own.
    pair_bias : float
        In [0, 1]: 0 one object a scene, 1 always two partners.
    part_contrast : float
        In [0, 1]: 0 the telling part has the body's colour; 1 it is 30 to 100 % on the way to its own,
        another share for each object, so some objects are hard to tell without their context.
    seed : int
        0 or more.

    Raises
    ------
    WsssError
        For a value outside its range.

    Examples
    --------
    >>> ToyScenes(n_train=48, n_val=24).context_bias
    0.6
    """

    n_train: int = 1200
    n_val: int = 200
    size: int = 64
    context_bias: float = 0.6
    pair_bias: float = 0.4
    part_contrast: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for dial in ("context_bias", "pair_bias", "part_contrast"):
            value = getattr(self, dial)
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise WsssError(f"{dial}={value}: give a number from 0 to 1")
            object.__setattr__(self, dial, float(value))  # 1 and 1.0 are to give the same scenes.json
        ranges = {"n_train": (1, 99999), "n_val": (1, 99999), "size": (32, 512), "seed": (0, 2**63)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise WsssError(f"{name}={value}: give a whole number from {low} to {high}")


class Scene(NamedTuple):
    """A drawn scene.

    Parameters
    ----------
    image : (H,W,3) uint8
        RGB picture.
    mask : (H,W) uint8
        0 background, k the k-th class.
    labels : tuple of str
        Classes in it, the first object's first.
    context : str
        What they stand on.
    agrees : bool
        Whether it is the own context of one of them.

    Examples
    --------
    >>> draw_scene(ToyScenes(), 0).image.shape
    (64, 64, 3)
    """

    image: np.ndarray
    mask: np.ndarray
    labels: tuple[str, ...]
    context: str
    agrees: bool


def draw_scene(scenes: ToyScenes, index: int, split: str = "train") -> Scene:
    """Draw scene `index` of a split; turn a dial, and the same scene changes only in what the dial is about.

    Parameters
    ----------
    scenes : ToyScenes
        The dials, the size and the seed; its counts play no part.
    index : int
        Number of the scene, 0 or more.
    split : str
        ``"train"`` (biased as the dials say) or ``"val"`` (unbiased).

    Returns
    -------
    Scene
        image (H,W,3) uint8 RGB, mask (H,W) uint8, labels (first object first), context, agrees.

    Raises
    ------
    WsssError
        For an unknown split.

    Examples
    --------
    >>> scene = draw_scene(ToyScenes(context_bias=1, pair_bias=0), 3)
    >>> scene.agrees, len(scene.labels), scene.mask.dtype
    (True, 1, dtype('uint8'))
    """
    if split not in SPLITS:
        raise WsssError(f"split={split!r}: choose one of {', '.join(SPLITS)}")
    rng = np.random.default_rng([scenes.seed, SPLITS.index(split), index])
    context_bias, partner_chance = scenes.context_bias, (1 + scenes.pair_bias) / 2
    if split == "val":
        context_bias, partner_chance = 0, 1 / 5

    which, pair, partner, other, own, any_context, side = rng.random(7)
    first = CLASSES[int(6 * which)]
    strangers = [name for name in CLASSES if name not in (first, PARTNER[first])]
    second = PARTNER[first] if partner < partner_chance else strangers[int(4 * other)]
    labels = (first, second) if pair < scenes.pair_bias else (first,)
    context = OWN_CONTEXT[first] if own < context_bias else CONTEXTS[int(6 * any_context)]

    size, objects = scenes.size, rng.random((2, 10))
    textures = rng.random((2, size, size))
    grain = rng.random((size, size))
    y, x = np.mgrid[:size, :size] / size
    image = np.clip(TEXTURES[context](rng, x, y) + 16 * (grain[..., None] - 0.5), 0, 255)
    mask = np.zeros((size, size), np.uint8)
    for k, (name, texture) in enumerate(zip(labels, textures, strict=False)):
        across, down, scale, *numbers = objects[k]
        if len(labels) == 1:
            half = size * (0.3 + 0.16 * scale)
            x0 = half + across * (size - 2 * half)
        else:  # side by side
            half = size * (0.21 + 0.09 * scale)
            x0 = size * (0.22 + 0.1 * across)
            x0 = x0 if (side < 0.5) == (k == 0) else size - x0
        y0 = 0.75 * half + down * (size - 1.5 * half)
        paint_object(image, mask, name, CLASSES.index(name) + 1, (x0, y0, half), numbers, texture, scenes.part_contrast)
    agrees = context in [OWN_CONTEXT[name] for name in labels]
    return Scene((image + 0.5).astype(np.uint8), mask, labels, context, agrees)


def generate(out: str | Path, scenes: ToyScenes, progress: bool = False) -> Path:
    """Write all scenes as a folder in VOC layout, whole or not at all.

    A complete folder that the same `scenes` wrote is reused. `labels.csv` holds image_id, classes (names
    separated by spaces, first object first), context, agrees (1 or 0); `scenes.json` holds the dials.

    Parameters
    ----------
    out : path
        The folder to make; its parents are made where absent.
    scenes : ToyScenes
        Counts, size, dials and seed.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    WsssError
        Where `out` exists and holds something else; nothing is ever overwritten.

    Examples
    --------
    >>> root = generate(Path(tempfile.mkdtemp()) / "toy", ToyScenes(n_train=2, n_val=1))
    >>> sorted(path.name for path in (root / "JPEGImages").iterdir())
    ['train_00000.jpg', 'train_00001.jpg', 'val_00000.jpg']
    """
    out = Path(out)
    if _is_written(out, scenes):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        _write(draft, scenes, progress)
        draft.chmod(0o755)
        try:
            os.rename(draft, out)  # replaces nothing but an empty folder
        except OSError:
            if not _is_written(out, scenes):  # another process may have written the same just now
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return out


def _record(scenes):
    return json.dumps({"drawing": DRAWING, **asdict(scenes)}, indent=2) + "\n"


def _is_written(out, scenes):
    """Whether `out` holds exactly these scenes; an error where it holds something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    record = out / "scenes.json"
    if record.is_file() and record.read_text(encoding="utf-8") == _record(scenes):
        drawn = [len(list((out / name).glob("*.*"))) for name in ("JPEGImages", "SegmentationClass")]
        if drawn == [scenes.n_train + scenes.n_val] * 2:
            return True
    raise WsssError(f"{out}: holds something else than these scenes; give another folder, or delete it")


def _write(root, scenes, progress):
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    colours = palette().tobytes()
    todo = [(split, i) for split in SPLITS for i in range(getattr(scenes, f"n_{split}"))]
    rows, ids = [], {split: [] for split in SPLITS}
    for split, index in tqdm(todo, desc="toy scenes", unit="scene", disable=not progress):
        scene, image_id = draw_scene(scenes, index, split), f"{split}_{index:05d}"
        Image.fromarray(scene.image).save(root / f"JPEGImages/{image_id}.jpg", quality=95, subsampling=0)
        mask = Image.fromarray(scene.mask)
        mask.putpalette(colours)
        mask.save(root / f"SegmentationClass/{image_id}.png")
        rows.append((image_id, " ".join(scene.labels), scene.context, int(scene.agrees)))
        ids[split].append(image_id)
    for split in SPLITS:
        _write_text(root / f"ImageSets/Segmentation/{split}.txt", "".join(f"{name}\n" for name in ids[split]))
    _write_text(root / "classes.txt", "".join(f"{name}\n" for name in CLASSES))
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("image_id", "classes", "context", "agrees"), *rows])
    _write_text(root / "scenes.json", _record(scenes))


def _write_text(path, text):
    path.write_text(text, encoding="utf-8", newline="\n")
