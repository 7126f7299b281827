"""The whole way on toy scenes: it needs no mask of a training image, repeats its bytes, and stages are shared."""

import shutil

import numpy as np
import pytest
import torch
from torchvision import models

from data_prep.ready import ready
from wsss_lib import choices, methods, stages
from wsss_lib.data import VOCFolder
from wsss_lib.data.masks import read_mask
from wsss_lib.data.samples import MaskBatch
from wsss_lib.data.transforms import normalize
from wsss_lib.errors import DataError, SettingsError, WsssError
from wsss_lib.methods import cpn
from wsss_lib.methods.base import Progress
from wsss_lib.refine.dense_crf import MaskSettings
from wsss_lib.refine.maps import background_score, read_maps
from wsss_lib.refine.mean_field import HARD, PRESETS, DenseCRFSettings
from wsss_lib.refine.pamr import PAMRSettings
from wsss_lib.runs import Run
from wsss_lib.segment.deeplab import DeepLab, pixel_cross_entropy
from wsss_lib.segment.single_stage import FOLDERS, predict_masks
from wsss_lib.settings import load
from wsss_lib.train import seeded

CRFS = 'choose "own" .* "" .* preset: (irn, )?psa, seam, .*, ws_fcn, deeplab_v2'


def changed_run(run, overrides, method="cam"):
    return Run(load("smoke", overrides), run.folder, method, root=run.root)


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def outputs(stage):
    return {p.name: p.read_bytes() for folder in ("cams", "masks") for p in (stage.path / folder).glob("*")}


def test_the_whole_way_gives_a_mask_for_every_image(smoke_run):
    pseudo, final = stages.make_pseudo_masks(smoke_run), stages.segment_val(smoke_run)
    assert len(outputs(pseudo)) == len(smoke_run.ids("train")) and len(outputs(final)) == len(smoke_run.ids("val"))
    for stage in (pseudo, final):
        for path in (stage.path / "masks").iterdir():
            assert read_mask(path).shape == (64, 64) and set(read_mask(path).ravel()) <= {0, 1, 2, 3, 4, 5, 6}
        assert 0 < stage.metrics["mask"]["miou"] <= 1


def test_the_same_seed_gives_the_same_bytes_to_the_end(smoke_run, tmp_path):
    again = Run(smoke_run.settings, smoke_run.folder, root=tmp_path)
    for make in (stages.make_cams, stages.make_pseudo_masks, stages.segment_val):
        assert outputs(make(smoke_run)) == outputs(make(again)), make.__name__


def test_another_seed_gives_other_maps(smoke_run, tmp_path):
    other = Run(smoke_run.settings, smoke_run.folder, seed=1, root=tmp_path)
    assert outputs(stages.make_cams(smoke_run)) != outputs(stages.make_cams(other))


def test_without_any_mask_the_way_is_the_same_and_nothing_is_scored(smoke_run, toy_root, tmp_path):
    root = shutil.copytree(toy_root, tmp_path / "scenes")
    shutil.rmtree(root / "SegmentationClass")
    blind = Run(smoke_run.settings, VOCFolder(root, name="toy"), root=tmp_path / "runs")
    for make, score in (
        (stages.make_cams, "seed"),
        (stages.make_pseudo_masks, "mask"),
        (stages.segment_val, "mask"),
    ):
        assert outputs(make(blind)) == outputs(make(smoke_run)), make.__name__
        assert make(blind).metrics[score] is None


def test_a_changed_late_setting_shares_the_early_stages(smoke_run):
    changed = Run(load("smoke", {"dense_crf.alpha": 1.0}), smoke_run.folder, root=smoke_run.root)
    assert stages.make_cams(changed).path == stages.make_cams(smoke_run).path
    assert stages.make_pseudo_masks(changed).path != stages.make_pseudo_masks(smoke_run).path


def test_other_test_scales_keep_the_trained_network(smoke_run):
    changed = Run(load("smoke", {"segment.flip": False}), smoke_run.folder, root=smoke_run.root)
    assert stages.train_segmentation(changed).path == stages.train_segmentation(smoke_run).path
    assert stages.segment_val(changed).path != stages.segment_val(smoke_run).path


