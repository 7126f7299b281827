"""The way of the data, stage by stage: classifier, cams, pseudo_masks, instances, segmentation, val_masks, test_masks.

Where ``refine.how`` names a network that learns affinities, affinity_labels, affinity and walked_cams come before the
pseudo masks. A single-stage method goes from its classifier to direct_masks at once.
Each stage reads the folder that the stage before it wrote, and asks for that stage first, so any notebook runs on
its own. What is finished is not computed again (`wsss_lib.runs`). True masks are opened to score, never to learn.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from wsss_lib import backbones, methods
from wsss_lib.choices import (
    AFFINITY_NETWORKS,
    affinity_label_settings,
    crf_settings,
    mask_sections,
    mask_settings,
    single_stage_settings,
    walk_settings,
    with_crf,
)
from wsss_lib.data import PseudoMaskSet, TrainingSet
from wsss_lib.data.instances import InstanceBank, collect_instances, contact_sheet
from wsss_lib.data.masks import read_mask
from wsss_lib.data.samples import collate_masks
from wsss_lib.data.superpixels import SuperpixelSettings, make_superpixels
from wsss_lib.data.transforms import check_scales, normalize, train_transform
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.localize import load_cam, localize, seed
from wsss_lib.metrics import average_precision, json_number
from wsss_lib.project import data_root
from wsss_lib.refine.dense_crf import pseudo_masks
from wsss_lib.refine.mean_field import DenseCRFSettings
from wsss_lib.refine.walk import walk_folder
from wsss_lib.runs import Run, Stage
from wsss_lib.score import frequent_classes, score_masks, score_seeds, score_sure
from wsss_lib.segment import DeepLab, pack, segment
from wsss_lib.segment.predict import check_combine
from wsss_lib.segment.single_stage import FOLDERS, segment_single_stage
from wsss_lib.settings import Section
from wsss_lib.train import fit, load_weights, pick_device, seeded

CACHE_PIXELS = 400e6  # keep decoded images in memory up to so many pixels, about 1.2 GB


def build_backbone(run: Run) -> backbones.Backbone:
    """The settings' backbone with its weights; random ones come from the run's seed, and are never frozen.

    Parameters
    ----------
    run : Run
        Names the settings and the seed.

    Returns
    -------
    Backbone

    Raises
    ------
    WsssError
        If the weights' file is in none of the places that are looked at.

    Examples
    --------
    >>> build_backbone(getfixture("smoke_run")).out_channels
    64
    """
    own = run.settings.backbone
    return _with_weights(run, own.name, own, "backbone.weights")


def find_weights(name: str, key: str = "backbone.weights") -> str:
    """Where a file of weights lies: as given, in ``$WSSS_WEIGHTS``, or in ``data/weights`` of the project.

    Parameters
    ----------
    name : str
        A file; "" and "imagenet" are given back as they are.
    key : str
        The setting that names it, for the message.

    Returns
    -------
    str

    Raises
    ------
    WsssError
        If it is in none of these places.

    Examples
    --------
    >>> find_weights("imagenet")
    'imagenet'
    >>> find_weights("none.pth")
    Traceback (most recent call last):
    wsss_lib.errors.WsssError: backbone.weights='none.pth': no such file here, in $WSSS_WEIGHTS or in data/weights/; \
