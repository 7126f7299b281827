"""The stages of learnt affinities on toy scenes, blind to true masks; test masks packed for the server."""

import shutil
import tarfile

import numpy as np
import pytest
import torch

from wsss_lib import choices, stages
from wsss_lib.data import VOCFolder
from wsss_lib.data.masks import read_mask
from wsss_lib.errors import SettingsError
from wsss_lib.localize import load_cam, seed
from wsss_lib.refine.dense_crf import PRESETS
from wsss_lib.runs import Run
from wsss_lib.settings import PROFILES, load

HOWS = sorted(choices.AFFINITY_NETWORKS)


def with_network(run, how, **overrides):
    return Run(load("smoke", {"refine.how": how, **overrides}), run.folder, root=run.root)


def files(stage):
    return {p.name: p.read_bytes() for folder in ("cams", "masks") for p in (stage.path / folder).glob("*")}


@pytest.mark.parametrize("how", HOWS)
def test_masks_are_the_walked_maps_at_the_threshold_of_the_walk(smoke_run, how):
    run = with_network(smoke_run, how)
    walked, masks = stages.walk_cams(run), stages.make_pseudo_masks(run)
    assert len(files(masks)) == len(files(walked)) == len(run.ids("train"))
    theta = run.settings[f"{how}_walk"].theta
    assert walked.metrics["seed"]["fixed"]["threshold"] == theta
    assert masks.metrics["mask"]["miou"] == pytest.approx(walked.metrics["seed"]["fixed"]["miou"], abs=5e-3)
    for image_id in run.ids("train")[:6]:
        cam = load_cam(walked.path / "cams" / f"{image_id}.npz", n_classes=run.folder.n_classes)
        mask = read_mask(masks.path / "masks" / f"{image_id}.png")
        assert np.mean(mask != seed(cam, theta).numpy()) < 5e-3  # two ways to enlarge differ in the last digits
        assert set(np.unique(mask)) <= {0, *(np.flatnonzero(run.folder.label(image_id)) + 1)}, (
            "absent classes stay away"
        )


@pytest.mark.parametrize("how", HOWS)
def test_labels_say_what_share_is_sure_and_learning_lowers_the_loss(smoke_run, how):
    run = with_network(smoke_run, how, **{f"{how}.epochs": 8})
    labels = stages.make_affinity_labels(run)
    masks = [read_mask(labels.path / "masks" / f"{i}.png") for i in run.ids("train")]
    assert labels.metrics["sure"] == pytest.approx(np.mean(np.stack(masks) != 255))
    assert 0 < labels.metrics["right"] <= 1
    log = np.genfromtxt(stages.train_affinity(run).path / "log.csv", delimiter=",", names=True)
    assert {"background", "foreground", "different", "total"} <= set(log.dtype.names)
    assert log["total"][-4:].mean() < log["total"][:4].mean()


@pytest.mark.parametrize("how", HOWS)
def test_without_any_mask_the_walk_is_the_same_to_the_byte_and_nothing_is_scored(smoke_run, toy_root, tmp_path, how):
    root = shutil.copytree(toy_root, tmp_path / "scenes")
    shutil.rmtree(root / "SegmentationClass")
    run = with_network(smoke_run, how)
    blind = Run(run.settings, VOCFolder(root, name="toy"), root=tmp_path / "runs")
    assert stages.walk_cams(blind).metrics["seed"] is None
    assert stages.make_pseudo_masks(blind).metrics["mask"] is None
    assert stages.make_affinity_labels(blind).metrics["right"] is None
    for make in (stages.make_affinity_labels, stages.walk_cams, stages.make_pseudo_masks):
        assert files(make(blind)) == files(make(run)), make.__name__


def test_the_networks_share_the_cams_and_keep_apart_what_they_make(smoke_run):
    runs = [with_network(smoke_run, how) for how in HOWS]
    assert len({stages.make_cams(run).path for run in runs}) == 1
    assert len({stages.make_pseudo_masks(run).path for run in runs} | {stages.make_pseudo_masks(smoke_run).path}) == 3
    assert stages.train_segmentation(runs[0]).path != stages.train_segmentation(smoke_run).path


def test_another_threshold_needs_no_new_training(smoke_run):
    run, other = (with_network(smoke_run, "irnet", **{"irnet_walk.theta": theta}) for theta in (0.25, 0.5))
    assert stages.train_affinity(run).path == stages.train_affinity(other).path
    assert stages.walk_cams(run).path != stages.walk_cams(other).path