@pytest.mark.parametrize("profile", ["smoke", "demo", "laptop"])
def test_on_small_profiles_the_segmentation_is_a_plain_deeplab_on_the_classifiers_backbone(profile, smoke_run):
    changed = {"segmentation.init": "backbone", "backbone.weights": ""}
    run = Run(load(profile, changed), smoke_run.folder, root=smoke_run.root)
    model, options = stages.build_segmentation(run), run.settings.segmentation
    backbone = stages.build_backbone(run)
    plain = seeded(0, lambda: DeepLab(backbone, 7, dilations=options.dilations))
    assert same_weights(model, plain)
    image, mask = torch.randn(2, 3, 64, 64), torch.randint(0, 7, (2, 64, 64))
    losses = model.loss(MaskBatch(image, mask, ("a", "b")), Progress())
    assert list(losses.terms) == ["cross_entropy"] and torch.equal(
        losses.total, pixel_cross_entropy(plain(image), mask)
    )
    groups = [(len(g["params"]), g["lr_factor"]) for g in model.parameter_groups(options.classifier_factor)]
    head = 2 * len(options.dilations)
    assert groups == [(sum(1 for p in plain.backbone.parameters() if p.requires_grad), 1.0), (head, groups[1][1])]
    assert groups[1][1] == options.classifier_factor and run.settings.segment.combine == "mean"


def test_profile_paper_builds_deeplab_v2_of_resnet_101(smoke_run, monkeypatch):
    published = seeded(1, models.resnet101).state_dict()
    monkeypatch.setattr(models.ResNet101_Weights, "get_state_dict", lambda *args, **kwargs: published)
    model = stages.build_segmentation(Run(load("paper"), smoke_run.folder)).train()
    assert type(model.backbone).__name__ == "ResNet101" and model.backbone.out_stride == 8
    assert torch.equal(model.backbone.layer3[22].conv3.weight, published["layer3.22.conv3.weight"])
    assert [m.conv2.dilation for m in model.backbone.layer4] == [(2, 2), (4, 4), (4, 4)]
    assert not any(m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert all(p.requires_grad for p in model.parameters())
    assert [c.dilation[0] for c in model.aspp.classifiers] == [6, 12, 18, 24] and model.scales == (0.5, 0.75)
    factors = [g["lr_factor"] for g in model.parameter_groups(load("paper").segmentation.classifier_factor)]
    assert factors == [1.0, 10.0, 20.0]


def test_a_segmentation_of_several_sizes_on_its_own_network_goes_the_whole_way(smoke_run):
    changed = {"init": "backbone", "backbone": "mobilenet_v1", "output_stride": 8, "scales": [0.5], "bias_factor": 2.0}
    testing = {"segment.scales": [1.0, 0.5], "segment.combine": "max"}
    run = changed_run(smoke_run, {**{f"segmentation.{key}": value for key, value in changed.items()}, **testing})
    model = stages.build_segmentation(run)
    assert model.backbone.out_stride == 8 and type(model.backbone).__name__ == "MobileNetV1"
    assert same_weights(model, stages.build_segmentation(run)) and len(model.parameter_groups()) == 3
    stage = stages.segment_val(run)
    log = (stages.train_segmentation(run).path / "log.csv").read_text().splitlines()
    assert log[0] == "step,epoch,lr,cross_entropy,cross_entropy_0.5,cross_entropy_max,total" and len(log) == 7
    *terms, total = map(float, log[1].split(",")[3:])
    assert sum(terms) == pytest.approx(total, rel=1e-4)
    assert stages.make_pseudo_masks(run).path == stages.make_pseudo_masks(smoke_run).path
    assert len(outputs(stage)) == 12 and stage.metrics["mask"]["miou"] > 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"segmentation.backbone": "vgg16", "segmentation.init": "backbone"}, "backbone='vgg16' is unknown"),
        ({"segmentation.backbone": "resnet101"}, "that is tiny, segmentation.backbone resnet101; set .* to backbone"),
        ({"segmentation.backbone": "tiny", "segmentation.dilated": True}, "tiny has no dilated form"),
        (
            {"segmentation.backbone": "tiny", "segmentation.weights": "w.pth"},
            "segmentation.weights='w.pth': no such file",
        ),
        ({"segmentation.init": "imagenet"}, "segmentation.init='imagenet': choose backbone or classifier"),
        ({"segmentation.scales": [0.0]}, r"scales=\(0.0,\): give one or more positive factors"),
        ({"segmentation.bias_factor": -2.0}, "bias_factor=-2.0: give a number from 0"),
        ({"segmentation.dilations": []}, "dilations=.*: give at least one"),
        ({"segment.scales": []}, r"scales=\(\): give one or more positive factors"),
        ({"segment.combine": "median"}, "combine='median': choose one of mean, mean_logits, max"),
    ],
)
def test_a_wrong_segmentation_is_refused_before_anything_is_trained(smoke_run, tmp_path, overrides, words):
    run = Run(load("smoke", overrides), smoke_run.folder, root=tmp_path)
    with pytest.raises(WsssError, match=words) as error:
        stages.segment_val(run)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_lost_map_is_made_again_and_the_rest_kept(smoke_run, tmp_path):
    run = Run(smoke_run.settings, smoke_run.folder, seed=2, root=tmp_path)
    stage = stages.make_cams(run)
    whole = outputs(stage)
    lost = sorted((stage.path / "cams").iterdir())[3]
    kept = sorted((stage.path / "cams").iterdir())[4]
    before = kept.stat().st_mtime_ns
    lost.unlink()
    assert not stage.complete
    assert outputs(stages.make_cams(run)) == whole
    assert kept.stat().st_mtime_ns == before


