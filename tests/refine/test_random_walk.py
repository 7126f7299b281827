"""The random walk against the dense form in NumPy, and what means over cells must keep."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.pairs import ends, offsets
from wsss_lib.refine.random_walk import random_walk, transition, walk

SOME = settings(max_examples=25, deadline=None)
SEED = st.integers(0, 10_000)
SIDE = st.integers(1, 11)


def affinities(height, width, radius=5, seed=0, low=0.0, high=1.0):
    """Random affinities of all pairs of one image."""
    draw = torch.Generator().manual_seed(seed)
    cells = torch.zeros(1, height, width, dtype=torch.float64)
    shapes = [(offset, ends(cells, offset)[0].shape) for offset in offsets(radius)]
    return [(o, low + (high - low) * torch.rand(shape, generator=draw, dtype=torch.float64)) for o, shape in shapes]


def some_maps(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def between(height, width, near, radius=5):
    """Affinities 1 and 0, as `near` says of two cells (y, x)."""
    pairs = []
    for dy, dx in offsets(radius):
        starts = [(y, x) for y in range(height - dy) for x in range(max(0, -dx), min(width, width - dx))]
        values = [float(near(start, (start[0] + dy, start[1] + dx))) for start in starts]
        pairs.append(((dy, dx), torch.tensor(values).view(1, max(0, height - dy), max(0, width - abs(dx)))))
    return pairs


def dense(pairs, height, width, beta):
    """T as the equation says, pair by pair."""
    a = np.eye(height * width)
    for (dy, dx), values in pairs:
        for y in range(height - dy):
            for k, x in enumerate(range(max(0, -dx), min(width, width - dx))):
                i, j = y * width + x, (y + dy) * width + x + dx
                a[i, j] = a[j, i] = values[0, y, k]
    return a**beta / (a**beta).sum(0)


def oracle(maps, pairs, beta, t):
    """vec(M) T^(2^t), by squaring T."""
    c, height, width = maps.shape
    matrix = dense(pairs, height, width, beta)
    for _ in range(t):
        matrix = matrix @ matrix
    return torch.from_numpy(maps.reshape(c, -1).double().numpy() @ matrix).view(c, height, width)


# Against the dense form


@pytest.mark.parametrize(("height", "width", "radius"), [(13, 18, 5), (9, 22, 10), (17, 17, 2.5)])
@pytest.mark.parametrize("beta", [1, 8, 10])
def test_256_steps_are_those_of_the_dense_form(height, width, radius, beta):
    pairs, maps = affinities(height, width, radius), some_maps(3, height, width)
    right = oracle(maps, pairs, beta, t=8)
    torch.testing.assert_close(random_walk(maps, pairs, beta, 8), right, rtol=0, atol=1e-9)
    assert (right - maps).abs().max() > 0.1


@given(SEED, SIDE, SIDE, st.integers(1, 4), st.sampled_from([1.5, 2, 5, 8]), st.floats(0.1, 20), st.integers(0, 6))
@example(0, 1, 1, 1, 5, 10.0, 8)
@example(0, 1, 9, 2, 5, 10.0, 8)
@example(0, 3, 2, 2, 10, 10.0, 8)
@SOME
def test_any_grid_also_below_the_radius_is_the_dense_forms(seed, height, width, n, radius, beta, t):
    pairs, maps = affinities(height, width, radius, seed), some_maps(n, height, width, seed=seed)
    torch.testing.assert_close(random_walk(maps, pairs, beta, t), oracle(maps, pairs, beta, t), rtol=0, atol=1e-9)


def test_the_matrix_is_the_equations_transposed_in_int32_and_without_zeros():
    pairs = affinities(7, 9)
    pairs[3][1][0, 2, 1:4] = 0
    T, right = transition(pairs, (7, 9), 10), dense(pairs, 7, 9, 10)
    np.testing.assert_allclose(T.to_dense().T, right, rtol=1e-12)
    assert T.layout == torch.sparse_csr and T.crow_indices().dtype == T.col_indices().dtype == torch.int32
    assert T.values().numel() == np.count_nonzero(right) and not np.allclose(right, right.T)
    for row in T.col_indices().tensor_split(T.crow_indices()[1:-1].long()):
        assert (row.diff() > 0).all()


def test_a_step_reaches_no_further_than_the_pairs():
    maps = torch.zeros(1, 15, 15)
    maps[0, 7, 7] = 1
    y, x = torch.meshgrid(*[torch.arange(15) - 7] * 2, indexing="ij")
    reached = random_walk(maps, affinities(15, 15, low=0.1), 8, t=0)[0] > 0
    assert torch.equal(reached, y**2 + x**2 < 25)


# What a mean over cells keeps


@given(SEED, SIDE, SIDE, st.integers(0, 8))
@SOME
def test_the_columns_of_every_power_sum_to_one(seed, height, width, t):
    T = transition(affinities(height, width, seed=seed), (height, width), 10)
    power = walk(torch.eye(height * width, dtype=torch.float64).view(-1, height, width), T, t)
    assert power.min() >= 0
    torch.testing.assert_close(power.sum(0), torch.ones(height, width, dtype=torch.float64), rtol=0, atol=1e-12)


@given(SEED, SIDE, SIDE, st.floats(-3, 3, width=32), st.sampled_from([(torch.float32, 1e-6), (torch.float64, 1e-12)]))
@SOME
def test_a_flat_map_stays_flat(seed, height, width, value, precision):
    dtype, atol = precision
    maps = torch.full((1, height, width), value, dtype=dtype)
    torch.testing.assert_close(random_walk(maps, affinities(height, width, seed=seed), 10, 8), maps, rtol=0, atol=atol)


@given(SEED, SIDE, SIDE, st.integers(0, 8))
@SOME
def test_a_map_keeps_within_its_range(seed, height, width, t):
    maps = 10 * some_maps(3, height, width, seed=seed) - 5
    spread = random_walk(maps, affinities(height, width, seed=seed), 8, t)
    assert (spread.amax((1, 2)) <= maps.amax((1, 2)) + 1e-12).all()
    assert (spread.amin((1, 2)) >= maps.amin((1, 2)) - 1e-12).all()


def test_nothing_crosses_a_closed_contour():
    def side(cell):  # within a ring, on it, or outside
        return np.sign(max(abs(cell[0] - 6), abs(cell[1] - 8)) - 4)

    pairs = between(13, 17, lambda i, j: side(i) == side(j) != 0)
    ring = torch.tensor([[side((y, x)) for x in range(17)] for y in range(13)])
    maps = torch.zeros(2, 13, 17)
    maps[0, 6, 8], maps[1, 0, 0] = 1, 1
    spread = random_walk(maps, pairs, 10, 8)
    assert (spread[0][ring >= 0] == 0).all() and (spread[0][ring < 0] > 0).all()
    assert (spread[1][ring <= 0] == 0).all() and (spread[1][ring > 0] > 0).any()
    assert torch.equal(random_walk(ring[None].float(), pairs, 10, 8)[0][ring == 0], torch.zeros(int((ring == 0).sum())))


@pytest.mark.parametrize("beta", [1e4, float("inf")])
def test_a_high_beta_leaves_maps_as_they_are_unless_affinities_are_one(beta):
    maps = some_maps(2, 6, 7)
    assert torch.equal(random_walk(maps, affinities(6, 7, high=0.9), beta, 8), maps)
    assert (random_walk(maps, affinities(6, 7, low=1.0), beta, 8) - maps.mean((1, 2), keepdim=True)).abs().max() < 0.1


def test_equal_affinities_lead_to_the_mean_weighted_by_the_number_of_neighbours():
    maps, pairs = some_maps(1, 5, 6), affinities(5, 6, low=1.0)
    maps[0, 0, 0] = 9
    near = np.count_nonzero(dense(pairs, 5, 6, 10), axis=0).reshape(5, 6)
    mean = (maps[0].numpy() * near).sum() / near.sum()
    np.testing.assert_allclose(random_walk(maps, pairs, 10, 8), np.full((1, 5, 6), mean), rtol=1e-9)


# Symmetries


def test_several_maps_at_once_are_as_one_by_one_and_in_any_order():
    maps, T = some_maps(5, 9, 12), transition(affinities(9, 12), (9, 12), 10)
    spread, order = walk(maps, T, 6), torch.tensor([3, 0, 4, 1, 2])
    alone = torch.cat([walk(one[None], T, 6) for one in maps])
    torch.testing.assert_close(spread, alone, rtol=0, atol=1e-13)
    torch.testing.assert_close(walk(maps[order], T, 6), spread[order], rtol=0, atol=1e-13)
    torch.testing.assert_close(walk(2 * maps - 1, T, 6), 2 * spread - 1, rtol=0, atol=1e-12)
    assert walk(maps[:0], T, 6).shape == (0, 9, 12)


def test_a_mirrored_scene_gives_mirrored_maps():
    maps, pairs = some_maps(2, 9, 12), affinities(9, 12)
    # Upside down, (dy, dx) becomes (-dy, dx).
    mirrored = [((-dy, dx), values.flip(1)) for (dy, dx), values in pairs]
    torch.testing.assert_close(
        random_walk(maps.flip(1), mirrored, 8, 6), random_walk(maps, pairs, 8, 6).flip(1), rtol=0, atol=1e-13
    )


def test_the_order_of_offsets_and_which_of_two_opposite_ones_is_given_do_not_matter():
    maps, pairs = some_maps(2, 9, 12), affinities(9, 12)
    turned = ((((-dy, -dx), values) if dx < 0 else ((dy, dx), values)) for (dy, dx), values in reversed(pairs))
    assert torch.equal(random_walk(maps, turned, 8, 6), random_walk(maps, pairs, 8, 6))


def test_t_counts_doublings():
    maps, T = some_maps(2, 9, 12), transition(affinities(9, 12), (9, 12), 8)
    assert torch.equal(walk(walk(maps, T, 3), T, 3), walk(maps, T, 4))
    assert not torch.equal(walk(maps, T, 3), walk(maps, T, 4))


# What goes in and out


@pytest.mark.parametrize("high", [1.0, 0.5])  # at 0.5 most walkers stay: rounding to float32 would add up
def test_float32_is_float64_rounded(high):
    pairs = [(offset, values.float()) for offset, values in affinities(13, 18, high=high)]
    maps = some_maps(3, 13, 18).float()
    spread = random_walk(maps, pairs, 10, 8)
    assert spread.dtype == torch.float32
    torch.testing.assert_close(spread.double(), oracle(maps, pairs, 10, 8), rtol=0, atol=1e-7)
    assert random_walk(maps.half(), pairs, 10, 8).dtype == torch.float16
    halves = [(offset, values.bfloat16()) for offset, values in pairs]
    assert torch.equal(random_walk(maps, halves, 10, 8), random_walk(maps, [(o, v.float()) for o, v in halves], 10, 8))


def test_autocast_changes_nothing():
    pairs, maps = affinities(9, 12), some_maps(3, 9, 12).float()
    right = random_walk(maps, pairs, 10, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(random_walk(maps, pairs, 10, 4), right)


def test_what_is_given_is_left_alone_and_nothing_passes_a_gradient():
    maps, pairs = some_maps(1, 9, 12).requires_grad_(), [(o, v.requires_grad_()) for o, v in affinities(9, 12)]
    before = maps.detach().clone(), [values.detach().clone() for _, values in pairs]
    spread = random_walk(maps, pairs, 10, 0)
    assert not spread.requires_grad and spread.is_contiguous()
    spread.zero_()
    assert torch.equal(maps, before[0])
    assert all(torch.equal(values, kept) for (_, values), kept in zip(pairs, before[1], strict=True))


def test_the_layout_of_maps_in_memory_does_not_matter():
    maps, T = some_maps(4, 9, 12), transition(affinities(9, 12), (9, 12), 8)
    strange = maps.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    spread = walk(strange, T, 3)
    assert not strange.is_contiguous() and spread.is_contiguous() and torch.equal(spread, walk(maps, T, 3))


def test_no_warning_of_torch_reaches_the_reader():
    code = (
        "import torch\n"
        "from wsss_lib.refine.random_walk import random_walk\n"
        "random_walk(torch.ones(1, 1, 2), [((0, 1), torch.ones(1, 1, 1))], 1, 1)"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU at hand")
def test_a_gpu_gives_the_same_maps():
    pairs, maps = affinities(23, 31), some_maps(3, 23, 31)
    spread = random_walk(maps.cuda(), pairs, 10, 8)
    assert spread.is_cuda
    torch.testing.assert_close(spread.cpu(), random_walk(maps, pairs, 10, 8), rtol=0, atol=1e-9)
    single = random_walk(maps.float().cuda(), pairs, 10, 8)
    torch.testing.assert_close(single.cpu(), random_walk(maps.float(), pairs, 10, 8), rtol=0, atol=1e-6)


# Mistakes

ONE = ((0, 1), torch.ones(1, 3, 3))


@pytest.mark.parametrize("beta", [0, -1, float("nan")])
def test_a_beta_of_zero_or_less_is_refused(beta):
    with pytest.raises(SettingsError, match=f"beta={beta}: give more than 0") as error:
        random_walk(torch.ones(1, 3, 4), [ONE], beta, 8)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("t", [-1, 1.5, 8.0, None])
def test_a_t_that_is_no_whole_number_of_zero_or_more_is_refused(t):
    with pytest.raises(SettingsError, match=f"t={t}: give a whole number of 0 or more") as error:
        random_walk(torch.ones(1, 3, 4), [ONE], 8, t)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("maps", "pairs", "text"),
    [
        ((1, 3, 4), [], "pairs: none at all; give the affinities of one offset or more"),
        ((1, 3, 4), [ONE, ONE], r"pairs: offset \(0, 1\) comes twice; leave out opposite ones and \(0, 0\)"),
        ((1, 3, 4), [ONE, ((0, -1), ONE[1])], r"pairs: offset \(0, -1\) comes twice"),
        ((1, 3, 4), [((0, 0), torch.ones(1, 3, 4))], r"pairs: offset \(0, 0\) comes twice"),
        ((1, 3, 5), [ONE], r"pairs: offset \(0, 1\) has the shape \(1, 3, 3\), \(1, 3, 4\) on a grid of 3 x 5; give"),
        ((1, 3, 4), [((0, 1), torch.ones(2, 3, 3))], r"has the shape \(2, 3, 3\), \(1, 3, 3\) on .* one image's"),
        ((1, 3, 4), [((0, 1), torch.ones(3, 3))], r"has the shape \(3, 3\), \(1, 3, 3\) on .* one image's"),
        ((1, 3, 4), [((0, 1), torch.full((1, 3, 3), 1.25))], r"affinities from 0 to 1.25; give numbers in \[0, 1\]"),
        ((1, 3, 4), [((0, 1), torch.full((1, 3, 3), -0.5))], r"affinities from -0.5 to 1; give numbers in \[0, 1\]"),
        ((1, 3, 4), [ONE, ((1, 0), torch.full((1, 2, 4), torch.nan))], r"from nan to nan; give numbers in \[0, 1\]"),
        ((3, 4), [ONE], r"maps \(3, 4\) on cpu, T \(12, 12\) on cpu: give maps \(C, h, w\), T \(h w, h w\)"),
        ((1, 0, 4), [ONE], r"size=\(0, 4\): give a grid of one cell or more"),
    ],
)
def test_maps_and_affinities_that_do_not_fit_are_refused(maps, pairs, text):
    with pytest.raises(WsssError, match=text) as error:
        random_walk(torch.ones(maps), pairs, 8, 2)
    assert "\n" not in str(error.value)


def test_a_matrix_of_another_grid_or_device_is_refused():
    T = transition([ONE], (3, 4), 8)
    with pytest.raises(WsssError, match=r"maps \(1, 3, 5\) on cpu, T \(12, 12\) on cpu: give maps"):
        walk(torch.ones(1, 3, 5), T, 2)
    with pytest.raises(WsssError, match=r"maps \(1, 3, 4\) on meta, T \(12, 12\) on cpu: .* both on one device"):
        walk(torch.ones(1, 3, 4, device="meta"), T, 2)


@pytest.mark.parametrize("maps", [torch.full((1, 3, 4), torch.nan), torch.full((1, 3, 4), torch.inf)])
def test_maps_that_are_no_numbers_are_refused(maps):
    with pytest.raises(WsssError, match=r"maps of torch\.float32: give floating-point numbers, all of them finite"):
        random_walk(maps, [ONE], 8, 2)


def test_maps_of_whole_numbers_are_refused_as_means_are_none():
    with pytest.raises(WsssError, match=r"maps of torch\.uint8: give floating-point numbers"):
        random_walk(torch.ones(1, 3, 4, dtype=torch.uint8), [ONE], 8, 2)