def test_a_seed_is_the_same_as_no_refinement(smoke_run):
    run = with_network(smoke_run, "none")
    masks, cams = stages.make_pseudo_masks(run), stages.make_cams(run)
    assert masks.metrics["mask"]["miou"] == pytest.approx(cams.metrics["seed"]["fixed"]["miou"], abs=5e-3)


@pytest.mark.parametrize("how", HOWS)
def test_a_dense_crf_after_the_walk_is_asked_for_by_name(smoke_run, how):
    settings = load("smoke", {"refine.how": how, f"{how}_walk.crf": "psa"})
    assert choices.mask_settings(settings).crf == PRESETS["psa"]
    own = choices.mask_settings(load("smoke", {"refine.how": how, f"{how}_walk.crf": "own", "dense_crf.iterations": 7}))
    assert own.crf.iterations == 7
    with pytest.raises(SettingsError, match=f"{how}_walk.crf='crf': choose"):
        choices.mask_settings(load("smoke", {"refine.how": how, f"{how}_walk.crf": "crf"}))


def test_who_learns_no_affinities_has_no_such_stages(smoke_run):
    told = r"refine\.how='dense_crf' learns no affinities: choose affinity_net or irnet"
    for make in (stages.make_affinity_labels, stages.train_affinity, stages.walk_cams, stages.build_affinity):
        with pytest.raises(SettingsError, match=told):
            make(smoke_run)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_has_settings_that_build(profile, how):
    settings = load(profile, {"refine.how": how})
    assert choices.affinity_label_settings(settings).la_ha
    assert choices.walk_settings(settings).beta > 0
    network = choices.AFFINITY_NETWORKS[how].build(stages.backbones.build(settings.backbone.name), settings[how])
    assert stages.training_transform(settings[how])(torch.zeros(3, 40, 50, dtype=torch.uint8)).ndim == 3
    assert network.parameter_groups(settings[how].classifier_factor)


@pytest.mark.parametrize(
    "wrong", [{"irnet.radius": 1.0}, {"irnet.stride": 0}, {"irnet.init": "x"}, {"irnet_walk.beta": 0.0}]
)
def test_a_wrong_number_is_refused_before_anything_is_computed(smoke_run, tmp_path, wrong):
    run = Run(load("smoke", {"refine.how": "irnet", **wrong}), smoke_run.folder, root=tmp_path)
    with pytest.raises(SettingsError):
        stages.make_pseudo_masks(run)
    assert not any(tmp_path.iterdir())


def test_the_networks_start_from_the_classifier_or_as_it_did(smoke_run):
    trained = stages.load_classifier(smoke_run).backbone.state_dict()
    for how in HOWS:
        network = stages.build_affinity(with_network(smoke_run, how, **{f"{how}.init": "classifier"}))
        assert all(torch.equal(a, trained[k]) for k, a in network.backbone.state_dict().items())
        begun = stages.build_affinity(with_network(smoke_run, how, **{f"{how}.init": "backbone"}))
        fresh = stages.build_backbone(smoke_run).state_dict()
        assert all(torch.equal(a, fresh[k]) for k, a in begun.backbone.state_dict().items())


def test_the_test_split_is_segmented_and_packed_for_the_server(smoke_run, toy_root, tmp_path):
    root = shutil.copytree(toy_root, tmp_path / "scenes")
    ids = smoke_run.folder.split("val")[:3]
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text("\n".join(ids) + "\n")
    run = Run(smoke_run.settings, VOCFolder(root, name="toy"), root=tmp_path / "runs")
    stage, val = stages.segment_test(run), stages.segment_val(run)
    with tarfile.open(stage.path / "comp6_test_cls.tgz") as archive:
        assert archive.getnames() == [f"results/VOC2012/Segmentation/comp6_test_cls/{i}.png" for i in sorted(ids)]
    for image_id in ids:
        name = f"{image_id}.png"
        assert (stage.path / "masks" / name).read_bytes() == (val.path / "masks" / name).read_bytes()

    more = smoke_run.folder.split("val")[:4]
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text("\n".join(more) + "\n")
    grown = Run(smoke_run.settings, VOCFolder(root, name="toy"), root=tmp_path / "runs")
    assert stages.segment_test(grown).metrics["images"] == 4, "another list makes another archive"