def test_a_fault_in_the_data_stops_before_training_starts(toy_root, tmp_path):
    root = shutil.copytree(toy_root, tmp_path / "scenes")
    folder = VOCFolder(root, name="toy")
    picture = folder.image_path(folder.split("train")[5])
    picture.write_bytes(picture.read_bytes()[:300])
    run = Run(load("smoke"), folder, root=tmp_path / "runs")
    with pytest.raises(DataError, match=picture.name) as error:
        stages.train_classifier(run)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "runs").rglob("checkpoint.pt"))


def test_photographs_without_a_folder_are_asked_for():
    with pytest.raises(DataError, match="data_root is empty"):
        ready(load("paper"))


def test_missing_weights_name_the_places_that_were_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("WSSS_WEIGHTS", str(tmp_path))
    with pytest.raises(WsssError, match="WSSS_WEIGHTS"):
        stages.find_weights("w.pth")
    (tmp_path / "w.pth").touch()
    assert stages.find_weights("w.pth") == str(tmp_path / "w.pth")


def test_all_methods_that_paste_share_the_instances_of_one_run(smoke_run):
    paths = {stages.make_instances(smoke_run.of(method)).path for method in ("cam", *methods.WRAPPERS)}
    assert paths == {smoke_run.root / "toy/smoke/cam/seed0/instances"}
    pasted = changed_run(smoke_run, {"cda.rotation": 0.0, "csd.dummy": 0.5}, "cda")
    assert stages.make_instances(pasted).path in paths
    assert stages.make_instances(changed_run(smoke_run, {"instances.epsilon_1": 0.02}, "cda")).path not in paths


def test_an_instances_stage_counts_every_class_and_shows_a_picture(smoke_run):
    stage = stages.make_instances(smoke_run)
    bank = stages.load_instances(smoke_run.of("cda"))
    assert list(stage.metrics["instances"]) == list(smoke_run.folder.classes)
    assert stage.metrics["instances"] == bank.counts and stage.metrics["images"] == 36
    assert (stage.path / "contact_sheet.png").stat().st_size > 0
    assert len(outputs(stage)) == len(bank) == sum(bank.counts.values())


def test_instances_are_cut_out_by_the_masks_that_the_settings_name(smoke_run):
    run = changed_run(smoke_run, {"instances.source": "pseudo_masks", "dense_crf.alpha": 32.0}, "cda")
    masks, refined = outputs(stages.make_pseudo_masks(run.of("cam"))), outputs(stages.make_instances(run))
    assert len(refined) > 5 and refined.items() <= masks.items()
    assert not outputs(stages.make_instances(smoke_run)).items() <= masks.items()


