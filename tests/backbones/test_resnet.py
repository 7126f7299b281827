"""ResNet-50 and ResNet-101: torchvision is the oracle."""

import pytest
import torch
from torch import nn
from torchvision import models

from wsss_lib import backbones
from wsss_lib.errors import WsssError

NAMES = ("resnet50", "resnet101")
PARAMETERS = {"resnet50": 23_508_032, "resnet101": 42_500_160}  # without `fc`


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def theirs(name):
    torch.manual_seed(0)
    return getattr(models, name)(weights=None).eval()


def images(height=64, width=96):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def ours(name, theirs, **options):
    """Ours with their weights."""
    net = backbones.build(name, **options)
    backbones.load_weights(net, theirs.state_dict())
    return net.eval()


def test_with_stride_32_it_computes_what_torchvision_computes(name, theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")  # with `fc`, as published files have it
    net, image = backbones.build(name, tmp_path / "resnet.pth", output_stride=32).eval(), images()
    with torch.inference_mode():
        assert torch.equal(theirs.fc(net(image).mean((2, 3))), theirs(image))


@pytest.mark.parametrize(("stride", "replaced"), [(8, [False, True, True]), (16, [False, False, True])])
def test_dilated_it_computes_what_torchvision_computes(name, theirs, stride, replaced):
    dilated = getattr(models, name)(weights=None, replace_stride_with_dilation=replaced).eval()
    dilated.load_state_dict(theirs.state_dict())
    net, image = ours(name, theirs, output_stride=stride, dilated=True), images()
    assert net.out_stride == stride
    with torch.inference_mode():
        assert torch.equal(dilated.fc(net(image).mean((2, 3))), dilated(image))


@pytest.mark.parametrize("stride", [8, 16])
def test_the_dilated_map_holds_the_coarse_one_and_without_dilation_it_does_not(stride):
    torch.manual_seed(0)
    coarse, image = backbones.build("resnet50", output_stride=32).eval(), images(75, 97)
    with torch.inference_mode():
        expected, step = coarse(image), 32 // stride
        for dilated in (True, False):
            fine = ours("resnet50", coarse, output_stride=stride, dilated=dilated)
            difference = (fine(image)[:, :, ::step, ::step] - expected).abs().max() / expected.abs().max()
            assert (difference < 1e-5) == dilated


def test_dilation_changes_no_name_no_shape_and_no_random_draw():
    nets = []
    for dilated in (False, True):
        torch.manual_seed(0)
        nets.append(backbones.build("resnet50", output_stride=8, dilated=dilated).state_dict())
    assert list(nets[0]) == list(nets[1]) and all(torch.equal(nets[0][key], nets[1][key]) for key in nets[0])


def test_it_has_torchvisions_names_and_parameters(name, theirs):
    net = backbones.build(name, output_stride=8, dilated=True)
    assert set(theirs.state_dict()) - set(net.state_dict()) == {"fc.weight", "fc.bias"}
    assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS[name]


def test_a_network_of_stride_32_has_nothing_to_dilate():
    net = backbones.build("resnet50", output_stride=32, dilated=True)
    assert all(m.dilation == (1, 1) for m in net.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("other", ["tiny", "mobilenet_v1"])
def test_a_network_without_a_dilated_form_is_refused(other):
    with pytest.raises(
        WsssError, match=f"dilated=True: {other} has no dilated form; choose resnet50 or resnet101"
    ) as e:
        backbones.build(other, dilated=True)
    assert "\n" not in str(e.value)


def test_the_last_stride_is_one_and_nothing_is_dilated():
    net = backbones.build("resnet50")
    assert net.layer4[0].conv2.stride == net.layer4[0].downsample[0].stride == (1, 1)
    assert net.layer3[0].conv2.stride == (2, 2)
    assert all(m.dilation == (1, 1) for m in net.modules() if isinstance(m, nn.Conv2d))


def test_irns_recipe_trains_layer3_and_layer4_only():
    net = backbones.build("resnet50").freeze(stages=3, norm=True)
    learning = {name.split(".")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learning == {"layer3", "layer4"}


def test_weights_are_fetched_only_when_asked_for(name, theirs, monkeypatch):
    asked = []

    def get_state_dict(self, *args, **kwargs):
        asked.append(self.url)
        return theirs.state_dict()

    file = {"resnet50": "resnet50-0676ba61.pth", "resnet101": "resnet101-63fe2227.pth"}[name]  # IMAGENET1K_V1
    monkeypatch.setattr(models.get_model_weights(name), "get_state_dict", get_state_dict)
    backbones.build(name)
    assert asked == []
    net = backbones.build(name, weights="imagenet")
    assert len(asked) == 1 and asked[0].endswith(file)
    assert torch.equal(net.conv1.weight, theirs.conv1.weight)


def test_offline_the_message_says_what_to_do(monkeypatch):
    def get_state_dict(self, *args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(models.ResNet50_Weights, "get_state_dict", get_state_dict)
    with pytest.raises(WsssError, match=r"no route to host.*give a file"):
        backbones.build("resnet50", weights="imagenet")


def test_a_stride_below_the_stems_is_refused():
    with pytest.raises(WsssError, match="output_stride=2"):
        backbones.build("resnet50", output_stride=2)
