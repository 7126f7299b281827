"""PCM and PRCM by loops over cells, and where their gradients end."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from wsss_lib import backbones
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.pcm import PixelFeatures, pixel_correlation, pixel_region_correlation

SOME = settings(max_examples=40, deadline=None)
FEATURES = arrays(np.float32, st.just((2, 4, 3, 3)), elements=st.floats(-9, 9, width=32))
MAPS = arrays(np.float32, st.just((2, 3, 3, 3)), elements=st.floats(0, 1, width=32))


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shares(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(x, axis):
    x = np.exp(x - x.max(axis, keepdims=True))
    return x / x.sum(axis, keepdims=True)


# Pixel correlation


def test_each_cell_gets_the_mean_over_cells_weighted_by_their_positive_cosine():
    features, maps = numbers(2, 4, 3, 2).double(), numbers(2, 5, 3, 2, seed=1).double()
    got = pixel_correlation(features, maps).flatten(2).numpy()
    f, y = features.flatten(2).numpy(), maps.flatten(2).numpy()
    for n in range(2):
        for j in range(6):
            cosine = [
                f[n, :, i] @ f[n, :, j] / np.linalg.norm(f[n, :, i]) / np.linalg.norm(f[n, :, j]) for i in range(6)
            ]
            weights = np.maximum(cosine, 0) / np.maximum(cosine, 0).sum()
            np.testing.assert_allclose(got[n, :, j], y[n] @ weights, atol=1e-12)


@given(features=FEATURES, value=st.floats(-5, 5))
@SOME
def test_the_weights_into_each_cell_sum_to_one(features, value):
    features = torch.from_numpy(features)
    alive = features.norm(dim=1, keepdim=True) > 1e-3
    got = pixel_correlation(features, torch.full((2, 1, 3, 3), value))[alive]
    torch.testing.assert_close(got, torch.full_like(got, value), rtol=2e-6, atol=2e-6)


@given(features=FEATURES, maps=MAPS)
@SOME
def test_refined_maps_stay_in_the_range_of_the_map(features, maps):
    got = pixel_correlation(torch.from_numpy(features), torch.from_numpy(maps))
    assert got.isfinite().all() and got.min() >= 0
    assert (got.amax((2, 3)) <= torch.from_numpy(maps).amax((2, 3)) + 1e-5).all()


def test_cells_that_all_look_alike_get_the_spatial_mean():
    maps = numbers(2, 3, 4, 5)
    got = pixel_correlation(numbers(2, 7, 1, 1, seed=1).expand(2, 7, 4, 5), maps)
    torch.testing.assert_close(got, maps.mean((2, 3), keepdim=True).expand_as(maps))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_cells_with_nothing_in_common_or_opposed_ones_keep_their_value(sign):
    maps, features = numbers(1, 3, 2, 2), torch.eye(4).view(1, 4, 2, 2)
    if sign < 0:
        features = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2)
        maps = maps[:, :, :1]
    torch.testing.assert_close(pixel_correlation(features, maps), maps)


def test_only_the_direction_of_a_feature_counts():
    features, maps = numbers(2, 4, 3, 3), numbers(2, 2, 3, 3, seed=1)
    longer = features * shares(2, 1, 3, 3, seed=2).add(0.1)
    torch.testing.assert_close(pixel_correlation(longer, maps), pixel_correlation(features, maps), rtol=1e-4, atol=1e-5)


def test_cells_in_another_order_give_the_same_maps_in_that_order():
    features, maps, order = numbers(2, 4, 1, 9), numbers(2, 3, 1, 9, seed=1), torch.randperm(9)
    got = pixel_correlation(features[..., order], maps[..., order])
    torch.testing.assert_close(got, pixel_correlation(features, maps)[..., order])


def test_maps_of_another_grid_are_refused():
    with pytest.raises(WsssError, match="both need the same cells") as error:
        pixel_correlation(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 5))
    assert "\n" not in str(error.value)


def test_under_autocast_the_maps_are_nearly_the_same():
    features, maps = numbers(2, 16, 6, 6), shares(2, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        got = pixel_correlation(features, maps)
    torch.testing.assert_close(got.float(), pixel_correlation(features, maps), rtol=0, atol=0.02)


# Pixel-region correlation


@pytest.mark.parametrize(("softmax_axis", "axis"), [("class", 0), ("space", 1)])
def test_each_map_is_weighted_by_how_much_a_cell_resembles_its_region(softmax_axis, axis):
    maps, weight = shares(2, 3, 4, 2).double(), numbers(5, 6, seed=1).double()
    features, pixels = numbers(2, 6, 4, 2, seed=2).double(), numbers(2, 5, 4, 2, seed=3).double()
    got = pixel_region_correlation(maps, features, pixels, weight, softmax_axis)
    for n in range(2):
        y, x, g = (part[n].flatten(1).numpy() for part in (maps, features, pixels))
        regions = softmax(y, 1) @ x.T
        relation = np.maximum(regions @ weight.numpy().T, 0) @ np.maximum(g, 0) / np.sqrt(3)
        np.testing.assert_allclose(got[n].flatten(1).numpy(), y * softmax(relation, axis), atol=1e-12)


@pytest.mark.parametrize(("softmax_axis", "axes"), [("class", 1), ("space", (2, 3))])
def test_the_weights_sum_to_one_over_the_axis(softmax_axis, axes):
    maps = shares(2, 5, 4, 4).add(0.1)
    got = pixel_region_correlation(maps, numbers(2, 6, 4, 4), numbers(2, 3, 4, 4), numbers(3, 6), softmax_axis)
    total = (got / maps).sum(axes)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_soft_max_over_space_makes_the_term_a_thousand_times_smaller_than_over_classes():
    given_ = shares(1, 21, 56, 56), numbers(1, 8, 56, 56), numbers(1, 4, 56, 56), 0.1 * numbers(4, 8)
    space, classes = (pixel_region_correlation(*given_, axis).mean() for axis in ("space", "class"))
    assert float(space) == pytest.approx(0.5 / 56**2, rel=0.2)
    assert float(classes) == pytest.approx(0.5 / 21, rel=0.2)


@given(maps=MAPS, features=FEATURES, softmax_axis=st.sampled_from(["class", "space"]))
@SOME
def test_weighted_maps_are_never_above_the_map(maps, features, softmax_axis):
    maps, features = torch.from_numpy(maps), torch.from_numpy(features)
    got = pixel_region_correlation(maps, features, features, torch.eye(4), softmax_axis)
    assert (got >= 0).all() and (got <= maps + 1e-6).all()


def test_another_axis_is_refused():
    one = torch.zeros(1, 2, 3, 3)
    with pytest.raises(SettingsError, match="softmax_axis='pixels': choose class or space"):
        pixel_region_correlation(one, one, one, torch.eye(2), "pixels")


# Pixel features


@pytest.mark.parametrize(("name", "stride"), [("tiny", 4), ("mobilenet_v1", 16), ("resnet50", 16)])
def test_image_and_two_stages_lie_on_the_grid_of_the_last(name, stride):
    net = backbones.build(name).eval()
    module, image = PixelFeatures(net.channels), numbers(1, 3, 70, 64)
    with torch.no_grad():
        features, embedding = module(image, net.stages(image))
    size, first = (-(-70 // stride), 64 // stride), min(64, net.channels[-3])
    width = first + min(128, net.channels[-2])
    assert features.shape == (1, 3 + width, *size) and embedding.shape == (1, width, *size)
    small = nn.functional.interpolate(image, size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(features[:, :3], small)
    assert (
        (features[:, 3:] >= 0).all() and (features[:, 3 : 3 + first] > 0).any() and (features[:, 3 + first :] > 0).any()
    )
    torch.testing.assert_close(embedding, module.embed(features))


def test_no_convolution_has_a_bias_and_channels_are_the_papers():
    module = PixelFeatures((64, 256, 512, 1024, 2048))
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes == {
        "reduce.0.weight": (64, 512, 1, 1),
        "reduce.1.weight": (128, 1024, 1, 1),
        "embed.weight": (192, 195, 1, 1),
    }


def test_what_is_learnt_from_refined_maps_never_reaches_the_backbone():
    torch.manual_seed(0)
    net = backbones.build("tiny")
    module, image = PixelFeatures(net.channels), numbers(2, 3, 32, 32)
    _, embedding = module(image, net.stages(image))
    pixel_correlation(embedding, shares(2, 3, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    assert all(p.grad is None for p in net.parameters())


def test_a_backbone_of_two_stages_is_refused():
    with pytest.raises(WsssError, match=r"channels=\(16, 32\): give a backbone of 3 stages or more"):
        PixelFeatures((16, 32))
