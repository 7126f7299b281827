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
import math
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from wsss_lib.data.masks import palette
from wsss_lib.errors import WsssError

CLASSES = ("aeroplane", "boat", "sheep", "train", "car", "sofa")
CONTEXTS = ("sky", "water", "grass", "rails", "road", "room")
OWN_CONTEXT = dict(zip(CLASSES, CONTEXTS, strict=True))
PARTNER = dict(zip(CLASSES, ("boat", "aeroplane", "sofa", "car", "train", "sheep"), strict=True))
SPLITS = ("train", "val")
DRAWING = 2  # raise it when the same dials give other pixels: older folders are then refused, not reused
SUPERSAMPLING = 4


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
    0.7
    """

    n_train: int = 1200
    n_val: int = 200
    size: int = 64
    context_bias: float = 0.7
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
    """A drawn scene: image (H,W,3) uint8, mask (H,W) uint8 (0 background, k the k-th class), and its labels.

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


# Shapes live in a square of -1..1 (x right, y down) and look to the right; all are polygons, to rotate alike.


def _ellipse(x, y, rx, ry, corners=20):
    turn = [2 * math.pi * k / corners for k in range(corners)]
    return [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turn]


def _box(x0, y0, x1, y1):
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


class _Shape(NamedTuple):
    body: list  # polygons in the body's colour
    light: list  # the same colour, lighter: details that make the silhouette readable
    part: list  # the telling part
    colour: tuple[int, int, int]  # of the telling part


_SHAPES = {
    "aeroplane": _Shape(
        body=[_ellipse(0.05, 0, 0.95, 0.17), [(0.3, 0), (-0.35, -0.75), (-0.58, -0.75), (-0.2, 0)],
              [(0.3, 0), (-0.35, 0.75), (-0.58, 0.75), (-0.2, 0)]],
        light=[_ellipse(0.72, -0.03, 0.14, 0.08)],
        part=[[(-0.62, 0), (-0.85, -0.42), (-1.05, -0.42), (-0.92, 0), (-1.05, 0.42), (-0.85, 0.42)]],
        colour=(225, 35, 40),
    ),
    "boat": _Shape(
        body=[[(-1, 0.3), (1, 0.3), (0.62, 0.8), (-0.7, 0.8)], _box(-0.12, -0.95, -0.02, 0.4)],
        light=[[(-0.18, -0.55), (-0.7, 0.18), (-0.18, 0.18)]],
        part=[[(0.04, -0.95), (0.75, 0.18), (0.04, 0.18)]],
        colour=(255, 255, 255),
    ),
    "sheep": _Shape(
        body=[_ellipse(-0.15, -0.05, 0.72, 0.46), _ellipse(-0.6, -0.2, 0.3, 0.3),
              _ellipse(-0.15, -0.35, 0.35, 0.3), _ellipse(0.3, -0.22, 0.3, 0.3), _box(-0.65, 0.2, -0.45, 0.8),
              _box(-0.3, 0.3, -0.12, 0.8), _box(0.02, 0.3, 0.2, 0.8), _box(0.3, 0.2, 0.48, 0.8)],
        light=[_ellipse(-0.45, -0.15, 0.16, 0.1), _ellipse(0.05, -0.3, 0.16, 0.1)],
        part=[_ellipse(0.74, -0.3, 0.26, 0.3)],
        colour=(25, 20, 25),
    ),
    "train": _Shape(
        body=[[(-1, -0.5), (0.45, -0.5), (0.8, -0.25), (1, 0.25), (1, 0.5), (-1, 0.5)]],
        light=[_box(-0.86, -0.3, -0.56, 0.02), _box(-0.42, -0.3, -0.12, 0.02), _box(0.02, -0.3, 0.32, 0.02)],
        part=[[(0.45, -0.5), (0.8, -0.25), (1, 0.25), (1, 0.5), (0.62, 0.5)]],
        colour=(255, 215, 30),
    ),
    "car": _Shape(
        body=[[(-1, 0.38), (-0.95, -0.02), (-0.62, -0.1), (-0.35, -0.5), (0.35, -0.5), (0.62, -0.08),
               (0.97, 0.05), (1, 0.38)]],
        light=[[(-0.45, -0.1), (-0.27, -0.4), (-0.02, -0.4), (-0.02, -0.1)],
               [(0.08, -0.1), (0.08, -0.4), (0.28, -0.4), (0.46, -0.1)]],
        part=[_ellipse(-0.55, 0.38, 0.24, 0.24), _ellipse(0.55, 0.38, 0.24, 0.24)],
        colour=(20, 20, 30),
    ),
    "sofa": _Shape(
        body=[_box(-0.75, -0.55, 0.75, 0.35), _box(-1, -0.2, -0.68, 0.5), _box(0.68, -0.2, 1, 0.5),
              _box(-0.75, 0.1, 0.75, 0.5), _box(-0.95, 0.5, -0.82, 0.65), _box(0.82, 0.5, 0.95, 0.65)],
        light=[_box(-0.66, 0.08, -0.03, 0.26), _box(0.03, 0.08, 0.66, 0.26)],
        part=[[(-0.3, -0.34), (0.04, -0.04), (-0.3, 0.26), (-0.64, -0.04)]],
        colour=(200, 30, 190),
    ),
}  # fmt: skip


def _noise(rng, x, y, cells):
    """Smooth noise in 0..1: a random grid of `cells` cells a side, bilinearly read at x, y in 0..1."""
    grid = rng.random((cells + 1, cells + 1))
    j, i = (np.minimum((v * cells).astype(int), cells - 1) for v in (x, y))
    u, v = x * cells - j, y * cells - i
    top = grid[i, j] * (1 - u) + grid[i, j + 1] * u
    return top * (1 - v) + (grid[i + 1, j] * (1 - u) + grid[i + 1, j + 1] * u) * v


