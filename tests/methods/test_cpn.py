"""CPN: halves that add up to the image, losses by their equations, and who teaches whom."""

from functools import partial
from math import nan
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsss_lib import backbones, stages
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.methods import cpn
from wsss_lib.methods.base import Progress, multi_label_soft_margin
from wsss_lib.methods.cam import CAM
from wsss_lib.methods.cpn import (
    BACKGROUNDS,
    CPN,
    Maps,
    complementary_pair,
    cross_loss,
    remainder,
    triplet_loss,
)
from wsss_lib.nn.class_maps import keep_strongest, min_max, min_pooling_loss, soft_masks, with_background
from wsss_lib.nn.patches import visible_share
from wsss_lib.nn.pcm import pixel_correlation
from wsss_lib.settings import load


def drawn(method, batch):
    """S and lambda that the loss draws for a batch and hands on."""
    with patch.object(method, "triplet") as triplet:
        method.loss(batch, Progress())
    _, _, shown, lam = triplet.call_args.args
    return shown, lam


def terms_of(method, batch, shown):
    """The losses with a given S, all pixels counted."""
    return method.triplet(batch.image, batch.label, shown, visible_share(shown))


def maps_of(*shape):
    """Maps in [0, 1] with zeros and equal values among them."""
    return st.integers(0, 2**31).map(
        lambda seed: np.maximum(np.random.default_rng(seed).random(shape, np.float32) * 1.3 - 0.3, 0).round(
            1 + seed % 3
        )
    )


RAW, REFINED = maps_of(3, 2, 3, 4, 4), maps_of(3, 2, 4, 4, 4)  # of an image and both halves
LAM = arrays(np.float32, st.just(2), elements=st.floats(0, 1, width=32))
SOME = settings(max_examples=40, deadline=None)


@pytest.fixture
def method():
    torch.manual_seed(0)
    return CPN(backbones.build("tiny"), n_classes=6, sides=(8, 16))


@pytest.fixture(scope="module")
def shown():
    """Every image shows other squares of 8 pixels: 1 to 6 of 8 columns."""
    rows = torch.stack([(torch.arange(8).roll(3 * n) <= n).float() for n in range(6)])
    return rows.repeat_interleave(8, 1)[:, None, None, :].expand(6, 1, 64, 64).contiguous()


def branches(raw, refined):
    return [Maps(*(torch.from_numpy(part) for part in pair)) for pair in zip(raw, refined, strict=True)]


def leaves():
    return [Maps(torch.rand(2, 3, 4, 4, requires_grad=True), torch.rand(2, 4, 4, 4, requires_grad=True)) for _ in "ohx"]


def in_squares(shown, side):
    """(N,) bool: which of the images (N, 1, 64, 64) are constant in squares of this side."""
    n = 64 // side
    squares = shown.view(-1, n, side, n, side).transpose(2, 3).flatten(3)
    return (squares == squares[..., :1]).flatten(1).all(1)


def rest(original, part, weight, background):
    """`remainder` of one image (K, h, w), by a loop over cells."""
    out = np.zeros((len(original) + 1, *original.shape[1:]))
    for y, x in np.ndindex(*original.shape[1:]):
        difference = original[:, y, x] - weight * part[:, y, x]
        if background == "code":
            channels = np.array([(weight * part[:, y, x]).max() - original[:, y, x].max(), *difference])
            out[:, y, x] = np.where(channels == channels.max(), channels, 0)
        else:
            found = np.maximum(difference, 0)
            total = 1 if background == "whole" else 1 - weight
            out[0, y, x] = max(total - found.max(), 0)
            out[1:, y, x] = np.where(found == found.max(), found, 0)
    return out


def hardest(errors, share):
    flat = np.sort(np.array(errors).reshape(len(errors), -1), 1)[:, ::-1]
    return flat[:, : round(share * flat.shape[1])].mean()


# The halves


