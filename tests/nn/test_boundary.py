"""Paths, boundary affinities and displacement losses against loops over cells, and where their gradients go."""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.boundary import DISPLACEMENT_WEIGHTS, boundary_affinity, displacement_losses, path
from wsss_lib.nn.pairs import ends, offsets

SOME = settings(max_examples=25, deadline=None)
SEED = st.integers(0, 10_000)
SIDE = st.integers(1, 7)
RADIUS = st.sampled_from([1.5, 3, 5])


def shares(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels(*shape, seed=0, values=(0, 1, 2, 255)):
    return torch.tensor(values)[torch.randint(0, len(values), shape, generator=torch.Generator().manual_seed(seed))]


@cache
def near_the_line(dy, dx):
    """All cells nearer than 1 to the straight line from (0, 0) to (dy, dx), wherever they lie."""
    end, found = np.array([dy, dx]), set()
    for y in range(-12, 13):
        for x in range(-12, 13):
            along = np.clip(np.array([y, x]) @ end / (end @ end), 0, 1)
            if np.hypot(*(np.array([y, x]) - along * end)) < 1 - 1e-9:  # some are at exactly 1
                found.add((y, x))
    return found


def pairs_of_cells(h, w, radius):
    """All pairs of cells nearer than a radius, each once: what leads from the first to the second, and the first."""
    for dy, dx in offsets(radius):
        for y in range(h):
            for x in range(w):
                if 0 <= y + dy < h and 0 <= x + dx < w:
                    yield (dy, dx), y, x


def dense(pairs, h, w):
    """The matrix (h w, h w) of the pairs of one image; 1 for a cell with itself."""
    matrix, cells = torch.eye(h * w, dtype=torch.float64), torch.arange(h * w).view(h, w)
    for offset, values in pairs:
        first, second = (end.flatten() for end in ends(cells, offset))
        matrix[first, second] = matrix[second, first] = values[0].flatten().double()
    return matrix


def walked(maps, matrix, beta=10, t=8):
    """Maps (C, h, w) after 2^t steps along affinities, cell by cell."""
    step = matrix**beta
    step = torch.linalg.matrix_power(step / step.sum(0), 2**t)
    return (maps.flatten(1) @ step).view_as(maps)


# Paths


@pytest.mark.parametrize("offset", [*offsets(10), (-3, 1), (-2, -4), (0, -5)])
def test_a_path_is_all_cells_nearer_than_1_to_the_line(offset):
    found = path(offset)
    assert set(found) == near_the_line(*offset) and len(set(found)) == len(found)


@pytest.mark.parametrize("offset", offsets(10))
def test_a_path_has_both_ends_stays_in_their_rectangle_and_is_the_same_backwards(offset):
    dy, dx = offset
    cells = set(path(offset))
    assert {(0, 0), offset} <= cells
    assert all(0 <= y <= dy and min(0, dx) <= x <= max(0, dx) for y, x in cells)
    assert {(dy - y, dx - x) for y, x in cells} == cells
    assert set(path((-dy, -dx))) == {(-y, -x) for y, x in cells}
    assert set(path((dy, -dx))) == {(y, -x) for y, x in cells} and set(path((dx, dy))) == {(x, y) for y, x in cells}


@pytest.mark.parametrize("n", [1, 2, 9])
def test_paths_along_rows_and_columns_are_straight(n):
    assert set(path((0, n))) == {(0, k) for k in range(n + 1)} and set(path((n, 0))) == {(k, 0) for k in range(n + 1)}


@pytest.mark.parametrize("offset", [(1, 1), (1, -2), (2, 3)])
def test_the_path_of_a_pair_twice_as_far_is_two_paths(offset):
    dy, dx = offset
    once = set(path(offset))
    assert set(path((2 * dy, 2 * dx))) == once | {(y + dy, x + dx) for y, x in once}


# Affinities


@given(SEED, SIDE, SIDE, RADIUS)
@SOME
def test_an_affinity_is_1_less_the_highest_boundary_near_the_line_also_on_grids_smaller_than_the_radius(
    seed, h, w, radius
):
    boundary = shares(2, h, w, seed=seed)
    found = dict(boundary_affinity(boundary, radius))
    assert {o: v.shape for o, v in found.items()} == {o: ends(boundary, o)[0].shape for o in offsets(radius)}
    for (dy, dx), y, x in pairs_of_cells(h, w, radius):
        for n in range(2):
            highest = max(boundary[n, y + a, x + b] for a, b in near_the_line(dy, dx))
            assert found[dy, dx][n, y, x + min(0, dx)] == 1 - highest


@pytest.mark.parametrize(("radius", "count"), [(5, 34), (10, 152)])
def test_there_are_as_many_offsets_as_in_the_paper_each_with_all_its_pairs(radius, count):
    found = {offset: values.shape for offset, values in boundary_affinity(shares(2, 12, 9), radius)}
    assert len(found) == count
    assert found == {(dy, dx): (2, 12 - dy, max(0, 9 - abs(dx))) for dy, dx in offsets(radius)}


def test_without_a_boundary_all_affinities_are_1_and_a_constant_map_walks_to_itself():
    pairs = list(boundary_affinity(torch.zeros(1, 6, 7), 5))
    assert all((values == 1).all() for _, values in pairs)
    flat = torch.full((2, 6, 7), 0.3, dtype=torch.float64)
    torch.testing.assert_close(walked(flat, dense(pairs, 6, 7)), flat)


def test_nothing_crosses_a_closed_contour():
    boundary, inside = torch.zeros(1, 13, 12), torch.zeros(13, 12, dtype=torch.bool)
    boundary[0, 2:10, 3:9] = 1
    boundary[0, 3:9, 4:8] = 0
    inside[3:9, 4:8] = True
    outside = ~inside & (boundary[0] == 0)
    pairs = list(boundary_affinity(boundary, 5))
    for offset, values in pairs:
        (here, there), (far_here, far_there) = ends(inside, offset), ends(outside, offset)
        assert (values[0][here & far_there | far_here & there] == 0).all()
        assert (values[0][here & there] == 1).all()  # a rectangle is convex
    start = inside.double()[None]
    end = walked(start, dense(pairs, 13, 12))
    assert (end[0][outside] == 0).all()
    torch.testing.assert_close(end[0][inside], start[0][inside])


def test_a_diagonal_line_of_single_cells_lets_nothing_through():
    boundary = torch.eye(9)[None]
    below = torch.ones(9, 9).tril(-1).bool()
    for offset, values in boundary_affinity(boundary, 5):
        (here, there), (on, also) = ends(below, offset), ends(below.T, offset)
        assert (values[0][here & also | on & there] == 0).all()


def test_a_boundary_of_1_beyond_the_edge_changes_no_pair_of_the_grid_and_adds_none():
    boundary = shares(1, 6, 5)
    framed = dict(boundary_affinity(F.pad(boundary, (5, 5, 5, 5), value=1.0), 5))
    for (dy, dx), values in boundary_affinity(boundary, 5):
        wide = framed[dy, dx][0].clone()
        within = wide[5 : 5 + values.shape[1], 5 : 5 + values.shape[2]]
        assert torch.equal(within, values[0])
        within.zero_()
        assert (wide == 0).all()


def test_a_mirrored_or_turned_boundary_has_the_affinities_of_mirrored_or_turned_pairs():
    boundary = shares(2, 7, 9)
    matrix = dense(boundary_affinity(boundary[:1], 5), 7, 9)
    cells = torch.arange(63).view(7, 9)
    for move in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.mT):
        order, moved = move(cells).flatten(), move(boundary[:1])
        assert torch.equal(dense(boundary_affinity(moved, 5), *moved.shape[1:]), matrix[order][:, order])