def _wave(t):
    """A sine-like wave of period 1 in -1..1, made of parabolas: the same bits on every machine."""
    t = 2 * (t - np.floor(t)) - 1
    return 4 * t * (1 - np.abs(t))


def _tint(rng, colour, spread):
    """A colour near `colour`: its brightness and its channels both vary."""
    return np.array(colour) * (0.85 + 0.3 * rng.random()) + spread * (rng.random(3) - 0.5)


def _sky(rng, x, y):
    clouds = np.clip(1.7 * _noise(rng, x, y, 4) + 0.6 * _noise(rng, x, y, 9) - 1.2, 0, 1)[..., None]
    blue = _tint(rng, (105, 165, 225), 30) + 45 * (y[..., None] - 0.5)
    return blue * (1 - 0.8 * clouds) + 235 * 0.8 * clouds


def _water(rng, x, y):
    bands, bend = 6 + 3 * rng.random(), 2 + 2 * rng.random()
    waves = _wave(y * bands + 0.18 * _wave(x * bend + rng.random()) + rng.random())
    return _tint(rng, (35, 95, 150), 30) + 24 * waves[..., None] + 20 * _noise(rng, x, y, 6)[..., None]


def _grass(rng, x, y):
    blades = 0.6 * _noise(rng, x, y, 22) + 0.4 * _noise(rng, x, y, 7)
    return _tint(rng, (85, 135, 50), 30) + 100 * (blades[..., None] - 0.5)


def _rails(rng, x, y):
    ground = _tint(rng, (125, 110, 95), 25) + 60 * (_noise(rng, x, y, 28)[..., None] - 0.5)
    middle, sleepers = 0.35 + 0.3 * rng.random(), 8 + 3 * rng.random()
    beside = np.abs(x - middle - 0.1 * (rng.random() - 0.5) * (1 - y))
    half = 0.12 + 0.2 * y  # the track widens towards the viewer
    wood = (np.mod(y * sleepers + rng.random(), 1) < 0.45) & (beside < half * 1.35)
    steel = np.abs(beside - half) < 0.028
    ground = np.where(wood[..., None], ground * 0.5, ground)
    return np.where(steel[..., None], 60 + 30 * rng.random(), ground)


def _road(rng, x, y):
    asphalt = _tint(rng, (100, 102, 108), 20) + 34 * (_noise(rng, x, y, 30)[..., None] - 0.5)
    middle, dashes = 0.3 + 0.4 * rng.random(), 3 + 2 * rng.random()
    line = (np.abs(x - middle) < 0.025) & (np.mod(y * dashes + rng.random(), 1) < 0.6)
    return np.where(line[..., None], 225, asphalt)


def _room(rng, x, y):
    paper = _tint(rng, (205, 170, 130), 35)
    squares = (np.floor(x * 11) + np.floor(y * 11)) % 2
    floor = y > 0.7 + 0.15 * rng.random()
    wall = paper + 22 * squares[..., None]
    planks = paper * 0.7 + 14 * _wave(x * 6)[..., None]
    return np.where(floor[..., None], planks, wall)


_DRAW_CONTEXT = {"sky": _sky, "water": _water, "grass": _grass, "rails": _rails, "road": _road, "room": _room}


def _cover(polygons, size):
    """The share (H,W) of each pixel that the polygons, lists of (x, y) in pixels, cover."""
    canvas = Image.new("L", (SUPERSAMPLING * size,) * 2)
    pen = ImageDraw.Draw(canvas)
    for polygon in polygons:
        # whole numbers: the rasteriser never sees the last bits of a sine
        pen.polygon([(round(SUPERSAMPLING * x), round(SUPERSAMPLING * y)) for x, y in polygon], fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float64) / 255


def _paint_object(image, mask, name, place, numbers, texture, part_contrast):
    """Draw one object into image (H,W,3) and mask (H,W), in place; `numbers` are seven in 0..1."""
    x0, y0, half = place
    angle, mirror, squeeze, *rgb, fading = numbers
    turn = math.radians(24 * (angle - 0.5))
    cos, sin = math.cos(turn), math.sin(turn)
    sx, sy = half * (1 if mirror < 0.5 else -1), half * (0.85 + 0.3 * squeeze)

    def placed(polygons):
        corners = [[(x * sx, y * sy) for x, y in polygon] for polygon in polygons]
        return [[(x0 + x * cos - y * sin, y0 + x * sin + y * cos) for x, y in polygon] for polygon in corners]

    shape, size = _SHAPES[name], len(mask)
    body = 40 + 190 * np.array(rgb)
    telling = part_contrast * (0.3 + 0.7 * fading)
    part = body + telling * (np.array(shape.colour) - body)
    shade = 1.1 - 0.3 * np.linspace(0, 1, size)[:, None, None] + 0.08 * (texture[..., None] - 0.5)
    for polygons, colour in ((shape.body, body), (shape.light, 0.6 * body + 90), (shape.part, part)):
        cover = _cover(placed(polygons), size)
        image += cover[..., None] * (np.clip(colour * shade, 0, 255) - image)
        mask[cover >= 0.5] = CLASSES.index(name) + 1


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
    image = np.clip(_DRAW_CONTEXT[context](rng, x, y) + 16 * (grain[..., None] - 0.5), 0, 255)
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
        _paint_object(image, mask, name, (x0, y0, half), numbers, texture, scenes.part_contrast)
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