@given(
    image=arrays(np.float32, st.just((2, 3, 4, 5)), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    shown=arrays(bool, st.just((2, 1, 4, 5))),
)
@SOME
def test_the_halves_add_up_to_the_image_bit_by_bit_and_share_no_pixel(image, shown):
    image, shown = torch.from_numpy(image), torch.from_numpy(shown).float()
    hidden, other = complementary_pair(image, shown)
    assert torch.equal(hidden + other, image)
    assert not (hidden * other).any()
    seen = shown.bool().expand_as(image)
    assert torch.equal(hidden[seen], image[seen]) and not hidden[~seen].any()


@given(shown=arrays(bool, st.just((3, 1, 4, 5))))
@SOME
def test_the_weights_of_the_halves_are_their_shares_of_pixels_and_sum_to_one(shown):
    lam = visible_share(torch.from_numpy(shown).float())
    np.testing.assert_allclose(lam.numpy(), [one.sum() / 20 for one in shown], rtol=1e-6)
    torch.testing.assert_close(lam + visible_share(torch.from_numpy(~shown).float()), torch.ones(3))


def test_of_equal_patches_the_weight_is_one_minus_the_share_that_is_hidden(method, batch):
    method.sides = (16,)
    for p_h in (0.0, 0.25, 0.5, 1.0):
        method.p_h = p_h
        torch.testing.assert_close(drawn(method, batch)[1], torch.full((6,), 1 - p_h))


# The losses


@given(raw=RAW, refined=REFINED, lam=LAM)
@SOME
def test_the_triplet_loss_is_equation_14_on_the_foreground(raw, refined, lam):
    got = triplet_loss(*branches(raw, refined), torch.from_numpy(lam))
    weight, (raw, refined) = (
        lam[:, None, None, None].astype(float),
        (raw.astype(float), refined[:, :, 1:].astype(float)),
    )
    expected = sum(abs(weight * h + (1 - weight) * x - o).mean() for o, h, x in (raw, refined))
    assert float(got) == pytest.approx(expected, abs=1e-5)


@given(raw=RAW, refined=REFINED, lam=LAM, share=st.sampled_from([0.2, 1.0]), background=st.sampled_from(BACKGROUNDS))
@SOME
def test_the_cross_loss_is_equation_15_over_the_hardest_errors(raw, refined, lam, share, background):
    got = cross_loss(*branches(raw, refined), torch.from_numpy(lam), share, background)
    (o, h, x), (_, refined_h, refined_x) = raw, refined
    first, second = [], []
    for n, weight in enumerate(lam):
        # In float32, as torch does it: a class that is the largest by a hair must be the same one.
        other = np.float32(1) - weight
        first.append(abs(rest(o[n], h[n], weight, background) - other * refined_x[n]))
        second.append(abs(rest(o[n], x[n], other, background) - weight * refined_h[n]))
    assert float(got) == pytest.approx(hardest(first, share) + hardest(second, share), abs=1e-4)


@given(raw=RAW, refined=REFINED, lam=LAM, background=st.sampled_from(BACKGROUNDS))
@SOME
def test_it_does_not_matter_which_half_is_called_hidden(raw, refined, lam, background):
    original, hidden, other = branches(raw, refined)
    lam = torch.from_numpy(lam).double()
    double = [Maps(*(part.double() for part in maps)) for maps in (original, hidden, other)]
    original, hidden, other = double
    swapped = original, other, hidden, 1 - lam
    torch.testing.assert_close(triplet_loss(*swapped), triplet_loss(*double, lam))
    # 1 - (1 - lam) may differ from lam in the last digit, so cells that are nearly equal are left out.
    clear = [Maps(maps.raw.round(decimals=3), maps.refined) for maps in double]
    lam = (lam * 64).round() / 64
    torch.testing.assert_close(
        cross_loss(clear[0], clear[2], clear[1], 1 - lam, 0.2, background), cross_loss(*clear, lam, 0.2, background)
    )


@given(raw=RAW, lam=LAM)
@SOME
def test_halves_of_one_opinion_cost_nothing_where_the_background_is_weighted(raw, lam):
    raw = keep_strongest(with_background(torch.from_numpy(raw[0])))[:, 1:]
    maps, lam = Maps(raw, with_background(raw)), torch.from_numpy(lam)
    assert float(triplet_loss(maps, maps, maps, lam)) < 1e-6
    assert float(cross_loss(maps, maps, maps, lam, background="weighted")) < 1e-5


def test_halves_of_one_opinion_pay_for_the_background_where_it_is_whole():
    maps = Maps(torch.zeros(1, 2, 2, 2), with_background(torch.zeros(1, 2, 2, 2)))
    lam = torch.tensor([0.75])
    assert cross_loss(maps, maps, maps, lam, 1 / 3, "weighted") == 0
    assert cross_loss(maps, maps, maps, lam, 1 / 3, "whole") == 1  # lambda for one half, 1 - lambda for the other


@given(raw=RAW, lam=LAM, background=st.sampled_from(BACKGROUNDS))
@SOME
def test_a_remainder_holds_one_class_a_cell_and_nothing_of_a_class_that_the_half_has_in_full(raw, lam, background):
    original, part, lam = torch.from_numpy(raw[0]), torch.from_numpy(raw[1]), torch.from_numpy(lam)
    got = remainder(original, part, lam, background)
    expected = np.stack([rest(raw[0][n], raw[1][n], lam[n].numpy(), background) for n in range(2)])
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)
    assert not remainder(original, original, torch.ones(2), background)[:, 1:].any()


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_if_a_half_shows_nothing_all_is_left_to_the_other(background):
    original = torch.rand(1, 3, 4, 4) / 2 + 0.5
    left = remainder(original, torch.rand(1, 3, 4, 4), torch.zeros(1), background)
    assert torch.equal(left[:, 1:], keep_strongest(with_background(original))[:, 1:])