def test_no_instance_at_all_is_told_when_the_bank_is_asked_for(smoke_run, capsys):
    run = changed_run(smoke_run, {"instances.epsilon_1": 0.949}, "cda")
    stage = stages.make_instances(run)
    assert not any(stage.metrics["instances"].values())
    assert "none of aeroplane, " in capsys.readouterr().err
    with pytest.raises(DataError, match="not a single instance; lower instances") as error:
        stages.train_classifier(run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", methods.WRAPPERS)
def test_instances_by_the_masks_of_a_method_that_needs_instances_are_refused(smoke_run, method):
    with pytest.raises(SettingsError, match=f"instances.method='{method}' learns from instances itself: choose cam"):
        stages.make_instances(changed_run(smoke_run, {"instances.method": method}))


@pytest.mark.parametrize("method", methods.WRAPPERS)
def test_a_host_that_needs_a_host_is_refused_before_anything_is_trained(smoke_run, method):
    run = changed_run(smoke_run, {f"{method}.host": "csd"}, method)
    with pytest.raises(WsssError, match=f"{method}.host='csd' needs a host itself"):
        stages.build_method(run)


def test_a_methods_own_section_takes_the_place_of_the_classifiers(smoke_run):
    run = changed_run(smoke_run, {"cda.epochs": 5, "cam.lr": 0.03})
    assert stages.recipe(run) == run.settings.cam
    own = stages.recipe(run.of("cda"))
    assert (own.epochs, own.batch_size, own.lr, own.crop) == (5, 6, 0.03, 64)
    assert (run.settings.cam.epochs, run.settings.cam.batch_size) == (3, 12)


def test_the_length_of_the_training_is_that_of_the_methods_own_section(smoke_run):
    for method in ("cam", *methods.WRAPPERS):
        stage, own = stages.train_classifier(smoke_run.of(method)), stages.recipe(smoke_run.of(method))
        steps = len((stage.path / "log.csv").read_text().splitlines()) - 1
        assert steps == 36 // own.batch_size * own.epochs


@pytest.mark.parametrize("method", methods.WRAPPERS)
def test_a_method_starts_from_its_trained_host_or_as_the_host_did(smoke_run, method):
    trained = stages.build_method(changed_run(smoke_run, {f"{method}.init": "classifier"}, method))
    fresh = stages.build_method(changed_run(smoke_run, {f"{method}.init": "backbone"}, method))
    assert same_weights(trained.host, stages.load_classifier(smoke_run))
    assert same_weights(fresh.host, stages.build_method(smoke_run))
    assert not same_weights(trained.host, fresh.host)


def test_another_start_is_refused(smoke_run):
    with pytest.raises(SettingsError, match="init='imagenet': choose backbone or classifier"):
        stages.build_method(changed_run(smoke_run, {"cda.init": "imagenet"}, "cda"))


@pytest.mark.parametrize("method", methods.WRAPPERS)
def test_a_trained_method_is_loaded_as_it_was_saved_and_localises(smoke_run, method):
    run = smoke_run.of(method)
    saved = torch.load(stages.train_classifier(run).checkpoint, weights_only=True)["model"]
    loaded = stages.load_classifier(run)
    assert not loaded.training and all(torch.equal(value, saved[name]) for name, value in loaded.state_dict().items())
    assert not same_weights(loaded.host, stages.load_classifier(smoke_run))
    cams = stages.make_cams(run)
    assert len(outputs(cams)) == 36 and set(cams.metrics["seed"]["counts"]) == {"one class", "several classes"}


def test_a_changed_paste_trains_again_and_keeps_the_host(smoke_run):
    run = changed_run(smoke_run, {"cda.n_objects": 2}, "cda")
    assert stages.train_classifier(run.of("cam")).path == stages.train_classifier(smoke_run).path
    assert stages.train_classifier(run).path != stages.train_classifier(smoke_run.of("cda")).path


def test_the_same_seed_trains_methods_with_instances_to_the_same_bytes(smoke_run, tmp_path):
    again = Run(smoke_run.settings, smoke_run.folder, root=tmp_path)
    for method in methods.WRAPPERS:
        assert same_weights(*(stages.load_classifier(run.of(method)) for run in (smoke_run, again))), method


def test_super_pixels_are_made_once_and_hidden_as_a_whole(smoke_run, tmp_path, monkeypatch):
    settings = load("smoke", {"cpn.patches": "superpixel", "machine.processes": 1})
    run, seen = Run(settings, smoke_run.folder, "cpn", root=tmp_path), []
    draw = cpn.CPN.draw_patches
    monkeypatch.setattr(cpn.CPN, "draw_patches", lambda self, batch: seen.append(batch.regions) or draw(self, batch))
    stage = stages.train_classifier(run)
    made = sorted((tmp_path / "toy" / "superpixels" / f"{run.folder.root.name}-64-10").iterdir())
    assert stage.complete and [path.stem for path in made] == sorted(run.ids("train"))
    assert seen and all(regions.shape == (6, 64, 64) and regions.amax() > 30 for regions in seen)
    before = [path.stat().st_mtime_ns for path in made]
    stages.train_classifier(Run(settings, smoke_run.folder, "cpn", seed=1, root=tmp_path))
    assert [path.stat().st_mtime_ns for path in made] == before


@pytest.mark.parametrize("method", ["seam", "cpn"])
def test_a_method_that_refines_starts_from_the_trained_cam_or_as_cam_did(smoke_run, method):
    inits = [changed_run(smoke_run, {f"{method}.init": init}, method) for init in ("classifier", "backbone")]
    trained, fresh = (stages.build_method(run) for run in inits)
    for made, cam in ((trained, stages.load_classifier(smoke_run)), (fresh, stages.build_method(smoke_run))):
        assert same_weights(made.backbone, cam.backbone)
    assert torch.equal(trained.classifier.weight, stages.load_classifier(smoke_run).classifier.weight)
    assert same_weights(trained.features, fresh.features) and not same_weights(trained.backbone, fresh.backbone)


# Single-stage methods


def direct_masks(stage):
    return {f"{name}/{p.name}": p.read_bytes() for name in FOLDERS for p in (stage.path / name).iterdir()}


def test_a_single_stage_method_writes_both_masks_of_every_test_image_and_scores_them_apart(smoke_run):
    none_predicted = {"single_stage.class_cut": 1.0, "single_stage.theta": 0.01}
    stage = stages.segment_directly(changed_run(smoke_run, none_predicted, "ws_fcn"))
    ids = smoke_run.ids("val")
    assert set(direct_masks(stage)) == {f"{name}/{i}.png" for name in FOLDERS for i in ids}
    assert stage.metrics["images"] == len(ids) == 12
    for metric, name in (("mask", "masks"), ("mask_with_labels", "masks_with_labels")):
        scored = stages.score_masks(smoke_run.folder, ids, stage.path / name, stages.scored_classes(smoke_run))
        assert stage.metrics[metric] == scored and 0 < scored["miou"] < 1
    assert stage.metrics["mask_with_labels"]["miou"] > stage.metrics["mask"]["miou"]
    for image_id in ids:
        classes = {0, *(1 + smoke_run.folder.label(image_id).nonzero().flatten()).tolist()}
        assert set(read_mask(stage.path / "masks_with_labels" / f"{image_id}.png").ravel()) <= classes


def test_direct_masks_are_those_of_the_trained_method_with_the_numbers_of_their_section(smoke_run):
    changed = {"single_stage.scales": [1.0], "single_stage.flip": False, "single_stage.class_cut": 0.2}
    run = changed_run(smoke_run, {**changed, "single_stage.theta": 0.1}, "ws_fcn")
    stage, method = stages.segment_directly(run), stages.load_classifier(run)
    several = set()
    for image_id in run.ids("val"):
        probability, soft = predict_masks(method, normalize(run.folder.image(image_id))[None], (1.0,), False)
        soft = soft.clone()
        soft[:, 0] = 0.1
        soft[:, 1:][probability <= 0.2] = 0
        found = read_mask(stage.path / "masks" / f"{image_id}.png")
        assert (found == soft[0].argmax(0).numpy()).all()
        several |= set(found.ravel().tolist())
    assert len(several) > 1


def test_a_changed_single_stage_section_keeps_the_trained_network_and_the_crf_counts_only_if_used(smoke_run):
    plain = stages.segment_directly(smoke_run.of("ws_fcn"))
    cut = changed_run(smoke_run, {"single_stage.class_cut": 0.3}, "ws_fcn")
    assert stages.train_classifier(cut).path == stages.train_classifier(smoke_run.of("ws_fcn")).path
    assert stages.segment_directly(cut).path != plain.path
    alpha = {"dense_crf.alpha": 7.0}
    assert stages.segment_directly(changed_run(smoke_run, alpha, "ws_fcn")).path == plain.path
    crf = [
        stages.segment_directly(changed_run(smoke_run, {"single_stage.crf": "own", **more}, "ws_fcn")).path
        for more in ({}, alpha)
    ]
    assert len({plain.path, *crf}) == 3


def test_a_changed_method_trains_again_and_keeps_the_cam_it_starts_from(smoke_run):
    run = changed_run(smoke_run, {"ws_fcn.context": "aspp", "ws_fcn.fusion": "gci"}, "ws_fcn")
    assert stages.train_classifier(run.of("cam")).path == stages.train_classifier(smoke_run).path
    assert stages.train_classifier(run).path != stages.train_classifier(smoke_run.of("ws_fcn")).path
    assert type(stages.load_classifier(run).context).__name__ == "ASPP"


def test_finished_direct_masks_are_not_computed_again_and_a_lost_one_is(smoke_run, tmp_path, monkeypatch):
    run = Run(smoke_run.settings, smoke_run.folder, "ws_fcn", root=tmp_path)
    stage = stages.segment_directly(run)
    whole = direct_masks(stage)
    assert whole == direct_masks(stages.segment_directly(smoke_run.of("ws_fcn")))  # the same seed, the same bytes
    lost, kept = sorted((stage.path / "masks").iterdir())[:2]
    before = kept.stat().st_mtime_ns
    lost.unlink()
    assert not stage.complete
    assert direct_masks(stages.segment_directly(run)) == whole and kept.stat().st_mtime_ns == before
    monkeypatch.setattr(stages, "segment_single_stage", lambda *a, **k: pytest.fail("computed again"))
    assert stages.segment_directly(run).metrics == stage.metrics


@pytest.mark.parametrize("method", [name for name in methods.METHODS if name not in methods.SINGLE_STAGE])
def test_another_method_gives_no_masks_itself_and_trains_nothing(smoke_run, tmp_path, method):
    run = Run(smoke_run.settings, smoke_run.folder, method, root=tmp_path)
    told = f"method='{method}' gives no masks itself: choose ws_fcn, or go on to segmentation"
    with pytest.raises(SettingsError, match=told) as error:
        stages.segment_directly(run)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "method", "override", "told"),
    [
        ("segment_directly", "ws_fcn", {"single_stage.class_cut": 2.0}, "class_cut=2.0"),
        ("segment_directly", "ws_fcn", {"single_stage.scales": []}, r"scales=\(\)"),
        ("segment_directly", "ws_fcn", {"single_stage.crf": "voc"}, f"single_stage.crf='voc': {CRFS}"),
        ("segment_val", "cam", {"segment.crf": "own "}, f"segment.crf='own ': {CRFS}"),
        ("make_pseudo_masks", "cam", {"refine.crf": "PSA"}, f"refine.crf='PSA': {CRFS}"),
        ("make_pseudo_masks", "cam", {"refine.how": "pamr", "refine.crf": "PSA"}, f"refine.crf='PSA': {CRFS}"),
        (
            "make_pseudo_masks",
            "cam",
            {"refine.how": "crf"},
            "refine.how='crf': choose one of none, dense_crf, pamr, affinity_net, irnet",
        ),
        ("make_pseudo_masks", "cam", {"refine.how": "pamr", "pamr.dilations": [0]}, r"dilations=\[0\]"),
        ("make_pseudo_masks", "cam", {"refine.how": "pamr", "pamr.iterations": -1}, "iterations=-1"),
    ],
)
def test_wrong_numbers_of_a_late_section_are_told_before_anything_is_trained(
    smoke_run, tmp_path, make, method, override, told
):
    run = Run(load("smoke", override), smoke_run.folder, method, root=tmp_path)
    with pytest.raises(SettingsError, match=told) as error:
        getattr(stages, make)(run)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_the_crfs_numbers_and_the_backgrounds_exponent_reach_the_masks():
    changed = {"dense_crf.iterations": 7, "dense_crf.bilateral_srgb": 5.0, "dense_crf.alpha": 9.0}
    own = {"theta": 0.4, "alpha": 3.0, "class_cut": 0.2, "scales": [1.0, 0.7], "flip": False}
    changed |= {f"single_stage.{name}": value for name, value in own.items()}
    plain = choices.single_stage_settings(load("smoke", {**changed, "single_stage.crf": ""}))
    refined = choices.single_stage_settings(load("smoke", {**changed, "single_stage.crf": "own"}))
    for made in (plain, refined):
        assert (made.scales, made.flip, made.class_cut) == ((1.0, 0.7), False, 0.2)
    assert (plain.mask.background, plain.mask.threshold, plain.mask.crf) == ("constant", 0.4, None)
    assert (refined.mask.background, refined.mask.alpha) == ("power", 3.0)
    assert refined.mask.crf == DenseCRFSettings(7, 3.0, 3.0, 20.0, 5.0, 10.0)