def test_more_boundary_never_raises_an_affinity():
    boundary = shares(1, 6, 8)
    more = torch.maximum(boundary, shares(1, 6, 8, seed=1))
    for (_, less), (_, values) in zip(boundary_affinity(more, 5), boundary_affinity(boundary, 5), strict=True):
        assert (less <= values).all()


def test_gradients_are_those_of_differences():
    boundary = torch.randperm(20, generator=torch.Generator().manual_seed(0)).double().view(1, 4, 5) / 20
    boundary = boundary.requires_grad_()
    assert torch.autograd.gradcheck(lambda b: tuple(values for _, values in boundary_affinity(b, 5)), boundary)


@given(SEED)
@SOME
def test_the_gradient_goes_to_the_highest_cell_in_equal_shares_where_several_are(seed):
    boundary = (shares(2, 5, 6, seed=seed) * 4).round() / 4  # many are equal
    gradients = []
    for plain in (False, True):
        b = boundary.clone().requires_grad_()
        for n, (offset, values) in enumerate(boundary_affinity(b, 4)):
            if plain:
                (dy, dx), (height, width) = offset, values.shape[1:]
                left = max(0, -dx)
                cells = [b[:, y : y + height, left + x : left + x + width] for y, x in path((dy, dx))]
                values = 1 - torch.stack(cells).amax(0)
            (values * shares(*values.shape, seed=n)).sum().backward()
        gradients.append(b.grad)
    torch.testing.assert_close(*gradients)


