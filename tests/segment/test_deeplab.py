"""DeepLab: shapes, what the loss counts at one size and at several, and that it can learn."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wsss_lib import backbones
from wsss_lib.data.samples import MaskBatch
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.methods.base import Progress
from wsss_lib.segment.deeplab import ASPP, DeepLab, multi_scale_scores, pixel_cross_entropy
from wsss_lib.settings import load


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DeepLab(backbones.build("tiny"), n_classes=4, dilations=(1, 2))


@pytest.fixture
def of_paper():
    """DeepLab-v2 at the paper's settings, its shapes without numbers."""
    options = load("paper").segmentation
    with torch.device("meta"):
        backbone = backbones.build(options.backbone, "", options.output_stride, options.dilated)
        return DeepLab(backbone, 21, options.dilations, options.scales, options.bias_factor)


def batch_of(mask):
    torch.manual_seed(1)
    return MaskBatch(torch.randn(len(mask), 3, *mask.shape[1:]), mask, tuple(map(str, range(len(mask)))))


def test_logits_lie_on_the_grid_of_the_backbone(model):
    assert model(torch.zeros(2, 3, 33, 40)).shape == (2, 4, 9, 10)


def test_deeplab_v2_has_the_parameters_of_the_released_code(of_paper):
    assert sum(p.numel() for p in of_paper.parameters()) == 44_048_532  # counted there, with 21 classes
    assert sum(p.numel() for p in of_paper.aspp.parameters()) == 4 * (2048 * 9 + 1) * 21 == 1_548_372


def test_a_crop_of_321_pixels_has_41_cells_of_stride_8(of_paper):
    assert of_paper(torch.zeros(1, 3, 321, 321, device="meta")).shape == (1, 21, 41, 41)


def test_a_map_smaller_than_the_dilations_is_classified_by_single_cells():
    aspp, features = ASPP(3, 4, dilations=(6, 12)), torch.randn(2, 3, 5, 6)
    expected = sum(F.conv2d(features, c.weight[:, :, 1:2, 1:2], c.bias) for c in aspp.classifiers)
    torch.testing.assert_close(aspp(features), expected)


def test_a_batch_of_one_trains(model):
    model.train()
    model.loss(batch_of(torch.zeros(1, 8, 8).long()), Progress()).total.backward()


@pytest.mark.parametrize(("dilation", "reach"), [(1, 1), (3, 3)])
def test_a_classifier_reaches_as_far_as_its_dilation(dilation, reach):
    aspp = ASPP(1, 4, dilations=(dilation,))
    features = torch.zeros(1, 1, 11, 11)
    features[0, 0, 5, 5] = 1
    rows = aspp(features)[0].abs().sum((0, 2)).nonzero().flatten()
    assert rows.tolist() == [5 - reach, 5, 5 + reach]


def test_scores_of_all_dilations_add_up():
    aspp, features = ASPP(3, 4, dilations=(1, 2, 5)), torch.randn(2, 3, 9, 8)
    expected = sum(
        F.conv2d(features, c.weight, c.bias, padding=d, dilation=d)
        for c, d in zip(aspp.classifiers, (1, 2, 5), strict=True)
    )
    torch.testing.assert_close(aspp(features), expected)


def test_no_dilation_is_refused():
    with pytest.raises(SettingsError, match="dilations=\\[\\]: give at least one"):
        ASPP(8, 4, dilations=())


def test_loss_equals_torchs_cross_entropy_where_nothing_is_ignored():
    logits, mask = torch.randn(2, 4, 6, 7), torch.randint(0, 4, (2, 6, 7))
    expected = F.cross_entropy(logits, mask)
    torch.testing.assert_close(pixel_cross_entropy(logits, mask), expected)
    torch.testing.assert_close(pixel_cross_entropy(logits, mask.byte()), expected)


def test_ignored_pixels_carry_no_gradient():
    logits = torch.randn(1, 4, 5, 5, requires_grad=True)
    mask = torch.randint(0, 4, (1, 5, 5))
    mask[:, :2] = 255
    loss = pixel_cross_entropy(logits, mask)
    loss.backward()
    assert (logits.grad[:, :, :2] == 0).all() and (logits.grad[:, :, 2:] != 0).all()
    torch.testing.assert_close(loss, pixel_cross_entropy(logits[:, :, 2:], mask[:, 2:]))