def test_in_the_first_term_the_halves_teach_and_in_the_second_all_refined_maps_learn():
    original, hidden, other = leaves()
    triplet_loss(original, hidden, other, torch.tensor([0.5, 0.25])).backward()
    assert original.raw.grad.all() and hidden.raw.grad is None and other.raw.grad is None
    for maps in (original, hidden, other):
        assert maps.refined.grad[:, 1:].all() and not maps.refined.grad[:, 0].any()


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_from_the_cross_loss_only_the_refined_maps_of_the_halves_learn(background):
    original, hidden, other = leaves()
    cross_loss(original, hidden, other, torch.tensor([0.5, 0.25]), background=background).backward()
    assert all(maps.raw.grad is None for maps in (original, hidden, other)) and original.refined.grad is None
    assert hidden.refined.grad.any() and other.refined.grad.any()


@given(raw=RAW, refined=REFINED, lam=LAM)
@SOME
def test_the_hardest_fifth_is_never_below_the_mean(raw, refined, lam):
    maps, lam = branches(raw, refined), torch.from_numpy(lam)
    assert cross_loss(*maps, lam, 0.2) >= cross_loss(*maps, lam, 1.0) - 1e-6


def test_another_background_is_refused():
    with pytest.raises(SettingsError, match="background='none': choose one of weighted, whole, code"):
        remainder(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), torch.zeros(1), "none")


# The method


def test_the_network_sees_the_image_and_its_halves(method, batch, shown):
    seen, both = [], method.both_maps
    method.both_maps = lambda image: seen.append(image) or both(image)
    terms_of(method, batch, shown)
    image, hidden, other = seen
    assert torch.equal(image, batch.image)
    assert torch.equal(hidden, batch.image * shown) and torch.equal(other, batch.image * (1 - shown))


