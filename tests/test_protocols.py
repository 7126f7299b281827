"""Each repository's rule against what its script does, written out: maps, a background score, an argmax, counts."""

import numpy as np
import pytest

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.metrics import ConfusionMatrix, ThresholdSweep
from wsss_lib.protocols import MASKS, PROTOCOLS, SEEDS, Protocol, hundredths, score
from wsss_lib.refine.mean_field import PRESETS

C = 6
EVERY = [k / 100 for k in range(100)]

# What the scripts say, once more: thresholds as written there, what maps are multiplied by, the early end, the mean.
RULES = {
    "kit": ([0.25], 1, False, "present"),
    "kit_best": (EVERY, 1, False, "present"),
    "irn": ([0.15], 1, False, "present"),
    "cda": ([0.15], 1, False, "present"),
    "sma": ([0.15], 1, False, "present"),
    "psa": ([0.2], 1, False, "present"),
    "advcam": (EVERY[15:35], 1, False, "present"),
    "recam": ([0.21], 1, False, "present"),
    "amn": ([0.25], 1, False, "present"),
    "seam": (EVERY[:60], 1, False, "all"),
    "cpn": (EVERY[20:60], 0.5, False, "all"),
    "mctformer": (EVERY[:60], 1, True, "all"),
    "psd_wsss": ([0.38], 1, False, "all"),
}
MEANS = {"deeplab_v2": "truth", "mctformer_segment": "present", "seam_segment": "all", "ssss": "all", "ws_fcn": "all"}


def images(seed, n=4, holes=True):
    """Truths with ignored pixels and a class that is nowhere; maps that know something, with many ties."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        truth = rng.integers(0, C - 1, (9, 7)).astype(np.uint8)
        label = np.append(rng.random(C - 2) < 0.7, False) if holes else np.ones(C - 1, bool)
        maps = (rng.random((C - 1, 9, 7)) + (truth == np.arange(1, C)[:, None, None])) / 2
        maps = np.where(rng.random(maps.shape) < 0.5, maps.round(2), maps) * label[:, None, None]
        truth[rng.random(truth.shape) < 0.1] = 255
        yield truth, maps.astype(np.float32)


def counts(pairs):
    """Pixels that are right, of the truth, and predicted, class by class."""
    found = np.zeros((3, C), int)
    for truth, prediction in pairs:
        for c in range(C):
            keep = truth < 255
            found[:, c] += [(keep & x).sum() for x in ((truth == c) & (prediction == c), truth == c, prediction == c)]
    return found


def mean(pairs, over):
    """As the script's last lines: nan leaves (present), 0 counts (all), or classes without truth leave (truth)."""
    hit, truth, found = counts(pairs)
    if over == "all":
        return np.mean(hit / (truth + found - hit + 1e-10))
    with np.errstate(invalid="ignore"):
        iou = hit / (truth + found - hit)
    return np.nanmean(iou[truth > 0] if over == "truth" else iou)


def by_hand(data, thresholds, factor, ends, over):
    """As the script's loop: what it picks and prints."""
    best, picked = 0.0, thresholds[0]
    for threshold in thresholds:
        pairs = []
        for truth, maps in data:
            scores = np.concatenate([np.full((1, *truth.shape), threshold, np.float32), maps * np.float32(factor)])
            pairs.append((truth, scores.argmax(0)))
        miou = mean(pairs, over)
        if miou > best:
            best, picked = miou, threshold
        elif ends:
            break
    return picked / factor, best


def swept(data, thresholds=None):
    sweep = ThresholdSweep(C, thresholds)
    for truth, maps in data:
        sweep.update(truth, maps)
    return sweep


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", SEEDS)
def test_each_rule_gives_what_its_script_would_give(name, seed):
    data = list(images(seed))
    threshold, miou = score(swept(data), SEEDS[name])
    want = by_hand(data, *RULES[name])
    assert threshold == pytest.approx(want[0]) and miou == pytest.approx(want[1])


def test_there_is_a_script_for_every_rule():
    assert set(RULES) == set(SEEDS) and not set(SEEDS) & set(MASKS)
    for name, (thresholds, factor, ends, over) in RULES.items():
        rule = SEEDS[name]
        assert (rule.sweep, rule.factor, rule.first_drop, rule.over) == (tuple(thresholds), factor, ends, over)


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_averaged_as_their_script_does(name):
    rng, matrix, pairs = np.random.default_rng(0), ConfusionMatrix(C), []
    for truth, _ in images(3):
        pairs.append((truth, np.where(rng.random(truth.shape) < 0.4, rng.choice([0, 1, 2, 5], truth.shape), truth)))
        pairs[-1][1][truth == 255] = 0
        matrix.update(*pairs[-1])
    threshold, miou = score(matrix, MASKS[name])
    assert threshold is None and miou == pytest.approx(mean(pairs, MEANS.get(name, MASKS[name].over)))


