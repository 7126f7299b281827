"""Pairs of near cells against loops over cells, and what their loss must not depend on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.pairs import AFFINITY_WEIGHTS, affinity_loss, cell_labels, ends, offsets

SOME = settings(max_examples=40, deadline=None)
SEED = st.integers(0, 10_000)
SIDE = st.integers(1, 7)


def numbers(seed=0):
    return torch.Generator().manual_seed(seed)


def labels(*shape, seed=0, values=(0, 1, 2, 255)):
    return torch.tensor(values)[torch.randint(0, len(values), shape, generator=numbers(seed))]


def affinities(mask, radius, seed=0, dtype=torch.float64):
    """Random ones for all pairs of a mask's cells."""
    draw = numbers(seed)
    return [(o, torch.rand(ends(mask, o)[0].shape, generator=draw, dtype=dtype)) for o in offsets(radius)]


def oracle(pairs, mask):
    """The three terms by loops over images and pairs."""
    kinds = {name: [] for name in AFFINITY_WEIGHTS}
    _, h, w = mask.shape
    for (dy, dx), values in pairs:
        for n, label in enumerate(mask.numpy()):
            cells = [(y, x) for y in range(h) for x in range(w) if 0 <= y + dy < h and 0 <= x + dx < w]
            for (y, x), a in zip(cells, values[n].flatten().tolist(), strict=True):
                i, j = label[y, x], label[y + dy, x + dx]
                if 255 in (i, j):
                    continue
                kind = "different" if i != j else "foreground" if i else "background"
                kinds[kind].append(-math.log(1 + 1e-5 - a if i != j else a + 1e-5))
    return {name: np.mean(values) if values else 0.0 for name, values in kinds.items()}


# Offsets, ends, labels of cells


@pytest.mark.parametrize(("radius", "count"), [(1.5, 4), (2, 4), (2.2, 6), (5, 34), (10, 152)])
def test_offsets_and_their_opposites_are_all_cells_nearer_than_the_radius(radius, count):
    half = offsets(radius)
    near = {(y, x) for y in range(-11, 12) for x in range(-11, 12) if 0 < math.hypot(y, x) < radius}
    assert len(half) == count and len(near) == 2 * count
    assert {*half, *((-y, -x) for y, x in half)} == near
    assert half == sorted(half) and half[0] > (0, 0)


@pytest.mark.parametrize("radius", [1, 0, -3, math.nan])
def test_a_radius_without_neighbours_is_refused(radius):
    with pytest.raises(SettingsError, match=f"radius={radius}: give more than 1 cell"):
        offsets(radius)


@given(SIDE, SIDE, st.integers(-8, 8), st.integers(-8, 8))
@SOME
def test_ends_are_all_pairs_of_an_offset_also_where_it_is_larger_than_the_grid(h, w, dy, dx):
    cells = torch.arange(2 * h * w).view(2, h, w)
    first, second = ends(cells, (dy, dx))
    assert first.shape == second.shape == (2, max(0, h - abs(dy)), max(0, w - abs(dx)))
    inside = [(y, x) for y in range(h) for x in range(w) if 0 <= y + dy < h and 0 <= x + dx < w]
    assert first[1].flatten().tolist() == [h * w + y * w + x for y, x in inside]
    assert second[1].flatten().tolist() == [h * w + (y + dy) * w + x + dx for y, x in inside]


def test_ends_are_views():
    cells = torch.zeros(1, 4, 5)
    for end in ends(cells, (2, -1)):
        assert end.untyped_storage().data_ptr() == cells.untyped_storage().data_ptr()