# Dense CRFs by name


@pytest.mark.parametrize("section", ["refine", "single_stage", "segment"])
def test_a_section_names_a_preset_the_profiles_own_crf_or_none(section):
    for name, preset in PRESETS.items():
        if section == "segment" and name in HARD:
            with pytest.raises(SettingsError, match=r"segment\.crf='irn': choose .* a preset: psa, seam"):
                choices.crf_settings(load("smoke", {f"{section}.crf": name}), section)
        else:
            assert choices.crf_settings(load("smoke", {f"{section}.crf": name}), section) == preset
    own = load("smoke", {f"{section}.crf": "own", "dense_crf.bilateral_sxy": 11.0})
    assert choices.crf_settings(own, section) == DenseCRFSettings(3, 3.0, 3.0, 11.0, 13.0, 10.0)
    assert choices.crf_settings(load("smoke", {f"{section}.crf": ""}), section) is None


def test_a_named_crf_reaches_the_masks_and_the_background_stays_the_sections():
    for name, preset in PRESETS.items():
        pseudo = choices.mask_settings(load("smoke", {"refine.crf": name, "dense_crf.alpha": 9.0}))
        assert pseudo == MaskSettings("power", 9.0, 0.25, preset, hard=name == "irn")
        direct = choices.single_stage_settings(load("smoke", {"single_stage.crf": name})).mask
        assert direct == MaskSettings("power", 5.0, crf=preset, hard=name == "irn")
    assert not choices.mask_settings(load("smoke", {"refine.crf": "irn", "refine.how": "pamr"})).hard


