"""Scores against plain loops and hand-made cases."""

import json
import math

import numpy as np
import pytest
import torch

from wsss_lib.errors import WsssError
from wsss_lib.metrics import (
    ConfusionMatrix,
    GroupedConfusion,
    ThresholdSweep,
    average_precision,
    cam_energy,
    mean_average_precision,
    mean_std,
    paired_interval,
    region_activation,
)

C = 5


@pytest.fixture
def images():
    """Eight random pairs of truth (with 255) and prediction; class 4 is nowhere."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, C - 1, (8, 12, 9)).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, C - 1, truth.shape))
    truth[rng.random(truth.shape) < 0.1] = 255
    return truth, prediction.astype(np.uint8)


def score(truth, prediction, n_classes=C):
    matrix = ConfusionMatrix(n_classes)
    for t, p in zip(truth, prediction, strict=True):
        matrix.update(t, p)
    return matrix


def iou_by_loop(truth, prediction):
    """IoU of each class, pixel set by pixel set."""
    keep = truth != 255
    prediction = np.where(prediction == 255, 0, prediction)
    iou = []
    for c in range(C):
        t, p = (truth == c) & keep, (prediction == c) & keep
        iou.append((t & p).sum() / (t | p).sum() if (t | p).any() else np.nan)
    return np.array(iou)


def test_iou_equals_a_plain_loop_over_classes(images):
    np.testing.assert_allclose(score(*images).iou(), iou_by_loop(*images))
    assert score(*images).miou() == pytest.approx(np.nanmean(iou_by_loop(*images)))


def test_matrix_equals_a_plain_loop_over_pixels(images):
    expected = np.zeros((C, C), int)
    for t, p in zip(images[0].ravel(), images[1].ravel(), strict=True):
        if t != 255:
            expected[t, p] += 1
    assert (score(*images).matrix == expected).all()
    assert score(*images).matrix.dtype == np.int64


def test_a_perfect_prediction_scores_1(images):
    truth = images[0]
    perfect = score(truth, truth)
    assert perfect.miou() == 1 and perfect.pixel_accuracy() == 1


def test_the_order_of_images_and_their_grouping_do_not_matter(images):
    truth, prediction = images
    order = np.random.default_rng(1).permutation(len(truth))
    assert (score(truth[order], prediction[order]).matrix == score(*images).matrix).all()
    merged = score(truth[:3], prediction[:3]) + score(truth[3:], prediction[3:])
    assert (merged.matrix == score(*images).matrix).all()
    at_once = ConfusionMatrix(C)
    at_once.update(*images)
    assert (at_once.matrix == score(*images).matrix).all()


def test_ignored_pixels_change_nothing(images):
    truth, prediction = images
    void = np.full_like(truth[:2], 255)
    more = score(np.concatenate([truth, void]), np.concatenate([prediction, prediction[:2]]))
    assert (more.matrix == score(*images).matrix).all()


def test_relabelling_truth_and_prediction_alike_keeps_miou(images):
    new = np.arange(256, dtype=np.uint8)
    new[:C] = [3, 0, 4, 1, 2]
    assert score(new[images[0]], new[images[1]]).miou() == pytest.approx(score(*images).miou())


def test_predicted_255_counts_as_background(images):
    truth, prediction = images
    assert (score(truth, np.where(prediction == 0, 255, prediction)).matrix == score(*images).matrix).all()


def test_classes_absent_from_both_are_nan_and_leave_the_mean(images):
    scores = score(*images)
    assert np.isnan(scores.iou()[4]) and not scores.present[4] and scores.present[:4].all()
    assert scores.miou() == pytest.approx(scores.iou()[:4].mean())
    assert scores.miou([1, 4]) == scores.iou()[1]


def test_three_means_differ_in_classes_that_are_absent_or_only_predicted():
    scores = score([np.array([0, 0, 1, 1])], [np.array([0, 2, 1, 1])])  # IoU 1/2, 1, 0 and nowhere, nowhere
    assert scores.miou(over="truth") == pytest.approx(3 / 4)
    assert scores.miou(over="present") == scores.miou() == pytest.approx(3 / 6)
    assert scores.miou(over="all") == pytest.approx(3 / 10)
    assert scores.miou([0, 2, 4], over="all") == pytest.approx(1 / 6)
    assert scores.miou([0, 2, 4], over="truth") == scores.iou()[0]
    assert np.isnan(scores.miou([2], over="truth")) and scores.miou([4], over="all") == 0
    with pytest.raises(WsssError, match="over='mean': choose one of present, all, truth"):
        scores.miou(over="mean")


@pytest.mark.parametrize("over", ["present", "all", "truth"])
def test_each_mean_equals_bincounts_and_keeps_under_what_must_not_matter(images, over):
    truth, prediction = images
    keep = truth != 255
    hit = np.bincount(truth[keep & (truth == prediction)], minlength=C)
    of_truth, found = (np.bincount(x[keep], minlength=C) for x in (truth, prediction))
    counted = {"present": of_truth + found > 0, "all": np.ones(C, bool), "truth": of_truth > 0}[over]
    want = (hit / np.maximum(of_truth + found - hit, 1))[counted].mean()
    assert score(truth, prediction).miou(over=over) == pytest.approx(want)
    order = np.random.default_rng(1).permutation(len(truth))
    new = np.arange(256, dtype=np.uint8)
    new[:C] = [3, 0, 4, 1, 2]
    void = np.full_like(truth[:1], 255)
    for t, p in (
        (truth[order], prediction[order]),
        (new[truth], new[prediction]),
        (np.concatenate([truth, void]), np.concatenate([prediction, prediction[:1]])),
    ):
        assert score(t, p).miou(over=over) == pytest.approx(want)
    assert score(truth, truth).miou(over=over) == pytest.approx(0.8 if over == "all" else 1)  # class 4 is nowhere


def test_a_class_that_is_only_predicted_counts_as_0():
    assert score([np.array([0, 0])], [np.array([0, 4])]).miou() == 0.25


def test_nothing_scored_is_nan_not_a_warning(recwarn):
    empty = ConfusionMatrix(C)
    assert np.isnan(empty.miou()) and np.isnan(empty.pixel_accuracy())
    assert not recwarn.list


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, np.int32, np.uint8])
def test_tensors_and_integer_types_score_alike(images, kind):
    convert = (lambda x: torch.tensor(x).to(kind)) if isinstance(kind, torch.dtype) else lambda x: x.astype(kind)
    assert (score(*map(convert, images)).matrix == score(*images).matrix).all()


def test_report_is_json_with_none_for_absent_classes(images):
    report = json.loads(json.dumps(score(*images).report(["a", "b", "c", "d"], classes=[0, 1, 4])))
    assert report["miou_classes"] == ["background", "a"]
    assert report["iou"]["d"] is None
    assert report["miou"] == pytest.approx((report["iou"]["background"] + report["iou"]["a"]) / 2)


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (np.zeros((2, 2), int), np.zeros((2, 3), int), "give equal sizes"),
        (np.array([7]), np.array([0]), "truth: holds the value 7"),
        (np.array([0]), np.array([C]), "prediction: holds the value 5"),
        (np.array([-1]), np.array([0]), "truth: int64 values"),
        (np.array([0]), np.array([0.5]), "prediction: float64 values"),
    ],
)
def test_wrong_masks_are_refused_in_one_line(truth, prediction, message):
    with pytest.raises(WsssError, match=message) as caught:
        ConfusionMatrix(C).update(truth, prediction)
    assert "\n" not in str(caught.value)


def maps_and_truth(n=4):
    rng = np.random.default_rng(2)
    for _ in range(n):
        cam = rng.random((C - 1, 7, 11)).astype(np.float32)
        cam = np.where(rng.random(cam.shape) < 0.5, cam.round(2), cam)  # many values on a threshold: ties
        cam[:, 0] = 0
        truth = rng.integers(0, C, (7, 11)).astype(np.uint8)
        truth[3, 3] = 255
        yield truth, cam.astype(np.float32)


def test_the_sweep_equals_explicit_seeds_at_every_threshold():
    sweep = ThresholdSweep(C)
    for truth, cam in maps_and_truth():
        sweep.update(truth, torch.from_numpy(cam))
    for index, threshold in enumerate(sweep.thresholds):
        explicit = ConfusionMatrix(C)
        for truth, cam in maps_and_truth():
            background = np.full((1, *truth.shape), threshold, cam.dtype)
            explicit.update(truth, np.concatenate([background, cam]).argmax(0))
        assert (sweep.at(threshold).matrix == explicit.matrix).all()
        assert sweep.curve()[index] == pytest.approx(explicit.miou(), nan_ok=True)


def test_the_sweep_makes_the_seeds_of_localize():
    localize = pytest.importorskip("wsss_lib.localize")
    sweep = ThresholdSweep(C, thresholds=[0.0, 0.29, 0.57])
    for truth, cam in maps_and_truth(1):
        sweep.update(truth, cam)
        for threshold in (0.0, 0.29, 0.57):
            explicit = ConfusionMatrix(C)
            explicit.update(truth, localize.seed(torch.from_numpy(cam), threshold))
            assert (sweep.at(threshold).matrix == explicit.matrix).all()


def test_best_is_the_top_of_the_curve():
    sweep = ThresholdSweep(C)
    for truth, cam in maps_and_truth():
        sweep.update(truth, cam)
    threshold, miou = sweep.best()
    assert miou == sweep.curve().max() == sweep.at(threshold).miou()


def test_some_thresholds_of_a_sweep_are_the_sweep_of_some_thresholds():
    whole, few = ThresholdSweep(C), [0.0, 0.05, 0.5, 0.99]
    part = ThresholdSweep(C, few)
    for truth, cam in maps_and_truth():
        whole.update(truth, cam)
        part.update(truth, cam)
    assert (whole.only(few).counts == part.counts).all() and whole.only(few).best() == part.best()
    with pytest.raises(WsssError, match="not swept"):
        part.only([0.1])


def test_from_a_threshold_of_1_on_all_is_background():
    sweep, explicit = ThresholdSweep(C), ConfusionMatrix(C)
    for truth, cam in maps_and_truth():
        sweep.update(truth, cam)
        explicit.update(truth, np.zeros_like(truth))
    assert (sweep.at(1.0).matrix == explicit.matrix).all() and (sweep.at(1.18).matrix == explicit.matrix).all()
    assert sweep.at(1.0).matrix.sum() < sum(truth.size for truth, _ in maps_and_truth())  # 255 is left out


def test_sweep_refuses_what_it_cannot_answer():
    sweep = ThresholdSweep(2, thresholds=[0.1, 0.2])
    with pytest.raises(WsssError, match=r"not swept; nearest is 0.2"):
        sweep.at(0.5)
    with pytest.raises(WsssError, match="has seen no scored pixel"):
        sweep.best()
    with pytest.raises(WsssError, match=r"give \(1, 2, 3\)"):
        sweep.update(np.zeros((2, 3), np.uint8), np.zeros((1, 2, 2)))
    with pytest.raises(WsssError, match="nan"):
        sweep.update(np.zeros((1, 1), np.uint8), np.full((1, 1, 1), np.nan))
    with pytest.raises(WsssError, match="holds the value 9"):
        sweep.update(np.full((1, 1), 9, np.uint8), np.zeros((1, 1, 1)))
    with pytest.raises(WsssError, match="increasing"):
        ThresholdSweep(2, thresholds=[0.2, 0.1])


def test_worst_group_is_where_context_misleads():
    scores = GroupedConfusion(2)
    scores.update("agrees", np.array([0, 1]), np.array([0, 1]))
    scores.update("disagrees", np.array([0, 1]), np.array([1, 0]))
    assert scores.worst_group() == ("disagrees", 0.0)
    assert scores.miou() == {"agrees": 1.0, "disagrees": 0.0}
    with pytest.raises(WsssError, match="no group"):
        GroupedConfusion(2).worst_group()


def test_cam_energy_shares_sum_to_1_and_fall_where_they_should():
    truth = np.array([[0, 0, 1, 2, 255]])
    cam = np.array([[[1.0, 1, 4, 2, 9]], [[3, 1, 0, 4, 9]], [[9, 9, 9, 9, 9]]])
    shares = cam_energy(torch.tensor(cam), truth, torch.tensor([1, 1, 0]), [True, False, False])
    assert sum(shares.values()) == pytest.approx(1)
    expected = {"object": 0.5, "other_object": 0.125, "own_context": 0.125, "other_context": 0.25}
    assert shares == pytest.approx(expected)


def test_cam_energy_without_a_present_class_is_nan():
    shares = cam_energy(np.ones((1, 2, 2)), np.zeros((2, 2), int), [0], [True])
    assert np.isnan(list(shares.values())).all()


def test_region_activation_is_the_mean_over_cells_of_a_region_whatever_their_number():
    rng = np.random.default_rng(0)
    features, cells = rng.normal(size=(5, 4, 6)), rng.choice([0, 3, 255], (4, 6))
    truth = np.kron(cells, np.ones((8, 8), int))
    fg, bg = region_activation(torch.tensor(features), truth)
    assert fg == pytest.approx(features[:, cells == 3].mean()) and bg == pytest.approx(features[:, cells == 0].mean())
    assert np.isnan(region_activation(features, np.zeros((4, 6), int))[0])
    with pytest.raises(WsssError, match="larger"):
        region_activation(features, np.zeros((2, 6), int))


def average_precision_by_definition(label, value):
    """Sum of (R_n - R_{n-1}) P_n over the distinct thresholds, highest first."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(value.tolist()), reverse=True):
        chosen = value >= threshold
        new = label[chosen].sum() / label.sum()
        total += (new - recall) * label[chosen].mean()
        recall = new
    return total


