"""Pseudo masks: background score, dense CRF or PAMR, argmax, for one image or for a folder over several processes.

One idea: the image-level label says which classes can occur, so only these and the background enter the CRF.
The steps are PSA's (power background on soft scores) and IRN's (constant background, hard scores); the CRF
itself is in `mean_field`, PAMR in `refine.pamr`. Keep torch out of this module: worker processes import it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from wsss_lib.data.images import read_pixels
from wsss_lib.data.masks import write_mask
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.pool import work
from wsss_lib.refine.maps import background_score, la_ha_mask, read_maps, resize_maps
from wsss_lib.refine.mean_field import HARD, LA_HA, PRESETS, DenseCRFSettings, dense_crf, hard_probability

if TYPE_CHECKING:
    from wsss_lib.refine.pamr import PAMRSettings  # imports torch

__all__ = [
    "HARD",
    "LA_HA",
    "PRESETS",
    "DenseCRFSettings",
    "MaskSettings",
    "background_score",
    "dense_crf",
    "hard_probability",
    "la_ha_mask",
    "pseudo_mask",
    "pseudo_masks",
]


@dataclass(frozen=True)
class MaskSettings:
    """How a pseudo mask is made of activation maps.

    Parameters
    ----------
    background : str
        "power" scores the background (1 - max)^alpha, "constant" gives it `threshold`.
    alpha : float
        Exponent for "power".
    threshold : float
        Score for "constant", in [0,1].
    crf : DenseCRFSettings or None
        None takes the argmax at once, which with "constant" is `localize.seed`.
    hard : bool
        Refine the argmax at confidence 0.7, as IRN does, in place of the scores.
    la_ha : tuple of float
        Two values of alpha, or two thresholds: a mask that is sure of its foreground, then one that is sure
        of its background, for `la_ha_mask` (published ones: `LA_HA`). Empty: one mask.
    pamr : PAMRSettings or None
        PAMR in place of the CRF.

    Raises
    ------
    SettingsError
        If `background` is unknown, or `la_ha` has another length than 0 or 2.

    Examples
    --------
    >>> MaskSettings(background="none")
    Traceback (most recent call last):
    wsss_lib.errors.SettingsError: background='none': give "power" or "constant"
    """

    background: str = "power"
    alpha: float = 16.0
    threshold: float = 0.25
    crf: DenseCRFSettings | None = PRESETS["psa"]
    hard: bool = False
    la_ha: tuple[float, ...] = ()
    pamr: PAMRSettings | None = None

    def __post_init__(self):
        if self.background not in ("power", "constant"):
            raise SettingsError(f'background={self.background!r}: give "power" or "constant"')
        if len(self.la_ha) not in (0, 2):
            raise SettingsError(f"la_ha={self.la_ha}: give two values, or none")


def pseudo_mask(
    image: np.ndarray, maps: np.ndarray, classes: np.ndarray, settings: MaskSettings = MaskSettings()
) -> np.ndarray:
    """Pseudo mask of one image: score the background, refine, take the argmax (background wins ties).

    Parameters
    ----------
    image : (H,W,3) uint8
        RGB picture.
    maps : (n,H,W) float array
        Normalised activation maps of the classes present, in [0,1]. Only these enter the CRF.
    classes : (n,) int
        Their indices, 0 for the first foreground class.
    settings : MaskSettings
        Background, CRF, and which pixels are sure.

    Returns
    -------
    (H,W) uint8
        0 for background, class index + 1 for the others; 255 for unsure pixels if `settings.la_ha`.

    Raises
    ------
    WsssError
        If sizes or numbers do not fit together.

    Examples
    --------
    >>> maps, plain = np.array([[[0.9, 0.1]]]), MaskSettings("constant", crf=None)
    >>> pseudo_mask(np.zeros((1, 2, 3), np.uint8), maps, [4], plain).tolist()
    [[5, 0]]
    """
    if len(classes) != len(maps):
        raise WsssError(f"classes: {len(classes)} for {len(maps)} maps; give one class a map")
    if settings.la_ha:
        pair = [replace(settings, la_ha=(), alpha=value, threshold=value) for value in settings.la_ha]
        return la_ha_mask(*(pseudo_mask(image, maps, classes, one) for one in pair))
    if settings.background == "power":
        background = background_score(maps, settings.alpha)
    else:
        background = np.full(maps.shape[1:], settings.threshold, maps.dtype)
    score = np.stack([background, *maps])
    if settings.pamr is not None or settings.crf is not None:
        score = hard_probability(score.argmax(0), len(score)) if settings.hard else score
        score = settings.pamr.refine(image, score) if settings.pamr else dense_crf(image, score, settings.crf)
    return np.append(0, np.asarray(classes, int) + 1).astype(np.uint8)[score.argmax(0)]


def pseudo_masks(
    jobs: Iterable[tuple[str, Path, Path]],
    mask_dir: str | Path,
    settings: MaskSettings = MaskSettings(),
    processes: int = 1,
) -> int:
    """Write the pseudo masks of many images; masks that exist are kept, so a broken run goes on.

    Parameters
    ----------
    jobs : iterable of (str, path, path)
        Image id, its picture, and its `cams/<id>.npz`.
    mask_dir : path
        Receives `<id>.png`.
    settings : MaskSettings
        As in `pseudo_mask`.
    processes : int
        Worker processes, each of one thread; 1 works in this process.

    Returns
    -------
    int
        Number of masks written now.

    Raises
    ------
    WsssError
        If a job fails, naming the image.

    Examples
    --------
    >>> pseudo_masks([], "masks")
    0
    """
    mask_dir = Path(mask_dir)
    jobs = [(image_id, mask_dir / f"{image_id}.png", paths) for image_id, *paths in jobs]
    missing = [(image_id, paths) for image_id, mask, paths in jobs if not mask.is_file()]
    if not missing:
        return 0
    mask_dir.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(jobs), initial=len(jobs) - len(missing), desc="pseudo masks", mininterval=1.0) as bar:
        for image_id, mask in work(partial(_from_files, settings=settings), missing, processes):
            write_mask(mask_dir / f"{image_id}.png", mask)
            bar.update()
    return len(missing)


def _from_files(image_path: Path, cam_path: Path, settings: MaskSettings) -> np.ndarray:
    image = read_pixels(image_path)
    classes, maps, _ = read_maps(cam_path)
    return pseudo_mask(image, resize_maps(maps, image.shape[:2]), classes, settings)
