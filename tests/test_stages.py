"""The whole way on toy scenes: it needs no mask of a training image, repeats its bytes, and stages are shared."""

import shutil

import pytest

from data_prep.ready import ready
from wsss_lib import stages
from wsss_lib.data import VOCFolder
from wsss_lib.data.masks import read_mask
from wsss_lib.errors import DataError, WsssError
from wsss_lib.runs import Run
from wsss_lib.settings import load


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