def strip(*pixels):
    """One image of a row of pixels: (truth, winner, value) each; class 3 is nowhere."""
    maps = np.zeros((3, 1, len(pixels)), np.float32)
    for x, (_, winner, value) in enumerate(pixels):
        maps[winner - 1, 0, x] = value
    sweep = ThresholdSweep(4)
    sweep.update(np.array([[truth for truth, *_ in pixels]]), maps)
    return sweep


def test_rules_part_ways_on_one_and_the_same_maps():
    # Background at 0.05, 0.3 and 0.7; class 1 at 0.1 and 0.9; class 2 is only found where there is none.
    sweep = strip((0, 2, 0.05), (1, 1, 0.1), (0, 2, 0.3), (0, 2, 0.7), (1, 1, 0.9))
    picked = {name: score(sweep, rule) for name, rule in SEEDS.items()}
    assert picked["kit_best"] == (0.7, pytest.approx((3 / 4 + 1 / 2) / 2))
    assert picked["seam"] == (0.05, pytest.approx((1 / 3 + 1) / 4))  # of 4 classes; 0.7 is beyond its sweep
    assert picked["mctformer"] == (0.0, pytest.approx(1 / 4))  # 0.01 is no better
    assert picked["cpn"] == (0.7, pytest.approx((3 / 4 + 1 / 2) / 4))  # 0.35 of halved maps
    assert picked["irn"] == (0.15, pytest.approx((1 / 4 + 1 / 2) / 3))  # class 2 is predicted and counts as 0
    assert picked["irn"][0] != picked["recam"][0] and picked["irn"][1] == picked["recam"][1]
    assert picked["psd_wsss"] == (0.38, pytest.approx((2 / 4 + 1 / 2) / 4))
    masks = sweep.at(0.15)
    assert score(masks, MASKS["deeplab_v2"])[1] == pytest.approx((1 / 4 + 1 / 2) / 2)  # class 2 has no truth
    assert score(masks, MASKS["seam_segment"])[1] == pytest.approx((1 / 4 + 1 / 2) / 4)
    assert score(masks, MASKS["mctformer_segment"])[1] == pytest.approx((1 / 4 + 1 / 2) / 3)


def test_a_sweep_that_ends_early_takes_the_first_peak_and_rises_before_it():
    first_peak = strip((0, 1, 0.0), (0, 1, 0.005), (1, 1, 0.015), (0, 1, 0.5), (0, 1, 0.5), (1, 1, 0.6))
    threshold, miou = score(first_peak, SEEDS["mctformer"])
    assert threshold == 0.01 and miou < score(first_peak, SEEDS["seam"])[1]
    nothing_at_0 = strip((0, 1, 0.005), (0, 2, 0.005))
    assert score(nothing_at_0, SEEDS["mctformer"]) == (0.0, 0.0) and score(nothing_at_0, SEEDS["seam"])[1] == 1 / 4


def test_halved_maps_are_background_everywhere_from_one_half_on():
    sweep = strip((0, 1, 0.9), (1, 1, 1.0), (0, 2, 0.3))
    late = Protocol("", "", sweep=hundredths(50, 59), factor=0.5)
    assert late.thresholds[0] == 1.0 and late.thresholds[-1] == 1.18
    assert score(sweep, late) == (1.0, pytest.approx((2 / 3) / 4))


def test_only_the_classes_that_are_scored_count():
    data = list(images(5))
    sweep = swept(data)
    for over, want in (("all", 2 / 3), ("present", 1)):
        kept = score(sweep, Protocol("", "", sweep=(0.3,), over=over), [0, 1, 5])[1]
        assert kept == pytest.approx(want * np.mean(sweep.at(0.3).iou()[:2]))  # class 5 is nowhere


def test_images_in_another_order_and_ignored_pixels_change_no_rule():
    data = list(images(6))
    more = [(np.full_like(truth, 255), maps) for truth, maps in data[:2]]
    for rule in SEEDS.values():
        assert score(swept(data), rule) == score(swept([*more, *data[::-1]]), rule)


def test_perfect_maps_score_1_by_every_rule_where_every_class_occurs():
    truth = np.arange(C).repeat(3)[None]
    maps = (truth == np.arange(1, C)[:, None, None]).astype(np.float32)
    for rule in SEEDS.values():
        assert score(swept([(truth, maps)]), rule)[1] == 1


def test_a_sweep_without_a_rules_threshold_and_an_unknown_mean_are_refused():
    with pytest.raises(WsssError, match=r"threshold=0.21: not swept; nearest is 0.2"):
        score(swept(images(0), [0.1, 0.2]), SEEDS["recam"])
    with pytest.raises(SettingsError, match="over='some': choose one of present, all, truth"):
        Protocol("", "", over="some")


def test_what_a_protocol_says_exists():
    for name, protocol in PROTOCOLS.items():
        assert bool(protocol.sweep) == (name in SEEDS)
        assert protocol.labels in ("given", "predicted", "unused") and (not protocol.crf or protocol.crf in PRESETS)
        assert "/" in protocol.repository or protocol.repository == "this kit"