put it there, or take a resnet50 with backbone.weights=imagenet
    """
    if name in ("", "imagenet"):
        return name
    places = [Path(name), data_root() / "weights" / name]
    if os.environ.get("WSSS_WEIGHTS"):
        places.insert(1, Path(os.environ["WSSS_WEIGHTS"]) / name)
    for path in places:
        if path.is_file():
            return str(path)
    raise WsssError(
        f"{key}={name!r}: no such file here, in $WSSS_WEIGHTS or in data/weights/;"
        f" put it there, or take a resnet50 with {key}=imagenet"
    )


def build_method(run: Run) -> methods.Method:
    """The run's method with random classifier weights from the run's seed.

    Parameters
    ----------
    run : Run
        Names the method, the settings and the seed.

    Returns
    -------
    Method

    Examples
    --------
    >>> build_method(getfixture("smoke_run")).n_classes
    6
    """
    model = _without_start(run)
    if before := _classifier_before(run):
        model.start_from(load_classifier(before))
    return model


def _without_start(run: Run) -> methods.Method:
    backbone, bank = build_backbone(run), load_instances(run) if run.method in methods.WRAPPERS else None
    return seeded(run.seed, lambda: methods.build(run.method, backbone, run.folder.n_classes, run.settings, bank))


def recipe(run: Run) -> Section:
    """How the run's method is trained: the numbers of ``[cam]``, and in their place those that its own section repeats.

    Parameters
    ----------
    run : Run
        Names the method and the settings.

    Returns
    -------
    Section

    Examples
    --------
    >>> from wsss_lib.settings import load
    >>> run = getfixture("smoke_run").of("cda")
    >>> recipe(run).batch_size, run.settings.cam.batch_size
    (6, 12)
    """
    return Section({**run.settings.cam, **run.settings.get(run.method, {})})


def training_transform(options: Section) -> Callable:
    """The augmentation of a training: of an image, or of an image and its mask alike.

    Parameters
    ----------
    options : Section
        ``long_side, crop, jitter, pad``, of a method (`recipe`) or of ``[segmentation]``.

    Returns
    -------
    callable
        `wsss_lib.data.train_transform` with these numbers.

    Examples
    --------
    >>> image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    >>> training_transform(recipe(getfixture("smoke_run")))(image).shape
    torch.Size([3, 64, 64])
    """
    return train_transform(tuple(options.long_side), options.crop, tuple(options.jitter), pad=options.pad)


def make_instances(run: Run) -> Stage:
    """Stage ``instances``: cut objects out of the training images by the masks of the method ``instances.method``.

    Parameters
    ----------
    run : Run
        Any run; the instances belong to the run of that method, so that all who paste share them.

    Returns
    -------
    Stage
        Complete; ``masks/<id>.png``, ``instances.csv`` and ``contact_sheet.png``, metrics: the count of each class.

    Raises
    ------
    SettingsError
        For another ``instances.source``, or a method whose masks would need themselves.

    Examples
    --------
    >>> stage = make_instances(getfixture("smoke_run"))
    >>> sorted(stage.metrics["instances"]), len(list(stage.folder("masks").iterdir())) > 0
    (['aeroplane', 'boat', 'car', 'sheep', 'sofa', 'train'], True)
    """
    options = run.settings.instances
    if options.method in methods.WRAPPERS:
        raise SettingsError(f"instances.method={options.method!r} learns from instances itself: choose cam")
    if options.source not in MASK_SOURCES:
        raise SettingsError(f"instances.source={options.source!r}: choose one of {', '.join(MASK_SOURCES)}")
    run = run.of(options.method)
    before, mask_of = MASK_SOURCES[options.source](run)

    def compute(stage: Stage) -> dict:
        ids = run.ids("train")
        counts = collect_instances(
            run.folder, ids, mask_of, stage.path, options.epsilon_1, options.epsilon_2, options.mask_only
        )
        if none := [name for name, n in counts.items() if not n]:
            told = f"instances: none of {', '.join(none)} (among {len(ids)} images); nothing of it can be pasted"
            print(told, file=sys.stderr)
        if sum(counts.values()):
            sheet = contact_sheet(InstanceBank(run.folder, stage.path))
            Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(stage.path / "contact_sheet.png")
        return {"images": len(ids), "instances": counts}

    return run.stage("instances", ("instances",), after=before).ensure(compute)


def _from_pseudo_masks(run: Run) -> tuple[Stage, Callable[[str], np.ndarray]]:
    stage = make_pseudo_masks(run)
    return stage, lambda image_id: read_mask(stage.path / "masks" / f"{image_id}.png")


def _from_seeds(run: Run) -> tuple[Stage, Callable[[str], np.ndarray]]:
    stage, threshold, n_classes = make_cams(run), run.settings.localize.threshold, run.folder.n_classes

    def mask_of(image_id: str) -> np.ndarray:
        return seed(load_cam(stage.path / "cams" / f"{image_id}.npz", n_classes=n_classes), threshold).numpy()

    return stage, mask_of


# Where the masks come from that cut instances out: none of them is a true mask.
MASK_SOURCES: dict[str, Callable[[Run], tuple[Stage, Callable[[str], np.ndarray]]]] = {
    "pseudo_masks": _from_pseudo_masks,
    "seeds": _from_seeds,
}


def load_instances(run: Run) -> InstanceBank:
    """The instances for a run's method, scaled and augmented for its training; collected first if need be.

    Parameters
    ----------
    run : Run
        What is trained on what.

    Returns
    -------
    InstanceBank

    Examples
    --------
    >>> bank = load_instances(getfixture("smoke_run").of("cda"))
    >>> len(bank) == sum(bank.counts.values())
    True
    """
    stage, options, ids = make_instances(run), recipe(run), run.ids("train")
    return InstanceBank(
        run.folder,
        stage.path,
        long_side=options.crop,
        transform=training_transform(options),
        labels=run.folder.labels(ids),
        cache=_fits_memory(run, ids),
    )


def train_classifier(run: Run) -> Stage:
    """Stage ``classifier``: train the run's method on image-level labels.

    Parameters
    ----------
    run : Run
        What to train on what.

    Returns
    -------
    Stage
        Complete; its metrics hold the mean average precision on the val split, by class.

    Examples
    --------
    >>> stage = train_classifier(getfixture("smoke_run"))
    >>> stage.complete, stage.metrics["images"]
    (True, 36)
    """

    def compute(stage: Stage) -> dict:
        ids, device = run.ids("train"), pick_device(run.settings.machine.device)
        model, options = build_method(run), recipe(run)
        dataset = TrainingSet(
            run.folder, ids, training_transform(options), cache=_fits_memory(run, ids), regions=_regions(run, ids)
        )
        fit(model, dataset, options, **_fit_options(run, stage, f"train {run.method}", device))
        precision = _classification(run, model, device)
        names = [c for c, v in zip(run.folder.classes, precision, strict=True) if not np.isnan(v)]
        return {
            "images": len(ids),
            "map": json_number(np.nanmean(precision)) if names else None,
            "average_precision": {c: json_number(v) for c, v in zip(run.folder.classes, precision, strict=True)},
        }

    before = None
    if run.method in methods.WRAPPERS:
        before = make_instances(run)
    elif trained := _classifier_before(run):
        before = train_classifier(trained)
    return run.stage("classifier", _sections(run), after=before).ensure(compute)


def load_classifier(run: Run) -> methods.Method:
    """The trained method of a run, in evaluation mode on the settings' device; trained first if need be.

    Parameters
    ----------
    run : Run
        What was trained on what.

    Returns
    -------
    Method

    Examples
    --------
    >>> load_classifier(getfixture("smoke_run")).training
    False
    """
    return _trained(run, _without_start, train_classifier)


def make_cams(run: Run) -> Stage:
    """Stage ``cams``: multi-scale CAMs of the training images, and the scores of their seeds.

    Parameters
    ----------
    run : Run
        What to localise with what.

    Returns
    -------
    Stage
        Complete; ``cams/<id>.npz`` for the train and seed splits, metrics as in `score_seeds`.

    Examples
    --------
    >>> stage = make_cams(getfixture("smoke_run"))
    >>> len(list(stage.folder("cams").iterdir())), stage.metrics["seed"]["fixed"]["threshold"]
    (36, 0.25)
    """

    def compute(stage: Stage) -> dict:
        options = run.settings.localize
        ids = _train_and_seed_ids(run)
        localize(
            load_classifier(run),
            run.folder,
            ids,
            stage.folder("cams"),
            scales=options.scales,
            flip=options.flip,
            stride=options.map_stride,
            batch_size=options.batch_size,
            device=pick_device(run.settings.machine.device),
        )
        return {"images": len(ids), "seed": _score_seeds(run, stage.folder("cams"), options.threshold)}

    return run.stage("cams", ("localize",), after=train_classifier(run)).ensure(compute)


def make_pseudo_masks(run: Run) -> Stage:
    """Stage ``pseudo_masks``: the CAMs become masks by what ``refine.how`` says.

    Parameters
    ----------
    run : Run
        Whose CAMs to refine.

    Returns
    -------
    Stage
        Complete; ``masks/<id>.png`` for the train and seed splits, metrics as in `score_masks`.

    Raises
    ------
    SettingsError
        For another ``refine.how`` or dense CRF, or a wrong number in ``[pamr]``: here, before anything is trained.

    Examples
    --------
    >>> stage = make_pseudo_masks(getfixture("smoke_run"))
    >>> len(list(stage.folder("masks").iterdir()))
    36
    """
    settings, how = mask_settings(run.settings), run.settings.refine.how
    maps = walk_cams(run) if how in AFFINITY_NETWORKS else make_cams(run)

    def compute(stage: Stage) -> dict:
        ids, processes = _train_and_seed_ids(run), run.settings.machine.processes if settings.crf else 1
        pseudo_masks(_jobs(run, ids, maps), stage.folder("masks"), settings, processes=processes)
        return {"images": len(ids), "mask": _score_masks(run, "seed", stage.folder("masks"))}

    return run.stage("pseudo_masks", mask_sections(run.settings), after=maps).ensure(compute)


def make_affinity_labels(run: Run) -> Stage:
    """Stage ``affinity_labels``: pixels sure enough to learn affinities from, foreground and background; else 255.

    Parameters
    ----------
    run : Run
        Whose CAMs to label with; ``refine.how`` says for which network.

    Returns
    -------
    Stage
        Complete; ``masks/<id>.png`` for the train split. Its metrics say what share of the pixels is ``sure``
        and, where there are true masks to compare with, what share of these is ``right``.

    Raises
    ------
    SettingsError
        If ``refine.how`` is no affinity network, or a wrong number in its section of labels.

    Examples
    --------
    >>> from wsss_lib.settings import load
    >>> run = getfixture("smoke_run")
    >>> stage = make_affinity_labels(Run(load("smoke", {"refine.how": "irnet"}), run.folder, root=run.root))
    >>> 0 < stage.metrics["sure"] < 1
    True
    """
    how = _affinity_network(run)
    _check_affinity(run, how)
    settings, cams = affinity_label_settings(run.settings), make_cams(run)  # in this order

    def compute(stage: Stage) -> dict:
        ids = run.ids("train")
        pseudo_masks(_jobs(run, ids, cams), stage.folder("masks"), settings, processes=run.settings.machine.processes)
        return {"images": len(ids), **score_sure(run.folder, ids, stage.folder("masks"))}

    sections = ("refine", *with_crf(run.settings, f"{how}_labels"))
    return run.stage("affinity_labels", sections, after=cams).ensure(compute)


def train_affinity(run: Run) -> Stage:
    """Stage ``affinity``: train AffinityNet or IRNet, as ``refine.how`` says, on the sure pixels of the CAMs.

    Parameters
    ----------
    run : Run
        Whose CAMs to learn from.

    Returns
    -------
    Stage
        Complete; ``checkpoint.pt`` holds the weights, ``log.csv`` the terms of each step.

    Raises
    ------
    SettingsError
        As `make_affinity_labels`.

    Examples
    --------
    >>> from wsss_lib.settings import load
    >>> run = getfixture("smoke_run")
    >>> train_affinity(Run(load("smoke", {"refine.how": "irnet"}), run.folder, root=run.root)).checkpoint.name
    'checkpoint.pt'
    """
    how, labels = _affinity_network(run), make_affinity_labels(run)

    def compute(stage: Stage) -> dict:
        ids, options = run.ids("train"), run.settings[how]
        device, transform = pick_device(run.settings.machine.device), training_transform(options)
        dataset = PseudoMaskSet(run.folder, ids, labels.folder("masks"), transform, cache=_fits_memory(run, ids))
        network = build_affinity(run)
        title = f"train {type(network).__name__}"
        fit(network, dataset, options, collate=collate_masks, **_fit_options(run, stage, title, device))
        return {"images": len(ids)}

    return run.stage("affinity", (how,), after=labels).ensure(compute)


def load_affinity(run: Run) -> nn.Module:
    """The trained AffinityNet or IRNet of a run, in evaluation mode on the settings' device; trained first if need be.

    Parameters
    ----------
    run : Run
        What was trained on what.

    Returns
    -------
    AffinityNet or IRNet

    Examples
    --------
    >>> from wsss_lib.settings import load
    >>> run = getfixture("smoke_run")
    >>> load_affinity(Run(load("smoke", {"refine.how": "irnet"}), run.folder, root=run.root)).training
    False
    """
    return _trained(run, build_affinity, train_affinity)


def walk_cams(run: Run) -> Stage:
    """Stage ``walked_cams``: the CAMs walk along the learnt affinities, and are scored as seeds are.

    Parameters
    ----------
    run : Run
        Whose CAMs to refine by ``refine.how``, AffinityNet or IRNet.

    Returns
    -------
    Stage
        Complete; ``cams/<id>.npz`` for the train and seed splits as the CAM stage writes them; metrics ``seed`` as in
        `score_seeds`, at the threshold of the section ``<how>_walk`` and at the best.

    Raises
    ------
    SettingsError
        As `make_affinity_labels`.

    Examples
    --------
    >>> from wsss_lib.settings import load
    >>> run = getfixture("smoke_run")
    >>> stage = walk_cams(Run(load("smoke", {"refine.how": "irnet"}), run.folder, root=run.root))
    >>> len(list(stage.folder("cams").iterdir())), stage.metrics["seed"]["fixed"]["threshold"]
    (36, 0.25)
    """
    how = _affinity_network(run)
    settings = walk_settings(run.settings)
    trained, cams = train_affinity(run), make_cams(run)

    def compute(stage: Stage) -> dict:
        ids, device = _train_and_seed_ids(run), pick_device(run.settings.machine.device)
        walk_folder(load_affinity(run), run.folder, ids, cams.path / "cams", stage.folder("cams"), settings, device)
        theta = run.settings[f"{how}_walk"].theta
        return {"images": len(ids), "seed": _score_seeds(run, stage.folder("cams"), theta)}

    return run.stage("walked_cams", (f"{how}_walk",), after=trained).ensure(compute)


def train_segmentation(run: Run) -> Stage:
    """Stage ``segmentation``: train a DeepLab on the pseudo masks.

    Parameters
    ----------
    run : Run
        Whose pseudo masks to learn from.

    Returns
    -------
    Stage
        Complete; ``checkpoint.pt`` holds the weights, ``log.csv`` the loss of each step.

    Raises
    ------
    SettingsError
        For a wrong value in ``[segmentation]``: here, before anything is trained.

    Examples
    --------
    >>> train_segmentation(getfixture("smoke_run")).checkpoint.name
    'checkpoint.pt'
    """
    _check_segmentation(run)
    pseudo = make_pseudo_masks(run)

    def compute(stage: Stage) -> dict:
        ids, options = run.ids("train"), run.settings.segmentation
        device = pick_device(run.settings.machine.device)
        dataset = PseudoMaskSet(
            run.folder, ids, pseudo.folder("masks"), training_transform(options), cache=_fits_memory(run, ids)
        )
        fit(
            build_segmentation(run),
            dataset,
            options,
            collate=collate_masks,
            **_fit_options(run, stage, "train DeepLab", device),
        )
        return {"images": len(ids)}

    return run.stage("segmentation", ("segmentation",), after=pseudo).ensure(compute)


def load_segmentation(run: Run) -> DeepLab:
    """The trained DeepLab of a run, in evaluation mode on the settings' device; trained first if need be.

    Parameters
    ----------
    run : Run
        What was trained on what.

    Returns
    -------
    DeepLab

    Examples
    --------
    >>> load_segmentation(getfixture("smoke_run")).training
    False
    """
    return _trained(run, build_segmentation, train_segmentation)


def segment_val(run: Run) -> Stage:
    """Stage ``val_masks``: segment the val split with the trained DeepLab, and score it.

    Parameters
    ----------
    run : Run
        What to segment with what.

    Returns
    -------
    Stage
        Complete; ``masks/<id>.png`` for the val split, metrics as in `score_masks`.

    Raises
    ------
    SettingsError
        For a wrong value in ``[segment]``: here, before anything is trained.

    Examples
    --------
    >>> stage = segment_val(getfixture("smoke_run"))
    >>> stage.complete, len(list(stage.folder("masks").iterdir()))
    (True, 12)
    """
    crf = _check_segment(run)

    def compute(stage: Stage) -> dict:
        ids = run.ids("val")
        _segment(run, ids, stage, crf)
        return {"images": len(ids), "mask": _score_masks(run, "val", stage.folder("masks"))}

    return run.stage("val_masks", with_crf(run.settings, "segment"), after=train_segmentation(run)).ensure(compute)


def segment_test(run: Run) -> Stage:
    """Stage ``test_masks``: segment the images of ``test.txt``, and pack them as the VOC test server wants them.

    Parameters
    ----------
    run : Run
        What to segment with what.

    Returns
    -------
    Stage
        Complete; ``masks/<id>.png`` and ``comp6_test_cls.tgz``. There is nothing to score with.

    Raises
    ------
    SettingsError
        For a wrong value in ``[segment]``: here, before anything is trained.
    DataError
        Where there is no split ``test``.

    Examples
    --------
    See ``tests/test_stages.py``, where toy scenes have a test split.

    >>> segment_test.__name__
    'segment_test'
    """
    crf, ids = _check_segment(run), run.folder.split("test")

    def compute(stage: Stage) -> dict:
        _segment(run, ids, stage, crf)
        pack(stage.folder("masks"), ids, stage.path / "comp6_test_cls.tgz", size=run.folder.size)
        return {"images": len(ids)}

    stage = run.stage("test_masks", with_crf(run.settings, "segment"), after=train_segmentation(run))
    stage.config["test"] = run.folder.fingerprint("test")
    return stage.ensure(compute)


def segment_directly(run: Run) -> Stage:
    """Stage ``direct_masks``: a single-stage method segments the val split itself, and is scored twice.

    Parameters
    ----------
    run : Run
        Of a method of `methods.SINGLE_STAGE`.

    Returns
    -------
    Stage
        Complete; ``masks/<id>.png`` from predicted labels, ``masks_with_labels/<id>.png`` from the true labels of the
        test images, which some papers use; metrics ``mask`` and ``mask_with_labels``, each as in `score_masks`.

    Raises
    ------
    SettingsError
        For another method, or a wrong number in ``[single_stage]``: here, before anything is trained.

    Examples
    --------
    >>> stage = segment_directly(getfixture("smoke_run").of("ws_fcn"))
    >>> stage.metrics["mask"]["miou"] < 1, stage.metrics["mask_with_labels"]["miou"] < 1
    (True, True)
    """
    if run.method not in methods.SINGLE_STAGE:
        known = ", ".join(methods.SINGLE_STAGE)
        raise SettingsError(f"method={run.method!r} gives no masks itself: choose {known}, or go on to segmentation")
    settings = single_stage_settings(run.settings)

    def compute(stage: Stage) -> dict:
        ids = run.ids("val")
        segment_single_stage(
            load_classifier(run),
            run.folder,
            ids,
            stage.path,
            settings,
            device=pick_device(run.settings.machine.device),
            processes=run.settings.machine.processes,
        )
        scores = {name.replace("masks", "mask"): _score_masks(run, "val", stage.path / name) for name in FOLDERS}
        return {"images": len(ids), **scores}

    sections = with_crf(run.settings, "single_stage")
    return run.stage("direct_masks", sections, after=train_classifier(run)).ensure(compute)


def build_segmentation(run: Run) -> DeepLab:
    """An untrained DeepLab of the settings, its random weights from the run's seed.

    With ``segmentation.init = "classifier"`` the backbone starts from the trained classifier's, for want of ImageNet
    weights; with ``"backbone"`` it starts as the classifier did, or, if ``segmentation.backbone`` names a network of
    its own, from that network's weights.

    Parameters
    ----------
    run : Run
        Names the settings and the seed.

    Returns
    -------
    DeepLab

    Raises
    ------
    SettingsError
        For a wrong value in ``[segmentation]``.

    Examples
    --------
    >>> build_segmentation(getfixture("smoke_run")).n_classes
    7
    """
    _check_segmentation(run)
    backbone = _started(run, "segmentation", _segmentation_backbone(run))
    return seeded(run.seed, lambda: _deeplab(run, backbone))


def build_affinity(run: Run) -> nn.Module:
    """An untrained AffinityNet or IRNet, as ``refine.how`` says, its random weights from the run's seed.

    Its backbone starts from the trained classifier's (``init = "classifier"``) or as the classifier did.

    Parameters
    ----------
    run : Run
        Names the settings and the seed.

    Returns
    -------
    AffinityNet or IRNet

    Raises
    ------
    SettingsError
        If ``refine.how`` is none of them, or for another ``init``.

    Examples
    --------
    >>> from wsss_lib.settings import load
    >>> run = getfixture("smoke_run")
    >>> type(build_affinity(Run(load("smoke", {"refine.how": "irnet"}), run.folder, root=run.root))).__name__
    'IRNet'
    """
    how = _affinity_network(run)
    options, backbone = run.settings[how], _started(run, how, build_backbone(run))
    return seeded(run.seed, lambda: AFFINITY_NETWORKS[how].build(backbone, options))


def scored_classes(run: Run) -> list[int]:
    """Mask values that the run's mIoU averages: background and the classes with enough training images.

    Parameters
    ----------
    run : Run
        Names the data and ``data.score_min_images``.

    Returns
    -------
    list of int

    Examples
    --------
    >>> scored_classes(getfixture("smoke_run"))
    [0, 1, 2, 3, 4, 5, 6]
    """
    return frequent_classes(run.folder, run.ids("train"), run.settings.data.score_min_images)


def _check_segment(run: Run) -> DenseCRFSettings | None:
    """Refuse what would otherwise fail late, and give the dense CRF of the test masks."""
    check_scales(run.settings.segment.scales)
    check_combine(run.settings.segment.combine)
    return crf_settings(run.settings, "segment")


def _segment(run: Run, ids, stage: Stage, crf: DenseCRFSettings | None) -> None:
    options = run.settings.segment
    segment(
        load_segmentation(run),
        run.folder,
        ids,
        stage.folder("masks"),
        scales=options.scales,
        flip=options.flip,
        combine=options.combine,
        crf=crf,
        device=pick_device(run.settings.machine.device),
        processes=run.settings.machine.processes,
    )


def _trained(run: Run, build: Callable[[Run], nn.Module], train: Callable[[Run], Stage]) -> nn.Module:
    return load_weights(build(run), train(run).checkpoint).to(pick_device(run.settings.machine.device))


def _classifier_before(run: Run) -> Run | None:
    """The run whose trained classifier the run's method starts from: its host, or CAM."""
    own = run.settings.get(run.method, {})
    if "init" not in own or _starts_from(run, run.method) == "backbone":
        return None
    return run.of(own.get("host", "cam"))


