"""DEFT: attention by its equations, labels as the text has them, swaps that teach the object's side alone."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsss_lib import backbones
from wsss_lib.data.samples import Batch
from wsss_lib.errors import SettingsError
from wsss_lib.localize import inference_copy, multi_scale_cam, normalize_cam
from wsss_lib.methods import deft
from wsss_lib.methods.base import Progress, multi_label_soft_margin
from wsss_lib.methods.deft import (
    DEFT,
    aggregate,
    attention,
    disentangling_loss,
    localisation_map,
    swap_loss,
)
from wsss_lib.settings import load

SCORES = arrays(
    np.float32,
    st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    elements=st.floats(-30, 30, width=32),
)
LABELS = arrays(np.float32, st.just((3, 4)), elements=st.sampled_from([0.0, 0.5, 1.0]))
LOGITS = arrays(np.float32, st.just((4, 3, 4)), elements=st.floats(-20, 20, width=32))
DISENTANGLING = ["fg", "fg_of_bg", "bg_of_fg", "bg"]
LATE = Progress(step=5, steps=10)


def numbers(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape, seed=0):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


# Attention and aggregation


@given(scores=SCORES)
@settings(max_examples=60, deadline=None)
def test_each_attention_map_is_a_soft_max_over_space(scores):
    maps = attention(torch.from_numpy(scores))
    exponents = np.exp(scores.astype(np.float64))
    expected = exponents / exponents.sum((2, 3), keepdims=True)
    np.testing.assert_allclose(maps.numpy(), expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(maps.sum((2, 3)).numpy(), 1, rtol=1e-5)


@given(scores=SCORES, constant=st.floats(-20, 20, width=32))
@settings(max_examples=40, deadline=None)
def test_a_constant_on_a_map_of_scores_changes_nothing_so_no_bias_is_missed(scores, constant):
    scores = torch.from_numpy(scores)
    torch.testing.assert_close(attention(scores + constant), attention(scores), rtol=1e-3, atol=1e-5)


@given(scores=SCORES, channels=st.integers(1, 3), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_the_aggregate_is_the_mean_over_maps_of_weighted_sums_over_space(scores, channels, seed):
    n, m, h, w = scores.shape
    maps, features = attention(torch.from_numpy(scores)), numbers(n, channels, h, w, seed=seed)
    expected = torch.zeros(n, channels, dtype=torch.float64)
    for image in range(n):
        for one in range(m):
            for y in range(h):
                for x in range(w):
                    expected[image] += maps[image, one, y, x].double() * features[image, :, y, x].double() / m
    torch.testing.assert_close(aggregate(features, maps).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("m", [1, 8])
def test_without_a_preference_the_aggregate_is_the_global_average(m):
    features = numbers(2, 5, 7, 3)
    torch.testing.assert_close(aggregate(features, attention(torch.zeros(2, m, 7, 3))), features.mean((2, 3)))


def test_attention_on_one_cell_gathers_that_cell():
    features, scores = numbers(1, 5, 4, 4), torch.zeros(1, 2, 4, 4)
    scores[0, :, 2, 1] = 100
    torch.testing.assert_close(aggregate(features, attention(scores))[0], features[0, :, 2, 1])


def test_the_gradient_of_the_aggregate_is_right():
    features, scores = (numbers(2, n, 3, 2, seed=n).double().requires_grad_() for n in (3, 4))
    assert torch.autograd.gradcheck(lambda z, s: aggregate(z, attention(s)), (features, scores))


# The disentangling terms


@given(logits=LOGITS, label=LABELS)
@settings(max_examples=60, deadline=None)
def test_each_feature_is_told_what_the_text_says(logits, label):
    got = disentangling_loss(*torch.from_numpy(logits), torch.from_numpy(label))
    assert list(got) == DISENTANGLING
    targets = [label, np.zeros_like(label), 1 - label, np.ones_like(label)]
    for s, y, loss in zip(logits.astype(np.float64), targets, got.values(), strict=True):
        expected = (np.logaddexp(0, -s) * y + np.logaddexp(0, s) * (1 - y)).mean()
        assert float(loss) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_perfect_scores_cost_nothing_and_those_of_the_printed_equation_cost_much():
    y = labels(4, 6)
    sure = 50 * torch.ones(4, 6)
    perfect = {"fg": 100 * y - 50, "fg_of_bg": -sure, "bg_of_fg": 50 - 100 * y, "bg": sure}
    assert all(float(term) < 1e-6 for term in disentangling_loss(**perfect, label=y).values())
    printed = {**perfect, "fg_of_bg": perfect["bg_of_fg"], "bg_of_fg": perfect["fg_of_bg"]}
    got = disentangling_loss(**printed, label=y)
    assert got["fg_of_bg"] > 10 and got["bg_of_fg"] > 10


# The swap


def linear(c=5, k=4):
    weight = numbers(k, 2 * c, seed=9)
    return lambda pair: pair @ weight.T


def swapped(z_fg, z_bg, label, order):
    return swap_loss(linear(), z_fg, z_bg, label, torch.as_tensor(order))


@given(order=st.permutations(range(6)), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_the_swap_terms_are_their_sums_over_the_batch(order, seed):
    z_fg, z_bg, y = numbers(6, 5, seed=seed), numbers(6, 5, seed=seed + 1), labels(6, 4, seed=seed)
    got, classify = swapped(z_fg, z_bg, y, order), linear()
    of_bg = [multi_label_soft_margin(classify(torch.cat([z_fg[i], z_bg[j]])), y[i]) for i, j in enumerate(order)]
    of_fg = [multi_label_soft_margin(classify(torch.cat([z_fg[j], z_bg[i]])), y[j]) for i, j in enumerate(order)]
    torch.testing.assert_close(got["swap_bg"], torch.stack(of_bg).mean())
    torch.testing.assert_close(got["swap_fg"], torch.stack(of_fg).mean())


def test_by_the_identity_both_ways_are_the_loss_without_a_swap():
    z_fg, z_bg, y = numbers(6, 5), numbers(6, 5, seed=1), labels(6, 4)
    plain = multi_label_soft_margin(linear()(torch.cat([z_fg, z_bg], 1)), y)
    assert all(torch.equal(term, plain) for term in swapped(z_fg, z_bg, y, range(6)).values())


@given(order=st.permutations(range(6)))
@settings(max_examples=30, deadline=None)
def test_the_second_way_is_the_first_by_the_inverse_permutation(order):
    z_fg, z_bg, y = numbers(6, 5), numbers(6, 5, seed=1), labels(6, 4)
    forth, back = swapped(z_fg, z_bg, y, order), swapped(z_fg, z_bg, y, np.argsort(order))
    torch.testing.assert_close(forth["swap_fg"], back["swap_bg"])
    torch.testing.assert_close(forth["swap_bg"], back["swap_fg"])


@given(order=st.permutations(range(6)), shuffle=st.permutations(range(6)))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_batch_does_not_matter(order, shuffle):
    z_fg, z_bg, y = numbers(6, 5), numbers(6, 5, seed=1), labels(6, 4)
    same_pairs = np.argsort(shuffle)[np.array(order)[list(shuffle)]]  # who is swapped with whom stays
    expected = swapped(z_fg, z_bg, y, order)
    got = swapped(z_fg[list(shuffle)], z_bg[list(shuffle)], y[list(shuffle)], same_pairs)
    for name, term in expected.items():
        torch.testing.assert_close(got[name], term)


def test_objects_under_their_own_names_cost_nothing_either_way_and_under_others_much():
    z = 30 * torch.eye(4)
    order = torch.tensor([1, 2, 3, 0])
    object_only = partial(swap_loss, lambda pair: pair[:, :4] - 15, z, torch.zeros(4, 4), order=order)
    own, others = object_only(torch.eye(4)), object_only(torch.eye(4).roll(1, 0))
    for way in ("swap_bg", "swap_fg"):
        assert own[way] < 1e-5 and others[way] > 1


def test_the_swap_teaches_the_object_and_not_the_background():
    z_fg, z_bg = numbers(6, 5).requires_grad_(), numbers(6, 5, seed=1).requires_grad_()
    for term in swapped(z_fg, z_bg, labels(6, 4), [1, 2, 3, 4, 5, 0]).values():
        z_fg.grad = None
        term.backward()
        assert z_bg.grad is None and z_fg.grad.abs().sum() > 0


# The localisation map


@given(scores=arrays(np.float32, st.just((2, 2, 3, 2, 3)), elements=st.floats(-30, 30, width=32)))
@settings(max_examples=60, deadline=None)
def test_the_map_is_the_larger_of_the_foregrounds_share_and_what_the_background_leaves(scores):
    fg, bg = torch.from_numpy(scores)
    got = localisation_map(fg, bg)
    for n in range(2):
        for k in range(3):
            share = [np.maximum(m, 0) / (max(m.max(), 0) + 1e-5) for m in (fg[n, k].numpy(), bg[n, k].numpy())]
            np.testing.assert_allclose(got[n, k].numpy(), np.maximum(share[0], 1 - share[1]), atol=1e-5)
    assert got.min() >= 0 and got.max() <= 1


def test_the_map_knows_no_other_class_no_label_and_no_scale():
    fg, bg = numbers(2, 4, 5, 5), numbers(2, 4, 5, 5, seed=1)
    whole = localisation_map(fg, bg)
    for k in range(4):
        assert torch.equal(localisation_map(fg[:, k : k + 1], bg[:, k : k + 1]), whole[:, k : k + 1])
    torch.testing.assert_close(localisation_map(3 * fg, 0.5 * bg), whole, rtol=0, atol=1e-4)


def test_a_background_that_is_nowhere_floods_the_map():
    fg, nowhere = numbers(1, 2, 4, 4), -torch.ones(1, 2, 4, 4)
    assert torch.equal(localisation_map(fg, nowhere), torch.ones(1, 2, 4, 4))


# The method


def method_of(**given):
    torch.manual_seed(0)
    return DEFT(backbones.build("tiny"), 6, **{"attention_maps": 4, **given})


@pytest.fixture
def method():
    return method_of()


@pytest.fixture
def batch():
    return Batch(numbers(5, 3, 32, 32), labels(5, 6), tuple("abcde"))


def losses(method, batch, progress=LATE, seed=5):
    torch.manual_seed(seed)
    return method.loss(batch, progress)


def test_the_total_is_the_first_term_and_the_others_times_lambda_and_the_swap(batch):
    got = losses(method_of(weight=0.7), batch)
    assert list(got.terms) == [*DISENTANGLING, "swap_bg", "swap_fg"]
    fg, fg_of_bg, bg_of_fg, bg, swap_bg, swap_fg = got.terms.values()
    torch.testing.assert_close(got.total, fg + 0.7 * (fg_of_bg + bg_of_fg + bg) + swap_bg + swap_fg)


def test_the_terms_are_those_of_the_four_scores_and_of_one_drawn_permutation(method, batch):
    got, made = losses(method.eval(), batch).terms, method.disentangle(batch.image)
    torch.manual_seed(5)
    order = torch.randperm(5)
    assert not torch.equal(order, torch.arange(5))
    scores = [f(z) for f in (method.classify_fg, method.classify_bg) for z in (made.z_fg, made.z_bg)]
    expected = disentangling_loss(*scores, batch.label)
    expected |= swap_loss(method.classify_swap, made.z_fg, made.z_bg, batch.label, order)
    for name, term in expected.items():
        torch.testing.assert_close(got[name], term)


def test_the_features_that_a_lesson_reads_are_those_of_the_equations(method, batch):
    made = method.eval().disentangle(batch.image)
    torch.testing.assert_close(made.features, method.backbone(batch.image))
    for maps, z, attend in (
        (made.attention_fg, made.z_fg, method.attend_fg),
        (made.attention_bg, made.z_bg, method.attend_bg),
    ):
        torch.testing.assert_close(maps, attention(attend(made.features)))
        torch.testing.assert_close(z, aggregate(made.features, maps))
    assert made.attention_fg.shape == (5, 4, 8, 8) and made.z_fg.shape == (5, 64)


@pytest.mark.parametrize(
    ("progress", "swapping"),
    [(Progress(0, 10), False), (Progress(4, 10), False), (LATE, True), (Progress(9, 10), True)],
)
def test_before_its_start_the_swap_is_nothing_and_draws_nothing(method, batch, progress, swapping):
    got = losses(method, batch, progress)
    drawn = not torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))
    fg, *others = (got.terms[name] for name in DISENTANGLING)
    disentangling = sum([fg, *(0.3 * term for term in others)])  # added in the method's order: to the last digit
    if swapping:
        assert got.total > disentangling and drawn
    else:
        assert torch.equal(got.total, disentangling) and got.terms["swap_bg"] == got.terms["swap_fg"] == 0
        assert not drawn


def test_the_papers_sixth_epoch_of_ten_is_half_of_any_training():
    start = load("paper").deft.start
    for per_epoch in (1, 7, 661):
        fractions = [Progress(step=epoch * per_epoch, steps=10 * per_epoch).fraction for epoch in range(10)]
        assert [fraction >= start for fraction in fractions] == 5 * [False] + 5 * [True]


@pytest.mark.parametrize(
    ("swap", "ways"), [("both", {"bg", "fg"}), ("background", {"bg"}), ("foreground", {"fg"}), ("none", set())]
)
def test_only_the_chosen_ways_are_learnt_from(batch, swap, ways):
    chosen, both = losses(method_of(swap=swap), batch).terms, losses(method_of(), batch).terms
    for way in ("bg", "fg"):
        expected = both[f"swap_{way}"] if way in ways else torch.zeros(())
        torch.testing.assert_close(chosen[f"swap_{way}"], expected)


def test_the_swap_terms_pass_no_gradient_to_the_backgrounds_aggregator(method, batch):
    terms = losses(method.train(), batch).terms
    (terms["swap_bg"] + terms["swap_fg"]).backward()
    for silent in (method.attend_bg, method.classify_fg, method.classify_bg):
        assert silent.weight.grad is None
    for learning in (method.attend_fg, method.classify_swap):
        assert learning.weight.grad.abs().sum() > 0
    assert all(p.grad.any() for p in method.backbone.parameters())


@pytest.mark.parametrize(
    ("name", "learning"),
    [
        ("fg", ("attend_fg", "classify_fg")),
        ("fg_of_bg", ("attend_bg", "classify_fg")),
        ("bg_of_fg", ("attend_fg", "classify_bg")),
        ("bg", ("attend_bg", "classify_bg")),
    ],
)
def test_each_disentangling_term_teaches_its_aggregator_and_its_classifier(method, batch, name, learning):
    losses(method.train(), batch).terms[name].backward()
    for module in ("attend_fg", "attend_bg", "classify_fg", "classify_bg", "classify_swap"):
        gradient = getattr(method, module).weight.grad
        assert (gradient is not None) == (module in learning)
        assert gradient is None or gradient.abs().sum() > 0


def test_the_score_is_the_mean_of_the_map_under_attention(method, batch):
    method.eval()
    maps, made = method.maps(batch.image), method.disentangle(batch.image)
    torch.testing.assert_close(aggregate(maps, made.attention_fg), method.logits(batch.image), rtol=1e-4, atol=1e-5)


def test_without_attention_and_background_scores_and_loss_are_those_of_a_plain_classifier(batch):
    method = method_of(weight=0.0, swap="none").eval()
    torch.nn.init.zeros_(method.attend_fg.weight)
    scores = method.maps(batch.image).mean((2, 3))
    torch.testing.assert_close(method.logits(batch.image), scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses(method, batch).total, multi_label_soft_margin(scores, batch.label))


def test_the_map_is_the_foregrounds_or_equation_7(batch):
    plain, both = method_of(map="fg").eval(), method_of(map="max").eval()
    maps = plain.maps(batch.image)
    assert (maps < 0).any() and torch.equal(plain.cam(batch.image), maps.relu())
    of_bg = torch.einsum("kc,nchw->nkhw", both.classify_bg.weight, both.backbone(batch.image))
    torch.testing.assert_close(both.cam(batch.image), localisation_map(maps, of_bg), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", deft.MAPS)
def test_either_map_goes_through_the_localisation(batch, name):
    method = method_of(map=name).eval()
    with torch.inference_mode():
        copy = inference_copy(method)
        torch.testing.assert_close(copy.cam(batch.image), method.cam(batch.image), rtol=1e-3, atol=1e-3)
        maps = normalize_cam(multi_scale_cam(copy, batch.image, (1.0, 0.5), True, 1), batch.label)
    assert maps.shape == (5, 6, 32, 32) and maps.min() >= 0 and maps.max() <= 1
    assert torch.equal(maps.amax((2, 3)) > 0, batch.label > 0)


def test_under_autocast_the_terms_are_nearly_the_same(method, batch):
    with torch.no_grad():
        plain = losses(method.eval(), batch).terms
        with torch.autocast("cpu", torch.bfloat16):
            fast = losses(method, batch).terms
    for name, value in plain.items():
        assert float(fast[name]) == pytest.approx(float(value), rel=2e-3), name


@pytest.mark.parametrize("backbone", ["tiny", "mobilenet_v1", "resnet50"])
def test_any_backbone_will_do(backbone):
    torch.manual_seed(0)
    method = DEFT(backbones.build(backbone), 3, attention_maps=2).train()
    got = losses(method, Batch(numbers(2, 3, 64, 64), labels(2, 3), ("a", "b")))
    got.total.backward()
    assert got.total.isfinite() and method.attend_fg.weight.grad.isfinite().all()


def test_the_seed_decides_the_swap_and_nothing_else(method, batch):
    first, again, other = (losses(method.eval(), batch, seed=seed).terms for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], other[name]) for name in DISENTANGLING)
    assert not torch.equal(first["swap_bg"], other["swap_bg"])


def test_every_weight_is_in_one_group_and_each_group_learns_at_its_own_rate():
    method = method_of(attention_factor=0.5)
    groups = {g["name"]: g for g in method.parameter_groups(7.0)}
    assert {name: g["lr_factor"] for name, g in groups.items()} == {
        "backbone": 1.0,
        "classifier": 7.0,
        "attention": 0.5,
    }
    assert len(groups["classifier"]["params"]) == 3 and len(groups["attention"]["params"]) == 2
    grouped = [id(p) for g in groups.values() for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in method.parameters())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention_maps", 0),
        ("weight", -0.1),
        ("weight", float("nan")),
        ("start", 1.5),
        ("start", -0.1),
        ("attention_factor", -1.0),
        ("swap", "all"),
        ("map", "bg"),
    ],
)
def test_a_value_out_of_its_range_is_one_line_with_the_remedy(name, value):
    with pytest.raises(SettingsError, match=f"{name}={value!r}.*: (give|choose)") as error:
        method_of(**{name: value})
    assert "\n" not in str(error.value)


def test_the_settings_reach_the_method():
    given = {"attention_maps": 3, "lambda_dis": 0.9, "start": 0.25, "swap": "background", "map": "max"}
    given["attention_factor"] = 0.5
    made = deft.build(backbones.build("tiny"), 6, load("smoke", {f"deft.{k}": v for k, v in given.items()}).deft)
    assert made.attend_fg.out_channels == made.attend_bg.out_channels == 3
    assert (made.weight, made.start, made.ways, made.map) == (0.9, 0.25, ("bg",), "max")
    assert made.attention_factor == 0.5


def test_the_papers_numbers_are_in_its_profile():
    options = load("paper")
    recipe = {**options.cam, **options.deft}
    assert [recipe[name] for name in ("lr", "epochs", "batch_size", "crop")] == [0.1, 10, 16, 512]
    assert (recipe["lambda_dis"], recipe["attention_maps"], recipe["start"]) == (0.3, 256, 0.5)


@pytest.fixture
def training(train_briefly):
    """`train_briefly` of a DEFT: the swap begins with the third of its four steps."""
    return partial(train_briefly, lambda: DEFT(backbones.build("tiny"), 6, attention_maps=4))


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_training_draws_the_same_and_continues_to_the_same_bytes(training, stop):
    whole = training("whole")
    with pytest.raises(KeyboardInterrupt):
        training("cut", stop=stop)
    resumed = training("cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_training_changes_the_swaps_classifier_only_from_its_start_on(training, train_briefly):
    def never():
        return DEFT(backbones.build("tiny"), 6, attention_maps=4, swap="none")

    swapped, plain = training("swap"), train_briefly(never, "none")
    assert not torch.equal(swapped["classify_swap.weight"], plain["classify_swap.weight"])
    assert not torch.equal(swapped["attend_fg.weight"], plain["attend_fg.weight"])
    assert all(value.isfinite().all() for value in swapped.values())


def test_micro_batches_of_one_image_train_too(training):
    assert all(value.isfinite().all() for value in training("single", micro_batch_size=1).values())