@pytest.mark.parametrize(
    ("share", "eps", "background"), [(0.2, 0.1, "weighted"), (0.5, 0.1, "whole"), (0.2, 0.4, "code")]
)
def test_the_terms_and_their_gradients_are_their_equations_on_the_maps_of_the_branches(
    method, batch, shown, gradient, share, eps, background
):
    method.eval().share, method.eps, method.background = share, eps, background
    losses = terms_of(method, batch, shown)
    with_0, scores, triplet, least = torch.cat([torch.ones(6, 1), batch.label], 1), [], [], []
    for view in (batch.image, batch.image * shown, batch.image * (1 - shown)):
        raw, refined = method.both_maps(view)
        scores.append(multi_label_soft_margin(raw.mean((2, 3)), batch.label))
        triplet.append(Maps(min_max(raw, batch.label, eps), min_max(refined, with_0)))
        least.append(min_pooling_loss(refined[:, 1:] * batch.label[:, :, None, None]))
    lam = (torch.arange(6) + 1) / 8
    expected = {
        "classify": sum(scores) / 3,
        "tcp": triplet_loss(*triplet, lam),
        "cpcr": cross_loss(*triplet, lam, share, background),
        "rvmin": sum(least) / 3,
    }
    assert list(losses.terms) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses.terms[name], value)
        assert value > 0
        by_hand = gradient(value)
        assert (gradient(losses.terms[name]) - by_hand).norm() < 1e-2 * by_hand.norm(), name
    torch.testing.assert_close(losses.total, sum(expected.values()))


def test_if_nothing_is_hidden_the_first_half_is_the_image_and_the_triplet_loss_zero(method, batch):
    everything = torch.ones(6, 1, 64, 64)
    hidden, other = complementary_pair(batch.image, everything)
    assert torch.equal(hidden, batch.image) and not other.any() and (visible_share(everything) == 1).all()
    with torch.no_grad():
        assert float(terms_of(method.eval(), batch, everything).terms["tcp"]) < 1e-5


@pytest.mark.parametrize("training", [True, False])
def test_all_terms_are_the_same_for_the_complementary_draw(method, batch, shown, training):
    with torch.no_grad():
        first, second = (terms_of(method.train(training), batch, draw).terms for draw in (shown, 1 - shown))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("term", "taught"),
    [
        ("classify", {"network"}),
        ("tcp", {"network", "refinement"}),
        ("cpcr", {"refinement"}),
        ("rvmin", {"refinement"}),
    ],
)
def test_a_term_reaches_what_it_teaches_and_nothing_else(method, batch, shown, term, taught):
    terms_of(method, batch, shown).terms[term].backward()
    for name, parameter in method.named_parameters():
        part = "refinement" if name.startswith(("features.", "phi.")) else "network"
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (part in taught), name


def test_what_the_triplet_loss_teaches_the_network_is_the_gradient_of_its_first_term(method, batch, shown):
    terms_of(method.eval(), batch, shown).terms["tcp"].backward()
    got = {name: p.grad for name, p in method.named_parameters() if name.startswith(("backbone.", "classifier."))}
    method.zero_grad()
    with torch.no_grad():
        lam, halves = visible_share(shown)[:, None, None, None], complementary_pair(batch.image, shown)
        hidden, other = (min_max(method.maps(half), batch.label, 0.1) for half in halves)
    (lam * hidden + (1 - lam) * other - min_max(method.maps(batch.image), batch.label, 0.1)).abs().mean().backward()
    scale = max(float(g.abs().max()) for g in got.values())
    parameters = dict(method.named_parameters())
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, parameters[name].grad, rtol=1e-2, atol=1e-3 * scale)


def test_the_total_teaches_every_weight_once_and_each_is_in_one_group(method, batch):
    losses = method.loss(batch, Progress())
    losses.total.backward()
    assert losses.total.isfinite() and all(p.grad.isfinite().all() and p.grad.any() for p in method.parameters())
    groups = {g["name"]: g for g in method.parameter_groups(7.0)}
    assert groups["classifier"]["lr_factor"] == 7.0 and groups["backbone"]["lr_factor"] == 1.0
    grouped = [id(p) for g in groups.values() for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in method.parameters())


def test_scores_and_maps_are_those_of_a_cam_with_the_same_weights(method, batch):
    cam = CAM(backbones.build("tiny"), n_classes=6)
    assert set(cam.state_dict()) < set(method.state_dict())
    method.load_state_dict(cam.state_dict(), strict=False)
    with torch.no_grad():
        for name in ("maps", "logits"):
            torch.testing.assert_close(
                getattr(method.eval(), name)(batch.image), getattr(cam.eval(), name)(batch.image)
            )