def _starts_from(run: Run, section: str) -> str:
    init = run.settings[section].init
    if init not in ("backbone", "classifier"):
        raise SettingsError(f"{section}.init={init!r}: choose backbone or classifier")
    return init


def _affinity_network(run: Run) -> str:
    how = run.settings.refine.how
    if how not in AFFINITY_NETWORKS:
        raise SettingsError(f"refine.how={how!r} learns no affinities: choose {' or '.join(AFFINITY_NETWORKS)}")
    return how


def _started(run: Run, section: str, backbone: backbones.Backbone) -> backbones.Backbone:
    """The backbone, with the trained classifier's weights if the section asks for them."""
    if _starts_from(run, section) == "classifier":
        backbone.load_state_dict(load_classifier(run).backbone.state_dict())
    return backbone


def _segmentation_backbone(run: Run) -> backbones.Backbone:
    own = run.settings.segmentation
    if not own.backbone:
        return build_backbone(run)
    return _with_weights(run, own.backbone, own, "segmentation.weights")


def _with_weights(run: Run, name: str, own: Section, key: str) -> backbones.Backbone:
    weights = find_weights(own.weights, key)
    dilated, frozen_stages = own.get("dilated", False), own.get("frozen_stages", 0)
    backbone = seeded(run.seed, lambda: backbones.build(name, weights, own.output_stride, dilated))
    if weights:  # random weights have learnt nothing that is worth keeping, nor have their statistics
        backbone.freeze(frozen_stages, own.frozen_norm)
    return backbone


