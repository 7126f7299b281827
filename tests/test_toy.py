"""Toy scenes: the same bytes from the same seed, dials that do what they say, nothing ever overwritten."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data_prep.toy import CLASSES, CONTEXTS, OWN_CONTEXT, PARTNER, ToyScenes, draw_scene, generate
from wsss_lib.data.masks import palette
from wsss_lib.errors import WsssError

SMALL = ToyScenes(n_train=6, n_val=3, size=32)


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def draw(n, split="train", **dials):
    scenes = ToyScenes(size=32, **dials)
    return [draw_scene(scenes, index, split) for index in range(n)]


def assert_frequency(hits, probability):
    """The observed frequency lies within four standard deviations of a binomial."""
    n = len(hits)
    assert abs(np.mean(hits) - probability) <= 4 * np.sqrt(probability * (1 - probability) / n) + 1e-9


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    first, second = (generate(tmp_path / name, SMALL) for name in ("a", "b"))
    assert contents(first) == contents(second)


def test_another_seed_gives_other_scenes():
    assert not np.array_equal(draw_scene(SMALL, 0).image, draw_scene(replace(SMALL, seed=1), 0).image)


def test_splits_hold_different_scenes():
    assert not np.array_equal(draw_scene(SMALL, 0, "train").image, draw_scene(SMALL, 0, "val").image)


def test_a_scene_does_not_depend_on_how_many_there_are(tmp_path):
    few, more = (
        generate(tmp_path / "few", SMALL),
        generate(tmp_path / "more", replace(SMALL, n_train=9, n_val=4)),
    )
    pictures = {name for name in contents(few) if name.endswith((".jpg", ".png"))}
    assert len(pictures) == 18
    assert all(contents(few)[name] == contents(more)[name] for name in pictures)


def test_folder_is_in_voc_layout(tmp_path):
    root = generate(tmp_path / "deep" / "toy", SMALL)
    assert (root / "classes.txt").read_text().split() == list(CLASSES)
    ids = {split: (root / f"ImageSets/Segmentation/{split}.txt").read_text().split() for split in ("train", "val")}
    assert [len(names) for names in ids.values()] == [6, 3]
    rows = list(csv.DictReader((root / "labels.csv").open()))
    assert [row["image_id"] for row in rows] == ids["train"] + ids["val"]
    for row in rows:
        image = Image.open(root / f"JPEGImages/{row['image_id']}.jpg")
        mask = Image.open(root / f"SegmentationClass/{row['image_id']}.png")
        assert image.mode == "RGB" and mask.mode == "P" and image.size == mask.size == (32, 32)
        assert bytes(mask.getpalette()[:21]) == palette()[:7].tobytes()
        names = row["classes"].split()
        assert sorted({CLASSES[k - 1] for k in np.unique(mask) if k}) == sorted(names)
        assert row["context"] in CONTEXTS
        assert row["agrees"] == str(int(row["context"] in [OWN_CONTEXT[name] for name in names]))
    assert json.loads((root / "scenes.json").read_text())["context_bias"] == SMALL.context_bias


@pytest.mark.parametrize("pair_bias", [0.0, 1.0])
def test_masks_hold_exactly_the_labels(pair_bias):
    for scene in draw(60, pair_bias=pair_bias):
        present = {CLASSES.index(name) + 1 for name in scene.labels}
        assert len(scene.labels) == 1 + pair_bias
        assert set(np.unique(scene.mask)) == present | {0}


def test_every_class_and_every_context_occurs():
    for split in ("train", "val"):
        scenes = draw(100, split)
        assert {name for scene in scenes for name in scene.labels} == set(CLASSES)
        assert {scene.context for scene in scenes} == set(CONTEXTS)


def test_context_bias_is_the_frequency_that_the_docstring_says():
    b, p = 0.5, 0.4
    scenes = draw(400, context_bias=b, pair_bias=p)
    assert_frequency([s.context == OWN_CONTEXT[s.labels[0]] for s in scenes], b + (1 - b) / 6)
    assert_frequency([s.agrees for s in scenes], b + (1 - b) * (1 + p) / 6)


def test_pair_bias_is_the_frequency_that_the_docstring_says():
    scenes = draw(400, pair_bias=0.4)
    pairs = [s.labels for s in scenes if len(s.labels) == 2]
    assert_frequency([len(s.labels) == 2 for s in scenes], 0.4)
    assert_frequency([second == PARTNER[first] for first, second in pairs], (1 + 0.4) / 2)
    assert all(first != second for first, second in pairs)
    assert_frequency([{first, second} == {"boat", "sofa"} for first, second in pairs], 2 / 6 * (1 - 0.4) / 8)


def test_val_is_unbiased_whatever_the_dials_say():
    scenes = draw(400, "val", context_bias=1.0, pair_bias=0.5)
    pairs = [s.labels for s in scenes if len(s.labels) == 2]
    assert_frequency([s.context == OWN_CONTEXT[s.labels[0]] for s in scenes], 1 / 6)
    assert_frequency([len(s.labels) == 2 for s in scenes], 0.5)
    assert_frequency([second == PARTNER[first] for first, second in pairs], 1 / 5)


def test_full_context_bias_makes_every_scene_agree():
    assert all(scene.agrees for scene in draw(60, context_bias=1.0))


def test_full_pair_bias_leaves_partners_only():
    assert all(scene.labels[1] == PARTNER[scene.labels[0]] for scene in draw(60, pair_bias=1.0))


def test_partners_are_mutual():
    assert all(PARTNER[PARTNER[name]] == name != PARTNER[name] for name in CLASSES)


def test_context_bias_changes_nothing_but_the_context():
    for free, tied in zip(draw(30, context_bias=0.0), draw(30, context_bias=1.0), strict=True):
        assert free.labels == tied.labels
        np.testing.assert_array_equal(free.mask, tied.mask)


def test_part_contrast_changes_nothing_but_a_small_part_of_each_object():
    flat, telling = (draw(60, part_contrast=c, pair_bias=0.0) for c in (0.0, 1.0))
    for a, b in zip(flat, telling, strict=True):
        np.testing.assert_array_equal(a.mask, b.mask)
        changed = (a.image != b.image).any(-1)
        reach = np.pad(b.mask > 0, 1)  # soft edges reach one pixel out of the mask
        reach = np.any([reach[i : i + 32, j : j + 32] for i in range(3) for j in range(3)], axis=0)
        assert changed.any() and not (changed & ~reach).any()
        assert changed.sum() < 0.5 * (b.mask > 0).sum()


def test_a_complete_folder_is_reused_and_never_overwritten(tmp_path):
    root = generate(tmp_path / "toy", SMALL)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert generate(root, SMALL) == root
    assert replace(SMALL, part_contrast=1) == SMALL and generate(root, replace(SMALL, part_contrast=1)) == root
    with pytest.raises(WsssError, match="something else"):
        generate(root, replace(SMALL, context_bias=0.1))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    next((root / "JPEGImages").iterdir()).unlink()
    with pytest.raises(WsssError, match="delete it"):
        generate(root, SMALL)


def test_a_folder_of_the_user_is_refused_and_an_empty_one_is_filled(tmp_path):
    (tmp_path / "mine").mkdir()
    generate(tmp_path / "mine", SMALL)
    (tmp_path / "yours").mkdir()
    (tmp_path / "yours" / "note.txt").write_text("keep me")
    with pytest.raises(WsssError, match="something else"):
        generate(tmp_path / "yours", SMALL)
    assert [path.name for path in (tmp_path / "yours").iterdir()] == ["note.txt"]


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.toy.draw_scene", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(tmp_path / "toy", SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("context_bias", 1.2), ("pair_bias", -0.1), ("part_contrast", float("nan")), ("n_train", 0),
     ("n_val", 1.5), ("size", 8), ("pair_bias", "much"), ("seed", -1)],
)  # fmt: skip
def test_a_dial_outside_its_range_is_named_in_one_line(name, value):
    with pytest.raises(WsssError) as error:
        ToyScenes(**{name: value})
    assert str(error.value).startswith(f"{name}={value}: give a") and "\n" not in str(error.value)
