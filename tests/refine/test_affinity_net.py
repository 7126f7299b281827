"""AffinityNet: affinities against loops over cells, what its loss counts, and that it learns to tell regions apart."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wsss_lib import backbones
from wsss_lib.data.samples import MaskBatch, MaskSample, collate_masks
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.methods.base import Progress
from wsss_lib.nn.pairs import affinity_loss, cell_labels, ends, offsets
from wsss_lib.refine.affinity_net import AffinityNet, feature_affinity
from wsss_lib.settings import load
from wsss_lib.train import fit, seeded

SOME = settings(max_examples=25, deadline=None)
SEED = st.integers(0, 10_000)
SIDE = st.integers(1, 7)


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def oracle(features, radius):
    """The dense matrix (h w, h w) of one image, all neighbours within the radius and the cell itself; 0 elsewhere."""
    c, h, w = features.shape
    matrix = np.zeros((h * w, h * w))
    for i in range(h * w):
        for j in range(h * w):
            if math.hypot(i // w - j // w, i % w - j % w) < radius:
                matrix[i, j] = np.exp(-np.abs(features[:, i // w, i % w] - features[:, j // w, j % w]).sum() / c)
    return matrix


def dense(pairs, h, w):
    """The same of the pairs of one image."""
    matrix, cells = np.eye(h * w), torch.arange(h * w).view(h, w)
    for offset, values in pairs:
        first, second = (end.flatten().numpy() for end in ends(cells, offset))
        matrix[first, second] = matrix[second, first] = values[0].flatten().numpy()
    return matrix


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


class Stages(nn.Module):
    """A backbone of three average poolings, whose channels are those of the image, times a weight, over and over."""

    def __init__(self, channels=(4, 6, 8), strides=(4, 8, 16)):
        super().__init__()
        self.channels, self.strides = channels, strides
        self.weight = nn.Parameter(torch.ones(()))

    def stages(self, image):
        pooled = (F.avg_pool2d(image * self.weight, s, ceil_mode=True) for s in self.strides)
        return [x.repeat(1, -(-c // 3), 1, 1)[:, :c] for x, c in zip(pooled, self.channels, strict=True)]


@pytest.fixture
def net():
    return seeded(0, lambda: AffinityNet(backbones.build("tiny"), stride=4, radius=3, reduced=(8, 8, 16)))


def batch_of(mask, seed=1):
    return MaskBatch(numbers(len(mask), 3, *mask.shape[1:], seed=seed), mask, tuple(map(str, range(len(mask)))))


# Affinities


@given(SEED, SIDE, SIDE, st.sampled_from([1.5, 3, 5]))
@SOME
def test_affinities_are_the_dense_matrix_of_all_near_cells_also_on_grids_smaller_than_the_radius(seed, h, w, radius):
    features = numbers(1, 5, h, w, seed=seed, dtype=torch.float64)
    right = oracle(features[0].numpy(), radius)
    np.testing.assert_array_equal(right, right.T)
    np.testing.assert_allclose(dense(feature_affinity(features, radius), h, w), right, atol=1e-12)


def test_an_image_turned_upside_down_has_the_same_affinities_which_are_therefore_symmetric():
    features = numbers(2, 6, 7, 9)
    turned = dict(feature_affinity(features.flip(2, 3), 5))
    for offset, values in feature_affinity(features, 5):
        torch.testing.assert_close(turned[offset].flip(1, 2), values, rtol=0, atol=1e-6)


def test_radius_5_gives_34_offsets_each_with_all_its_pairs():
    found = {offset: values.shape for offset, values in feature_affinity(numbers(2, 3, 11, 8), 5)}
    assert len(found) == 34
    assert found == {(dy, dx): (2, 11 - dy, 8 - abs(dx)) for dy, dx in offsets(5)}


def test_cells_of_one_feature_have_affinity_1_exactly():
    features = numbers(2, 7, 1, 1).expand(2, 7, 6, 5)
    assert all((values == 1).all() for _, values in feature_affinity(features, 5))


@given(SEED, st.floats(0.1, 30))
@SOME
def test_affinities_are_above_0_and_at_most_1(seed, spread):
    for _, values in feature_affinity(spread * numbers(1, 16, 5, 6, seed=seed).clamp(-1, 1), 5):
        assert (values > 0).all() and (values <= 1).all()


def test_each_channel_counts_the_same_and_one_more_of_no_difference_takes_its_share():
    features = numbers(1, 3, 4, 4)
    wider = dict(feature_affinity(torch.cat([features[:, [2, 0, 1]], torch.ones(1, 1, 4, 4)], 1), 3))
    for offset, values in feature_affinity(features, 3):
        torch.testing.assert_close(wider[offset], values**0.75)


def test_gradients_are_those_of_differences():
    features = numbers(2, 3, 3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: tuple(values for _, values in feature_affinity(f, 2.5)), features)


def test_gradients_are_those_of_the_formula_and_0_where_two_cells_are_equal():
    features = numbers(2, 6, 5, 5)
    features[..., 1] = features[..., 0]
    gradients = []
    for plain in (False, True):
        f = features.clone().requires_grad_()
        pairs = feature_affinity(f, 3)
        if plain:
            pairs = ((o, (-(a - b).abs().mean(1)).exp()) for o in offsets(3) for a, b in [ends(f, o)])
        sum((values**2).sum() for _, values in pairs).backward()
        gradients.append(f.grad)
    torch.testing.assert_close(*gradients)
    equal = numbers(1, 4, 1, 1).repeat(1, 1, 3, 3).requires_grad_()
    sum(values.sum() for _, values in feature_affinity(equal, 3)).backward()
    assert (equal.grad == 0).all()


def test_for_the_gradient_no_difference_of_features_is_kept():
    features, kept = numbers(1, 64, 12, 12).requires_grad_(), {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        values = [values for _, values in feature_affinity(features, 5)]
    assert sum(kept.values()) <= 4 * (features.numel() + sum(v.numel() for v in values))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_of_half_precision_give_affinities_of_float32(dtype):
    features = numbers(1, 8, 5, 5).to(dtype)
    wide = dict(feature_affinity(features.float(), 3))
    for offset, values in feature_affinity(features, 3):
        assert values.dtype == torch.float32 and torch.equal(values, wide[offset])


# The network


@pytest.mark.parametrize(
    ("name", "stride", "width"), [("tiny", 4, 112), ("mobilenet_v1", 8, 448), ("resnet50", 8, 448)]
)
def test_three_stages_lie_on_one_grid_at_odd_sizes(name, stride, width):
    net = AffinityNet(backbones.build(name), stride=stride).eval()
    with torch.no_grad():
        features = net(numbers(1, 3, 70, 51))
    assert features.shape == (1, width, -(-70 // stride), -(-51 // stride))
    assert (features >= -1).all() and features.std() > 0


def test_features_are_those_of_the_equations_where_all_stages_lie_on_the_grid():
    net = AffinityNet(Stages(strides=(8, 8, 8)), reduced=(3, 2, 4)).double()
    image = numbers(2, 3, 24, 16, dtype=torch.float64)
    x = np.concatenate(
        [
            elu(np.einsum("oc,nchw->nohw", conv.weight[:, :, 0, 0].detach().numpy(), stage.detach().numpy()))
            for conv, stage in zip(net.reduce, net.backbone.stages(image), strict=True)
        ],
        1,
    )
    right = elu(np.einsum("oc,nchw->nohw", net.embed.weight[:, :, 0, 0].detach().numpy(), x))
    np.testing.assert_allclose(net(image).detach(), right, atol=1e-12)


def test_a_stage_of_twice_the_resolution_is_averaged_over_the_cells_of_the_grid():
    fine, coarse = (AffinityNet(Stages(strides=(s, 8, 8)), reduced=(4, 6, 8)) for s in (4, 8))
    coarse.load_state_dict(fine.state_dict())
    for net in (fine, coarse):
        nn.init.dirac_(net.reduce[0].weight)  # ELU leaves what is positive as it is
    image = numbers(1, 3, 32, 48).abs()
    torch.testing.assert_close(fine(image), coarse(image))


def test_channels_are_the_papers_on_its_backbone_and_never_more_than_a_stage_has():
    shapes = {
        name: tuple(p.shape)
        for name, p in AffinityNet(Stages((128, 256, 512, 1024, 4096))).named_parameters()
        if "backbone" not in name
    }
    assert shapes == {
        "reduce.0.weight": (64, 512, 1, 1),
        "reduce.1.weight": (128, 1024, 1, 1),
        "reduce.2.weight": (256, 4096, 1, 1),
        "embed.weight": (448, 448, 1, 1),
    }
    assert [conv.out_channels for conv in AffinityNet(Stages((4, 200, 300))).reduce] == [4, 128, 256]


def test_pairs_are_the_affinities_of_the_features_of_each_image(net):
    net.eval()
    image = numbers(2, 3, 37, 22)
    with torch.inference_mode():
        together, features = dict(net.pairs(image)), net(image).double().numpy()
        for n in range(2):
            alone = dict(net.pairs(image[n : n + 1]))
            np.testing.assert_allclose(dense(alone.items(), 10, 6), oracle(features[n], 3), atol=1e-5)
            for offset, values in alone.items():
                torch.testing.assert_close(together[offset][n : n + 1], values)


def test_an_image_of_one_cell_has_no_pairs(net):
    net.eval()
    assert sum(values.numel() for _, values in net.pairs(numbers(1, 3, 3, 4))) == 0


# The loss


def test_the_loss_is_the_weighted_one_of_the_labels_in_the_cells_middles(net):
    net.eval()
    mask = torch.tensor([0, 1, 2, 255])[torch.randint(0, 4, (2, 33, 22), generator=torch.Generator().manual_seed(0))]
    batch = batch_of(mask)
    got = net.loss(batch, Progress())
    right = affinity_loss(list(net.pairs(batch.image)), cell_labels(mask, (9, 6)))
    assert got.terms == right and all(value > 0 for value in right.values())
    expected = right["background"] / 4 + right["foreground"] / 4 + right["different"] / 2
    torch.testing.assert_close(got.total, expected)


def test_classes_under_other_names_have_the_same_loss(net):
    mask = torch.randint(0, 4, (2, 24, 24), generator=torch.Generator().manual_seed(0))
    other = torch.tensor([0, 3, 1, 2])[mask]
    assert net.loss(batch_of(mask), Progress()).total == net.loss(batch_of(other), Progress()).total


def test_a_batch_without_sure_labels_gives_0_with_a_gradient_of_0(net):
    losses = net.loss(batch_of(torch.full((2, 16, 16), 255)), Progress())
    losses.total.backward()
    assert losses.total == 0
    assert all((p.grad == 0).all() for p in net.parameters())


def test_gradients_reach_the_new_layers_and_the_backbone_but_no_frozen_stage(net):
    net.backbone.freeze(stages=1)
    net.loss(batch_of(torch.randint(0, 3, (2, 32, 32))), Progress()).total.backward()
    for name, p in net.named_parameters():
        frozen = name.startswith("backbone.stage1")
        assert (p.grad is None) if frozen else p.grad.any(), name


def test_under_autocast_features_are_of_bfloat16_and_affinities_and_losses_of_float32(net):
    net.eval()
    batch = batch_of(torch.randint(0, 3, (2, 24, 24), generator=torch.Generator().manual_seed(0)))
    with torch.autocast("cpu", torch.bfloat16):
        assert net(batch.image).dtype == torch.bfloat16
        assert all(values.dtype == torch.float32 for _, values in net.pairs(batch.image))
        losses = net.loss(batch, Progress())
    exact = net.loss(batch, Progress())
    for name, value in losses.terms.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact.terms[name], rtol=0.05, atol=0.01)


def test_parameters_that_learn_are_in_exactly_one_group(net):
    net.backbone.freeze(stages=1)
    backbone, new = net.parameter_groups(7.0)
    assert (backbone["lr_factor"], new["lr_factor"]) == (1.0, 7.0)
    assert {id(p) for p in new["params"]} == {id(p) for p in [*net.reduce.parameters(), net.embed.weight]}
    grouped = [id(p) for p in backbone["params"] + new["params"]]
    learning = [id(p) for p in net.parameters() if p.requires_grad]
    assert len(grouped) == len(set(grouped)) and set(grouped) == set(learning)


# Learning


class Halves(torch.utils.data.Dataset):
    """Noise that is darker on the left; what is right of the border is the object, and labels are unsure near it."""

    def __len__(self):
        return 8

    def __getitem__(self, key):
        index, _ = key
        mask = self.mask(index)
        image = numbers(3, 32, 32, seed=index) + torch.where(mask > 0, 0.7, -0.7)
        near = (torch.arange(32) - self.border(index) + 0.5).abs() < 2
        return MaskSample(image, mask.masked_fill(near, 255), str(index))

    def border(self, index):
        """The first column of the object."""
        return 8 + 4 * (index % 4)

    def mask(self, index):
        """The labels without unsure ones."""
        return (torch.arange(32) >= self.border(index)).long().expand(32, 32) * (1 + index % 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_short_training_lowers_the_loss_and_tells_two_regions_apart(net, tmp_path, precision):
    halves = Halves()
    batch = collate_masks([halves[i, 0] for i in range(8)])
    before = net.loss(batch, Progress()).total.detach()
    recipe = {**load("smoke").cam, "epochs": 20, "max_steps": 0, "batch_size": 4, "lr": 0.1, "precision": precision}
    fit(net, halves, recipe, seed=0, collate=collate_masks, checkpoint=tmp_path / "c.pt", log=tmp_path / "l.csv")
    mask = cell_labels(torch.stack([halves.mask(i) for i in range(8)]), (8, 8))
    within, across = [], []
    with torch.inference_mode():
        assert net.loss(batch, Progress()).total < 0.25 * before
        for offset, values in net.pairs(batch.image):
            same = torch.eq(*ends(mask, offset))
            within.append(values[same])
            across.append(values[~same])
    assert torch.cat(within).median() > 0.7 and torch.cat(across).median() < 0.25


# Mistakes


@pytest.mark.parametrize(
    ("kind", "given_", "says"),
    [
        (
            WsssError,
            {"backbone": Stages((16, 32), (2, 4))},
            r"channels=\(16, 32\): give a backbone of 3 stages or more",
        ),
        (SettingsError, {"reduced": (64, 128)}, r"reduced=\[64, 128\]: give the channels of 3 stages"),
        (SettingsError, {"reduced": (64, 0, 128)}, r"reduced=\[64, 0, 128\]: give the channels of 3 stages"),
        (SettingsError, {"stride": 0}, "stride=0: give a number from 1"),
        (SettingsError, {"radius": 1}, "radius=1: give more than 1 cell"),
    ],
)
def test_what_cannot_work_is_refused_at_once_in_one_line(kind, given_, says):
    with pytest.raises(kind, match=says) as error:
        AffinityNet(**{"backbone": Stages(), **given_})
    assert "\n" not in str(error.value)
