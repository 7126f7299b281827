"""What stands between activation maps and labels: reading them, resizing them, and scoring the background.

One idea: the background has no map of its own, so its score comes from the absence of the others, either
(1 - strongest)^alpha (PSA) or a constant (IRN). Two such scores, one generous to background and one to
foreground, mark the pixels that are safe to learn from. NumPy only, so that worker processes start fast.

Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision" (PSA), CVPR 2018.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from wsss_lib.data.classes import IGNORE
from wsss_lib.errors import DataError, WsssError


def read_maps(path: str | Path) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Read the activation maps of one image as `localize` wrote them.

    Parameters
    ----------
    path : path
        A `cams/<id>.npz`.

    Returns
    -------
    classes : (n,) int64
        Indices of the classes present, 0 for the first foreground class.
    maps : (n,h,w) float32
        Their maps in [0,1].
    size : tuple of int
        Height and width of the image, in pixels.

    Raises
    ------
    DataError
        If the file is missing or is not such a file.

    Examples
    --------
    >>> import io
    >>> np.savez(file := io.BytesIO(), classes=[7], maps=np.ones((1, 2, 3), np.float16), size=[8, 12])
    >>> _ = file.seek(0)
    >>> classes, maps, size = read_maps(file)
    >>> maps.shape, size
    ((1, 2, 3), (8, 12))
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            height, width = (int(side) for side in arrays["size"])
            return arrays["classes"].astype(np.int64), arrays["maps"].astype(np.float32), (height, width)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; run the CAM stage") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged ({error}); delete it and run the CAM stage again") from error


def resize_maps(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize maps bilinearly, as torch's `interpolate(..., align_corners=False)` without antialiasing.

    Parameters
    ----------
    maps : (n,h,w) float32
        Maps of any range.
    size : tuple of int
        Height and width to reach.

    Returns
    -------
    (n,H,W) float32

    Examples
    --------
    >>> resize_maps(np.array([[[0.0, 1.0]]], np.float32), (1, 4)).tolist()
    [[[0.0, 0.25, 0.75, 1.0]]]
    """
    for axis, length in zip((1, 2), size, strict=True):
        old = maps.shape[axis]
        if old == length:
            continue
        centre = ((np.arange(length) + 0.5) * (old / length) - 0.5).clip(0, old - 1)
        low = centre.astype(np.intp)
        weight = (centre - low).astype(np.float32).reshape((-1, 1) if axis == 1 else -1)
        left, right = maps.take(low, axis), maps.take(np.minimum(low + 1, old - 1), axis)
        maps = left + (right - left) * weight
    return maps


def background_score(maps: np.ndarray, alpha: float) -> np.ndarray:
    """Score of the background where nothing is active: (1 - max_c maps_c)^alpha.

    Parameters
    ----------
    maps : (n,H,W) array
        Maps of the present classes in [0,1].
    alpha : float
        Exponent: low favours background (PSA's "la", 4), high favours foreground ("ha", 32).

    Returns
    -------
    (H,W) array
        Scores in [0,1]; 1 everywhere if no class is present.

    Examples
    --------
    >>> background_score(np.array([[[0.0, 0.5, 1.0]]]), alpha=2).tolist()
    [[1.0, 0.25, 0.0]]
    """
    if len(maps) == 0:
        return np.ones(maps.shape[1:], np.float32)
    return (1 - maps.max(axis=0)) ** alpha


def la_ha_mask(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Keep only confident labels: foreground as `low` says, background as `high` says, 255 between.

    Parameters
    ----------
    low : (H,W) uint8
        Pseudo mask at low alpha (or high threshold): generous to background, so its foreground is safe.
    high : (H,W) uint8
        Pseudo mask at high alpha (or low threshold): generous to foreground, so its background is safe and
        goes first should the two contradict each other.

    Returns
    -------
    (H,W) uint8

    Raises
    ------
    WsssError
        If the sizes differ.

    Examples
    --------
    >>> la_ha_mask(np.uint8([[0, 0, 3]]), np.uint8([[0, 3, 3]])).tolist()
    [[0, 255, 3]]
    """
    if low.shape != high.shape:
        raise WsssError(f"high: size {high.shape}, low {low.shape}; give two masks of one image")
    mask = np.where(low > 0, low, np.uint8(IGNORE))
    mask[high == 0] = 0
    return mask