def _deeplab(run: Run, backbone: backbones.Backbone) -> DeepLab:
    options = run.settings.segmentation
    return DeepLab(backbone, run.folder.n_classes + 1, options.dilations, options.scales, options.bias_factor)


def _check_affinity(run: Run, how: str) -> None:
    """Refuse before hours of training what would fail after it."""
    walk_settings(run.settings), mask_settings(run.settings), _starts_from(run, how)
    own = run.settings.backbone
    with torch.device("meta"):  # shapes without numbers: nothing is drawn
        AFFINITY_NETWORKS[how].build(backbones.build(own.name, "", own.output_stride), run.settings[how])


def _check_segmentation(run: Run) -> None:
    """Refuse what would otherwise fail late, when the pseudo masks are there."""
    own, classifier = run.settings.segmentation, run.settings.backbone
    if _starts_from(run, "segmentation") == "classifier" and own.backbone not in ("", classifier.name):
        raise SettingsError(
            f"segmentation.init='classifier': that is {classifier.name}, segmentation.backbone {own.backbone};"
            " set segmentation.init to backbone"
        )
    network = classifier.name, "", classifier.output_stride
    if own.backbone:
        find_weights(own.weights, "segmentation.weights")
        network = own.backbone, "", own.output_stride, own.dilated
    with torch.device("meta"):  # shapes without numbers: nothing is drawn
        _deeplab(run, backbones.build(*network))


