"""CDA: what is pasted, where it lies and what the label says; outside the mask nothing changes, bit by bit."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from wsss_lib import backbones
from wsss_lib.data import TrainingSet, train_transform
from wsss_lib.data.instances import Instance
from wsss_lib.data.samples import Batch
from wsss_lib.data.transforms import normalize
from wsss_lib.errors import SettingsError
from wsss_lib.methods import cda
from wsss_lib.methods.base import Progress
from wsss_lib.methods.cam import CAM
from wsss_lib.methods.cda import CDA, PasteSettings, blend, draw_instance, draw_placement, occlusion, paste, warp
from wsss_lib.nn.augment import COMPETITORS
from wsss_lib.settings import load

STILL = PasteSettings(rescale=(1.0, 1.0), rotation=0.0, max_side=1.0)
SEEDS, SIDES = st.integers(0, 2**31), st.integers(9, 40)
SETTINGS = st.builds(
    PasteSettings,
    rescale=st.tuples(st.floats(0.3, 1.0), st.floats(1.0, 3.0)),
    rotation=st.floats(0, 180),
    smooth=st.booleans(),
    max_side=st.floats(0.3, 1.0),
    position=st.sampled_from(cda.POSITIONS),
    n_objects=st.integers(1, 4),
)
COUNTS = st.lists(st.integers(0, 3), min_size=2, max_size=5).filter(any)  # instances of each class
CHI_SQUARE = {1: 10.8, 2: 13.8, 3: 16.3, 15: 37.7}  # by degrees of freedom: exceeded once in a thousand


class Bank(list):
    """Instances in memory."""

    def __init__(self, instances, n_classes):
        super().__init__(instances)
        self.of_class = [[i for i, one in enumerate(self) if one.class_index == k] for k in range(n_classes)]


def instance(height, width, class_index=0, seed=0, ellipse=False):
    """Random colours; the mask is the whole box, or the ellipse in it."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), generator=draw, dtype=torch.uint8)
    y = (2 * torch.arange(height) + 1) / height - 1
    x = (2 * torch.arange(width) + 1) / width - 1
    mask = y[:, None] ** 2 + x**2 <= 1 if ellipse else torch.ones(height, width, dtype=torch.bool)
    return Instance(image, mask, class_index, f"{class_index}_{seed}")


def bank_of(counts, side=12):
    """A bank with so many instances of each class, of different sizes."""
    drawn = [(k, i) for k, n in enumerate(counts) for i in range(n)]
    return Bank([instance(side + i, side + 2 * k, k, seed=i, ellipse=True) for k, i in drawn], len(counts))


def scenes(n_classes, seed=0, n=3, height=32, width=32):
    draw = torch.Generator().manual_seed(seed)
    label = (torch.rand(n, n_classes, generator=draw) < 0.5).float()
    return torch.randn(n, 3, height, width, generator=draw), label


def far_from_uniform(counts):
    expected = sum(counts) / len(counts)
    return sum((n - expected) ** 2 / expected for n in counts) > CHI_SQUARE[len(counts) - 1]


@given(counts=COUNTS, height=SIDES, width=SIDES, seed=SEEDS, how=SETTINGS, same=st.booleans())
@settings(max_examples=60, deadline=None)
def test_outside_the_pasted_mask_every_pixel_stays_bit_by_bit(counts, height, width, seed, how, same):
    image, label = scenes(len(counts), seed, height=height, width=width)
    before = image.clone(), label.clone()
    torch.manual_seed(seed)
    how = PasteSettings(**{**vars(how), "same_class": same})
    pasted, _, covered = paste(image, label, bank_of(counts), how)
    outside = (covered == 0).expand_as(image)
    assert torch.equal(pasted[outside], image[outside])
    assert not torch.equal(pasted, image) or not covered.any()
    assert torch.equal(image, before[0]) and torch.equal(label, before[1])
    assert covered.min() >= 0 and covered.max() < 1.001 and pasted.isfinite().all()


