"""Folding changes no map and leaves the network alone."""

import copy

import pytest
import torch
from torch import nn

from wsss_lib import backbones
from wsss_lib.backbones.fuse import SameConvReLU6, fuse_conv_bn, fuse_relu6


def trained(name):
    """A backbone whose statistics and scales are those of no identity."""
    torch.manual_seed(0)
    net = backbones.build(name)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_folded_networks_give_the_same_maps(name, channels_last):
    net = trained(name)
    image = torch.randn(2, 3, 50, 63, generator=torch.Generator().manual_seed(1))
    fused = fuse_relu6(fuse_conv_bn(net))
    with torch.inference_mode():
        expected = net(image)
        if channels_last:
            fused, image = (x.to(memory_format=torch.channels_last) for x in (fused, image))
        difference = (fused(image) - expected).abs().max()
    assert expected.abs().max() > 0
    assert difference <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_no_batchnorm_remains_and_the_network_is_not_changed(name):
    net = trained(name).train()
    before = copy.deepcopy(net.state_dict())
    fused = fuse_relu6(fuse_conv_bn(net))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert net.training and not any(module.training for module in fused.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_every_convolution_of_mobilenet_takes_its_relu6_in():
    fused = fuse_relu6(fuse_conv_bn(trained("mobilenet_v1")))
    assert not any(isinstance(module, nn.ReLU6) for module in fused.modules())
    assert sum(isinstance(module, SameConvReLU6) for module in fused.modules()) == 27


def test_without_onednn_nothing_but_the_speed_changes(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    fused = fuse_relu6(fuse_conv_bn(trained("mobilenet_v1")))
    assert sum(isinstance(module, nn.ReLU6) for module in fused.modules()) == 27
