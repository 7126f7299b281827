"""Scores of a folder of CAMs or masks against the true masks: what a stage reports, and nothing that it learns from.

Two numbers for seeds are kept apart: at the fixed threshold of the settings (set before the run) and at the
best threshold of a sweep (chosen WITH pixel truth, as most papers report it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from wsss_lib.data import VOCFolder
from wsss_lib.data.classes import IGNORE
from wsss_lib.data.masks import read_mask
from wsss_lib.errors import DataError
from wsss_lib.localize import load_cam, seed
from wsss_lib.metrics import GroupedConfusion, ThresholdSweep, cam_energy, json_number
from wsss_lib.protocols import SEEDS, score


def frequent_classes(folder: VOCFolder, ids: Sequence[str], min_images: int) -> list[int]:
    """Background and the classes with enough images to be scored.

    Parameters
    ----------
    folder : VOCFolder
        The data.
    ids : sequence of str
        Training images.
    min_images : int
        Images that a class needs; all classes that occur count if none has so many.

    Returns
    -------
    list of int
        Mask values, 0 first.

    Examples
    --------
    >>> folder = VOCFolder(getfixture("toy_root"))
    >>> frequent_classes(folder, folder.split("train"), 1)
    [0, 1, 2, 3, 4, 5, 6]
    """
    counts = folder.labels(ids).sum(0).int().tolist()
    least = max(min_images, 1) if max(counts) >= min_images else 1
    return [0, *(k + 1 for k, n in enumerate(counts) if n >= least)]


def group_of(folder: VOCFolder, image_id: str) -> str | None:
    """``agrees`` or ``disagrees`` with the context bias, None where the data do not know.

    Parameters
    ----------
    folder : VOCFolder
        The data.
    image_id : str
        One of its images.

    Returns
    -------
    str or None

    Examples
    --------
    >>> folder = VOCFolder(getfixture("toy_root"))
    >>> group_of(folder, folder.split("train")[0]) in ("agrees", "disagrees")
    True
    """
    context = folder.context.get(image_id)
    return None if context is None else "agrees" if context.agrees else "disagrees"


def count_of(folder: VOCFolder, image_id: str) -> str:
    """``one class`` or ``several classes``: how many an image's label names.

    Parameters
    ----------
    folder : VOCFolder
        The data.
    image_id : str
        One of its images.

    Returns
    -------
    str

    Examples
    --------
    >>> folder = VOCFolder(getfixture("toy_root"))
    >>> sorted({count_of(folder, image_id) for image_id in folder.split("train")})
    ['one class', 'several classes']
    """
    return "one class" if len(folder.class_names(image_id)) == 1 else "several classes"


def own_contexts(folder: VOCFolder) -> dict[str, str]:
    """The usual context of each class, read off the images of one class that agree with the bias.

    Parameters
    ----------
    folder : VOCFolder
        The data.

    Returns
    -------
    dict
        Class name to context; empty where the data do not know.

    Examples
    --------
    >>> own_contexts(VOCFolder(getfixture("toy_root")))["boat"]
    'water'
    """
    owned = {}
    for image_id, context in folder.context.items():
        names = folder.class_names(image_id)
        if context.agrees and len(names) == 1:
            owned[names[0]] = context.context
    return owned


def score_seeds(
    folder: VOCFolder, ids: Sequence[str], cam_dir: Path, classes: list[int], threshold: float, step: float
) -> dict:
    """Seeds of every threshold against the true masks, in one pass.

    Parameters
    ----------
    folder : VOCFolder
        Data with masks.
    ids : sequence of str
        Images to score.
    cam_dir : path
        Folder of ``<id>.npz`` that `localize` wrote.
    classes : list of int
        Mask values that the mIoU averages; the report names them.
    threshold : float
        The fixed background threshold, in [0, 1); a multiple of ``step``.
    step : float
        The sweep tries 0, step, 2 step, ...

    Returns
    -------
    dict
        ``fixed`` and ``best``, each a threshold and a `ConfusionMatrix.report`; ``sweep``, mIoU by threshold;
        ``protocols``, a threshold and an mIoU as each of `wsss_lib.protocols.SEEDS` would score these maps;
        ``counts``, mIoU at the fixed threshold of images with one class and with several; ``groups``, the same of
        images that agree with the bias and those that do not; ``energy``, where the maps' energy lies (both only
        where the data know).

    Examples
    --------
    See ``tests/test_score.py``, where seeds of perfect maps score 1.

    >>> score_seeds.__name__
    'score_seeds'
    """
    n = folder.n_classes + 1
    steps = np.union1d(np.arange(0, 1, step).round(6), [round(threshold, 6)])
    rules = {
        **SEEDS,
        "kit": replace(SEEDS["kit"], sweep=(threshold,)),
        "kit_best": replace(SEEDS["kit_best"], sweep=tuple(steps.tolist())),
    }
    thresholds = np.unique([*steps, *(t for rule in rules.values() for t in rule.thresholds if t < 1)])
    sweeps: dict[tuple[str | None, str], ThresholdSweep] = {}
    energies, owned = [], own_contexts(folder)
    for image_id in tqdm(ids, desc="score seeds", unit="image", mininterval=1.0):
        truth = folder.mask(image_id).numpy()
        cam = load_cam(Path(cam_dir) / f"{image_id}.npz", n_classes=folder.n_classes).numpy()
        group = group_of(folder, image_id)
        key = group, count_of(folder, image_id)
        sweeps.setdefault(key, ThresholdSweep(n, thresholds)).update(truth, cam)
        if group is not None:
            own = [owned.get(c) == folder.context[image_id].context for c in folder.classes]
            energies.append(cam_energy(cam, truth, folder.label(image_id), own))

    def pooled(place: int, group: str) -> ThresholdSweep:
        whole = ThresholdSweep(n, thresholds)
        whole.counts = sum(sweep.counts for key, sweep in sweeps.items() if group in ("all", key[place]))
        return whole

    def by(place: int) -> dict:
        names = sorted({key[place] for key in sweeps})
        return {name: json_number(pooled(place, name).at(threshold).miou(classes)) for name in names}

    everything = pooled(0, "all")
    total = everything.only(steps)
    best, _ = total.best(classes)
    scored = {name: score(everything, rule, classes) for name, rule in rules.items()}
    report = {
        "fixed": {"threshold": threshold, **total.at(threshold).report(folder.classes, classes)},
        "best": {"threshold": best, **total.at(best).report(folder.classes, classes)},
        "sweep": {
            "threshold": steps.tolist(),
            "miou": [json_number(v) for v in total.curve(classes)],
        },
        "protocols": {name: {"threshold": t, "miou": json_number(miou)} for name, (t, miou) in scored.items()},
        "counts": by(1),
    }
    if energies:
        report["groups"] = by(0)
        report["energy"] = {k: json_number(np.nanmean([e[k] for e in energies])) for k in energies[0]}
    return report


def score_pairs(folder: VOCFolder, ids: Sequence[str], cam_dir: Path, threshold: float) -> dict[str, dict]:
    """Seeds where an object stands on its usual context, class by class, and where it does not.

    Parameters
    ----------
    folder : VOCFolder
        Data with masks that know contexts.
    ids : sequence of str
        Images to score.
    cam_dir : path
        Folder of ``<id>.npz`` that `localize` wrote.
    threshold : float
        The background threshold, in [0, 1).

    Returns
    -------
    dict
        For each class with a usual context: ``context``; ``images`` whose label names the class; ``ratio``, the share
        of them on that context; ``own`` and ``other``, the mean IoU of background and class over the images that are
        and are not (None if there is none). Empty where the data do not know contexts.

    References
    ----------
    DEFT, table 3.

    Examples
    --------
    See ``tests/test_score.py``, where seeds of perfect maps score 1.

    >>> score_pairs.__name__
    'score_pairs'
    """
    scores, pairs = GroupedConfusion(folder.n_classes + 1), {}
    owned = own_contexts(folder)
    for image_id in (i for i in ids if i in folder.context):
        cam = load_cam(Path(cam_dir) / f"{image_id}.npz", n_classes=folder.n_classes)
        found, truth = seed(cam, threshold).numpy(), folder.mask(image_id).numpy()
        for name in folder.class_names(image_id):
            place = "own" if folder.context[image_id].context == owned.get(name) else "other"
            scores.update((name, place), truth, found)
            pairs.setdefault(name, []).append(place)
    report = {}
    for k, name in enumerate(folder.classes):
        if name in pairs and name in owned:
            places = pairs[name]
            miou = {p: json_number(scores.groups[name, p].miou([0, k + 1])) for p in set(places)}
            ratio = places.count("own") / len(places)
            line = {"context": owned[name], "images": len(places), "ratio": ratio}
            report[name] = {**line, "own": miou.get("own"), "other": miou.get("other")}
    return report


def score_masks(folder: VOCFolder, ids: Sequence[str], mask_dir: Path, classes: list[int]) -> dict:
    """Masks against the true masks.

    Parameters
    ----------
    folder : VOCFolder
        Data with masks.
    ids : sequence of str
        Images to score.
    mask_dir : path
        Folder of ``<id>.png``; 255 counts as background.
    classes : list of int
        Mask values that the mIoU averages; the report names them.

    Returns
    -------
    dict
        A `ConfusionMatrix.report`, and ``groups`` where the data know them.

    Raises
    ------
    DataError
        If a mask is missing.

    Examples
    --------
    >>> folder = VOCFolder(getfixture("toy_root"))
    >>> truth = folder.mask_path(folder.split("val")[0]).parent
    >>> score_masks(folder, folder.split("val"), truth, [0, 1])["miou"]
    1.0
    """
    scores = GroupedConfusion(folder.n_classes + 1)
    for image_id in tqdm(ids, desc="score masks", unit="image", mininterval=1.0):
        path = Path(mask_dir) / f"{image_id}.png"
        if not path.is_file():
            raise DataError(f"{path.name}: no such mask in {path.parent.name}/; run the stage that makes it again")
        scores.update(group_of(folder, image_id), folder.mask(image_id).numpy(), read_mask(path))
    matrices = list(scores.groups.values())
    report = sum(matrices[1:], matrices[0]).report(folder.classes, classes)
    groups = {g: json_number(m.miou(classes)) for g, m in scores.groups.items() if g is not None}
    return {**report, "groups": dict(sorted(groups.items()))} if groups else report


def score_sure(folder: VOCFolder, ids: Sequence[str], mask_dir: Path) -> dict[str, float | None]:
    """How much of masks with undecided pixels is sure, and how much of that is right.

    Parameters
    ----------
    folder : VOCFolder
        The data.
    ids : sequence of str
        Images to look at.
    mask_dir : path
        Folder of ``<id>.png``; 255 is undecided.

    Returns
    -------
    dict
        ``sure``, a share of all pixels; ``right``, a share of the sure ones whose true label is known, None where there
        are no true masks.

    Examples
    --------
    >>> folder = VOCFolder(getfixture("toy_root"))
    >>> truth = folder.mask_path(folder.split("val")[0]).parent
    >>> score_sure(folder, folder.split("val"), truth)["right"]
    1.0
    """
    pixels = sure = known = right = 0
    compare = folder.has_masks(ids)
    for image_id in ids:
        mask = read_mask(Path(mask_dir) / f"{image_id}.png")
        decided = mask != IGNORE
        pixels, sure = pixels + mask.size, sure + int(decided.sum())
        if compare:
            truth = folder.mask(image_id).numpy()
            decided &= truth != IGNORE
            known, right = known + int(decided.sum()), right + int((mask[decided] == truth[decided]).sum())
    return {"sure": sure / max(pixels, 1), "right": right / known if known else None}