@given(counts=COUNTS, seed=SEEDS, how=SETTINGS)
@settings(max_examples=60, deadline=None)
def test_the_label_gains_as_many_new_classes_as_are_pasted_and_loses_none(counts, seed, how):
    image, label = scenes(len(counts), seed)
    torch.manual_seed(seed)
    _, more, covered = paste(image, label, bank_of(counts), how)
    available = torch.tensor([n > 0 for n in counts])
    absent = (available & (label == 0)).sum(1)
    assert (more >= label).all() and set(more.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal((more - label).sum(1).long(), absent.clamp(max=how.n_objects))
    assert not ((more - label).bool() & ~available).any()
    assert torch.equal(covered.any(3).any(2).flatten(), absent > 0)


@given(counts=COUNTS, seed=SEEDS, how=SETTINGS)
@settings(max_examples=30, deadline=None)
def test_where_present_classes_may_be_pasted_every_image_gets_something_and_no_label_shrinks(counts, seed, how):
    image, label = scenes(len(counts), seed)
    torch.manual_seed(seed)
    how = PasteSettings(**{**vars(how), "same_class": True})
    _, more, covered = paste(image, label, bank_of(counts), how)
    assert (more >= label).all() and ((more - label).sum(1) <= how.n_objects).all() and more.max() == 1
    assert covered.flatten(1).any(1).all()


def test_an_image_with_all_classes_gets_nothing_and_the_rest_of_the_batch_does():
    image, label = scenes(3)
    label[1], label[2] = 1, 0
    torch.manual_seed(0)
    pasted, more, covered = paste(image, label, bank_of([2, 1, 1]), PasteSettings(n_objects=4))
    assert torch.equal(pasted[1], image[1]) and not covered[1].any()
    assert more[2].sum() == 3 and covered[2].any()


def test_a_batch_whose_images_hold_all_classes_of_the_bank_comes_back_as_it_is():
    image, label = scenes(3)
    label[:, 1] = 1
    pasted, more, covered = paste(image, label, bank_of([0, 4, 0]), PasteSettings(n_objects=3))
    assert torch.equal(pasted, image) and torch.equal(more, label) and not covered.any()


@given(
    box=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    size=st.tuples(SIDES, SIDES),
    how=SETTINGS,
    seed=SEEDS,
)
@settings(max_examples=80, deadline=None)
def test_the_pasted_box_is_at_most_the_cap_in_whole_pixels_and_lies_inside(box, size, how, seed):
    torch.manual_seed(seed)
    one = instance(*box)
    scale, angle, y, x = draw_placement(box, size, how)
    _, alpha = warp([one], [(scale, angle, y, x)], size)
    sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
    for n, centre, length, along in (
        (size[0], y, box[0] * cosine + box[1] * sine, alpha[0, 0].any(1)),
        (size[1], x, box[0] * sine + box[1] * cosine, alpha[0, 0].any(0)),
    ):
        cap = max(1, int(how.max_side * n))
        begin = centre - scale * length / 2
        assert scale * length <= cap + 1e-9
        assert begin > -1e-9 and begin + scale * length < n + 1e-9
        assert begin == pytest.approx(round(begin), abs=1e-9)
        rows = along.nonzero().flatten()
        assert not len(rows) or int(rows[-1] - rows[0]) + 1 <= cap
    assert scale <= how.rescale[1] and abs(angle) <= math.radians(how.rotation) + 1e-12


@given(how=SETTINGS, seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_without_the_cap_the_scale_is_in_its_range(how, seed):
    torch.manual_seed(seed)
    scale, *_ = draw_placement((4, 5), (200, 200), how)
    assert how.rescale[0] <= scale <= how.rescale[1]


def test_scales_and_angles_fill_their_ranges():
    torch.manual_seed(0)
    how = PasteSettings(rescale=(0.5, 2.0), rotation=60.0)
    drawn = torch.tensor([draw_placement((4, 4), (100, 100), how) for _ in range(2000)])
    scale, angle = drawn[:, 0], drawn[:, 1].rad2deg()
    assert scale.mean() == pytest.approx(1.25, abs=0.03) and scale.min() < 0.51 and scale.max() > 1.99
    assert angle.mean() == pytest.approx(0, abs=3) and angle.min() < -59 and angle.max() > 59


@given(
    box=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    room=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    seed=SEEDS,
)
@settings(max_examples=40, deadline=None)
def test_without_turn_and_scale_mask_and_colours_are_those_of_the_instance(box, room, seed):
    torch.manual_seed(seed)
    one, size = instance(*box, seed=seed % 1000, ellipse=True), (box[0] + room[0], box[1] + room[1])
    placement = draw_placement(box, size, STILL)
    objects, alpha = warp([one], [placement], size)
    top, left = (round(centre - length / 2) for centre, length in zip(placement[2:], box, strict=True))
    inside = (..., slice(top, top + box[0]), slice(left, left + box[1]))
    assert placement[:2] == (1.0, 0.0)
    assert torch.equal(alpha[inside][0, 0].bool(), one.mask) and alpha.sum() == one.mask.sum()
    torch.testing.assert_close(objects[inside][0], normalize(one.image), rtol=0, atol=1e-4)


@given(
    box=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    offset=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    turns=st.integers(-3, 3),
    scale=st.integers(1, 3),
)
@settings(max_examples=50, deadline=None)
def test_quarter_turns_are_anticlockwise_as_rot90_and_whole_scales_are_interpolate(box, offset, turns, scale):
    one = instance(*box, seed=1, ellipse=True)
    expected = F.interpolate(normalize(one.image)[None], scale_factor=scale, mode="bilinear").rot90(turns, (2, 3))[0]
    mask = F.interpolate(one.mask.float()[None, None], scale_factor=scale, mode="nearest").rot90(turns, (2, 3))[0, 0]
    height, width = mask.shape
    placement = (float(scale), turns * math.pi / 2, offset[0] + height / 2, offset[1] + width / 2)
    objects, alpha = warp([one], [placement], (height + offset[0] + 2, width + offset[1] + 3))
    inside = (..., slice(offset[0], offset[0] + height), slice(offset[1], offset[1] + width))
    torch.testing.assert_close(objects[inside][0], expected, rtol=0, atol=1e-3)
    assert torch.equal(alpha[inside][0, 0], mask) and alpha.sum() == mask.sum()


def test_a_small_positive_angle_lifts_the_right_end():
    one = instance(2, 21)
    _, alpha = warp([one], [(1.0, math.radians(20), 15.0, 15.0)], (30, 30))
    columns = alpha[0, 0].any(0).nonzero().flatten()
    rows = [alpha[0, 0, :, x].nonzero().float().mean() for x in (columns[0], columns[-1])]
    assert rows[1] < rows[0] - 4


def test_instances_of_different_sizes_are_warped_together_as_alone():
    instances = [instance(5, 17, seed=1, ellipse=True), instance(14, 6, seed=2), instance(9, 9, seed=3, ellipse=True)]
    placements = [(1.3, 0.4, 16.0, 17.0), (0.9, -1.2, 12.0, 20.0), (1.0, 3.0, 20.0, 9.5)]
    objects, alpha = warp(instances, placements, (33, 37))
    for row, (one, placement) in enumerate(zip(instances, placements, strict=True)):
        alone, mask = warp([one], [placement], (33, 37))
        inside = mask[0].bool().expand_as(objects[row])
        assert (alpha[row] != mask[0]).sum() <= 2
        torch.testing.assert_close(objects[row][inside], alone[0][inside], rtol=0, atol=1e-3)


def test_a_mask_keeps_its_two_values_whatever_the_turn():
    one = instance(9, 15, ellipse=True)
    for degrees in range(-90, 91, 7):
        _, alpha = warp([one], [(1.1, math.radians(degrees), 16.0, 16.0)], (32, 32))
        assert set(alpha.unique().tolist()) == {0.0, 1.0}
        assert float(alpha.sum()) == pytest.approx(1.21 * float(one.mask.sum()), rel=0.1)


def test_inside_the_mask_the_picture_is_the_warped_instance(monkeypatch):
    placements = []
    monkeypatch.setattr(cda, "draw_placement", lambda *a: placements.append(draw_placement(*a)) or placements[-1])
    bank, (image, label) = bank_of([1]), scenes(1)
    label[:] = 0
    torch.manual_seed(0)
    pasted, _, covered = paste(image, label, bank, PasteSettings())
    objects, alpha = warp([bank[0]] * 3, placements, (32, 32))
    assert torch.equal(covered, alpha) and covered.any()
    inside = covered.bool().expand_as(image)
    assert torch.equal(pasted[inside], objects[inside])


def test_a_hard_mask_is_a_hard_paste_even_where_the_object_is_no_number():
    image, objects = (scenes(1, seed)[0] for seed in (0, 1))
    alpha = (torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    objects[~alpha.bool().expand_as(objects)] = math.nan
    assert torch.equal(blend(image, objects, alpha), torch.where(alpha.bool(), objects, image))


def test_a_soft_mask_is_the_weighted_mean():
    image, objects = (scenes(1, seed)[0] for seed in (0, 1))
    torch.testing.assert_close(blend(image, objects, torch.full((3, 1, 32, 32), 0.25)), 0.25 * objects + 0.75 * image)


def test_smoothing_touches_the_border_of_the_mask_only():
    image, label = scenes(1)
    label[:] = 0
    results = []
    for smooth in (False, True):
        torch.manual_seed(4)
        results.append(paste(image, label, bank_of([1], side=16), PasteSettings(smooth=smooth)))
    (hard, _, mask), (soft, _, alpha) = results
    inner, outer = -F.max_pool2d(-mask, 3, 1, 1), F.max_pool2d(mask, 3, 1, 1)
    border = (inner != outer).expand_as(image)
    torch.testing.assert_close(alpha, v2.functional.gaussian_blur(mask, [3, 3], [0.8, 0.8]))  # OpenCV's width for 3
    torch.testing.assert_close(soft[~border], hard[~border])
    torch.testing.assert_close(alpha[inner == outer], mask[inner == outer])
    assert ((alpha > 0) & (alpha < 1)).any() and not torch.equal(hard, soft)


def test_the_seed_decides_what_is_pasted():
    image, label = scenes(4)
    label[:] = 0
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(paste(image, label, bank_of([2, 2, 2, 2]), PasteSettings()))
    for same, again, other in zip(*results, strict=True):
        assert torch.equal(same, again) and (same.shape == label.shape or not torch.equal(same, other))


def test_a_rare_class_is_drawn_as_often_as_a_frequent_one_and_its_instances_alike():
    torch.manual_seed(0)
    of_class = [list(range(40)), [40, 41], [42], []]
    drawn = [draw_instance(torch.zeros(4), of_class) for _ in range(1500)]
    assert not far_from_uniform([sum(i in indices for i in drawn) for indices in of_class[:3]])
    assert not far_from_uniform([drawn.count(40), drawn.count(41)])
    assert set(drawn) == set(range(43))


@given(counts=COUNTS, seed=SEEDS, same=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_class_is_absent_and_has_an_instance_or_nothing_is_drawn(counts, seed, same):
    torch.manual_seed(seed)
    label, bank = scenes(len(counts), seed)[1][0], bank_of(counts)
    index = draw_instance(label, bank.of_class, same)
    possible = [k for k, n in enumerate(counts) if n and (same or not label[k])]
    assert (index is None and not possible) or bank[index].class_index in possible


@pytest.mark.parametrize("position", cda.POSITIONS)
def test_every_place_that_fits_is_taken(position):
    torch.manual_seed(0)
    how = PasteSettings(rescale=(1.0, 1.0), rotation=0.0, max_side=1.0, position=position)
    drawn = [draw_placement((3, 5), (6, 8), how)[2:] for _ in range(1200)]
    places = {(top + 1.5, left + 2.5) for top in range(4) for left in range(4)}
    assert set(drawn) == places
    assert far_from_uniform([drawn.count(place) for place in places]) == (position == "off_centre")


def test_off_centre_is_farther_from_the_centre_on_average():
    def distance(position):
        torch.manual_seed(0)
        how = PasteSettings(position=position)
        drawn = torch.tensor([draw_placement((10, 16), (64, 64), how)[2:] for _ in range(1000)])
        return (drawn - 32).abs().mean()

    assert distance("off_centre") > 1.15 * distance("uniform")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"rescale": (1.2, 0.8)}, r"rescale=\[1.2, 0.8\]"),
        ({"rescale": (0.0, 1.0)}, "rescale"),
        ({"rescale": (1.0,)}, "rescale"),
        ({"max_side": 0.0}, "max_side=0.0"),
        ({"max_side": 1.1}, "max_side=1.1"),
        ({"position": "top"}, "position='top': choose one of uniform, off_centre"),
        ({"n_objects": 0}, "n_objects=0"),
        ({"rotation": -1.0}, "rotation=-1.0"),
    ],
)
def test_impossible_settings_are_one_line(given, named):
    with pytest.raises(SettingsError, match=named) as error:
        PasteSettings(**given)
    assert "\n" not in str(error.value)


