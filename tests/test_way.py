"""Labels in, masks out, without a lesson and without one true mask."""

import shutil

import numpy as np
import pytest
from PIL import Image

from wsss_lib import cli
from wsss_lib.data import VOCFolder, read_mask
from wsss_lib.runs import Run
from wsss_lib.way import make_masks


@pytest.fixture
def images(toy_root, tmp_path):
    """The toy scenes without a mask."""
    return shutil.copytree(toy_root, tmp_path / "pets", ignore=shutil.ignore_patterns("SegmentationClass"))


def test_the_command_says_where_the_masks_lie_and_draws_some(images, smoke_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["masks", "pets", "--profile", "smoke", "--runs-root", "runs"]) == 0
    lines = dict(line.split(":") for line in capsys.readouterr().out.splitlines())
    assert lines == {
        "masks of training images": " runs/pets/smoke/cam/seed0/pseudo_masks/masks/",
        "masks of val images": " runs/pets/smoke/cam/seed0/val_masks/masks/",
        "some of them": "  runs/pets/smoke/cam/seed0/val_masks/overview.png",
    }
    for (_, expected), place in zip(make_masks(smoke_run), lines.values(), strict=False):
        masks = {path.name: read_mask(path) for path in (tmp_path / place.strip()).iterdir()}
        for path in expected.folder("masks").iterdir():
            assert np.array_equal(masks.pop(path.name), read_mask(path)), "the lessons' stages make the same masks"
        assert not masks
    picture = np.asarray(Image.open(tmp_path / lines["some of them"].strip()).convert("RGB"))
    assert min(picture.shape[:2]) > 300 and picture.std() > 30


def test_where_there_are_true_masks_the_score_is_printed(toy_root, smoke_run, tmp_path, capsys):
    assert cli.main(["masks", str(toy_root), "--profile", "smoke", "--runs-root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for _, stage in make_masks(smoke_run):
        assert f"  (mIoU {stage.metrics['mask']['miou']:.1%})" in said


def test_a_single_stage_method_gives_the_masks_itself(images, tmp_path):
    from wsss_lib.settings import load

    made = make_masks(Run(load("smoke"), VOCFolder(images), "ws_fcn", root=tmp_path / "runs"))
    assert [(of, stage.name) for of, stage in made] == [("val images", "direct_masks")]
    assert (made[0][1].path / "overview.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("masks nowhere", "nowhere: no such folder"),
        ("masks pets --method cem", "method='cem' is unknown: choose one of cam, seam"),
        ("masks pets --seed -1", "seed=-1: give a whole number of 0 or more"),
        ("masks pets --set refine.how=crf", "refine.how='crf'"),
        ("masks pets --set segment.crf=none", "segment.crf='none'"),
    ],
)
def test_a_mistake_is_one_line_and_trains_nothing(images, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wsss_lib.stages.fit", lambda *a, **k: pytest.fail("trained"))
    assert cli.main([*arguments.split(), "--profile", "smoke", "--runs-root", "runs"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("wsss: ") and message in error