def test_a_batch_without_labels_gives_0_with_a_gradient_of_0(model):
    losses = model.loss(batch_of(torch.full((2, 16, 16), 255)), Progress())
    losses.total.backward()
    assert losses.total == 0
    assert all((p.grad == 0).all() for p in model.parameters())


def test_a_class_too_many_is_named():
    with pytest.raises(WsssError, match="mask: holds class 4, logits 4 classes"):
        pixel_cross_entropy(torch.zeros(1, 4, 2, 2), torch.full((1, 2, 2), 4))


def test_a_constant_mask_is_learnt_in_a_few_steps(model):
    batch = batch_of(torch.full((2, 16, 16), 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    first = model.loss(batch, Progress())
    assert set(first.terms) == {"cross_entropy"}
    for _ in range(10):
        optimizer.zero_grad()
        model.loss(batch, Progress()).total.backward()
        optimizer.step()
    assert model.loss(batch, Progress()).total < 0.1 * first.total
    assert (model.eval()(batch.image).argmax(1) == 3).all()


def test_one_step_downhill_lowers_the_loss(model):
    model.eval()  # BatchNorm's running statistics stay as they are
    batch = batch_of(torch.randint(0, 4, (2, 16, 16)))
    before = model.loss(batch, Progress()).total
    before.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 1e-3 * p.grad
    assert model.loss(batch, Progress()).total < before


# Several sizes


@pytest.fixture
def of_sizes(model):
    """The same network, that learns from three sizes."""
    return DeepLab(model.backbone, 4, dilations=(1, 2), scales=(0.5, 0.75))


def cross_entropy_by_hand(scores, mask):
    """Mean of -log softmax at the labels, pixel by pixel, over what is not 255; scores (N,C,H,W) at the mask's size."""
    losses = []
    for n, y, x in zip(*np.nonzero(mask != 255), strict=True):
        z = scores[n, :, y, x].astype(np.float64)
        losses.append(np.log(np.exp(z - z.max()).sum()) + z.max() - z[mask[n, y, x]])
    return np.mean(losses)


def test_losses_of_all_sizes_and_of_the_largest_score_equal_those_by_hand(of_sizes):
    batch = batch_of(torch.randint(0, 4, (2, 33, 46), generator=torch.Generator().manual_seed(3)))
    batch.mask[:, :5] = 255

    def bilinear(scores, size):
        return F.interpolate(scores, size, mode="bilinear", align_corners=False)

    of_sizes.eval()
    with torch.no_grad():
        nn.init.normal_(of_sizes.aspp.classifiers[0].weight, std=0.3)  # so that no size is always the largest
        scores = {"": of_sizes(batch.image)}
        for name, size in (("_0.5", (16, 23)), ("_0.75", (25, 34))):  # 16.5 and 34.5 round to even numbers
            small = F.interpolate(batch.image, size, mode="bicubic", antialias=True, align_corners=False)
            scores[name] = of_sizes(small)
        grid = scores[""].shape[2:]
        largest = np.stack([bilinear(s, grid).numpy() for s in scores.values()])
        assert set(largest.argmax(0).ravel()) == {0, 1, 2}
        scores["_max"] = torch.from_numpy(largest.max(0))
        losses = of_sizes.loss(batch, Progress())
    expected = {
        f"cross_entropy{n}": cross_entropy_by_hand(bilinear(s, (33, 46)).numpy(), batch.mask.numpy())
        for n, s in scores.items()
    }
    assert list(losses.terms) == list(expected)
    for name, value in expected.items():
        assert float(losses.terms[name]) == pytest.approx(value, rel=1e-5), name
    assert float(losses.total) == pytest.approx(sum(expected.values()), rel=1e-5)


def test_without_scales_there_is_one_loss_as_ever(model):
    batch = batch_of(torch.randint(0, 4, (2, 16, 16)))
    losses = model.eval().loss(batch, Progress())
    assert set(losses.terms) == {"cross_entropy"}
    assert torch.equal(losses.total, pixel_cross_entropy(model.aspp(model.backbone(batch.image)), batch.mask))


def test_the_largest_score_teaches_only_the_size_that_gave_it():
    large, small = (torch.zeros(1, 2, 1, 2, requires_grad=True) for _ in range(2))
    with torch.no_grad():
        large[..., 0], small[..., 1] = 1.0, 1.0
    scores = multi_scale_scores(lambda x: large if x.shape[3] == 8 else small, torch.zeros(1, 3, 8, 8), (0.5,))
    assert len(scores) == 3 and (scores[2] == 1).all()
    scores[2].sum().backward()
    assert large.grad[0, 0].tolist() == [[1, 0]] and small.grad[0, 0].tolist() == [[0, 1]]


def test_every_term_reaches_every_parameter(of_sizes):
    of_sizes.train()
    for name, term in of_sizes.loss(batch_of(torch.randint(0, 4, (2, 32, 32))), Progress()).terms.items():
        of_sizes.zero_grad()
        term.backward(retain_graph=True)
        assert all((p.grad != 0).any() for p in of_sizes.parameters()), name


def test_several_sizes_without_any_label_give_0_with_a_gradient_of_0(of_sizes):
    losses = of_sizes.loss(batch_of(torch.full((2, 16, 16), 255)), Progress())
    losses.total.backward()
    assert len(losses.terms) == 4 and losses.total == 0
    assert all((p.grad == 0).all() for p in of_sizes.parameters())


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (17, 9)])
def test_several_sizes_of_a_few_pixels_train(of_sizes, size):
    losses = of_sizes.eval().loss(batch_of(torch.ones(1, *size).long()), Progress())
    losses.total.backward()
    assert losses.total.isfinite()