def test_occlusion_is_the_covered_share_of_the_objects():
    objects, covered = torch.zeros(6, 6, dtype=torch.bool), torch.zeros(6, 6)
    objects[:, :3], covered[:2] = True, 0.5
    assert occlusion(covered, objects) == pytest.approx(1 / 3)
    assert occlusion(torch.ones(6, 6), objects) == 1 and occlusion(torch.zeros(6, 6), objects) == 0
    assert occlusion(covered, torch.zeros(6, 6, dtype=torch.bool)) == 0


# The method


@pytest.fixture
def host():
    torch.manual_seed(0)
    return CAM(backbones.build("tiny"), n_classes=6)


@pytest.fixture(scope="module")
def batch(toy_folder):
    dataset = TrainingSet(toy_folder, toy_folder.split("train")[:4], train_transform(None, 64))
    samples = [dataset[i, i] for i in range(4)]
    return Batch(torch.stack([s.image for s in samples]), torch.stack([s.label for s in samples]), tuple("abcd"))


def seeded_loss(method, batch, seed=5):
    torch.manual_seed(seed)
    return method.loss(batch, Progress()).total


@pytest.mark.parametrize("augmentation", ["paste", *COMPETITORS])
@pytest.mark.parametrize("shared", [True, False])
def test_the_pairwise_loss_is_the_mean_of_both_halves_and_the_other_that_of_the_second(
    host, bank, batch, augmentation, shared
):
    host.eval()  # in training mode the halves would share their statistics
    options = {"augmentation": augmentation, "shared_geometry": shared}
    both, second = (CDA(host, bank, pairwise=pairwise, **options) for pairwise in (True, False))
    torch.manual_seed(5)
    image, label = both.augment(batch.image, batch.label)
    raw, other = (host.loss(half, Progress()).total for half in (batch, Batch(image, label, batch.image_id)))
    torch.testing.assert_close(seeded_loss(both, batch), (raw + other) / 2)
    torch.testing.assert_close(seeded_loss(second, batch), other)


