"""What holds for every backbone: sizes, freezing, loading, and what users get wrong."""

import copy
import functools
import math

import pytest
import torch
from torch import nn

from wsss_lib import backbones, methods
from wsss_lib.backbones.base import limit_strides
from wsss_lib.errors import WsssError

NAMES = tuple(backbones.BACKBONES)


@functools.cache
def drawn(name, **arguments):
    torch.manual_seed(0)
    return backbones.build(name, **arguments)


def make(name, **arguments):
    """A fresh copy: drawing a ResNet-50 takes a second."""
    return copy.deepcopy(drawn(name, **arguments))


def images(n=2, height=64, width=64, seed=1):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 64), (65, 47), (33, 50)])
def test_every_stage_has_the_declared_channels_and_stride(name, size):
    net = make(name).eval()
    with torch.inference_mode():
        maps = net.stages(images(1, *size))
    assert len(maps) == len(net.channels) == len(net.strides)
    for found, channels, stride in zip(maps, net.channels, net.strides, strict=True):
        assert found.shape == (1, channels, *(math.ceil(n / stride) for n in size))


@pytest.mark.parametrize("name", NAMES)
def test_the_last_stage_is_the_output(name):
    net, image = make(name).eval(), images(1)
    with torch.inference_mode():
        assert torch.equal(net(image), net.stages(image)[-1])
    assert (net.out_channels, net.out_stride) == (net.channels[-1], net.strides[-1])


@pytest.mark.parametrize(
    ("name", "wanted", "found"),
    [
        ("tiny", 16, 4),
        ("tiny", 2, 2),
        ("mobilenet_v1", 32, 32),
        ("mobilenet_v1", 16, 16),
        ("mobilenet_v1", 8, 8),
        ("resnet50", 32, 32),
        ("resnet50", 16, 16),
        ("resnet50", 8, 8),
        ("resnet101", 8, 8),
    ],
)
def test_the_output_stride_is_at_most_what_was_asked(name, wanted, found):
    net = make(name, output_stride=wanted).eval()
    assert net.out_stride == found
    with torch.inference_mode():
        assert net(images(1)).shape[-1] == 64 // found


def test_strides_become_one_only_where_their_product_would_be_too_large():
    assert limit_strides((2, 1, 2, 2, 1, 2), 8) == (2, 1, 2, 2, 1, 1)
    assert limit_strides((2, 2), 1) == (1, 1)
    with pytest.raises(WsssError, match="output_stride=0"):
        limit_strides((2,), 0)


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_draw_equal_weights(name):
    torch.manual_seed(0)
    one, two = backbones.build(name).state_dict(), make(name).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("name", "training"), [(name, t) for name in NAMES for t in (True, False) if t or name != "resnet101"]
)
def test_random_weights_neither_fade_nor_explode(name, training):
    # In torchvision's draw a block doubles the variance, which only batch statistics undo; resnet101 has 33 blocks.
    with torch.inference_mode():
        spread = [float(found.std()) for found in make(name).train(training).stages(images())]
    assert all(1e-3 < value < 1e2 for value in spread)


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_changes_no_map(name):
    net, image = make(name).eval(), images(1, 63, 64)
    with torch.inference_mode():
        expected = net(image)
        found = net.to(memory_format=torch.channels_last)(image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8)])
def test_an_image_of_another_shape_is_refused_with_its_shape(shape):
    with pytest.raises(WsssError) as error:
        make("tiny")(torch.zeros(shape))
    assert str(shape) in str(error.value)


# freezing


@pytest.mark.parametrize("name", NAMES)
def test_frozen_stages_get_no_gradient_and_the_others_do(name):
    method = methods.build("cam", make(name), 3)
    n_frozen = len(method.backbone.channels) - 1
    method.backbone.freeze(stages=n_frozen)
    method.train().logits(images()).sum().backward()
    for index, stage in enumerate(method.backbone.stage_modules()):
        gradients = [parameter.grad for parameter in stage.parameters()]
        assert all((gradient is None) == (index < n_frozen) for gradient in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_stages_keep_their_statistics_in_training(name):
    net = make(name).freeze(stages=1).train()
    before = [copy.deepcopy(stage.state_dict()) for stage in net.stage_modules()]
    net(images())
    unchanged = [
        all(torch.equal(value, old[key]) for key, value in stage.state_dict().items())
        for stage, old in zip(net.stage_modules(), before, strict=True)
    ]
    assert unchanged == [True] + [False] * (len(before) - 1)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_norms_keep_their_statistics_but_learn_their_scale(name):
    net = make(name).freeze(norm=True).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net(images()).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.weight.grad is not None for norm in norms)


def test_freezing_survives_train_and_eval_of_the_method_around_it():
    method = methods.build("cam", make("tiny").freeze(stages=1, norm=True), 3)
    method.eval().train()
    assert method.training and method.backbone.training
    assert not method.backbone.stage_modules()[0].training
    assert not any(m.training for m in method.modules() if isinstance(m, nn.BatchNorm2d))


def test_freezing_nothing_undoes_freezing():
    net = make("tiny").freeze(stages=3, norm=True).freeze()
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("stages", [-1, 4])
def test_freezing_more_stages_than_there_are_is_refused(stages):
    with pytest.raises(WsssError, match=f"stages={stages}: give 0 to 3"):
        make("tiny").freeze(stages=stages)


# weights


def message(*arguments, **keywords):
    with pytest.raises(WsssError) as error:
        backbones.build(*arguments, **keywords)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_saved_weights_come_back(tmp_path):
    net = make("tiny")
    torch.save(net.state_dict(), tmp_path / "tiny.pth")
    again = backbones.build("tiny", weights=tmp_path / "tiny.pth")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in net.state_dict().items())


def test_an_unknown_name_lists_those_that_exist():
    text = message("vgg16")
    assert all(name in text for name in ("'vgg16'", *NAMES))


def test_a_missing_file_is_named():
    assert "nowhere.pth" in message("tiny", weights="nowhere.pth")


@pytest.mark.parametrize("content", [b"no weights at all", b""])
def test_a_file_that_is_no_state_dict_is_named(tmp_path, content):
    (tmp_path / "broken.pth").write_bytes(content)
    assert "broken.pth" in message("tiny", weights=tmp_path / "broken.pth")


def test_a_file_that_holds_another_object_is_named(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    assert "tensor.pth" in message("tiny", weights=tmp_path / "tensor.pth")


def test_weights_of_another_network_name_the_first_key_and_their_number(tmp_path):
    torch.save(make("mobilenet_v1").state_dict(), tmp_path / "other.pth")
    text = message("tiny", weights=tmp_path / "other.pth")
    assert "other.pth" in text and "Tiny" in text and "stage1.0.weight is missing" in text


def test_a_weight_of_another_shape_names_both_shapes(tmp_path):
    state = make("tiny").state_dict()
    state["stage1.0.weight"] = torch.zeros(8, 3, 3, 3)
    torch.save(state, tmp_path / "other.pth")
    text = message("tiny", weights=tmp_path / "other.pth")
    assert "1 keys" in text and "(8, 3, 3, 3)" in text and "(16, 3, 3, 3)" in text


@pytest.mark.parametrize("name", ["tiny", "mobilenet_v1"])
def test_imagenet_weights_of_a_backbone_without_any_are_refused(name):
    assert name in message(name, weights="imagenet")
