"""DeepLab: shapes, what the loss counts, and that it can learn."""

import pytest
import torch

from wsss_lib import backbones
from wsss_lib.data.samples import MaskBatch
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.methods.base import Progress
from wsss_lib.segment.deeplab import ASPP, DeepLab, pixel_cross_entropy


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DeepLab(backbones.build("tiny"), n_classes=4, dilations=(1, 2))


def batch_of(mask):
    torch.manual_seed(1)
    return MaskBatch(torch.randn(len(mask), 3, *mask.shape[1:]), mask, tuple(map(str, range(len(mask)))))


def test_logits_lie_on_the_grid_of_the_backbone(model):
    assert model(torch.zeros(2, 3, 33, 40)).shape == (2, 4, 9, 10)


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
        torch.nn.functional.conv2d(features, c.weight, c.bias, padding=d, dilation=d)
        for c, d in zip(aspp.classifiers, (1, 2, 5), strict=True)
    )
    torch.testing.assert_close(aspp(features), expected)


def test_no_dilation_is_refused():
    with pytest.raises(SettingsError, match="dilations=\\[\\]: give at least one"):
        ASPP(8, 4, dilations=())


def test_loss_equals_torchs_cross_entropy_where_nothing_is_ignored():
    logits, mask = torch.randn(2, 4, 6, 7), torch.randint(0, 4, (2, 6, 7))
    expected = torch.nn.functional.cross_entropy(logits, mask)
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


def test_parameters_that_learn_are_in_exactly_one_group(model):
    model.backbone.freeze(stages=1)
    backbone, head = model.parameter_groups()
    assert (backbone["lr_factor"], head["lr_factor"]) == (1.0, 10.0)
    grouped = [id(p) for p in backbone["params"] + head["params"]]
    learning = [id(p) for p in model.parameters() if p.requires_grad]
    assert len(grouped) == len(set(grouped)) and set(grouped) == set(learning)
    assert {id(p) for p in head["params"]}.isdisjoint(map(id, model.backbone.parameters()))