def test_without_augmentation_the_loss_is_the_hosts(host, batch):
    method = CDA(host.eval(), None, augmentation="none")
    torch.testing.assert_close(seeded_loss(method, batch), seeded_loss(host, batch))


def test_the_host_sees_raw_images_first_then_their_pairs_with_the_same_ids(host, bank, batch, monkeypatch):
    seen, progress = [], Progress(3, 4)
    monkeypatch.setattr(host, "loss", lambda *given: seen.append(given))
    CDA(host, bank).loss(batch, progress)
    pair, given = seen[0]
    assert given is progress and pair.image_id == (*batch.image_id, *batch.image_id)
    assert torch.equal(pair.image[:4], batch.image) and torch.equal(pair.label[:4], batch.label)
    assert ((pair.label[4:] - batch.label).sum(1) == 1).all()


@pytest.mark.parametrize("pairwise", [True, False])
@pytest.mark.parametrize("augmentation", ["paste", "manifold_mixup", *COMPETITORS])
def test_every_augmentation_gives_a_finite_loss_that_teaches_backbone_and_classifier(
    host, bank, batch, augmentation, pairwise
):
    before = batch.image.clone(), batch.label.clone()
    loss = seeded_loss(CDA(host.train(), bank, augmentation=augmentation, pairwise=pairwise), batch)
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert all(p.grad.isfinite().all() and p.grad.any() for p in host.parameters())
    assert torch.equal(batch.image, before[0]) and torch.equal(batch.label, before[1])


