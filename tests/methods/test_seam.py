"""SEAM: two views of each image, losses by their equations, and refined maps that teach no backbone."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_lib import backbones, stages
from wsss_lib.errors import SettingsError
from wsss_lib.methods import seam
from wsss_lib.methods.base import Progress, multi_label_soft_margin
from wsss_lib.methods.cam import CAM
from wsss_lib.methods.seam import SEAM, cross_loss, equivariance_loss, resize
from wsss_lib.nn.class_maps import min_max, min_pooling_loss, soft_masks
from wsss_lib.settings import load


def maps_of(*shape):
    """Maps in [0, 1] with zeros and equal values among them."""
    return st.integers(0, 2**31).map(
        lambda seed: np.maximum(np.random.default_rng(seed).random(shape, np.float32) * 1.3 - 0.3, 0).round(
            1 + seed % 3
        )
    )


MAPS, REFINED = maps_of(2, 2, 3, 4, 4), maps_of(2, 2, 4, 4, 4)  # of two views
SOME = settings(max_examples=40, deadline=None)


@pytest.fixture
def method():
    torch.manual_seed(0)
    return SEAM(backbones.build("tiny"), n_classes=6)


def one_hot(maps):
    """Background and, of the classes, the largest in each cell; by a loop."""
    out = np.zeros((len(maps), maps.shape[1] + 1, *maps.shape[2:]))
    for n, y, x in np.ndindex(len(maps), *maps.shape[2:]):
        cell = maps[n, :, y, x]
        out[n, 0, y, x] = 1 - cell.max()
        out[n, 1:, y, x] = np.where(cell == cell.max(), cell, 0)
    return out


def hardest(errors, share):
    flat = np.sort(errors.reshape(len(errors), -1), 1)[:, ::-1]
    return flat[:, : round(share * flat.shape[1])].mean()


# The losses


@given(maps=MAPS)
@SOME
def test_equivariance_is_the_mean_difference_and_zero_for_the_same_maps(maps):
    original, small = torch.from_numpy(maps)
    expected = np.abs(maps[0].astype(float) - maps[1]).mean()
    assert float(equivariance_loss(original, small)) == pytest.approx(expected, abs=1e-6)
    assert equivariance_loss(original, original) == 0


def test_both_views_learn_equivariance():
    views = [torch.rand(1, 2, 3, 3, requires_grad=True) for _ in range(2)]
    equivariance_loss(*views).backward()
    assert all(view.grad.all() for view in views)


@given(maps=MAPS, refined=REFINED, share=st.sampled_from([0.2, 0.5, 1.0]))
@SOME
def test_the_cross_loss_is_its_equation(maps, refined, share):
    got = cross_loss(*torch.from_numpy(maps), *torch.from_numpy(refined), share)
    original, small = (one_hot(view) for view in maps)
    expected = hardest(abs(small - refined[0]), share) + hardest(abs(original - refined[1]), share)
    assert float(got) == pytest.approx(expected, abs=1e-5)


@given(maps=MAPS, refined=REFINED)
@SOME
def test_the_cross_loss_is_the_same_for_views_in_another_order(maps, refined):
    maps, refined = torch.from_numpy(maps), torch.from_numpy(refined)
    assert torch.equal(cross_loss(*maps, *refined), cross_loss(*maps.flip(0), *refined.flip(0)))


def test_only_refined_maps_learn_from_the_cross_loss():
    raw = [torch.rand(1, 2, 3, 3, requires_grad=True) for _ in range(2)]
    refined = [torch.rand(1, 3, 3, 3, requires_grad=True) for _ in range(2)]
    cross_loss(*raw, *refined).backward()
    assert all(view.grad is None for view in raw) and all(view.grad.any() for view in refined)


def test_a_shrunken_map_keeps_its_corners_and_a_constant_one_its_value():
    maps = torch.rand(2, 3, 10, 7)
    small = resize(maps, (4, 3))
    assert torch.equal(small[..., [0, -1], :][..., [0, -1]], maps[..., [0, -1], :][..., [0, -1]])
    torch.testing.assert_close(resize(torch.full((1, 1, 9, 9), 0.3), (4, 5)), torch.full((1, 1, 4, 5), 0.3))


# The method


@pytest.mark.parametrize(("scale", "size"), [(0.3, (19, 15)), (0.5, (32, 25))])
def test_the_network_sees_each_image_and_its_smaller_copy(method, scale, size):
    method.scale, seen, both = scale, [], method.both_maps
    method.both_maps = lambda image: seen.append(image) or both(image)
    image = torch.randn(2, 3, 64, 50)
    method.loss(SimpleNamespace(image=image, label=torch.ones(2, 6)), Progress())
    first, second = seen
    assert torch.equal(first, image)
    assert torch.equal(second, torch.nn.functional.interpolate(image, size, mode="bilinear", align_corners=True))


@pytest.mark.parametrize(("share", "eps"), [(0.2, 0.1), (0.5, 0.4)])
def test_the_terms_and_their_gradients_are_their_equations_on_the_maps_of_both_views(
    method, batch, gradient, share, eps
):
    method.eval().share, method.eps = share, eps
    losses = method.loss(batch, Progress())
    label, with_0 = batch.label, torch.cat([torch.ones(6, 1), batch.label], 1)
    (raw_o, refined_o), (raw_t, refined_t) = (
        method.both_maps(image) for image in (batch.image, resize(batch.image, (19, 19)))
    )
    maps = [resize(min_max(raw, label, eps), (5, 5)) for raw in (raw_o, raw_t)]
    refined = [resize(min_max(raw, with_0), (5, 5)) for raw in (refined_o, refined_t)]
    soft_margin = [multi_label_soft_margin(raw.mean((2, 3)), label) for raw in (raw_o, raw_t)]
    low = [min_pooling_loss(raw[:, 1:] * label[:, :, None, None]) for raw in (refined_o, refined_t)]
    expected = {
        "classify": sum(soft_margin) / 2,
        "rvmin": sum(low) / 2,
        "er": equivariance_loss(*maps),
        "ecr": cross_loss(*maps, *refined, share),
    }
    assert list(losses.terms) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses.terms[name], value)
        assert value > 0
        by_hand = gradient(value)
        assert (gradient(losses.terms[name]) - by_hand).norm() < 1e-2 * by_hand.norm(), name
    torch.testing.assert_close(losses.total, sum(expected.values()))


@pytest.mark.parametrize(
    ("term", "taught"),
    [("classify", "network"), ("er", "network"), ("rvmin", "features"), ("ecr", "features")],
)
def test_a_term_reaches_the_network_or_the_pixel_features_and_never_both(method, batch, term, taught):
    method.loss(batch, Progress()).terms[term].backward()
    for name, parameter in method.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == (name.startswith("features.") == (taught == "features")), name


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


def test_the_cam_is_the_refined_foreground_less_its_minimum(method, batch):
    with torch.no_grad():
        cam, (scores, refined) = method.eval().cam(batch.image), method.both_maps(batch.image)
    foreground = refined[:, 1:]
    assert torch.equal(cam, foreground - foreground.amin((2, 3), keepdim=True)) and cam.shape == scores.shape
    assert (cam.amin((2, 3)) == 0).all() and cam.max() <= 1
    assert not torch.allclose(cam, scores.relu())
    torch.testing.assert_close(refined[:, 0] + foreground.sum(1), torch.ones_like(cam[:, 0]), rtol=0, atol=1e-4)


def test_absent_classes_cost_nothing_but_their_classification(method, batch):
    method.eval()
    with torch.no_grad():
        before = method.loss(batch, Progress()).terms
        label = torch.zeros_like(batch.label)
        none = method.loss(SimpleNamespace(image=batch.image, label=label), Progress()).terms
    assert none["er"] == none["rvmin"] == 0
    assert none["ecr"] < before["ecr"] and none["classify"] != before["classify"]


def test_it_sees_nothing_but_images_and_labels(method, batch):
    asked = set()

    class Batch:
        def __getattr__(self, name):
            asked.add(name)
            return getattr(batch, name)

    method.loss(Batch(), Progress())
    assert asked == {"image", "label"}


def test_under_autocast_the_terms_are_nearly_the_same(method, batch):
    with torch.no_grad():
        plain = method.eval().loss(batch, Progress()).terms
        with torch.autocast("cpu", torch.bfloat16):
            fast = method.loss(batch, Progress()).terms
    for name, value in plain.items():
        assert float(fast[name]) == pytest.approx(float(value), rel=0.2, abs=0.02), name


def test_the_settings_reach_the_method():
    overrides = {"seam.scale": 0.6, "seam.share": 0.4, "seam.eps": 0.2}
    method, paper = (
        seam.build(backbones.build("tiny"), 6, section)
        for section in (load("smoke", overrides).seam, load("paper").seam)
    )
    assert (method.scale, method.share, method.eps) == (0.6, 0.4, 0.2)
    assert (paper.scale, paper.share, paper.eps) == (0.3, 0.2, 1e-5)


def test_with_prcm_the_refined_maps_grow_by_no_more_than_the_masks(batch):
    torch.manual_seed(0)
    plain = SEAM(backbones.build("tiny"), 6).eval()
    section = load("smoke", {"seam.prcm": True}).seam
    torch.manual_seed(0)
    star = seam.build(backbones.build("tiny"), 6, section).eval()
    with torch.no_grad():
        (maps, refined), (same, more) = plain.both_maps(batch.image), star.both_maps(batch.image)
    assert torch.equal(maps, same)
    added = more - refined
    assert (added >= -1e-6).all() and (added <= soft_masks(maps) + 1e-6).all() and added.any()


@pytest.mark.parametrize("scale", [0.0, 1.0, -0.5])
def test_a_second_view_of_no_size_or_of_the_same_is_refused(scale):
    with pytest.raises(SettingsError, match=f"scale={scale}: give a factor between 0 and 1") as error:
        SEAM(backbones.build("tiny"), 6, scale=scale)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["share", "eps"])
def test_a_number_out_of_range_is_refused_before_anything_is_trained(name):
    with pytest.raises(SettingsError, match=f"^{name}=0.0: give a number from"):
        SEAM(backbones.build("tiny"), 6, **{name: 0.0})


@pytest.fixture
def training(train_briefly):
    """`train_briefly` of a SEAM."""
    return partial(train_briefly, lambda: SEAM(backbones.build("tiny"), 6))


def test_an_interrupted_training_continues_to_the_same_bytes(training):
    whole = training("whole")
    with pytest.raises(KeyboardInterrupt):
        training("cut", stop=2)
    resumed = training("cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_short_training_lowers_the_loss(method, batch):
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01, momentum=0.9)
    totals = []
    for _ in range(12):
        losses = method.train().loss(batch, Progress())
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        totals.append({name: float(value.detach()) for name, value in {**losses.terms, "total": losses.total}.items()})
    assert totals[-1]["total"] < 0.9 * totals[0]["total"]
    assert totals[-1]["classify"] < totals[0]["classify"]


def test_a_run_of_the_smoke_profile_trains_loads_and_localises(smoke_run):
    run = smoke_run.of("seam")
    cams, own = stages.make_cams(run), stages.recipe(run)
    rows = (stages.train_classifier(run).path / "log.csv").read_text().splitlines()
    assert len(rows) == 1 + 36 // own.batch_size * own.epochs
    assert len(list((cams.path / "cams").iterdir())) == 36 and cams.metrics["seed"]["fixed"]["miou"] > 0