def test_average_precision_equals_its_definition_with_ties():
    rng = np.random.default_rng(3)
    label, value = rng.integers(0, 2, (40, 4)), rng.random((40, 4)).round(1)
    label[:, 3] = 0
    ours = average_precision(torch.tensor(label), torch.tensor(value))
    expected = [average_precision_by_definition(label[:, k], value[:, k]) for k in range(3)]
    np.testing.assert_allclose(ours[:3], expected)
    assert np.isnan(ours[3])
    assert mean_average_precision(label, value) == pytest.approx(np.mean(expected))


def test_constant_scores_have_the_precision_of_chance():
    label = np.array([[1], [0], [0], [1]])
    assert average_precision(label, np.zeros((4, 1)))[0] == 0.5
    with pytest.raises(WsssError, match="give both as"):
        average_precision(label, np.zeros((4, 2)))


def test_mean_std_uses_the_sample_deviation():
    assert mean_std([0.44, 0.46]) == "45.0 ± 1.4"
    assert mean_std([12.34], scale=1, digits=2) == "12.34"


def t_density(t, freedom):
    constant = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    return constant * (1 + t**2 / freedom) ** (-(freedom + 1) / 2)


@pytest.mark.parametrize("n", [2, 3, 4, 6, 11])
def test_paired_interval_holds_95_percent_of_the_t_distribution(n):
    a, b = np.random.default_rng(n).random((2, n))
    mean, low, high = paired_interval(a, b)
    t = (high - low) / 2 / ((a - b).std(ddof=1) / np.sqrt(n))
    grid = np.linspace(-t, t, 100_001)
    assert mean == pytest.approx((a - b).mean()) and low + high == pytest.approx(2 * mean)
    assert np.trapezoid(t_density(grid, n - 1), grid) == pytest.approx(0.95, abs=1e-4)


def test_paired_interval_needs_two_seeds():
    with pytest.raises(WsssError, match="two or more"):
        paired_interval([1], [2])