def test_the_seed_decides_the_loss(host, bank, batch):
    method = CDA(host.eval(), bank)
    assert torch.equal(seeded_loss(method, batch, 1), seeded_loss(method, batch, 1))
    assert not torch.equal(seeded_loss(method, batch, 1), seeded_loss(method, batch, 2))


def test_manifold_mixup_mixes_the_second_half_only(host, batch):
    host.eval()
    method = CDA(host, None, augmentation="manifold_mixup")
    raw, both = seeded_loss(host, batch), seeded_loss(method, batch)
    second = seeded_loss(CDA(host, None, augmentation="manifold_mixup", pairwise=False), batch)
    torch.testing.assert_close(both, (raw + second) / 2)
    assert not torch.isclose(raw, second)
    assert torch.equal(seeded_loss(host, batch), raw)


def test_manifold_mixup_mixes_the_labels_of_the_second_half_by_one_weight(host, batch, monkeypatch):
    seen, label = [], torch.eye(6)[:4]
    monkeypatch.setattr(host, "loss", lambda *given: seen.append(given[0].label))
    torch.manual_seed(0)
    CDA(host, None, augmentation="manifold_mixup").loss(batch._replace(label=label), Progress())
    raw, mixed = seen[0].chunk(2)
    weight = mixed[0, 0]
    assert torch.equal(raw, label) and 0 < weight < 1
    torch.testing.assert_close(mixed, weight * label + (1 - weight) * label.roll(1, 0))


def test_mixup_takes_alpha(host, monkeypatch):
    seen = {}
    monkeypatch.setitem(COMPETITORS, "mixup", lambda image, label, **options: seen.update(options) or (image, label))
    CDA(host, None, augmentation="mixup", alpha=0.3).augment(torch.zeros(2, 3, 8, 8), torch.eye(2))
    assert seen == {"alpha": 0.3}