def test_bf16_scores_meet_in_float32():
    scores = multi_scale_scores(lambda x: x.bfloat16(), torch.rand(1, 3, 6, 5), (0.5,))
    assert [s.dtype for s in scores] == [torch.bfloat16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scales": (0.5, 0)}, "scales=\\(0.5, 0\\): give one or more positive factors"),
        ({"scales": (float("nan"),)}, "scales=\\(nan,\\): give one or more positive factors"),
        ({"bias_factor": -1.0}, "bias_factor=-1.0: give a number from 0"),
    ],
)
def test_impossible_numbers_are_refused_in_one_line(model, options, words):
    with pytest.raises(SettingsError, match=words) as error:
        DeepLab(model.backbone, 4, (1,), **options)
    assert "\n" not in str(error.value)


# Groups


def test_parameters_that_learn_are_in_exactly_one_group(model):
    model.backbone.freeze(stages=1)
    backbone, head = model.parameter_groups()
    assert (backbone["lr_factor"], head["lr_factor"]) == (1.0, 10.0)
    grouped = [id(p) for p in backbone["params"] + head["params"]]
    learning = [id(p) for p in model.parameters() if p.requires_grad]
    assert len(grouped) == len(set(grouped)) and set(grouped) == set(learning)
    assert {id(p) for p in head["params"]}.isdisjoint(map(id, model.backbone.parameters()))


def test_the_head_learns_ten_and_twenty_times_as_fast_and_its_biases_do_not_decay(of_paper):
    backbone, weights, biases = of_paper.parameter_groups()
    assert [group["lr_factor"] for group in (backbone, weights, biases)] == [1.0, 10.0, 20.0]
    assert biases["weight_decay"] == 0 and "weight_decay" not in backbone | weights
    assert {id(p) for p in weights["params"]} == {id(c.weight) for c in of_paper.aspp.classifiers}
    assert {id(p) for p in biases["params"]} == {id(c.bias) for c in of_paper.aspp.classifiers}
    grouped = [id(p) for group in (backbone, weights, biases) for p in group["params"]]
    assert len(grouped) == len(set(grouped)) and set(grouped) == {id(p) for p in of_paper.parameters()}


def test_biases_follow_the_factor_of_the_head(of_paper):
    assert [group["lr_factor"] for group in of_paper.parameter_groups(0.1)] == [1.0, 0.1, 0.2]
