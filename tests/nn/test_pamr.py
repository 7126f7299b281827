"""PAMR against a plain oracle in NumPy, and what its weighted means must keep."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.pamr import DILATIONS, affinity, neighbours, pamr

SOME = settings(max_examples=25, deadline=None)
SEED = st.integers(0, 10_000)
SIDE = st.integers(1, 13)
PRECISION = st.sampled_from([(torch.float32, 1e-5), (torch.float64, 1e-12)])


def colours(*shape, seed=0, coarse=None):
    """A random image in [0, 1]: noise, or blobs of some pixels if `coarse`."""
    draw = torch.Generator().manual_seed(seed)
    if coarse is None:
        return torch.rand(*shape, generator=draw)
    small = torch.rand(*shape[:2], *(-(-side // coarse) for side in shape[2:]), generator=draw)
    return F.interpolate(small, shape[2:], mode="bicubic").clamp(0, 1)


def soft_masks(*shape, seed=1):
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).softmax(1)


def oracle_weights(image, dilations):
    """alpha (8 D, H, W) of one image, as the equations say, and where each neighbour is read."""
    y, x = np.mgrid[: image.shape[1], : image.shape[2]]

    def read(field, d, down, right):
        rows, columns = y + d * down, x + d * right
        return field[:, rows.clip(0, y.max()), columns.clip(0, x.max())]

    around = [(d, down, right) for d in dilations for down in (-1, 0, 1) for right in (-1, 0, 1)]
    sigma = np.std([read(image, *place) for place in around], axis=0, ddof=1)
    places = [place for place in around if place[1:] != (0, 0)]
    k = np.stack([-(np.abs(image - read(image, *place)) / (1e-8 + 0.1 * sigma)).mean(0) for place in places])
    alpha = np.exp(k - k.max(0))
    return alpha / alpha.sum(0), lambda field: [read(field, *place) for place in places]


def oracle(image, masks, iterations=10, dilations=DILATIONS):
    """PAMR of a batch in float64."""
    refined = []
    for x, m in zip(image.double().numpy(), masks.double().numpy(), strict=True):
        alpha, read = oracle_weights(x, dilations)
        for _ in range(iterations):
            m = sum(a * value for a, value in zip(alpha, read(m), strict=True))
        refined.append(m)
    return torch.from_numpy(np.stack(refined))


# Against the equations


@pytest.mark.parametrize("coarse", [None, 6])
def test_ten_iterations_with_the_papers_neighbours_are_the_oracles(coarse):
    image, masks = colours(2, 3, 45, 52, coarse=coarse), soft_masks(2, 4, 45, 52)
    right = oracle(image, masks)
    torch.testing.assert_close(pamr(image.double(), masks.double()), right, rtol=0, atol=5e-7)
    torch.testing.assert_close(pamr(image, masks).double(), right, rtol=0, atol=1e-5)
    assert (right - masks).abs().max() > 0.1


@given(SEED, SIDE, SIDE, st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(1, 30), min_size=1, max_size=4))
@example(0, 1, 1, 3, 2, [24])
@example(0, 1, 12, 3, 2, list(DILATIONS))
@SOME
def test_any_size_and_any_distances_are_the_oracles(seed, height, width, channels, classes, dilations):
    image = colours(1, channels, height, width, seed=seed).double()
    masks = soft_masks(1, classes, height, width, seed=seed).double()
    right = oracle(image, masks, 3, dilations)
    torch.testing.assert_close(pamr(image, masks, 3, dilations), right, rtol=0, atol=1e-10)


def test_the_weights_are_the_oracles_and_in_the_order_of_the_neighbours():
    image = colours(1, 3, 20, 30).double()
    right, _ = oracle_weights(image[0].numpy(), DILATIONS)
    np.testing.assert_allclose(affinity(image)[0], right, atol=1e-12)
    assert neighbours()[:9] == [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1), (-2, -2)]
    assert len(set(neighbours())) == 48 and (0, 0) not in neighbours()


@pytest.mark.parametrize("level", [0.5, 1e-6, 1e6])
def test_the_standard_deviation_survives_nearly_equal_pixels(level):
    # A pixel alone among equal ones, and a small ripple on a high level, are where running sums would cancel.
    image = torch.full((1, 1, 30, 30), level, dtype=torch.float64)
    image[0, 0, 15, 15] *= 2
    image[0, 0, ::3] *= 1 + 1e-7
    right, _ = oracle_weights(image[0].numpy(), DILATIONS)
    np.testing.assert_allclose(affinity(image)[0], right, atol=1e-6)


# What a weighted mean keeps


@given(SEED, st.floats(-3, 3, width=32), PRECISION)
@SOME
def test_a_flat_mask_stays_flat(seed, value, precision):
    dtype, atol = precision
    masks = torch.full((1, 1, 17, 20), value, dtype=dtype)
    torch.testing.assert_close(pamr(colours(1, 3, 17, 20, seed=seed), masks), masks, rtol=atol, atol=atol)


@given(SEED, PRECISION)
@SOME
def test_masks_that_sum_to_one_still_do_and_each_keeps_within_its_range(seed, precision):
    dtype, atol = precision
    masks = soft_masks(1, 5, 17, 20, seed=seed).to(dtype)
    masks /= masks.sum(1, keepdim=True)
    refined = pamr(colours(1, 3, 17, 20, seed=seed), masks)
    torch.testing.assert_close(refined.sum(1), torch.ones(1, 17, 20, dtype=dtype), rtol=0, atol=atol)
    assert (refined.amax((2, 3)) <= masks.amax((2, 3)) + atol).all()
    assert (refined.amin((2, 3)) >= masks.amin((2, 3)) - atol).all()


@given(SEED, st.sampled_from([None, 2, 5]))
@SOME
def test_the_weights_of_each_pixel_sum_to_one(seed, coarse):
    weights = affinity(colours(2, 3, 15, 18, seed=seed, coarse=coarse))
    assert weights.shape == (2, 48, 15, 18) and weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 15, 18), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("level", "noise"), [(0.0, 0.0), (0.3, 0.0), (1.0, 0.0), (0.0, 2.6e-23), (0.0, 1e-19)])
def test_a_flat_image_has_equal_weights(level, noise):
    weights = affinity(level + noise * colours(1, 3, 9, 30))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 48), rtol=1e-6, atol=0)


def test_a_pixels_own_value_is_not_among_its_neighbours():
    masks = torch.zeros(1, 1, 5, 5)
    masks[..., 2, 2] = 1
    right = torch.zeros(5, 5)
    right[1:4, 1:4] = 1 / 8
    right[2, 2] = 0
    torch.testing.assert_close(pamr(torch.zeros(1, 3, 5, 5), masks, 1, [1])[0, 0], right)


@given(SEED, st.floats(0.1, 2), st.floats(-1, 1))
@SOME
def test_brightness_and_contrast_of_a_colour_do_not_count(seed, contrast, brightness):
    image = colours(1, 3, 11, 14, seed=seed).double()
    other = image.clone()
    other[:, 1] = contrast * other[:, 1] + brightness
    torch.testing.assert_close(affinity(other), affinity(image), rtol=1e-4, atol=1e-7)


def test_no_weight_crosses_a_strong_edge_and_a_coarse_mask_moves_to_it():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = ((y - 30) ** 2 + (x - 34) ** 2 < 18**2).float()
    image = 0.2 + 0.6 * disc + 0.05 * colours(1, 3, 64, 64)
    coarse = F.avg_pool2d(F.pad(disc, (0, 5, 0, 5))[None, None, 5:, 5:], 8).repeat_interleave(8, 2)
    masks = coarse.repeat_interleave(8, 3)

    def iou(mask):
        inside = mask[0, 0] > 0.5
        return float((inside & (disc > 0)).sum() / (inside | (disc > 0)).sum())

    assert iou(masks) < 0.75 and iou(pamr(image, masks, 10)) > 0.95


# Symmetries


@pytest.mark.parametrize("turn", [lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.mT])
def test_a_flipped_or_transposed_scene_gives_flipped_or_transposed_masks(turn):
    image, masks = colours(1, 3, 13, 30).double(), soft_masks(1, 3, 13, 30).double()
    torch.testing.assert_close(pamr(turn(image), turn(masks)), turn(pamr(image, masks)), rtol=0, atol=1e-12)


def test_images_of_a_batch_do_not_mix(monkeypatch):
    image, masks = colours(3, 3, 12, 15).double(), soft_masks(3, 4, 12, 15).double()
    alone = torch.cat([pamr(image[i : i + 1], masks[i : i + 1]) for i in range(3)])
    of_one = torch.cat([affinity(one[None]) for one in image])
    for pixels in (2**17, 2 * 12 * 15, 1):  # all together, in parts of two, one by one
        monkeypatch.setattr("wsss_lib.nn.pamr.PIXELS", pixels)
        torch.testing.assert_close(pamr(image, masks), alone, rtol=0, atol=1e-12)
        torch.testing.assert_close(affinity(image), of_one, rtol=0, atol=1e-12)


def test_classes_and_colours_may_come_in_any_order():
    image, masks = colours(1, 3, 12, 15), soft_masks(1, 4, 12, 15)
    assert torch.equal(pamr(image, masks[:, [2, 0, 3, 1]]), pamr(image, masks)[:, [2, 0, 3, 1]])
    torch.testing.assert_close(pamr(image[:, [2, 0, 1]], masks), pamr(image, masks))


def test_iterations_add_up():
    image, masks = colours(1, 3, 12, 15), soft_masks(1, 4, 12, 15)
    assert torch.equal(pamr(image, pamr(image, masks, 2), 3), pamr(image, masks, 5))
    assert not torch.equal(pamr(image, masks, 4), pamr(image, masks, 5))


# What goes in and out


@pytest.mark.parametrize("iterations", [0, 2])
def test_no_iteration_gives_the_masks_back_and_what_is_given_is_left_alone(iterations):
    image, masks = colours(1, 3, 12, 15), soft_masks(1, 4, 12, 15)
    before = image.clone(), masks.clone()
    refined = pamr(image, masks, iterations)
    assert torch.equal(refined, masks) is (iterations == 0)
    refined.zero_()
    assert torch.equal(image, before[0]) and torch.equal(masks, before[1])


def test_nothing_passes_a_gradient():
    image, masks = colours(1, 3, 12, 15).requires_grad_(), soft_masks(1, 4, 12, 15).requires_grad_()
    assert not any(x.requires_grad for x in (pamr(image, masks), pamr(image, masks, 0), affinity(image)))


def test_halves_and_whole_numbers_are_computed_in_float32_under_autocast_too():
    image, masks = (255 * colours(1, 3, 12, 15)).byte(), soft_masks(1, 4, 12, 15).bfloat16()
    right = pamr(image.float(), masks.float())
    with torch.autocast("cpu", torch.bfloat16):
        got = pamr(image, masks), pamr(image.float(), masks.float())
    assert all(refined.dtype == torch.float32 and torch.equal(refined, right) for refined in got)
    assert pamr(image, masks.double()).dtype == affinity(image.double()).dtype == torch.float64


def test_the_layout_in_memory_does_not_matter():
    image, masks = colours(2, 3, 12, 15), soft_masks(1, 4, 12, 15)
    channels_last = image.to(memory_format=torch.channels_last), masks.expand(2, -1, -1, -1)
    refined = pamr(*channels_last)
    assert refined.is_contiguous() and torch.equal(refined, pamr(image, masks.repeat(2, 1, 1, 1)))
    assert torch.equal(affinity(channels_last[0]), affinity(image))


def test_a_batch_without_images_is_refined_to_none():
    assert pamr(torch.zeros(0, 3, 4, 5), torch.zeros(0, 21, 4, 5)).shape == (0, 21, 4, 5)
    assert affinity(torch.zeros(0, 3, 4, 5)).shape == (0, 48, 4, 5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU at hand")
def test_a_gpu_gives_the_same_masks():
    image, masks = colours(2, 3, 45, 52), soft_masks(2, 4, 45, 52)
    torch.testing.assert_close(pamr(image.cuda(), masks.cuda()).cpu(), pamr(image, masks), rtol=0, atol=1e-5)


# Mistakes


@pytest.mark.parametrize(
    ("image", "masks", "text"),
    [
        ((3, 8, 8), (1, 2, 8, 8), r"image: got the shape \(3, 8, 8\), give \(images, channels, height, width\)"),
        ((1, 3, 8, 8), (8, 8), r"masks: got the shape \(8, 8\), give"),
        ((1, 3, 0, 8), (1, 2, 0, 8), r"image: got the shape \(1, 3, 0, 8\), give"),
        ((1, 3, 8, 8), (1, 0, 8, 8), r"masks: got the shape \(1, 0, 8, 8\), give"),
        ((1, 3, 8, 9), (1, 2, 8, 8), "resize the image to the masks"),
        ((2, 3, 8, 8), (1, 2, 8, 8), "give as many masks as images"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(image, masks, text):
    with pytest.raises(WsssError, match=text) as error:
        pamr(torch.zeros(image), torch.zeros(masks))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dilations", [[], [0], [1, -2]])
def test_distances_below_one_pixel_are_refused(dilations):
    one = torch.zeros(1, 3, 8, 8)
    for run in (lambda: neighbours(dilations), lambda: affinity(one, dilations), lambda: pamr(one, one, 1, dilations)):
        with pytest.raises(SettingsError, match="give one distance or more, each of 1 pixel or more") as error:
            run()
        assert str(dilations) in str(error.value) and "\n" not in str(error.value)


def test_a_negative_number_of_iterations_is_refused():
    one = torch.zeros(1, 3, 8, 8)
    with pytest.raises(SettingsError, match="iterations=-1: give 0 or more"):
        pamr(one, one, -1)


def test_weights_of_what_is_no_batch_are_refused():
    with pytest.raises(WsssError, match=r"image: got the shape \(3, 8, 8\)"):
        affinity(torch.zeros(3, 8, 8))