def test_the_profile_paper_has_the_crfs_of_the_papers():
    paper = load("paper")
    assert choices.crf_settings(paper, "refine") == PRESETS["psa"]
    assert choices.crf_settings(paper, "segment") is PRESETS["deeplab_v2"]
    assert choices.single_stage_settings(paper).mask == MaskSettings("power", 5.0, crf=PRESETS["ws_fcn"])


def test_masks_of_another_crf_lie_beside_those_of_the_profiles_own_and_none_is_the_argmax(smoke_run):
    made = {name: changed_run(smoke_run, {"refine.crf": name}) for name in ("own", "irn", "")}
    made = {name: stages.make_pseudo_masks(run) for name, run in made.items()}
    assert made["own"].path == stages.make_pseudo_masks(smoke_run).path
    assert len({stage.path for stage in made.values()}) == 3
    cams, image_id = stages.make_cams(smoke_run), smoke_run.ids("seed")[0]
    classes, maps, _ = read_maps(cams.path / "cams" / f"{image_id}.npz")
    raw = np.stack([background_score(maps, smoke_run.settings.dense_crf.alpha), *maps])
    want = np.array([0, *(classes + 1)])[raw.argmax(0)]
    assert (read_mask(made[""].path / "masks" / f"{image_id}.png") == want).all()
    assert outputs(made["own"]) != outputs(made["irn"]) != outputs(made[""])


