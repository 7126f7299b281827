"""The competitors: each against its definition; labels mix as pixels and features do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wsss_lib import backbones
from wsss_lib.errors import SettingsError
from wsss_lib.nn.augment import (
    COMPETITORS,
    SHIFT,
    competitor,
    cutmix,
    cutout,
    manifold_mixup,
    mixup,
    none,
    rotation,
    translation,
)

NAMES = tuple(COMPETITORS)
SEEDS = st.integers(0, 2**31)


def batch(n=4, height=24, width=24, classes=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    label = torch.eye(classes)[torch.arange(n) % classes]
    return torch.randn(n, 3, height, width, generator=draw), label


def shifted(image, dy, dx):
    out = torch.zeros_like(image)
    height, width = image.shape[-2:]
    to_y, to_x = slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0))
    from_y, from_x = slice(max(-dy, 0), height + min(-dy, 0)), slice(max(-dx, 0), width + min(-dx, 0))
    out[..., to_y, to_x] = image[..., from_y, from_x]
    return out


@pytest.mark.parametrize("name", NAMES)
def test_the_given_images_and_labels_stay(name):
    image, label = batch()
    before = image.clone(), label.clone()
    COMPETITORS[name](image, label)
    assert torch.equal(image, before[0]) and torch.equal(label, before[1])


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_types_stay(name):
    image, label = batch(height=20, width=28)
    new, mixed = COMPETITORS[name](image, label)
    assert (new.shape, new.dtype, mixed.shape, mixed.dtype) == (image.shape, image.dtype, label.shape, label.dtype)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(name):
    image, label = batch()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(COMPETITORS[name](image, label)[0])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2]) == (name == "none")


@pytest.mark.parametrize("augment", [none, rotation, translation, cutout])
def test_what_moves_or_hides_pixels_keeps_the_labels(augment):
    image, label = batch()
    assert torch.equal(augment(image, label)[1], label)


@pytest.mark.parametrize("name", NAMES)
def test_a_mixture_keeps_how_many_classes_an_image_has_on_average(name):
    torch.manual_seed(0)
    image, label = torch.randn(4, 3, 24, 24), (torch.rand(4, 6) < 0.5).float()
    mixed = COMPETITORS[name](image, label)[1]
    torch.testing.assert_close(mixed.sum(0), label.sum(0))
    assert mixed.min() >= 0 and mixed.max() < 1.001


def test_none_gives_back_what_it_got():
    image, label = batch()
    assert none(image, label)[0] is image


def test_each_image_is_turned_by_an_angle_of_its_own_about_its_centre():
    torch.manual_seed(0)
    one = torch.randn(3, 25, 25)
    turned, _ = rotation(one.expand(8, -1, -1, -1), torch.ones(8, 1))
    assert torch.equal(turned[..., 12, 12], one[:, 12, 12].expand(8, -1))
    assert all(not torch.equal(turned[i], turned[j]) for i in range(8) for j in range(i))


def test_rotation_leaves_the_mean_colour_at_the_corners():
    torch.manual_seed(0)
    turned, _ = rotation(torch.ones(8, 3, 24, 24), torch.ones(8, 1))
    assert (
        turned.min() == 0
        and turned.max() == pytest.approx(1)
        and ((turned < 0.01) | (turned > 0.99)).float().mean() > 0.8
    )
    torch.testing.assert_close(turned[:, :, 8:16, 8:16], torch.ones(8, 3, 8, 8))


@given(seed=SEEDS, height=st.integers(8, 20), width=st.integers(8, 20))
@settings(max_examples=15, deadline=None)
def test_translation_is_a_shift_by_at_most_a_quarter_that_leaves_the_mean_colour(seed, height, width):
    image, label = batch(2, height, width)
    torch.manual_seed(seed)
    moved, _ = translation(image, label)
    far_y, far_x = round(SHIFT * height), round(SHIFT * width)
    shifts = [(dy, dx) for dy in range(-far_y, far_y + 1) for dx in range(-far_x, far_x + 1)]
    for one, new in zip(image, moved, strict=True):
        assert sum(torch.equal(shifted(one, *shift), new) for shift in shifts) == 1


@given(seed=SEEDS, half=st.integers(3, 16))
@settings(max_examples=15, deadline=None)
def test_cutout_covers_a_square_of_a_quarter_of_the_image_and_nothing_else(seed, half):
    image, label = batch(3, 2 * half, 2 * half)
    torch.manual_seed(seed)
    cut, _ = cutout(image, label)
    for one, new in zip(image, cut, strict=True):
        hole = (new == 0).all(0)
        rows, columns = hole.any(1).nonzero(), hole.any(0).nonzero()
        assert hole.sum() == half * half and len(rows) == len(columns) == half
        assert torch.equal(new[:, ~hole], one[:, ~hole])


@given(seed=SEEDS, alpha=st.sampled_from([0.3, 0.5, 0.8, 5.0]))
@settings(max_examples=15, deadline=None)
def test_mixup_is_its_formula_with_the_neighbour_and_one_weight_a_batch(seed, alpha):
    image, label = batch(4)
    torch.manual_seed(seed)
    mixed, mixed_label = mixup(image, label, alpha)
    weight = mixed_label[0, 0]
    torch.testing.assert_close(mixed_label, weight * label + (1 - weight) * label.roll(1, 0))
    torch.testing.assert_close(mixed, weight * image + (1 - weight) * image.roll(1, 0))


def test_mixup_takes_its_weight_from_the_beta_distribution_of_alpha():
    def spread(alpha):
        torch.manual_seed(0)
        weights = [float(mixup(torch.zeros(2, 3, 1, 1), torch.eye(2), alpha)[1][0, 0]) for _ in range(300)]
        return torch.tensor(weights).var()

    for alpha in (0.3, 8.0):
        assert float(spread(alpha)) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.25)


@given(seed=SEEDS, height=st.integers(4, 24), width=st.integers(4, 24))
@settings(max_examples=25, deadline=None)
def test_cutmix_mixes_labels_by_the_area_that_was_really_replaced(seed, height, width):
    image, label = batch(4, height, width)
    torch.manual_seed(seed)
    mixed, mixed_label = cutmix(image, label)
    for i in range(4):
        partner = image[i - 1]
        replaced = (mixed[i] == partner).all(0)
        assert torch.equal(mixed[i], torch.where(replaced, partner, image[i]))
        assert int(replaced.sum()) == int(replaced.any(1).sum()) * int(replaced.any(0).sum())
        share = replaced.float().mean()
        torch.testing.assert_close(mixed_label[i], (1 - share) * label[i] + share * label[i - 1])


@pytest.mark.parametrize("augment", [mixup, cutmix])
def test_an_image_alone_in_its_batch_mixes_with_itself(augment):
    image, label = batch(1)
    mixed, mixed_label = augment(image, label)
    torch.testing.assert_close(mixed, image)
    torch.testing.assert_close(mixed_label, label)


def test_an_unknown_competitor_is_one_line_that_lists_all():
    with pytest.raises(SettingsError) as error:
        competitor("cutmax")
    assert "\n" not in str(error.value) and "'cutmax'" in str(error.value)
    assert all(name in str(error.value) for name in (*NAMES, "paste", "manifold_mixup"))


def hooks(modules):
    return tuple(bool(m._forward_pre_hooks) + 2 * bool(m._forward_hooks) for m in modules)


def test_at_every_depth_a_linear_network_mixes_its_outputs_as_its_labels():
    draw = torch.Generator().manual_seed(0)
    net = nn.Sequential(*(nn.Linear(5, 5) for _ in range(3)))
    x, label, depths = torch.randn(6, 5, generator=draw), torch.eye(3), set()
    with torch.no_grad():
        alone = net(x)
        for seed in range(25):
            torch.manual_seed(seed)
            with manifold_mixup(list(net), label) as mixed:
                depths.add(hooks(net))
                got = net(x)
            torch.testing.assert_close(got[:3], alone[:3], rtol=0, atol=0)
            torch.testing.assert_close(got[3:], mixed @ alone[3:], rtol=1e-5, atol=1e-6)
    assert depths == {(1, 0, 0), (2, 0, 0), (0, 2, 0)}


def test_the_first_half_of_a_batch_goes_through_a_real_backbone_untouched():
    torch.manual_seed(0)
    net = backbones.build("tiny").eval()
    image, label = batch(4, 16, 16)
    with torch.no_grad():
        alone = net(image)
        for seed in range(6):
            torch.manual_seed(seed)
            with manifold_mixup(net.stage_modules(), label[2:]):
                got = net(image)
            torch.testing.assert_close(got[:2], alone[:2])
            assert not torch.allclose(got[2:], alone[2:], atol=1e-3)


def test_the_hooks_are_gone_afterwards_also_after_an_error():
    net = nn.Sequential(nn.Identity(), nn.Identity())
    for seed in range(8):
        torch.manual_seed(seed)
        with manifold_mixup(list(net), torch.eye(2)):
            assert any(hooks(net))
        assert not any(hooks(net))
        with pytest.raises(KeyError), manifold_mixup(list(net), torch.eye(2)):
            raise KeyError
        assert not any(hooks(net))


def test_manifold_mixup_leaves_images_and_labels_and_follows_the_seed():
    net, label = nn.Sequential(nn.Identity(), nn.Identity()), torch.eye(2)
    x, results = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), []
    before = x.clone()
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with manifold_mixup(list(net), label) as mixed:
            results.append((net(x), mixed))
    assert torch.equal(x, before) and torch.equal(label, torch.eye(2))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][1], results[2][1])


def test_the_gradient_goes_through_a_mixture_to_both_images():
    net, x = nn.Sequential(nn.Identity(), nn.Identity()), torch.randn(2, 4, requires_grad=True)
    torch.manual_seed(3)
    with manifold_mixup(list(net), torch.eye(2)) as mixed:
        net(x)[0].sum().backward()
    torch.testing.assert_close(x.grad, mixed[0][:, None].expand(2, 4))