def _sections(run: Run) -> tuple[str, ...]:
    own = (run.method,) if run.method in run.settings else ()
    if run.method in methods.WRAPPERS and run.settings[run.method].host in run.settings:
        own = (run.settings[run.method].host, *own)
    scenes = ("toy",) if run.folder.name == "toy" and "toy" in run.settings else ()
    return ("data", *scenes, "backbone", "cam", *own)


def _regions(run: Run, ids) -> Path | None:
    """Folder of the super-pixels of a run that hides them, made once an image and kept beside the data set's runs."""
    options = run.settings.get(run.method, {})
    if options.get("patches") != "superpixel":
        return None
    how = SuperpixelSettings(options.n_segments, options.compactness)
    name = f"{run.folder.root.resolve().name}-{how.n_segments}-{how.compactness:g}"
    out = run.root / run.folder.name / "superpixels" / name
    make_superpixels([(i, run.folder.image_path(i)) for i in ids], out, how, run.settings.machine.processes)
    return out


def _fits_memory(run: Run, ids) -> bool:
    height, width = run.folder.size(ids[0])
    return len(ids) * height * width <= CACHE_PIXELS


def _fit_options(run: Run, stage: Stage, title: str, device) -> dict:
    machine = run.settings.machine
    return {
        "seed": run.seed,
        "checkpoint": stage.checkpoint,
        "log": stage.path / "log.csv",
        "device": device,
        "workers": machine.workers,
        "checkpoint_seconds": machine.checkpoint_seconds,
        "title": title,
    }


