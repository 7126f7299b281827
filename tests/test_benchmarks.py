"""The benchmarks: what they compare is equal, and their records can be read. No time is measured here."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch


@pytest.fixture
def cam_inference(script):
    return script("benchmarks", "cam_inference")


@pytest.fixture
def dense_crf(script):
    return script("benchmarks", "dense_crf")


@pytest.fixture
def evaluation(script):
    return script("benchmarks", "evaluation")


@pytest.fixture
def pamr(script):
    return script("benchmarks", "pamr")


@pytest.fixture
def patch_pairs(script):
    return script("benchmarks", "patch_pairs")


@pytest.fixture
def random_walk(script):
    return script("benchmarks", "random_walk")


def small_images():
    draw = torch.Generator().manual_seed(0)
    label = torch.zeros(1, 20).index_fill_(1, torch.tensor([3, 8]), 1.0)
    return [(torch.randn(1, 3, *size, generator=draw), label) for size in ((64, 80), (75, 50))]


def test_plain_loop_and_ours_give_the_same_maps(cam_inference, tmp_path):
    method, what = cam_inference.build_method(tmp_path / "none.pth")
    network = cam_inference.inference_copy(method)
    with torch.inference_mode():
        for image, label in small_images():
            plain = cam_inference.plain_maps(method, image, label)
            ours = cam_inference.our_maps(network, image, label)
            assert plain.shape == (1, 20, -(-image.shape[2] // 4), -(-image.shape[3] // 4))
            assert plain.amax() > 0.99
            assert (plain - ours).abs().max() <= 1e-4
    assert what == "random weights"


def test_without_photographs_there_are_random_images_of_voc_sizes(cam_inference, tmp_path):
    images, what = cam_inference.load_images(tmp_path / "none", 3)
    assert what == "random images"
    assert [tuple(image.shape[2:]) for image, _ in images] == [(375, 500), (333, 500), (500, 375)]
    assert all(label.shape == (1, 20) for _, label in images)


def test_the_last_line_is_a_record_and_the_exit_code_its_verdict(cam_inference, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cam_inference, "load_images", lambda photos, n: (small_images(), "small images"))
    threads = torch.get_num_threads()
    code = cam_inference.main(["--rounds", "1", "--weights", str(tmp_path / "none.pth")])
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"claim", "ours", "reference", "ratio", "bar", "holds", "max_difference"} <= set(record)
    assert {"machine", "threads", "images"} <= set(record)
    assert code == (0 if record["holds"] else 1)
    assert record["max_difference"] <= 1e-4 and torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("reference", "difference", "holds"),
    [([3.0, 2.0, 9.0], 0.0, True), ([1.4, 1.4, 1.4], 0.0, False), ([3.0, 3.0, 3.0], 1e-3, False)],
)
def test_a_claim_holds_only_with_the_ratio_of_medians_and_equal_maps(cam_inference, reference, difference, holds):
    measured = {"ours": [1.0, 0.5, 4.0], "reference": reference, "max_difference": difference}
    record = cam_inference.report(measured, n_images=2, what="nothing")
    assert record["holds"] is holds
    assert record["ratio"] == sorted(reference)[1]


def test_pasting_ends_with_a_record_and_its_verdict(script, capsys):
    code = script("benchmarks", "paste").main(["--batch", "1", "--side", "64", "--rounds", "1"])
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"claim", "ours", "reference", "unit", "ratio", "bar", "rounds", "threads", "machine", "torch"} < set(record)
    assert code == (0 if record["holds"] else 1)


def test_both_forms_of_pamr_give_the_same_masks_and_ours_in_a_quarter_of_the_memory(pamr, capsys):
    code = pamr.main(["--side", "48", "--classes", "5", "--rounds", "1"])
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"claim", "ours", "reference", "unit", "ratio", "bar", "rounds", "threads", "machine", "torch"} < set(record)
    assert record["max_difference"] <= 1e-5 and record["memory_ratio"] <= 0.25
    # All 48 neighbours of 5 masks, and their product with the weights; ours has the weights.
    weights = 48 * 48 * 48 * 4 / 1e6
    assert record["peak_mb"]["reference"] > 2 * 5 * weights and record["peak_mb"]["ours"] > weights
    assert code == (0 if record["holds"] else 1)


def test_masks_that_differ_between_the_forms_of_pamr_are_seen(pamr, monkeypatch):
    real = pamr.pamr
    monkeypatch.setattr(pamr, "pamr", lambda image, masks, iterations: real(image, masks, iterations - 1))
    assert pamr.measure(24, 2, 3, rounds=1)[-1] > 1e-4


@pytest.mark.parametrize(
    ("plain", "memory", "difference", "holds"),
    [(3.0, 25.0, 1e-5, True), (2.9, 25.0, 0.0, False), (9.0, 26.0, 0.0, False), (9.0, 1.0, 2e-5, False)],
)
def test_pamr_has_to_be_fast_lean_and_equal(pamr, plain, memory, difference, holds):
    seconds = {"ours": [1.0, 0.5, 4.0], "reference": [0.1, plain, 10.0]}
    record = pamr.report(seconds, {"ours": memory, "reference": 100.0}, difference, "cpu")
    assert record["holds"] is holds and record["ratio"] == plain


def test_both_forms_of_the_random_walk_give_the_same_maps(random_walk, capsys):
    small = "--height 14 --width 19 --t 6 --rounds 1 --dense-rounds 2"
    code = random_walk.main(small.split())
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"claim", "ours", "reference", "unit", "ratio", "bar", "rounds", "threads", "machine", "torch"} < set(record)
    assert record["max_difference"] <= 1e-9 and (record["rounds"], record["dense_rounds"]) == (1, 2)
    # Two matrices of all cells; ours has at most 69 chances a cell, each with its index.
    assert record["peak_mb"]["reference"] > 2 * (14 * 19) ** 2 * 8 / 1e6
    assert 14 * 19 * 40 * 12 / 1e6 < record["peak_mb"]["ours"] < record["peak_mb"]["reference"]
    assert code == (0 if record["holds"] else 1)


def test_maps_that_differ_between_the_forms_of_the_random_walk_are_seen(random_walk, monkeypatch):
    real = random_walk.random_walk
    monkeypatch.setattr(random_walk, "random_walk", lambda maps, pairs, beta, t: real(maps, pairs, beta, t - 1))
    assert random_walk.measure(9, 8, 2, 3, rounds=1, dense_rounds=1)[-1] > 1e-4


@pytest.mark.parametrize(
    ("dense", "memory", "difference", "holds"),
    [(1000.0, 4.9, 1e-9, True), (999.0, 1.0, 0.0, False), (5000.0, 5.0, 0.0, False), (5000.0, 1.0, 2e-9, False)],
)
def test_the_random_walk_has_to_be_fast_lean_and_equal(random_walk, dense, memory, difference, holds):
    seconds = {"ours": [1.0, 0.5, 4.0], "reference": [dense]}
    record = random_walk.report(seconds, {"ours": memory, "reference": 100.0}, difference, "cpu", "float64")
    assert record["holds"] is holds and record["ratio"] == dense


def test_pairs_steps_and_refinement_end_with_one_record(patch_pairs, capsys):
    small = "--batch 2 --step-batch 1 --side 128 --cells 8 --backbone tiny --rounds 1"
    code = patch_pairs.main(small.split())
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"claim", "ours", "reference", "unit", "ratio", "bar", "holds", "rounds", "machine"} < set(record)
    refined = {"PCM", "PCM, gradient", "PRCM", "PRCM, gradient"}
    assert set(record["ms"]) == {"squares", "super-pixels", "moving a map", "SLIC"} | refined
    assert set(record["peak_mb"]) == refined and record["right"] is True
    assert code == (0 if record["holds"] else 1)


def test_what_is_timed_has_to_be_right(patch_pairs, tmp_path, monkeypatch):
    def class_by_class(features, maps):
        return torch.cat([real(features, part) for part in maps.split(1, dim=1)], 1)

    real = patch_pairs.pixel_correlation
    monkeypatch.setattr(patch_pairs, "pixel_correlation", class_by_class)
    assert not patch_pairs.measure_refinement(4, rounds=1)[-1]
    monkeypatch.setattr(patch_pairs, "complementary_pair", lambda image, shown: (image * shown, image * shown))
    assert not patch_pairs.measure_pairs(tmp_path, 1, 128, rounds=1)[-1]


def test_the_trace_counts_products_and_what_is_alive_at_once(patch_pairs):
    left, right = torch.ones(100, 50), torch.ones(3, 50, 80)

    def run():
        for _ in range(5):
            torch.empty(250_000)  # 1 MB, released at once
        return left @ right[0], left.expand(3, 100, 50) @ right

    peak, products = patch_pairs.peak_and_products(run)
    assert 1 <= peak < 2
    assert products == [[100, 80], [100, 80]]


@pytest.mark.parametrize(
    ("cpn", "squares", "superpixels", "right", "holds"),
    [
        (3.0, 1e-3, 4e-3, True, True),
        (3.4, 1e-3, 4e-3, True, False),
        (3.0, 6e-3, 4e-3, True, False),
        (3.0, 1e-3, 6e-3, True, False),
        (3.0, 1e-3, 4e-3, False, False),
    ],
)
def test_all_of_a_claim_has_to_hold(patch_pairs, cpn, squares, superpixels, right, holds):
    pair = {"squares": [squares], "super-pixels": [superpixels], "moving a map": [1.0], "SLIC": [1.0]}
    step = {"CAM": [9.0, 1.0, 0.1], "CPN": [cpn, 9.0, 0.1], "CAM, 3 x images": [3.0]}
    record = patch_pairs.report(pair, step, {"PCM": [1.0]}, {"PCM": 1.0}, right)
    assert record["holds"] is holds and record["ratio"] == cpn


def test_the_first_round_warms_up(patch_pairs):
    calls = []
    seconds = patch_pairs.take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3 and [len(values) for values in seconds.values()] == [2, 2]


def test_few_labels_in_a_pool_and_all_labels_in_a_row_give_the_same_masks(dense_crf, capsys):
    small = "--images 3 --height 45 --width 60 --rounds 1"
    code = dense_crf.main(small.split())
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"claim", "ours", "reference", "unit", "ratio", "bar", "holds", "rounds", "machine"} < set(record)
    assert record["same"] >= 0.999 and (record["images"], record["processes"]) == (3, 2)
    assert code == (0 if record["holds"] else 1)


def test_the_masks_of_the_dense_crf_hold_their_class_and_move_with_the_crf(dense_crf, monkeypatch):
    jobs = dense_crf.make_jobs(2, 45, 60)
    found = dense_crf.our_masks(jobs, processes=1)
    assert [set(np.unique(found[name])) for name, _ in jobs] == [{0, 1}, {0, 2}]
    raw = partial(dense_crf.pseudo_mask, settings=dense_crf.MaskSettings("power", alpha=4.0, crf=None))
    assert any((raw(*job) != found[name]).any() for name, job in jobs)  # else there were nothing to compare
    real = dense_crf.pseudo_mask
    monkeypatch.setattr(dense_crf, "pseudo_mask", lambda *job, settings: np.roll(real(*job, settings=settings), 3, 1))
    assert dense_crf.measure(jobs, processes=1, rounds=1)[1] < 0.999


def test_workers_that_import_the_script_wait_for_no_torch(project):
    code = "import sys; sys.path.insert(0, 'benchmarks'); import dense_crf; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=project, check=False).returncode == 0


@pytest.mark.parametrize(("plain", "same", "holds"), [(2.5, 0.999, True), (2.4, 1.0, False), (9.0, 0.998, False)])
def test_the_dense_crf_has_to_be_fast_and_the_same(dense_crf, plain, same, holds):
    seconds = {"ours": [1.0, 0.5, 4.0], "reference": [0.1, plain, 10.0]}
    record = dense_crf.report(seconds, same, n=5, processes=2)
    assert record["holds"] is holds and record["ratio"] == plain and record["ours"] == 5


def test_counts_of_pairs_are_those_of_a_loop_over_classes(evaluation, capsys):
    code = evaluation.main(["--masks", "5", "--distinct", "3", "--height", "30", "--width", "40", "--rounds", "1"])
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"claim", "ours", "reference", "unit", "ratio", "bar", "holds", "rounds", "machine"} < set(record)
    assert record["equal"] is True and (record["masks"], record["distinct"]) == (5, 3)
    assert code == (0 if record["holds"] else 1)


def test_masks_to_score_are_right_and_wrong_and_ignored_somewhere(evaluation, monkeypatch):
    pairs = evaluation.make_masks(3, 30, 40)
    right, truth, found = evaluation.counts_by_class(pairs, 4)  # the first one twice
    assert truth.sum() == found.sum() == sum((t != 255).sum() for t, _ in [*pairs, pairs[0]])
    assert truth.sum() / 4 < right.sum() < truth.sum() < 4 * 30 * 40
    assert (evaluation.our_counts(pairs, 4) == [right, truth, found]).all()
    monkeypatch.setattr(evaluation, "our_counts", lambda pairs, n: np.stack([right, found, truth]))
    assert not evaluation.measure(pairs, 4, rounds=1)[1]


@pytest.mark.parametrize(("plain", "equal", "holds"), [(5.0, True, True), (4.9, True, False), (9.0, False, False)])
def test_scoring_has_to_be_fast_and_equal(evaluation, plain, equal, holds):
    record = evaluation.report({"ours": [1.0, 0.5, 4.0], "reference": [0.1, plain, 10.0]}, equal, n=7, distinct=2)
    assert record["holds"] is holds and record["ratio"] == plain and record["ours"] == 7


def test_all_benchmarks_are_found_and_one_that_fails_fails_all(script, tmp_path, monkeypatch, capsys):
    runner = script("benchmarks", "__main__")
    names = set(runner.names())
    assert {"cam_inference", "dense_crf", "evaluation", "pamr", "paste", "patch_pairs", "random_walk"} <= names
    assert not {"_measure", "__main__"} & names
    claims = {
        "good": "print('a table'); print('{\"ratio\": 2, \"holds\": true}')",
        "bad": 'print(\'{"ratio": 1, "holds": false}\'); raise SystemExit(1)',
        "broken": "1 / 0",
    }
    for name, text in claims.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(runner, "HERE", tmp_path)
    assert runner.main(["good"]) == 0
    assert runner.main([]) == 1
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert [(line.split()[0], line.split()[-1]) for line in lines] == [("bad", "NO"), ("broken", "NO"), ("good", "yes")]
    assert runner.main(["nothing"]) == 2