@given(SIDE, SIDE, st.integers(1, 60), st.integers(1, 60), st.sampled_from([torch.int64, torch.uint8]))
@SOME
def test_a_cell_has_the_label_of_the_pixel_in_its_middle(h, w, height, width, dtype):
    mask = torch.randint(0, 256, (2, height, width), generator=numbers()).to(dtype)
    rows, columns = ([(2 * k + 1) * n // (2 * m) for k in range(m)] for m, n in ((h, height), (w, width)))
    got = cell_labels(mask, (h, w))
    assert got.dtype == torch.int64 and torch.equal(got, mask[:, rows][..., columns].long())


def test_on_its_own_grid_a_mask_stays_as_it_is():
    mask = labels(2, 7, 5)
    assert torch.equal(cell_labels(mask, (7, 5)), mask)


# The loss


@given(SEED, SIDE, SIDE, st.sampled_from([1.5, 3, 5]))
@SOME
def test_each_term_is_the_mean_over_its_pairs_of_all_images_and_offsets(seed, h, w, radius):
    mask = labels(2, h, w, seed=seed)
    pairs = affinities(mask, radius, seed)
    got = affinity_loss(iter(pairs), mask)
    assert {name: float(value) for name, value in got.items()} == pytest.approx(oracle(pairs, mask), abs=1e-12)


def test_affinities_that_follow_the_labels_cost_nothing_and_opposite_ones_the_logarithm_of_the_smallest_number():
    mask = labels(1, 6, 7, values=(0, 1, 2))
    right = [(o, torch.eq(*ends(mask, o)).float()) for o in offsets(5)]
    for value in affinity_loss(right, mask).values():
        assert float(value) == pytest.approx(0, abs=2e-5)
    for value in affinity_loss([(o, 1 - a) for o, a in right], mask).values():
        assert float(value) == pytest.approx(-math.log(1e-5), abs=2e-3)


@given(SEED)
@SOME
def test_which_class_a_label_names_does_not_count_only_whether_it_is_background(seed):
    mask = labels(2, 6, 5, seed=seed, values=(0, 1, 2, 20, 255))
    order = torch.arange(256)
    order[1:21] = 1 + torch.randperm(20, generator=numbers(seed))
    pairs = affinities(mask, 3, seed)
    assert affinity_loss(pairs, order[mask]) == affinity_loss(pairs, mask)


def test_pairs_with_an_unsure_end_get_no_gradient_and_all_others_do():
    mask = labels(2, 6, 5)
    pairs = [(o, a.requires_grad_()) for o, a in affinities(mask, 3)]
    sum(affinity_loss(pairs, mask).values()).backward()
    for offset, a in pairs:
        first, second = ends(mask, offset)
        unsure = (first == 255) | (second == 255)
        assert unsure.any() and torch.equal(a.grad == 0, unsure)


@pytest.mark.parametrize("mask", [torch.full((2, 4, 5), 255), torch.zeros(2, 1, 1).long()], ids=["unsure", "1 cell"])
def test_without_pairs_all_terms_are_0_with_a_gradient_of_0(mask):
    pairs = [(o, a.requires_grad_()) for o, a in affinities(mask, 3)]
    terms = affinity_loss(pairs, mask)
    assert list(terms) == list(AFFINITY_WEIGHTS) and all(value == 0 for value in terms.values())
    sum(terms.values()).backward()
    assert all((a.grad == 0).all() for _, a in pairs)


def test_without_offsets_all_terms_are_0():
    assert all(value == 0 for value in affinity_loss([], torch.zeros(1, 2, 2).long()).values())


def test_gradients_are_those_of_differences():
    mask = labels(2, 3, 4)
    where, given_ = zip(*affinities(mask, 2), strict=True)
    given_ = [(0.05 + 0.9 * a).requires_grad_() for a in given_]

    def terms(*values):
        return tuple(affinity_loss(zip(where, values, strict=True), mask).values())

    assert torch.autograd.gradcheck(terms, given_)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_affinities_of_half_precision_of_exactly_0_and_1_cost_a_finite_amount(dtype):
    mask = labels(1, 4, 4, values=(0, 1, 2))
    for value in (0.0, 1.0):
        pairs = [(o, torch.full_like(a, value)) for o, a in affinities(mask, 3, dtype=dtype)]
        wide = [(o, a.float()) for o, a in pairs]
        got = affinity_loss(pairs, mask)
        assert got == affinity_loss(wide, mask) and all(term.isfinite() for term in got.values())


def test_the_weights_of_the_terms_sum_to_one():
    assert sum(AFFINITY_WEIGHTS.values()) == 1


def test_a_mask_of_another_grid_is_refused():
    with pytest.raises(WsssError, match=r"pairs of offset \(0, 1\): shape \(1, 4, 3\).*\(1, 8, 7\); bring") as error:
        affinity_loss([((0, 1), torch.zeros(1, 4, 3))], torch.zeros(1, 8, 8))
    assert "\n" not in str(error.value)
