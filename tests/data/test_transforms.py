"""Transforms: an image and its mask move alike, and what lies outside is exactly 0 and 255."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from wsss_lib.data.transforms import (
    MEAN,
    STD,
    RandomLongSide,
    Regions,
    check_scales,
    denormalize,
    normalize,
    resize_image,
    scale_image,
    train_transform,
)
from wsss_lib.errors import SettingsError


def painted(height=40, width=60, seed=0):
    """An image whose red, green and blue are its mask's value (blobs, none at 0)."""
    coarse = torch.randint(1, 6, (1, 1, height // 10, width // 10), generator=torch.Generator().manual_seed(seed))
    mask = torch.nn.functional.interpolate(coarse.float(), (height, width))[0, 0].to(torch.uint8)
    return tv_tensors.Image((mask * 40).expand(3, -1, -1).contiguous()), tv_tensors.Mask(mask)


def painted_value(image):
    return (denormalize(image) * 255 / 40).mean(0)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("crop", [32, 48, 80])
def test_image_and_mask_stay_aligned_and_the_outside_is_zero_and_ignored(crop, seed):
    torch.manual_seed(seed)
    image, mask = train_transform(None, crop, pad=6)(*painted(seed=seed))
    assert image.shape == (3, crop, crop)
    assert mask.shape == (crop, crop)
    outside = mask == 255
    assert torch.equal((image == 0).all(0), outside)
    assert torch.equal(painted_value(image).round()[~outside], mask[~outside].float())


@pytest.mark.parametrize("side", [30, 47, 60, 91, 120])
def test_image_and_mask_stay_aligned_when_resized(side):
    image, mask = train_transform((side, side), 128, flip=False)(*painted())
    inside = mask != 255
    assert torch.equal((image != 0).any(0), inside)
    assert inside.sum() == side * round(side * 40 / 60)
    # Bicubic edges overshoot and blend; blobs' insides, and the image as a whole, must agree.
    error = (painted_value(image) - mask)[inside]
    assert error.abs().median() < 0.05
    assert abs(error.mean()) < 0.05


@pytest.mark.parametrize("factor", [0.5, 2, 3])
def test_a_resized_mask_is_not_half_a_pixel_off_its_image(factor):
    square = torch.zeros(64, 64, dtype=torch.uint8)
    square[16:48, 16:48] = 1
    resize = RandomLongSide((int(64 * factor),) * 2)
    image, mask = resize(tv_tensors.Image(square.expand(3, -1, -1) * 255), tv_tensors.Mask(square))
    middle = mask.shape[0] // 2  # not at the corners: bicubic rounds them off
    assert torch.equal(image[0, middle] > 127, mask[middle].bool())
    assert torch.equal(image[0, :, middle] > 127, mask[:, middle].bool())
    assert torch.equal(mask, mask.flip(0))


@pytest.mark.parametrize("kind", [tv_tensors.Mask, Regions])
@pytest.mark.parametrize("side", [18, 24, 72])
def test_a_pixel_of_a_resized_mask_is_the_one_that_its_centre_lies_in(side, kind):
    mask = torch.arange(24 * 36, dtype=torch.int32).view(24, 36)
    rows, columns = (((torch.arange(n * side // 36) + 0.5) * 36 / side).long() for n in mask.shape)
    resized = RandomLongSide((side, side))(kind(mask))
    assert isinstance(resized, kind) and torch.equal(resized, mask[rows][:, columns])


def test_an_image_alone_is_transformed_as_with_its_mask():
    image, mask = painted()
    transform = train_transform((30, 90), 48, jitter=(0.3, 0.3, 0.3, 0.1), pad=2)
    torch.manual_seed(3)
    alone = transform(image.as_subclass(torch.Tensor))
    torch.manual_seed(3)
    assert torch.equal(alone, transform(image, mask)[0])


def test_a_crop_is_a_window_of_the_normalised_image():
    image, _ = painted(40, 60)
    image = torch.randint_like(image.as_subclass(torch.Tensor), 256)
    window = train_transform(None, 24, flip=False)(image)
    whole = normalize(image).unfold(1, 24, 1).unfold(2, 24, 1)
    assert (whole == window[:, None, None]).all(-1).all(-1).all(0).sum() == 1


def test_an_image_of_the_crops_size_passes_unmoved_without_pad_and_flip():
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    assert torch.equal(train_transform(None, 32, flip=False)(image), normalize(image))


def test_pad_shifts_by_at_most_as_many_pixels():
    image = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    transform, shifts = train_transform(None, 32, pad=3), set()
    for _ in range(200):
        inside = (transform(image) != 0).all(0)
        shifts.add(32 - int(inside.any(0).sum()))
        assert inside.sum() == inside.any(0).sum() * inside.any(1).sum()
    assert shifts == {0, 1, 2, 3}


def test_small_images_lie_anywhere_in_the_crop():
    image = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    corners = {tuple((train_transform(None, 12)(image)[0] != 0).nonzero()[0].tolist()) for _ in range(400)}
    assert corners == {(y, x) for y in range(5) for x in range(5)}


def test_every_second_image_is_mirrored():
    image = torch.arange(32, dtype=torch.uint8).expand(3, 32, 32)
    mirrored = [bool((train_transform(None, 32)(image)[0].diff() < 0).all()) for _ in range(200)]
    assert 60 < sum(mirrored) < 140
    assert not any((train_transform(None, 32, flip=False)(image)[0].diff() < 0).any() for _ in range(20))


def test_the_longest_side_is_uniform_and_the_aspect_stays():
    resize = RandomLongSide((20, 23))
    wide, tall = torch.zeros(3, 30, 60, dtype=torch.uint8), torch.zeros(3, 60, 30, dtype=torch.uint8)
    sizes = [tuple(resize(image).shape[1:]) for image in (wide, tall) for _ in range(200)]
    count = {side: sum(max(size) == side for size in sizes) for side in range(19, 25)}
    assert count[19] == count[24] == 0
    assert all(60 < count[side] < 140 for side in (20, 21, 22, 23))
    assert all(abs(2 * min(size) - max(size)) <= 1 for size in sizes)


def test_a_very_thin_image_keeps_a_pixel():
    assert RandomLongSide((8, 8))(torch.zeros(3, 1, 400, dtype=torch.uint8)).shape == (3, 1, 8)


def test_jitter_changes_colours_but_neither_the_mask_nor_the_padding():
    image, mask = painted()
    transform = train_transform(None, 80, jitter=(0.5, 0.5, 0.5, 0.2), flip=False)
    plain, jittered = train_transform(None, 80, flip=False), []
    for seed in range(5):
        torch.manual_seed(seed)
        image_out, mask_out = transform(image, mask)
        outside = mask_out == 255
        assert (image_out[:, outside] == 0).all()
        assert torch.equal(mask_out[~outside], mask.flatten())
        jittered.append(image_out[:, ~outside])
    image_out, mask_out = plain(image, mask)
    assert not any(torch.equal(image_out[:, mask_out != 255], other) for other in jittered)


def test_no_strength_is_no_jitter():
    steps = train_transform(None, 8, jitter=(0, 0, 0, 0)).transforms
    assert not any(isinstance(step, v2.ColorJitter) for step in steps)


def test_empty_settings_stand_for_none():
    assert train_transform((), 8, ())(torch.zeros(3, 8, 8, dtype=torch.uint8)).shape == (3, 8, 8)


@pytest.mark.parametrize("lead", [(), (2,)])
def test_normalize_is_torchvisions_and_denormalize_undoes_it(lead):
    image = torch.randint(0, 256, (*lead, 3, 5, 7), dtype=torch.uint8)
    oracle = v2.functional.normalize(image.float() / 255, MEAN, STD)
    torch.testing.assert_close(normalize(image), oracle)
    torch.testing.assert_close(denormalize(normalize(image)), image / 255)
    assert (denormalize(torch.full((3, 1, 1), 99.0)) == 1).all()


def test_a_normalised_image_is_not_normalised_again():
    with pytest.raises(TypeError, match=r"got torch\.float32, give uint8"):
        normalize(normalize(torch.zeros(3, 4, 4, dtype=torch.uint8)))


@pytest.mark.parametrize("size", [(10, 14), (41, 31), (20, 28)])
def test_resize_image_is_torchvisions_antialiased_bicubic(size):
    image = torch.randn(2, 3, 20, 28)
    oracle = v2.functional.resize(image, list(size), v2.InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(resize_image(image, size), oracle)
    assert resize_image(image, (20, 28)) is image
    assert resize_image(image, np.array(size)).shape[-2:] == size


@pytest.mark.parametrize("given", [{"crop": 0}, {"pad": -1}, {"long_side": (0, 5)}, {"long_side": (9, 5)}])
def test_impossible_sizes_are_refused(given):
    with pytest.raises(SettingsError, match="give "):
        train_transform(**{"long_side": None, "crop": 8, **given})


@pytest.mark.parametrize(("scale", "size"), [(0.5, (10, 16)), (0.75, (16, 25)), (2, (42, 66)), (0.01, (1, 1))])
def test_a_scaled_image_has_rounded_sides_of_one_pixel_or_more(scale, size):
    image = torch.randn(2, 3, 21, 33, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scale_image(image, scale), resize_image(image, size))
    assert scale_image(image, 1) is image


@pytest.mark.parametrize("scales", [(), [], (1, 0), (-1,), (0.5, float("nan")), (float("inf"),), np.array([])])
def test_scales_that_make_no_image_are_refused_in_one_line(scales):
    with pytest.raises(SettingsError, match=r"scales=.*: give one or more positive factors") as error:
        check_scales(scales)
    assert "\n" not in str(error.value)
    check_scales((1, 0.5)), check_scales(np.array([0.5, 2]))