def test_the_segmentation_is_tested_with_the_crf_that_is_named(smoke_run, monkeypatch):
    asked = []

    def record(*_, crf, **__):
        asked.append(crf)
        raise WsssError("enough is seen")

    monkeypatch.setattr(stages, "segment", record)
    for name in ("", "own", "deeplab_v2"):
        with pytest.raises(WsssError, match="enough"):
            stages.segment_val(changed_run(smoke_run, {"segment.crf": name, "segment.scales": [0.75]}))
    assert asked == [None, DenseCRFSettings(3, 3.0, 3.0, 20.0, 13.0, 10.0), PRESETS["deeplab_v2"]]


def test_a_single_stage_method_starts_from_the_trained_cams_backbone_or_as_cam_did(smoke_run, monkeypatch):
    trained = stages.build_method(changed_run(smoke_run, {"ws_fcn.init": "classifier"}, "ws_fcn"))
    cam = stages.load_classifier(smoke_run)
    fresh_cam = stages.build_method(smoke_run)
    monkeypatch.setattr(stages, "load_classifier", lambda run: pytest.fail("asked for a classifier"))
    fresh = stages.build_method(changed_run(smoke_run, {"ws_fcn.init": "backbone"}, "ws_fcn"))
    assert same_weights(trained.backbone, cam.backbone) and same_weights(fresh.backbone, fresh_cam.backbone)
    assert not same_weights(trained.backbone, fresh.backbone)
    for part in ("context", "fusion", "classifier"):
        assert same_weights(getattr(trained, part), getattr(fresh, part))


