"""WS-FCN: what its losses add up, who teaches whom and from when on, and that every context goes with every fusion."""

from math import nan
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wsss_lib import backbones
from wsss_lib.data.samples import Batch
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.localize import inference_copy, multi_scale_cam
from wsss_lib.methods import ws_fcn
from wsss_lib.methods.base import Progress, multi_label_soft_margin
from wsss_lib.methods.cam import CAM
from wsss_lib.methods.ws_fcn import WSFCN, Sure
from wsss_lib.nn import pamr as refinement
from wsss_lib.nn.context import CONTEXTS
from wsss_lib.nn.fusion import FUSIONS
from wsss_lib.nn.pooling import pool_scores, present_only
from wsss_lib.nn.self_supervision import balanced_cross_entropy, pseudo_truth, share_supervised
from wsss_lib.settings import load

SMALL = {"channels": 16, "shallow_stage": 1, "dilations": (1, 2, 3, 4), "dropout": (0, 0, 0), "warm_up": 0.5}
SMALL |= {"pamr_iterations": 3, "pamr_dilations": (1, 2, 4)}
EARLY, LATE = Progress(step=4, steps=10), Progress(step=5, steps=10)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def method_of(**given):
    torch.manual_seed(0)
    return WSFCN(backbones.build("tiny"), 6, **{**SMALL, **given})


def bold_method(**given):
    """A method whose masks are far from equal, and that is soon sure: it knows nothing and teaches, too."""
    method = method_of(**{"sure": Sure(0.5, 0.5, 0.05), **given})
    with torch.no_grad():
        method.classifier[4].weight.mul_(5)
    return method


def losses(method, batch, progress=LATE, seed=5):
    torch.manual_seed(seed)
    return method.loss(batch, progress)


def teaching(method, batch):
    """Let `method` learn from a truth, given with it, in which every image has background and all of its classes."""
    label = batch.label
    truth = torch.zeros(len(label), 64, 64, dtype=torch.int64)
    for n, present in enumerate(label):
        for at, c in enumerate(present.nonzero().flatten().tolist()):
            truth[n, 8 * at : 8 * at + 8, :32] = 1 + c
    return patch.object(method, "truth", return_value=truth), truth


@pytest.fixture
def method():
    return bold_method()


# The scores, the masks, the maps


def test_scores_go_from_the_backbones_two_maps_through_context_fusion_gate_and_classifier(method, batch):
    method.eval()
    shallow, _, deep = method.backbone.stages(batch.image)
    streams = method.fusion(method.context(deep), shallow)
    want = method.classifier(0.7 * streams[0] + 0.3 * streams[1])
    with torch.no_grad():
        torch.testing.assert_close(method.maps(batch.image), want)
    assert all(torch.equal(got, right) for got, right in zip(method.streams(batch.image), streams, strict=True))
    assert want.shape == (6, 6, 32, 32)


@pytest.mark.parametrize(("stage", "side"), [(1, 32), (2, 16), (3, 16)])
def test_masks_lie_on_the_grid_of_the_shallow_stage(stage, side):
    assert method_of(shallow_stage=stage).eval().maps(numbers(1, 3, 64, 64)).shape == (1, 6, side, side)


def test_masks_are_a_soft_max_over_background_and_classes_whose_score_pools_them(method, batch):
    with torch.no_grad():
        scores = method.eval().maps(batch.image)
        y, masks = method.segment(batch.image)
        parts = torch.cat([torch.full_like(scores[:, :1], 1.0), scores], 1).exp()
        torch.testing.assert_close(masks, parts / parts.sum(1, keepdim=True))
        pooled = (masks[:, 1:] * scores).sum((2, 3)) / (1 + masks[:, 1:].sum((2, 3)))
        mean = masks[:, 1:].mean((2, 3))
        torch.testing.assert_close(y, pooled + (1 - mean) ** 3 * (0.01 + mean).log())
        assert torch.equal(method.logits(batch.image), y) and torch.equal(method.cam(batch.image), masks[:, 1:])