@pytest.mark.parametrize("softmax_axis", ["class", "space"])
def test_the_cam_is_the_sum_of_both_refinements_less_its_minimum(batch, softmax_axis):
    torch.manual_seed(0)
    method = CPN(backbones.build("tiny"), 6, softmax_axis=softmax_axis).eval()
    with torch.no_grad():
        cam, (_, refined) = method.cam(batch.image), method.both_maps(batch.image)
        # Both parts weight by something that sums to 1: over classes and background, or over a map's cells.
        method.phi.weight.zero_()
        _, even = method.both_maps(batch.image)
    foreground = refined[:, 1:]
    assert torch.equal(cam, foreground - foreground.amin((2, 3), keepdim=True)) and cam.max() <= 2
    total = even.sum(1)
    expected = 1 + 1 / 7 if softmax_axis == "class" else 1 + 1 / 256
    torch.testing.assert_close(total, torch.full_like(total, expected), rtol=0, atol=1e-4)


def test_a_weight_changes_the_total_and_no_term(method, batch, shown):
    before = terms_of(method.eval(), batch, shown)
    method.w_tcp, method.w_cpcr, method.w_rvmin = 0.5, 0.0, 2.0
    after = terms_of(method, batch, shown)
    assert after.terms == before.terms
    torch.testing.assert_close(
        after.total, after.terms["classify"] + 0.5 * after.terms["tcp"] + 2 * after.terms["rvmin"]
    )


def test_without_prcm_the_refined_maps_are_those_of_pcm_and_the_rest_starts_the_same(batch):
    made = []
    for prcm in (True, False):
        torch.manual_seed(0)
        made.append(CPN(backbones.build("tiny"), 6, prcm=prcm).eval())
    whole, plain = (dict(one.state_dict()) for one in made)
    assert set(whole) - set(plain) == {"phi.weight"}
    assert all(torch.equal(whole[name], value) for name, value in plain.items())
    with torch.no_grad():
        maps, refined = made[1].both_maps(batch.image)
        _, embedding = made[1].features(batch.image, made[1].backbone.stages(batch.image))
    torch.testing.assert_close(refined, pixel_correlation(embedding, soft_masks(maps)))