def test_an_unknown_augmentation_is_one_line(host):
    with pytest.raises(SettingsError, match="augmentation='glue': choose paste, manifold_mixup, none") as error:
        CDA(host, None, augmentation="glue")
    assert "\n" not in str(error.value)


def test_pasting_without_a_bank_is_one_line(host):
    with pytest.raises(SettingsError, match="bank=None: give the instances to paste"):
        CDA(host, None)


def test_a_geometry_of_its_own_moves_the_second_half_and_keeps_its_shape(host, bank, batch):
    results = []
    for shared in (True, False):
        torch.manual_seed(0)
        results.append(CDA(host, bank, shared_geometry=shared).augment(batch.image, batch.label))
    (image, label), (moved, same) = results
    assert moved.shape == image.shape and torch.equal(label, same)
    alike = torch.ones(8, 3, 64, 64)
    shown = CDA(host, None, augmentation="none", shared_geometry=False).augment(alike, torch.ones(8, 6))[0]
    share = shown.mean((1, 2, 3)).tolist()
    assert len(set(share)) == 8, "each image is moved and scaled by itself"
    assert all(0.55**2 * 0.5 < s <= 1 for s in share) and min(share) < 0.95
    assert torch.equal(CDA(host, None, augmentation="none").augment(alike, torch.ones(8, 6))[0], alike)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("augmentation", ["paste", *COMPETITORS])
def test_a_training_in_bfloat16_is_augmented_in_full_precision(host, bank, batch, augmentation, shared):
    method, results = CDA(host, bank, augmentation=augmentation, shared_geometry=shared), []
    for half in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            results.append(method.augment(batch.image, batch.label))
    for plain, under_autocast in zip(*results, strict=True):
        assert torch.equal(plain, under_autocast)


def test_an_alpha_of_zero_is_one_line(host):
    with pytest.raises(SettingsError, match="alpha=0: give the Beta distribution") as error:
        CDA(host, None, augmentation="mixup", alpha=0)
    assert "\n" not in str(error.value)


def test_scores_and_maps_are_the_hosts(host, bank, batch):
    method = CDA(host, bank).eval()
    for name in ("logits", "maps", "cam"):
        assert torch.equal(getattr(method, name)(batch.image), getattr(host, name)(batch.image))
    assert method.backbone is host.backbone and method.n_classes == host.n_classes


def test_every_weight_is_there_once_and_in_one_group(host, bank):
    method = CDA(host, bank)
    assert list(method.state_dict()) == [f"host.{name}" for name in host.state_dict()]
    assert [id(p) for p in method.parameters()] == [id(p) for p in host.parameters()]
    grouped = [id(p) for group in method.parameter_groups(7.0) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in host.parameters())
    assert {g["name"]: g["lr_factor"] for g in method.parameter_groups(7.0)} == {"backbone": 1.0, "classifier": 7.0}


def test_the_settings_reach_the_method(host, bank):
    own = load("smoke", {"cda.rescale": [0.5, 2.0], "cda.max_side": 0.4, "cda.n_objects": 3, "cda.pairwise": False}).cda
    method = cda.build(host, bank, own)
    assert method.settings == PasteSettings(rescale=(0.5, 2.0), max_side=0.4, n_objects=3)
    assert not method.pairwise and method.shared_geometry and method.augmentation == "paste"


def test_the_defaults_are_the_paper_profile(host, bank):
    assert cda.build(host, bank, load("paper").cda).settings == PasteSettings()


@pytest.fixture
def training(train_briefly, bank):
    """`train_briefly` of a CDA whose BatchNorms are frozen."""

    def run(name, augmentation="paste", **how):
        def build():
            backbone = backbones.build("tiny").freeze(0, norm=True)
            return CDA(CAM(backbone, 6), bank, augmentation=augmentation)

        return train_briefly(build, name, **how)

    return run


def test_an_interrupted_training_pastes_the_same_and_continues_to_the_same_bytes(training):
    whole = training("whole")
    with pytest.raises(KeyboardInterrupt):
        training("cut", stop=2)
    resumed = training("cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_micro_batches_add_up_to_the_batch_where_nothing_is_drawn(training):
    whole, parts = (training(name, augmentation="none", micro_batch_size=n) for name, n in (("whole", 0), ("parts", 3)))
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-5)


def test_micro_batches_of_one_image_are_pasted_into(training):
    assert all(value.isfinite().all() for value in training("single", micro_batch_size=1).values())