def test_the_penalty_has_the_numbers_that_are_given(batch):
    method = method_of(focal_p=1.5, focal_lambda=0.1).eval()
    with torch.no_grad():
        want = pool_scores(method.maps(batch.image), 1.5, 0.1)[0]
        assert torch.equal(method.logits(batch.image), want)
        taught = method.loss(batch, EARLY).terms["classify"]
    torch.testing.assert_close(taught, multi_label_soft_margin(want, batch.label))


def test_with_the_true_labels_absent_classes_are_nought_in_the_masks(method, batch):
    with torch.no_grad():
        masks = present_only(method.eval().segment(batch.image)[1], batch.label)
    assert not masks[:, 1:][batch.label == 0].any() and masks[:, 1:][batch.label == 1].all()


@given(height=st.integers(9, 41), width=st.integers(9, 41))
@settings(max_examples=15, deadline=None)
def test_sides_that_no_stride_divides_are_segmented_and_learnt_from(height, width):
    method, label = bold_method(), torch.eye(6)[:2]
    image = numbers(2, 3, height, width)
    losses(method, Batch(image, label, ("a", "b"))).total.backward()
    with torch.no_grad():
        assert method.eval().maps(image).shape == (2, 6, -(-height // 2), -(-width // 2))


@pytest.mark.parametrize("name", FUSIONS)
def test_a_copy_for_inference_localises_alike_with_its_norms_folded(name):
    method = method_of(fusion=name)
    for module in method.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    fast, image = inference_copy(method), numbers(1, 3, 64, 64)
    assert isinstance(fast.backbone.stage1[1], nn.Identity)
    with torch.no_grad():
        torch.testing.assert_close(fast.cam(image), method.eval().cam(image), rtol=1e-3, atol=1e-4)
    assert multi_scale_cam(fast, image, (1.0, 0.5), stride=1).shape == (1, 6, 64, 64)


# The losses


def test_the_total_is_the_classification_and_the_self_supervision_and_the_share_only_tells(method, batch):
    given_truth, truth = teaching(method, batch)
    with given_truth:
        got = losses(method, batch)
    assert list(got.terms) == ["classify", "self", "supervised"]
    assert all(term > 0 for term in got.terms.values())
    torch.testing.assert_close(got.total, got.terms["classify"] + got.terms["self"])
    assert float(got.terms["supervised"]) == pytest.approx(float(share_supervised(truth, batch.label)))


def test_the_self_supervision_is_the_cross_entropy_of_the_scores_beside_a_background_of_one(method, batch):
    seen = {}

    def recording(logits, truth, label):
        seen.update(logits=logits, truth=truth, label=label)
        return balanced_cross_entropy(logits, truth, label)

    given_truth, truth = teaching(method.eval(), batch)
    with given_truth, patch.object(ws_fcn, "balanced_cross_entropy", recording), torch.no_grad():
        got = losses(method, batch).terms["self"]
        scores = F.interpolate(method.maps(batch.image), (64, 64), mode="bilinear", align_corners=True)
    assert (seen["logits"][:, 0] == 1).all()
    torch.testing.assert_close(seen["logits"][:, 1:], scores)
    assert torch.equal(seen["truth"], truth) and torch.equal(seen["label"], batch.label)
    want = balanced_cross_entropy(torch.cat([torch.ones(6, 1, 64, 64), scores], 1), truth, batch.label)
    torch.testing.assert_close(got, want)
    assert got > 0


def test_before_the_warm_up_ends_only_the_classification_is_learnt_and_nothing_is_refined(method, batch):
    with patch.object(method, "truth") as truth, patch.object(refinement, "pamr") as pamr:
        got = losses(method, batch, EARLY)
    assert not truth.called and not pamr.called
    assert torch.equal(got.total, got.terms["classify"])
    assert got.terms["self"] == got.terms["supervised"] == 0
    y = method.eval().logits(batch.image)
    torch.testing.assert_close(method.loss(batch, EARLY).total, multi_label_soft_margin(y, batch.label))


@pytest.mark.parametrize(
    ("warm_up", "progress", "begun"),
    [
        (0.5, EARLY, False),
        (0.5, LATE, True),
        (0.0, Progress(0, 10), True),
        (1.0, Progress(9, 10), False),
        (0.3, Progress(29, 100), False),
        (0.3, Progress(30, 100), True),
    ],
)
def test_self_supervision_begins_with_the_step_that_the_warm_up_names(batch, warm_up, progress, begun):
    method = method_of(warm_up=warm_up)
    given_truth, _ = teaching(method, batch)
    with given_truth as truth:
        losses(method, batch, progress)
    assert truth.called is begun


def test_of_the_papers_thirty_epochs_the_eighth_begins_with_self_supervision_and_the_seventh_without():
    warm_up = load("paper").ws_fcn.warm_up
    for per_epoch in (1, 7, 661):
        fractions = [Progress(step=epoch * per_epoch, steps=30 * per_epoch).fraction for epoch in range(30)]
        assert [fraction >= warm_up for fraction in fractions] == 7 * [False] + 23 * [True]


# The pseudo-truth


def test_the_truth_is_what_masks_refined_on_their_own_grid_are_sure_of_at_the_images_size(batch):
    numbers_given = {"pamr_iterations": 4, "pamr_dilations": (1, 3), "sure": Sure(0.8, 0.5, 0.1)}
    masks = (3 * numbers(6, 7, 32, 32)).softmax(1)
    got = method_of(**numbers_given).truth(batch.image, masks, batch.label)
    small = F.interpolate(batch.image, (32, 32), mode="bilinear", align_corners=True)
    refined = refinement.pamr(small, masks, 4, (1, 3))
    refined = F.interpolate(refined, (64, 64), mode="bilinear", align_corners=True)
    want = pseudo_truth(refined, batch.label, background=0.8, foreground=0.5, floor=0.1)
    assert got.dtype == torch.int64 and torch.equal(got, want)
    assert len(got.unique()) > 3


def test_the_truth_of_a_step_is_that_of_its_own_masks_image_and_labels(method, batch):
    with patch.object(method, "truth", wraps=method.truth) as truth:
        losses(method.eval(), batch)
    image, masks, label = truth.call_args.args
    assert torch.equal(image, batch.image) and torch.equal(label, batch.label)
    with torch.no_grad():
        torch.testing.assert_close(masks, method.segment(batch.image)[1])


def test_no_gradient_flows_through_the_truth(method, batch, gradient):
    made = []
    with patch.object(method, "truth", side_effect=lambda *a: made.append(WSFCN.truth(method, *a)) or made[-1]):
        live = losses(method, batch)
    assert not made[0].requires_grad and live.terms["supervised"] > 0
    with patch.object(method, "truth", return_value=made[0].clone()):
        constant = losses(method, batch)
    own = gradient(live.terms["self"])
    assert own.any() and torch.equal(own, gradient(constant.terms["self"]))
    assert not live.terms["supervised"].requires_grad


def test_refined_masks_have_no_gradient_though_those_that_are_refined_have(method, batch):
    refined, pamr = [], refinement.pamr
    with patch.object(refinement, "pamr", side_effect=lambda *a: refined.append((a[1], pamr(*a))) or refined[-1][1]):
        losses(method, batch)
    (given_masks, masks), *others = refined
    assert not others and given_masks.requires_grad and not masks.requires_grad


def test_a_step_sees_images_and_image_level_labels_and_no_mask():
    assert Batch._fields == ("image", "label", "image_id", "regions")


# Draws


def test_evaluation_draws_nothing_and_gives_the_same_bytes_twice(batch):
    method = method_of(dropout=(0.5, 0.5, 0.5)).eval()
    state = torch.get_rng_state()
    with torch.no_grad():
        first, again = method.segment(batch.image), method.segment(batch.image)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_in_training_the_gate_draws_and_a_seed_gives_the_same_bytes(method, batch):
    first, again, other = (losses(method.train(), batch, seed=seed).total for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_without_gate_and_dropout_nothing_is_drawn(batch):
    method = method_of(psi=0.0).train()
    first, other = (losses(method, batch, seed=seed).total for seed in (1, 2))
    assert torch.equal(first, other)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_each_dropout_share_has_its_place(place, batch):
    shares = [0.0, 0.0, 0.0]
    shares[place] = 0.25
    method = method_of(dropout=shares)
    found = [method.context.dropout, method.classifier[1], method.classifier[3]]
    assert [layer.p for layer in found] == shares


def test_self_supervision_runs_in_bfloat16_with_masks_in_single(method, batch):
    with torch.autocast("cpu", torch.bfloat16), patch.object(method, "truth", wraps=method.truth) as truth:
        got = losses(method, batch)
    assert truth.call_args.args[1].dtype == torch.float32
    assert all(term.dtype == torch.float32 and term.isfinite() for term in (got.total, *got.terms.values()))


# Every context with every fusion


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_context_goes_with_every_fusion_and_learns_a_step_of_the_smoke_profile(context, fusion):
    chosen = {"ws_fcn.context": context, "ws_fcn.fusion": fusion}
    torch.manual_seed(0)
    method = ws_fcn.build(backbones.build("tiny"), 6, load("smoke", chosen).ws_fcn).train()
    given_batch = Batch(numbers(2, 3, 32, 32), torch.eye(6)[:2], ("a", "b"))
    truth = torch.zeros(2, 32, 32, dtype=torch.int64)
    truth[0, :8], truth[1, :8] = 1, 2
    optimiser = torch.optim.SGD(method.parameters(), 0.1)
    before = {name: value.clone() for name, value in method.named_parameters()}
    with patch.object(method, "truth", return_value=truth):
        got = losses(method, given_batch)
    got.total.backward()
    optimiser.step()
    assert got.total.isfinite() and got.terms["self"] > 0
    still = [name for name, value in method.named_parameters() if torch.equal(value, before[name])]
    if context == "non_local":  # its expansion starts at nought, so what comes before it waits a step
        still.remove("context.project.weight")
    assert not still
    assert method.eval().maps(given_batch.image).shape == (2, 6, 16, 16)


# Tables I and II: millions that learn, with what the frozen WideResNet-38 has of them


@pytest.mark.parametrize(
    ("context", "fusion", "table"),
    [
        ("aspp", "gci", 137.10),
        ("mclm", "gci", 143.52),
        ("fca", "gci", 143.52),
        ("aspp", "sf2", 140.92),
        ("fca", "sf2", 147.34),
        ("non_local", "gci", 140.97),
        ("large_kernel", "gci", 157.75),
        ("ppm", "gci", 142.03),
        ("aspp", "sum", 140.85),
        ("aspp", "concatenation", 142.03),
        ("aspp", "multiplication", 140.85),
    ],
)
def test_the_network_has_the_parameters_of_the_paper(context, fusion, table):
    wide = nn.Module()
    wide.channels, wide.out_channels = (256, 4096), 4096
    with torch.device("meta"):
        method = WSFCN(wide, 20, context, fusion, channels=256, shallow_stage=1)
    assert sum(p.numel() for p in method.classifier.parameters()) == 1_185_812
    assert round(104.20224 + sum(p.numel() for p in method.parameters()) / 1e6, 2) == table


# What learns, and how fast


def test_backbone_and_what_is_new_learn_at_their_own_rates_and_biases_twice_as_fast_without_decay():
    method = method_of()
    groups = {g["name"]: g for g in method.parameter_groups()}
    rates = {name: (g["lr_factor"], g.get("weight_decay")) for name, g in groups.items()}
    assert rates == {"backbone": (1, None), "backbone biases": (2, 0), "new": (20, None), "new biases": (40, 0)}
    named = {id(p): name for name, p in method.named_parameters()}
    for name, group in groups.items():
        found = [named[id(p)] for p in group["params"]]
        assert all(one.startswith("backbone.") is name.startswith("backbone") for one in found)
        assert all(one.endswith("bias") is name.endswith("biases") for one in found)
    grouped = [id(p) for g in groups.values() for p in g["params"]]
    assert sorted(grouped) == sorted(named)


def test_with_a_factor_of_one_biases_are_as_weights_and_what_is_frozen_is_in_no_group():
    assert [g["name"] for g in method_of(bias_factor=1.0).parameter_groups()] == ["backbone", "new"]
    method = method_of()
    method.backbone.freeze(stages=3)
    groups = {g["name"]: g for g in method.parameter_groups(5.0)}
    assert {name: g["lr_factor"] for name, g in groups.items()} == {"new": 5.0, "new biases": 10.0}
    method.backbone.stage3[0].conv1.weight.requires_grad = True  # a backbone that learns, and none of its biases
    assert [g["name"] for g in method.parameter_groups()] == ["backbone", "new", "new biases"]


def test_rates_and_decay_reach_the_optimiser(train_briefly):
    made, sgd = [], torch.optim.SGD
    with patch.object(torch.optim, "SGD", side_effect=lambda *a, **k: made.append(sgd(*a, **k)) or made[-1]):
        train_briefly(lambda: method_of(bias_factor=2.0), "rates")
    recipe = load("smoke").cam
    found = {g["name"]: (g["lr"] / made[0].param_groups[0]["lr"], g["weight_decay"]) for g in made[0].param_groups}
    decay, factor = recipe.weight_decay, recipe.classifier_factor
    assert found == {
        "backbone": (1, decay),
        "backbone biases": (2, 0),
        "new": (factor, decay),
        "new biases": (2 * factor, 0),
    }


@pytest.mark.parametrize("make", [CAM, lambda backbone, k: WSFCN(backbone, k, **SMALL)], ids=["cam", "its like"])
def test_it_starts_from_the_backbone_of_another_and_the_rest_stays(make):
    method, trained = method_of(), make(backbones.build("tiny"), 6)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    method.start_from(trained)
    for key, value in method.state_dict().items():
        own = trained.state_dict()[key] if key.startswith("backbone.") else before[key]
        assert torch.equal(value, own), key
    assert not torch.equal(before["backbone.stage1.0.weight"], method.backbone.stage1[0].weight)


# Settings and mistakes


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("context", "spp", "context='spp': choose one of fca, mclm"),
        ("fusion", "mean", "fusion='mean': choose one of gci, sf2"),
        ("dropout", (0.5, 0.5), r"dropout=\[0.5, 0.5\]: give three shares"),
        ("dropout", (1.5, 0.5, 0.1), "dropout=1.5: give a number from 0 to 1"),
        ("dropout", (0.5, -0.1, 0.1), "dropout=-0.1: give a number from 0 to 1"),
        ("dropout", (0.5, 0.5, nan), "dropout=nan: give a number from 0 to 1"),
        ("shallow_stage", 0, "shallow_stage=0: give a number from 1 to 3"),
        ("shallow_stage", 4, "shallow_stage=4: give a number from 1 to 3"),
        ("channels", 0, "channels=0: give a number from 1"),
        ("warm_up", 1.1, "warm_up=1.1: give a number from 0 to 1"),
        ("warm_up", -0.1, "warm_up=-0.1: give a number from 0 to 1"),
        ("psi", 1.0, "psi=1.0: give a share from 0 up to, but not, 1"),
        ("psi", -0.1, "psi=-0.1: give a share"),
        ("focal_p", -1.0, "focal_p=-1.0: give a number from 0"),
        ("focal_lambda", 0.0, "focal_lambda=0.0: give a number above 0"),
        ("focal_lambda", nan, "focal_lambda=nan: give a number above 0"),
        ("sure", Sure(background=1.2), "background=1.2: give a number from 0 to 1"),
        ("sure", Sure(foreground=-0.2), "foreground=-0.2: give a number from 0 to 1"),
        ("sure", Sure(floor=nan), "floor=nan: give a number from 0 to 1"),
        ("pamr_iterations", -1, "pamr_iterations=-1: give a number from 0"),
        ("pamr_dilations", (), "pamr_dilations=0: give a number from 1"),
        ("pamr_dilations", (4, 0), "pamr_dilations=0: give a number from 1"),
        ("dilations", (1, 2, 3), r"dilations=\(1, 2, 3\): give odd kernels and as many dilations"),
        ("bias_factor", -1.0, "bias_factor=-1.0: give a number from 0"),
    ],
)
def test_a_value_out_of_its_range_is_one_line_with_the_remedy(name, value, told):
    with pytest.raises(SettingsError, match=told) as error:
        method_of(**{name: value})
    assert "\n" not in str(error.value)


def test_the_settings_reach_the_method():
    given_numbers = {
        **{"context": "aspp", "fusion": "gci", "channels": 8, "shallow_stage": 2, "dilations": [1, 2], "psi": 0.2},
        **{"dropout": [0.1, 0.2, 0.3], "focal_p": 2.0, "focal_lambda": 0.1, "warm_up": 0.4, "background": 0.8},
        **{"foreground": 0.5, "floor": 0.1, "pamr_iterations": 5, "pamr_dilations": [1, 3], "bias_factor": 3.0},
    }
    options = load("smoke", {f"ws_fcn.{name}": value for name, value in given_numbers.items()})
    assert len(options.overrides) == len(given_numbers)
    made = ws_fcn.build(backbones.build("tiny"), 6, options.ws_fcn)
    with patch.object(ws_fcn, "WSFCN") as cls:
        ws_fcn.build(None, 6, options.ws_fcn)
    passed = SimpleNamespace(**cls.call_args.kwargs)
    assert (passed.context, passed.fusion, passed.dilations) == ("aspp", "gci", [1, 2])
    assert type(made.context).__name__ == "ASPP" and type(made.fusion).__name__ == "GCI"
    assert made.classifier[4].in_channels == 8 and made.fusion.channels == (8, 32)
    assert [made.context.dropout.p, made.classifier[1].p, made.classifier[3].p] == [0.1, 0.2, 0.3]
    assert (made.psi, made.warm_up, made.sure, made.bias_factor) == (0.2, 0.4, Sure(0.8, 0.5, 0.1), 3.0)
    assert (made.focal_p, made.focal_lambda, made.pamr_iterations, made.pamr_dilations) == (2.0, 0.1, 5, (1, 3))


def test_the_papers_numbers_are_in_its_profile():
    options = load("paper")
    recipe = {**options.cam, **options.ws_fcn}
    names = ("lr", "classifier_factor", "momentum", "weight_decay", "poly_power", "epochs", "batch_size", "crop")
    assert [recipe[name] for name in names] == [0.001, 20, 0.9, 5e-4, 0, 30, 16, 321]
    made = ws_fcn.build(backbones.build("tiny"), 20, options.ws_fcn)
    assert (made.psi, made.focal_p, made.focal_lambda, made.sure) == (0.3, 3, 0.01, Sure(0.7, 0.6, 0.2))
    assert (made.pamr_iterations, made.pamr_dilations, made.bias_factor) == (10, refinement.DILATIONS, 2)
    assert (recipe["context"], recipe["fusion"], recipe["channels"]) == ("fca", "sf2", 256)


# Trainings


@pytest.fixture
def training(train_briefly):
    """`train_briefly` of a WS-FCN: self-supervision begins with the third of its four steps."""

    def run(name, **given_numbers):
        stop = {key: given_numbers.pop(key) for key in ("stop", "micro_batch_size") if key in given_numbers}
        return train_briefly(lambda: bold_method(**given_numbers), name, **stop)

    return run


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_training_draws_the_same_and_continues_to_the_same_bytes(training, stop):
    whole = training("whole")
    with pytest.raises(KeyboardInterrupt):
        training("cut", stop=stop)
    resumed = training("cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_same_seed_trains_to_the_same_bytes_and_self_supervision_changes_them(training):
    first, again, without = training("first"), training("again"), training("without", warm_up=1.0)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.4.weight"], without["classifier.4.weight"])
    assert all(value.isfinite().all() for value in first.values())


def test_micro_batches_of_two_images_train_and_of_one_are_refused_in_a_line(training):
    assert all(value.isfinite().all() for value in training("pairs", micro_batch_size=2).values())
    with pytest.raises(WsssError, match=r"batch of one image.*give a \(micro\) batch of 2") as error:
        training("single", micro_batch_size=1)
    assert "\n" not in str(error.value)