def test_squares_are_drawn_for_each_image_and_the_seed_decides(method, batch):
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(drawn(method, batch)[0])
    first, again, other = draws
    assert first.shape == (6, 1, 64, 64) and set(first.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({one.numpy().tobytes() for one in first}) == 6
    assert in_squares(first, 8).all()
    torch.testing.assert_close(visible_share(first), torch.full((6,), 0.5))
    more = [drawn(method, batch)[0] for _ in range(3)]
    large = [int(in_squares(draw, 16).sum()) for draw in (*draws, *more)]
    assert any(0 < n < 6 for n in large)  # not all images of a batch have the same side


def test_super_pixels_of_the_batch_are_hidden_as_a_whole(batch):
    method = CPN(backbones.build("tiny"), 6, patches="superpixel", p_h=0.25)
    regions = 1 + (torch.arange(64 * 64).view(64, 64) // 512).expand(6, 64, 64)  # 8 of 8 rows each
    shown, _ = drawn(method, batch._replace(regions=regions))
    rows = shown[:, 0, ::8, 0]
    assert torch.equal(rows.sum(1), torch.full((6,), 6.0))
    assert torch.equal(shown[:, 0], rows.repeat_interleave(8, 1)[:, :, None].expand(6, 64, 64))


def test_padding_is_not_hidden_and_does_not_count(batch):
    method = CPN(backbones.build("tiny"), 6, patches="superpixel", p_h=0.25)
    regions = torch.zeros(6, 64, 64, dtype=torch.long)
    regions[:, :16, :32] = 1 + torch.arange(32) // 8  # 4 of the same size
    shown, lam = drawn(method, batch._replace(regions=regions))
    assert torch.equal(lam, torch.full((6,), 0.75)) and (shown[:, 0][regions == 0] == 1).all()


def test_super_pixels_without_regions_are_refused(batch):
    method = CPN(backbones.build("tiny"), 6, patches="superpixel")
    with pytest.raises(SettingsError, match="the batch has no regions; make super-pixels, or take grid") as error:
        method.loss(batch, Progress())
    assert "\n" not in str(error.value)


def test_with_squares_it_sees_nothing_but_images_and_labels(method, batch):
    asked = set()

    class Batch:
        def __getattr__(self, name):
            asked.add(name)
            return getattr(batch, name)

    method.loss(Batch(), Progress())
    assert asked == {"image", "label"}


def test_under_autocast_the_terms_are_nearly_the_same(method, batch, shown):
    with torch.no_grad():
        plain = terms_of(method.eval(), batch, shown).terms
        with torch.autocast("cpu", torch.bfloat16):
            fast = terms_of(method, batch, shown).terms
    for name, value in plain.items():
        assert float(fast[name]) == pytest.approx(float(value), rel=0.2, abs=0.02), name


def test_the_settings_reach_the_method():
    values = {"patches": "superpixel", "sides": [4, 32], "p_h": 0.25, "share": 0.5, "eps": 0.2}
    values |= {"softmax_axis": "space", "background": "code", "w_tcp": 0.5, "w_cpcr": 0.0, "w_rvmin": 1.0}
    values |= {"prcm": False}
    section = load("smoke", {f"cpn.{name}": value for name, value in values.items()}).cpn
    method = cpn.build(backbones.build("tiny"), 6, section)
    assert {**{name: getattr(method, name) for name in values}, "sides": list(method.sides)} == values
    paper = cpn.build(backbones.build("tiny"), 6, load("paper").cpn)
    assert (paper.sides, paper.p_h, paper.share, paper.eps, paper.softmax_axis) == ((56, 112), 0.5, 0.2, 1e-5, "class")


@pytest.mark.parametrize("name", ["patches", "softmax_axis", "background"])
def test_an_unknown_choice_is_refused_before_anything_is_trained(name):
    with pytest.raises(SettingsError, match=f"{name}='hexagon': choose one of") as error:
        CPN(backbones.build("tiny"), 6, **{name: "hexagon"})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("p_h", 2.0),
        ("p_h", nan),
        ("sides", ()),
        ("sides", (0,)),
        ("sides", (5.5,)),
        ("share", 0.0),
        ("eps", 0.0),
        ("w_tcp", -1.0),
        ("w_cpcr", nan),
        ("w_rvmin", -0.1),
    ],
)
def test_a_number_out_of_range_is_refused_before_anything_is_trained(name, value):
    with pytest.raises(SettingsError, match=f"^{name}=.*: give "):
        CPN(backbones.build("tiny"), 6, **{name: value})


def test_a_mask_of_other_images_is_refused():
    with pytest.raises(WsssError, match=r"shown \(3, 4, 4\), images \(3, 3, 4, 4\): give one mask"):
        complementary_pair(torch.ones(3, 3, 4, 4), torch.ones(3, 4, 4))


@pytest.fixture
def training(train_briefly):
    """`train_briefly` of a CPN."""
    return partial(train_briefly, lambda: CPN(backbones.build("tiny"), 6, sides=(8, 16)))


def test_an_interrupted_training_draws_the_same_and_continues_to_the_same_bytes(training):
    whole = training("whole")
    with pytest.raises(KeyboardInterrupt):
        training("cut", stop=2)
    resumed = training("cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_short_training_lowers_the_loss(method, batch, shown):
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01, momentum=0.9)
    totals = []
    for _ in range(12):
        losses = terms_of(method.train(), batch, shown)
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        totals.append({name: float(value.detach()) for name, value in {**losses.terms, "total": losses.total}.items()})
    assert totals[-1]["total"] < 0.9 * totals[0]["total"]
    assert totals[-1]["classify"] < totals[0]["classify"]


def test_a_run_of_the_smoke_profile_trains_loads_and_localises(smoke_run):
    run = smoke_run.of("cpn")
    cams, own = stages.make_cams(run), stages.recipe(run)
    rows = (stages.train_classifier(run).path / "log.csv").read_text().splitlines()
    assert len(rows) == 1 + 36 // own.batch_size * own.epochs
    assert len(list((cams.path / "cams").iterdir())) == 36 and cams.metrics["seed"]["fixed"]["miou"] > 0
