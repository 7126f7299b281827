"""ResNet-50: torchvision is the oracle."""

import pytest
import torch
from torch import nn
from torchvision import models

from wsss_lib import backbones
from wsss_lib.errors import WsssError


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    return models.resnet50(weights=None).eval()


def test_with_stride_32_it_computes_what_torchvision_computes(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")  # with `fc`, as published files have it
    ours = backbones.build("resnet50", tmp_path / "resnet50.pth", output_stride=32).eval()
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(theirs.fc(ours(image).mean((2, 3))), theirs(image))


def test_the_last_stride_is_one_and_nothing_is_dilated():
    net = backbones.build("resnet50")
    assert net.layer4[0].conv2.stride == net.layer4[0].downsample[0].stride == (1, 1)
    assert net.layer3[0].conv2.stride == (2, 2)
    assert all(m.dilation == (1, 1) for m in net.modules() if isinstance(m, nn.Conv2d))


def test_irns_recipe_trains_layer3_and_layer4_only():
    net = backbones.build("resnet50").freeze(stages=3, norm=True)
    learning = {name.split(".")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learning == {"layer3", "layer4"}


def test_weights_are_fetched_only_when_asked_for(theirs, monkeypatch):
    asked = []

    def get_state_dict(self, *args, **kwargs):
        asked.append(self.url)
        return theirs.state_dict()

    monkeypatch.setattr(models.ResNet50_Weights, "get_state_dict", get_state_dict)
    backbones.build("resnet50")
    assert asked == []
    net = backbones.build("resnet50", weights="imagenet")
    assert len(asked) == 1 and asked[0].endswith("resnet50-0676ba61.pth")
    assert torch.equal(net.conv1.weight, theirs.conv1.weight)


def test_without_a_network_the_message_says_what_to_do(monkeypatch):
    def get_state_dict(self, *args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(models.ResNet50_Weights, "get_state_dict", get_state_dict)
    with pytest.raises(WsssError, match=r"no route to host.*give a file"):
        backbones.build("resnet50", weights="imagenet")


def test_a_stride_below_the_stems_is_refused():
    with pytest.raises(WsssError, match="output_stride=2"):
        backbones.build("resnet50", output_stride=2)
