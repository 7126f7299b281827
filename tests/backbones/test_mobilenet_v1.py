"""MobileNetV1: TensorFlow's conventions, and that the published weights know cats from dogs."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import center_crop

from wsss_lib import backbones
from wsss_lib.backbones.mobilenet_v1 import SameConv2d, same_padding
from wsss_lib.data import VOCFolder, normalize, resize_image


@pytest.mark.parametrize("height", [1, 4, 7, 8])
@pytest.mark.parametrize("width", [5, 6])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 2), (2, 2)])
def test_same_convolution_equals_explicit_padding(height, width, kernel, stride):
    torch.manual_seed(0)
    layer = SameConv2d(4, 4, kernel, stride, groups=2)
    x = torch.randn(2, 4, height, width)
    (top, bottom), (left, right) = (same_padding(n, kernel, stride) for n in (height, width))
    padded = F.pad(x, (left, right, top, bottom))
    expected = F.conv2d(padded, layer.weight, layer.bias, stride, groups=2)
    assert expected.shape[-2:] == (math.ceil(height / stride), math.ceil(width / stride))
    torch.testing.assert_close(layer(x), expected)


def test_padding_is_asymmetric_only_with_stride_2_and_an_even_size():
    for n in range(1, 20):
        for stride in (1, 2):
            before, after = same_padding(n, 3, stride)
            assert (before != after) == (stride == 2 and n % 2 == 0)


def test_black_and_white_become_minus_one_and_one():
    net = backbones.build("mobilenet_v1")
    for value, expected in ((0, -1.0), (255, 1.0)):
        image = normalize(torch.full((1, 3, 2, 2), value, dtype=torch.uint8))
        torch.testing.assert_close(net.prepare(image), torch.full((1, 3, 2, 2), expected))


def test_a_finer_output_stride_leaves_the_stages_before_it_alone():
    torch.manual_seed(0)
    fine = backbones.build("mobilenet_v1", output_stride=16).eval()
    coarse = backbones.build("mobilenet_v1", output_stride=32).eval()
    coarse.load_state_dict(fine.state_dict())
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = list(zip(fine.stages(image), coarse.stages(image), strict=True))
    assert all(torch.equal(one, two) for one, two in maps[:4])
    assert (maps[4][0].shape[-1], maps[4][1].shape[-1]) == (4, 2)


def test_the_imagenet_classifier_does_not_learn():
    net = backbones.build("mobilenet_v1")
    assert not any(parameter.requires_grad for parameter in net.fc.parameters())
    assert net.classify(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


@pytest.mark.real
def test_imagenet_weights_fit_strictly(imagenet_weights):
    state = torch.load(imagenet_weights, weights_only=True)
    net = backbones.build("mobilenet_v1", imagenet_weights)
    assert set(net.state_dict()) == set(state)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.real
def test_photographs_of_cats_and_dogs_are_recognised(photos, imagenet_weights):
    """A breed of its species is among the first five: for 88 of 100 of all 286 such photographs, 80 here."""
    species = {"cat": range(281, 286), "dog": range(151, 269)}
    net = backbones.build("mobilenet_v1", imagenet_weights, output_stride=32).eval()
    folder = VOCFolder(photos)
    found = []
    for name, breeds in species.items():
        only = [i for i in folder.split("val") if folder.label(i).nonzero().tolist() == [[folder.classes.index(name)]]]
        for image_id in only[:25]:
            image = normalize(folder.image(image_id))[None]
            scale = 256 / min(image.shape[-2:])
            image = center_crop(resize_image(image, [round(n * scale) for n in image.shape[-2:]]), [224, 224])
            with torch.inference_mode():
                first_five = net.classify(image).topk(5).indices[0].tolist()
            found.append(any(index in breeds for index in first_five))
    assert len(found) == 50
    assert sum(found) / len(found) >= 0.8