@torch.inference_mode()
def _classification(run: Run, model, device) -> np.ndarray:
    """Average precision of each class on the val split's image-level labels."""
    ids = run.ids("val")
    scores = []
    for image_id in tqdm(ids, desc="classify val", unit="image", mininterval=1.0):
        image = normalize(run.folder.image(image_id))[None].to(device, memory_format=torch.channels_last)
        scores.append(model.logits(image).float().cpu())
    return average_precision(run.folder.labels(ids), torch.cat(scores))


def _train_and_seed_ids(run: Run) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*run.ids("train"), *run.ids("seed"))))


def _jobs(run: Run, ids, maps: Stage) -> list[tuple[str, Path, Path]]:
    """What `pseudo_masks` makes masks of: the id, the image and its maps."""
    return [(i, run.folder.image_path(i), maps.path / "cams" / f"{i}.npz") for i in ids]


def _score_seeds(run: Run, cam_dir: Path, threshold: float) -> dict | None:
    ids, step = run.ids("seed"), run.settings.localize.sweep_step
    if not run.folder.has_masks(ids):
        return None
    return score_seeds(run.folder, ids, cam_dir, scored_classes(run), threshold, step)


def _score_masks(run: Run, split: str, mask_dir: Path) -> dict | None:
    ids = run.ids(split)
    return score_masks(run.folder, ids, mask_dir, scored_classes(run)) if run.folder.has_masks(ids) else None
