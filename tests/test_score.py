"""Scores of folders: perfect maps score 1, the two thresholds stay apart, only scored classes count."""

import numpy as np
import pytest
import torch

from wsss_lib.data import VOCFolder
from wsss_lib.data.masks import write_mask
from wsss_lib.errors import DataError
from wsss_lib.localize import load_cam, save_cam, seed
from wsss_lib.metrics import ConfusionMatrix
from wsss_lib.protocols import SEEDS
from wsss_lib.score import count_of, frequent_classes, group_of, own_contexts, score_masks, score_pairs, score_seeds


@pytest.fixture
def folder(toy_root):
    return VOCFolder(toy_root, name="toy")


def perfect_cam(folder, image_id, value=1.0):
    truth = folder.mask(image_id)
    return torch.stack([(truth == k + 1) * value for k in range(folder.n_classes)])


def test_seeds_of_perfect_maps_score_one(folder, tmp_path):
    ids = folder.split("val")
    for i in ids:
        save_cam(tmp_path / f"{i}.npz", perfect_cam(folder, i), folder.label(i), tuple(folder.mask(i).shape))
    report = score_seeds(folder, ids, tmp_path, [0, 1, 2, 3, 4, 5, 6], threshold=0.25, step=0.01)
    assert report["fixed"]["miou"] == report["best"]["miou"] == 1.0
    assert report["energy"]["object"] == pytest.approx(1.0)
    assert set(report["groups"]) <= {"agrees", "disagrees"}


def test_the_fixed_threshold_does_not_follow_the_truth(folder, tmp_path):
    ids = folder.split("val")
    for i in ids:
        save_cam(tmp_path / f"{i}.npz", perfect_cam(folder, i, 0.2), folder.label(i), tuple(folder.mask(i).shape))
    report = score_seeds(folder, ids, tmp_path, [0, 1, 2, 3, 4, 5, 6], threshold=0.25, step=0.01)
    assert report["best"]["miou"] == 1.0 and report["best"]["threshold"] < 0.2
    assert report["fixed"]["miou"] < 0.2 and report["fixed"]["threshold"] == 0.25


def test_counts_and_groups_score_their_images_alone_and_all_are_still_scored_together(folder, tmp_path):
    draw, ids, classes = torch.Generator().manual_seed(0), folder.split("train"), list(range(7))
    for i in ids:
        noisy = (perfect_cam(folder, i, 0.6) + 0.4 * torch.rand(6, 64, 64, generator=draw)).clamp(max=1)
        save_cam(tmp_path / f"{i}.npz", noisy, folder.label(i), (64, 64))

    def score(some):
        return score_seeds(folder, some, tmp_path, classes, threshold=0.25, step=0.05)

    report, plain = score(ids), ConfusionMatrix(7)
    for i in ids:
        plain.update(folder.mask(i).numpy(), seed(load_cam(tmp_path / f"{i}.npz", n_classes=6), 0.25).numpy())
    assert report["fixed"]["miou"] == pytest.approx(plain.miou())
    assert set(report["counts"]) == {"one class", "several classes"} and len(set(report["counts"].values())) == 2
    for name, of in (("counts", count_of), ("groups", group_of)):
        for group, miou in report[name].items():
            assert score([i for i in ids if of(folder, i) == group])["fixed"]["miou"] == pytest.approx(miou)


def test_the_same_maps_are_scored_by_every_repositorys_rule_and_the_kits_own_numbers_stay(folder, tmp_path):
    draw, ids, classes = torch.Generator().manual_seed(0), folder.split("val"), list(range(7))
    for i in ids:
        noisy = (perfect_cam(folder, i, 0.5) + 0.5 * torch.rand(6, 64, 64, generator=draw)).clamp(max=1)
        save_cam(tmp_path / f"{i}.npz", noisy, folder.label(i), (64, 64))
    fine, coarse = (score_seeds(folder, ids, tmp_path, classes, threshold=0.3, step=s) for s in (0.01, 0.25))
    for report in (fine, coarse):
        assert set(report["protocols"]) == set(SEEDS)
        for own, name in (("fixed", "kit"), ("best", "kit_best")):
            assert report["protocols"][name] == {key: report[own][key] for key in ("threshold", "miou")}
    assert coarse["sweep"]["threshold"] == [0.0, 0.25, 0.3, 0.5, 0.75]
    others = [name for name in SEEDS if not name.startswith("kit")]
    assert {name: fine["protocols"][name] for name in others} == {name: coarse["protocols"][name] for name in others}
    plain = ConfusionMatrix(7)
    for i in ids:
        plain.update(folder.mask(i).numpy(), seed(load_cam(tmp_path / f"{i}.npz", n_classes=6), 0.15).numpy())
    assert fine["protocols"]["irn"] == {"threshold": 0.15, "miou": pytest.approx(plain.miou())}
    assert len({(line["threshold"], line["miou"]) for line in fine["protocols"].values()}) > 4


def test_an_image_counts_by_the_classes_of_its_label(folder):
    for i in folder.split("train"):
        assert (count_of(folder, i) == "one class") == (folder.label(i).sum() == 1)


def test_masks_are_scored_as_one_confusion_matrix_over_the_split(folder, tmp_path):
    rng, plain = np.random.default_rng(0), ConfusionMatrix(7)
    ids = folder.split("val")
    for i in ids:
        guess = rng.integers(0, 7, tuple(folder.mask(i).shape)).astype(np.uint8)
        write_mask(tmp_path / f"{i}.png", guess)
        plain.update(folder.mask(i).numpy(), guess)
    report = score_masks(folder, ids, tmp_path, list(range(7)))
    assert report["miou"] == pytest.approx(plain.miou())


def test_a_missing_mask_is_one_line_that_names_it(folder, tmp_path):
    with pytest.raises(DataError, match=r"\.png: no such mask"):
        score_masks(folder, folder.split("val"), tmp_path, [0, 1])


def test_classes_with_few_images_are_left_out_unless_all_are_few(folder):
    ids = folder.split("train")
    counts = folder.labels(ids).sum(0)
    rare = int(counts.min()) + 1
    assert frequent_classes(folder, ids, rare) == [0, *(k + 1 for k, n in enumerate(counts) if n >= rare)]
    assert len(frequent_classes(folder, ids, 10_000)) == 7


def test_an_image_without_a_known_context_is_in_no_group(folder):
    assert {group_of(folder, i) for i in folder.split("train")} == {"agrees", "disagrees"}
    assert group_of(folder, "elsewhere") is None


def test_pairs_split_the_images_of_a_class_by_its_usual_context(folder, tmp_path):
    ids, wrong = folder.split("train"), {}
    for i in ids:
        names = folder.class_names(i)
        wrong[i] = any(own_contexts(folder)[name] != folder.context[i].context for name in names)
        cam = perfect_cam(folder, i) * (not wrong[i])  # nothing is found where an object is not at home
        save_cam(tmp_path / f"{i}.npz", cam, folder.label(i), tuple(folder.mask(i).shape))
    report = score_pairs(folder, ids, tmp_path, threshold=0.25)
    for name, line in report.items():
        images = [i for i in ids if name in folder.class_names(i)]
        at_home = [i for i in images if folder.context[i].context == line["context"]]
        assert line["images"] == len(images) and line["ratio"] == len(at_home) / len(images)
        assert line["own"] is None or line["other"] is None or line["own"] > line["other"]
        if at_home and not any(wrong[i] for i in at_home):
            assert line["own"] == 1.0
    assert score_pairs(folder, [], tmp_path, threshold=0.25) == {}
