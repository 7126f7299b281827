"""The network of the toy scenes."""

import torch

from wsss_lib import backbones


def test_a_toy_scene_becomes_16_by_16_cells_of_64_channels():
    net = backbones.build("tiny").eval()
    with torch.inference_mode():
        assert [tuple(m.shape[1:]) for m in net.stages(torch.zeros(1, 3, 64, 64))] == [
            (16, 32, 32),
            (32, 16, 16),
            (64, 16, 16),
        ]


def test_its_norms_learn_statistics_in_training():
    net = backbones.build("tiny").train()
    before = net.stage3[1].bn2.running_mean.clone()
    net(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(net.stage3[1].bn2.running_mean, before)


def test_it_stays_small_enough_for_a_lesson():
    assert sum(parameter.numel() for parameter in backbones.build("tiny").parameters()) < 200_000