def test_the_way_to_direct_masks_goes_through_cam_only_if_it_starts_there(smoke_run):
    for init, before in (("classifier", stages.train_classifier(smoke_run).fingerprint), ("backbone", None)):
        run = changed_run(smoke_run, {"ws_fcn.init": init}, "ws_fcn")
        stage = stages.train_classifier(run)
        assert stage.config["after"] == before
        assert set(stage.config["settings"]) == {"data", "toy", "backbone", "cam", "ws_fcn"}
        assert (stage.path / "log.csv").read_text().splitlines()[0].endswith("classify,self,supervised,total")
    with pytest.raises(SettingsError, match=r"ws_fcn\.init='imagenet': choose backbone or classifier"):
        stages.build_method(changed_run(smoke_run, {"ws_fcn.init": "imagenet"}, "ws_fcn"))


def test_without_any_mask_a_single_stage_method_learns_and_segments_the_same_and_nothing_is_scored(
    smoke_run, toy_root, tmp_path
):
    root = shutil.copytree(toy_root, tmp_path / "scenes")
    shutil.rmtree(root / "SegmentationClass")
    blind = Run(smoke_run.settings, VOCFolder(root, name="toy"), "ws_fcn", root=tmp_path / "runs")
    stage = stages.segment_directly(blind)
    assert direct_masks(stage) == direct_masks(stages.segment_directly(smoke_run.of("ws_fcn")))
    assert stage.metrics["mask"] is None and stage.metrics["mask_with_labels"] is None


# PAMR in place of the CRF


def test_pseudo_masks_by_pamr_lie_beside_those_of_the_crf_and_leave_them_alone(smoke_run, tmp_path, capsys):
    crf = Run(smoke_run.settings, smoke_run.folder, root=tmp_path)
    pamr = Run(load("smoke", {"refine.how": "pamr"}), smoke_run.folder, root=tmp_path)
    first, second = stages.make_pseudo_masks(crf), stages.make_pseudo_masks(pamr)
    assert first.path != second.path and first.complete and second.complete
    assert "settings changed" not in capsys.readouterr().out
    assert outputs(first).keys() == outputs(second).keys() and outputs(first) != outputs(second)
    assert 0 < second.metrics["mask"]["miou"] < 1
    assert first.config["after"] == second.config["after"]


def test_only_what_refines_counts(smoke_run):
    def path(**changed):
        run = changed_run(smoke_run, {name.replace("__", "."): value for name, value in changed.items()})
        return stages.make_pseudo_masks(run).path

    crf, pamr = path(), path(refine__how="pamr")
    assert path(pamr__iterations=2) == crf and path(refine__how="pamr", pamr__iterations=2) not in (crf, pamr)
    assert stages.make_pseudo_masks(smoke_run).config["settings"].keys() == {
        *("data", "toy", "backbone", "cam", "localize", "dense_crf")  # as before there was PAMR
    }


def test_pamrs_numbers_and_the_crfs_background_reach_the_masks(smoke_run):
    changed = {"refine.how": "pamr", "pamr.iterations": 2, "pamr.dilations": [1, 3], "machine.device": "cpu"}
    made = choices.mask_settings(load("smoke", {**changed, "dense_crf.alpha": 9.0, "dense_crf.la_ha": [2.0, 8.0]}))
    assert made.pamr == PAMRSettings(2, (1, 3), "cpu") and (made.alpha, made.la_ha) == (9.0, (2.0, 8.0))
    assert choices.mask_settings(load("smoke")).pamr is None
    constant = choices.mask_settings(load("smoke", {"dense_crf.background": "constant", "dense_crf.theta": 0.4}))
    assert (constant.background, constant.threshold) == ("constant", 0.4)


def test_only_a_dense_crf_is_spread_over_processes_where_no_torch_is(smoke_run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(stages, "pseudo_masks", lambda *a, processes: asked.append(processes))
    monkeypatch.setattr(stages, "_score_masks", lambda *a: None)
    monkeypatch.setattr(stages, "walk_cams", lambda _: stages.Stage("walked_cams", tmp_path / "walked", {}))
    for how in choices.REFINEMENTS:
        settings = load("smoke", {"refine.how": how, "machine.processes": 3})
        run = Run(settings, smoke_run.folder, root=tmp_path)
        monkeypatch.setattr(stages, "make_cams", lambda _: stages.Stage("cams", tmp_path / "cams", {}))
        stages.make_pseudo_masks(run)
    assert dict(zip(choices.REFINEMENTS, asked, strict=True)) == {
        "none": 1,
        "dense_crf": 3,
        "pamr": 1,
        "affinity_net": 1,
        "irnet": 1,
    }
