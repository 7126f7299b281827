"""How toy scenes look: shapes of the objects, textures of the contexts. Polygons and noise, nothing that learns.

Only whole numbers reach the rasteriser and only sums, products and square waves make the textures, so that the same
numbers give the same pixels on every machine.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 4

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


SHAPES = {
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


TEXTURES = {"sky": _sky, "water": _water, "grass": _grass, "rails": _rails, "road": _road, "room": _room}


def _cover(polygons, size):
    """The share (H,W) of each pixel that the polygons, lists of (x, y) in pixels, cover."""
    canvas = Image.new("L", (SUPERSAMPLING * size,) * 2)
    pen = ImageDraw.Draw(canvas)
    for polygon in polygons:
        # whole numbers: the rasteriser never sees the last bits of a sine
        pen.polygon([(round(SUPERSAMPLING * x), round(SUPERSAMPLING * y)) for x, y in polygon], fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float64) / 255


def paint_object(
    image: np.ndarray,
    mask: np.ndarray,
    name: str,
    value: int,
    place: tuple[float, float, float],
    numbers: np.ndarray,
    texture: np.ndarray,
    part_contrast: float,
) -> None:
    """Draw one object into an image and its mask, in place.

    Parameters
    ----------
    image : (H,W,3) float array
        Colours in 0..255.
    mask : (H,W) uint8
        Gets `value` where the object covers at least half of a pixel.
    name : str
        One of `SHAPES`.
    value : int
        The object's value in the mask.
    place : tuple of float
        Centre x, y and half width, in pixels.
    numbers : array
        Seven in 0..1: angle, mirror, squeeze, red, green, blue of the body, and how much the part fades.
    texture : (H,W) array
        Roughness of the surface, in 0..1.
    part_contrast : float
        0 paints the telling part in the colour of the body, 1 in its own.

    Examples
    --------
    >>> image, mask = np.zeros((32, 32, 3)), np.zeros((32, 32), np.uint8)
    >>> paint_object(image, mask, "boat", 2, (16, 16, 10), np.full(7, 0.5), np.zeros((32, 32)), 1.0)
    >>> sorted(set(mask.ravel().tolist()))
    [0, 2]
    """
    x0, y0, half = place
    angle, mirror, squeeze, *rgb, fading = numbers
    turn = math.radians(24 * (angle - 0.5))
    cos, sin = math.cos(turn), math.sin(turn)
    sx, sy = half * (1 if mirror < 0.5 else -1), half * (0.85 + 0.3 * squeeze)

    def placed(polygons):
        corners = [[(x * sx, y * sy) for x, y in polygon] for polygon in polygons]
        return [[(x0 + x * cos - y * sin, y0 + x * sin + y * cos) for x, y in polygon] for polygon in corners]

    shape, size = SHAPES[name], len(mask)
    body = 40 + 190 * np.array(rgb)
    telling = part_contrast * (0.3 + 0.7 * fading)
    part = body + telling * (np.array(shape.colour) - body)
    shade = 1.1 - 0.3 * np.linspace(0, 1, size)[:, None, None] + 0.08 * (texture[..., None] - 0.5)
    for polygons, colour in ((shape.body, body), (shape.light, 0.6 * body + 90), (shape.part, part)):
        cover = _cover(placed(polygons), size)
        image += cover[..., None] * (np.clip(colour * shade, 0, 255) - image)
        mask[cover >= 0.5] = value