def test_for_the_gradient_no_maximum_but_the_last_is_kept():
    boundary, kept = shares(1, 16, 16).requires_grad_(), {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        values = [values for _, values in boundary_affinity(boundary, 8)]
    assert sum(kept.values()) <= 8 * (boundary.numel() + sum(v.numel() for v in values))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_boundaries_of_half_precision_give_affinities_of_float32(dtype):
    boundary = shares(1, 5, 6).to(dtype)
    wide = dict(boundary_affinity(boundary.float(), 3))
    for offset, values in boundary_affinity(boundary, 3):
        assert values.dtype == torch.float32 and torch.equal(values, wide[offset])


def test_a_boundary_with_channels_and_a_radius_without_pairs_are_refused_at_once():
    with pytest.raises(WsssError, match=r"boundary: got the shape \(2, 1, 4, 4\), give \(images, height, width\)"):
        boundary_affinity(torch.zeros(2, 1, 4, 4))
    with pytest.raises(SettingsError, match="radius=1: give more than 1 cell"):
        boundary_affinity(torch.zeros(2, 4, 4), 1)


# Displacements


def fields(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cells_themselves(h, w):
    """Rows and columns (2, h, w) of all cells."""
    return torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")).double()


@given(SEED, SIDE, SIDE, RADIUS)
@SOME
def test_both_terms_are_means_over_pairs_of_one_label(seed, h, w, radius):
    field, mask = fields(2, 2, h, w, seed=seed), labels(2, h, w, seed=seed)
    foreground, background = [], []
    for (dy, dx), y, x in pairs_of_cells(h, w, radius):
        for n in range(2):
            i, j = mask[n, y, x], mask[n, y + dy, x + dx]
            if i != j or i == 255:
                continue
            down, right = (float(v) for v in field[n, :, y, x] - field[n, :, y + dy, x + dx])
            if i == 0:
                background.append((abs(down) + abs(right)) / 2)
            else:
                foreground.append((abs(down - dy) + abs(right - dx)) / 2)
    got = displacement_losses(field, mask, radius)
    assert list(got) == list(DISPLACEMENT_WEIGHTS)
    for name, values in (("foreground", foreground), ("background", background)):
        assert float(got[f"displacement_{name}"]) == pytest.approx(np.mean(values) if values else 0, abs=1e-12)


def test_objects_whose_cells_point_to_one_place_and_a_background_that_points_nowhere_cost_nothing():
    mask = torch.zeros(1, 12, 11).long()
    mask[0, 1:5, 2:8], mask[0, 6:11, 0:4] = 1, 2
    mask[0, :, 10] = 255
    field = torch.full((1, 2, 12, 11), 0.25, dtype=torch.float64)
    for label, place in ((1, (2.5, 4.0)), (2, (7.0, -3.0))):
        to = torch.tensor(place).view(2, 1, 1) - cells_themselves(12, 11)
        field = torch.where(mask[:, None] == label, to, field)
    assert all(float(value) == pytest.approx(0, abs=1e-12) for value in displacement_losses(field, mask, 10).values())
    away = displacement_losses(-field, mask, 10)
    assert away["displacement_foreground"] > 1 and away["displacement_background"] == 0


def test_a_field_of_zeros_costs_the_mean_distance_of_pairs():
    mask = torch.ones(1, 3, 4).long()
    distance = [(abs(dy) + abs(dx)) / 2 for (dy, dx), _, _ in pairs_of_cells(3, 4, 3)]
    got = displacement_losses(torch.zeros(1, 2, 3, 4), mask, 3)
    assert float(got["displacement_foreground"]) == pytest.approx(np.mean(distance))


@given(SEED)
@SOME
def test_a_constant_added_to_an_image_changes_nothing(seed):
    field, mask = fields(2, 2, 6, 5, seed=seed), labels(2, 6, 5, seed=seed)
    shifted = displacement_losses(field + fields(2, 2, 1, 1, seed=seed + 1), mask, 4)
    for name, value in displacement_losses(field, mask, 4).items():
        assert float(shifted[name]) == pytest.approx(float(value))


def test_a_turned_field_with_its_channels_exchanged_costs_the_same():
    field, mask = fields(2, 2, 6, 9), labels(2, 6, 9)
    turned = displacement_losses(field.mT.flip(1), mask.mT, 5)
    for name, value in displacement_losses(field, mask, 5).items():
        assert float(turned[name]) == pytest.approx(float(value))


def test_gradients_of_both_terms_are_those_of_differences():
    field, mask = fields(2, 2, 3, 4).requires_grad_(), labels(2, 3, 4, values=(0, 0, 1, 1, 255))
    assert torch.autograd.gradcheck(lambda d: tuple(displacement_losses(d, mask, 3).values()), field)


def test_unsure_cells_and_cells_without_a_partner_get_no_gradient():
    field, mask = fields(1, 2, 6, 6).requires_grad_(), labels(1, 6, 6, values=(0, 1, 255))
    mask[0, 3, 3] = 7  # the only one
    sum(displacement_losses(field, mask, 3).values()).backward()
    alone = (mask == 255) | (mask == 7)
    assert (field.grad.abs().sum(1) == 0)[alone].all() and (field.grad.abs().sum(1) > 0)[~alone].any()


@pytest.mark.parametrize("mask", [torch.full((2, 4, 5), 255), torch.zeros(2, 1, 1).long()], ids=["unsure", "1 cell"])
def test_without_pairs_both_terms_are_0_with_a_gradient_of_0(mask):
    field = fields(2, 2, *mask.shape[1:]).requires_grad_()
    terms = displacement_losses(field, mask, 10)
    sum(terms.values()).backward()
    assert all(value == 0 for value in terms.values()) and (field.grad == 0).all()


def test_fields_of_half_precision_are_compared_in_float32():
    field, mask = fields(1, 2, 6, 5).bfloat16() * 50, labels(1, 6, 5, values=(0, 1))
    got = displacement_losses(field, mask, 3)
    assert got == displacement_losses(field.float(), mask, 3)
    assert all(value.dtype == torch.float32 and value > 0 for value in got.values())


def test_the_weights_are_one_half_each():
    assert list(DISPLACEMENT_WEIGHTS.values()) == [0.5, 0.5]


@pytest.mark.parametrize("shape", [(1, 2, 4, 4), (2, 1, 8, 8), (2, 2, 8, 7)])
def test_a_field_that_does_not_fit_the_mask_is_refused(shape):
    with pytest.raises(WsssError, match=r"displacement \(.*\), mask \(2, 8, 8\): give \(N, 2, h, w\)") as error:
        displacement_losses(torch.zeros(shape), torch.zeros(2, 8, 8).long())
    assert "\n" not in str(error.value)
