"""Patches: squares of the right size, as many hidden as asked for, all sets as likely, padding never."""

import time
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.patches import draw_side, grid_patches, hide, visible_share

MAPS = arrays(
    np.int64,
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    elements=st.one_of(st.integers(0, 4), st.sampled_from([255, 256, 700])),
)
SHARES = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))


def superpixels(n, side, cells, seed=0):
    """Label maps with holes in their numbering: blobs of squares of a shuffled numbering."""
    numbers = 1 + torch.randperm(4 * cells**2, generator=torch.Generator().manual_seed(seed))[: cells**2]
    one = numbers.view(cells, cells).repeat_interleave(side // cells, 0).repeat_interleave(side // cells, 1)
    return one.expand(n, -1, -1).contiguous()


@given(size=st.tuples(st.integers(1, 20), st.integers(1, 20)), side=st.integers(1, 25))
@settings(max_examples=60, deadline=None)
def test_a_grid_is_squares_labelled_from_one_row_by_row(size, side):
    patches = grid_patches(size, side)
    per_row = -(-size[1] // side)
    assert patches.shape == size and patches.dtype == torch.int64
    for y in range(size[0]):
        for x in range(size[1]):
            assert patches[y, x] == 1 + y // side * per_row + x // side
    assert patches.unique().tolist() == list(range(1, -(-size[0] // side) * per_row + 1))


@given(maps=MAPS, p_h=SHARES, seed=st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_whole_patches_are_hidden_and_exactly_as_many_as_asked_for(maps, p_h, seed):
    torch.manual_seed(seed)
    visible = hide(torch.from_numpy(maps), p_h)
    assert visible.shape == (len(maps), 1, *maps.shape[1:]) and visible.dtype == torch.float32
    for labels, shown in zip(maps, visible[:, 0].numpy(), strict=True):
        there = [label for label in np.unique(labels) if label]
        hidden = [label for label in there if not shown[labels == label].any()]
        assert all(shown[labels == label].all() for label in there if label not in hidden)
        assert len(hidden) == round(p_h * len(there))
        assert set(np.unique(shown)) <= {0.0, 1.0} and shown[labels == 0].all()


def test_all_sets_of_patches_are_hidden_equally_often():
    torch.manual_seed(0)
    labels = torch.tensor([5, 300, 17, 2]).view(1, 2, 2).expand(3000, -1, -1)
    hidden = hide(labels, 0.5).flatten(1) == 0
    counts = [int(hidden[:, list(pair)].all(1).sum()) for pair in combinations(range(4), 2)]
    assert sum(counts) == 3000
    assert sum((n - 500) ** 2 / 500 for n in counts) < 20.5  # chi-square of 5 degrees: once in a thousand


def test_images_are_drawn_one_by_one():
    torch.manual_seed(0)
    visible = hide(grid_patches((16, 16), 2).expand(4, -1, -1), 0.5).flatten(1)
    assert len({tuple(one.tolist()) for one in visible}) == 4


def test_the_seed_decides_what_is_hidden():
    patches = grid_patches((16, 16), 2)[None]
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(hide(patches, 0.5))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_labels_are_only_names():
    patches = superpixels(2, 24, 6)
    names = patches.unique()
    consecutive = 1 + torch.searchsorted(names, patches)
    for p_h in (0.3, 0.5):
        assert (hide(patches, p_h) == 0).sum() == (hide(consecutive, p_h) == 0).sum()  # patches of one size


@given(maps=MAPS, p_h=SHARES, seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_an_image_and_its_complement_add_up(maps, p_h, seed):
    torch.manual_seed(seed)
    patches = torch.from_numpy(maps)
    image, visible = torch.randn(len(maps), 3, *maps.shape[1:]), hide(patches, p_h)
    assert torch.equal(image * visible + image * (1 - visible), image)
    for counted in (patches, None):
        both = visible_share(visible, counted) + visible_share(1 - visible, counted)
        expected = torch.ones(len(maps))
        if counted is not None:
            expected += (~(patches > 0).flatten(1).any(1)).float()  # without a patch, both are 1
        torch.testing.assert_close(both, expected)


@given(maps=MAPS, p_h=SHARES, seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_lambda_is_the_visible_share_of_the_pixels_that_belong_to_a_patch(maps, p_h, seed):
    torch.manual_seed(seed)
    visible = hide(torch.from_numpy(maps), p_h)
    got = visible_share(visible, torch.from_numpy(maps))
    for labels, shown, share in zip(maps, visible[:, 0].numpy(), got, strict=True):
        inside = shown[labels > 0]
        assert float(share) == pytest.approx(inside.mean() if inside.size else 1.0)
    np.testing.assert_allclose(visible_share(visible).numpy(), visible.numpy().mean((1, 2, 3)), rtol=1e-5)


def test_of_equal_patches_lambda_is_the_share_of_visible_ones():
    patches = grid_patches((8, 8), 2)[None]
    for p_h in (0.0, 0.25, 0.5, 1.0):
        assert float(visible_share(hide(patches, p_h), patches)) == 1 - p_h


def test_nothing_hidden_leaves_the_image():
    patches = superpixels(2, 24, 6)
    visible = hide(patches, 0.0)
    assert torch.equal(visible, torch.ones(2, 1, 24, 24)) and visible_share(visible, patches).tolist() == [1, 1]


def test_padding_is_never_hidden_and_does_not_count():
    torch.manual_seed(0)
    patches = superpixels(3, 24, 6)
    padded = torch.nn.functional.pad(patches, (8, 0, 0, 16))
    assert (padded == 0).any()
    visible = hide(padded, 0.5)
    assert (visible[:, 0][padded == 0] == 1).all()
    assert visible_share(visible, padded).tolist() == [0.5, 0.5, 0.5]
    assert (visible_share(visible) > 0.5).all()


def test_each_side_is_as_likely_and_the_draw_follows_the_seed():
    torch.manual_seed(0)
    drawn = [draw_side([4, 7]) for _ in range(400)]
    assert set(drawn) == {4, 7} and 160 < drawn.count(4) < 240
    torch.manual_seed(0)
    assert [draw_side([4, 7]) for _ in range(400)] == drawn


@pytest.mark.parametrize("kind", ["grid", "superpixels"])
def test_hiding_takes_less_than_5_ms_an_image(kind):
    patches = (grid_patches((448, 448), 56)[None] if kind == "grid" else superpixels(1, 448, 14)).expand(4, -1, -1)
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        visible_share(hide(patches, 0.5), patches)
        seconds.append((time.perf_counter() - start) / len(patches))
    assert min(seconds) < 0.005


@pytest.mark.parametrize("p_h", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_its_range_is_one_line(p_h):
    with pytest.raises(SettingsError, match=f"p_h={p_h}: give the share") as error:
        hide(torch.ones(1, 2, 2, dtype=torch.long), p_h)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("patches", "words"),
    [
        (torch.ones(2, 2, dtype=torch.long), r"of shape \(2, 2\), give integer labels"),
        (torch.ones(1, 2, 2), "got torch.float32"),
        (torch.ones(0, 2, 2, dtype=torch.long), "give integer labels"),
        (-torch.ones(1, 2, 2, dtype=torch.long), "has the label -1, give labels of 1 or more"),
    ],
)
def test_what_is_no_batch_of_label_maps_is_refused(patches, words):
    with pytest.raises(WsssError, match=words) as error:
        hide(patches, 0.5)
    assert "\n" not in str(error.value)


def test_impossible_sides_are_refused():
    with pytest.raises(SettingsError, match="side=0: give the side"):
        grid_patches((4, 4), 0)
    with pytest.raises(SettingsError, match=r"sides is empty: .*\[56, 112\]"):
        draw_side([])


def test_the_largest_label_of_a_16_bit_map_is_a_label_like_any_other():
    visible = hide(torch.tensor([[[0, 1, 65535]]], dtype=torch.int32), 1.0)
    assert visible.flatten().tolist() == [1, 0, 0]
