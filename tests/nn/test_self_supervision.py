"""Pseudo-truth against loops, its rules one by one, and that nothing flows back through it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsss_lib.data.classes import IGNORE
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.pooling import class_masks, with_background_score
from wsss_lib.nn.self_supervision import (
    balanced_cross_entropy,
    complete,
    pixels_of_classes,
    pseudo_truth,
    share_supervised,
)

SOME = settings(max_examples=40, deadline=None)
MASKS = arrays(np.float64, st.just((2, 4, 2, 3)), elements=st.integers(0, 20).map(lambda v: v / 20)).map(
    torch.from_numpy
)
LABELS = arrays(np.float64, (2, 3), elements=st.sampled_from([0.0, 1.0])).map(torch.from_numpy)
TRUTHS = arrays(np.int64, st.just((2, 2, 3)), elements=st.sampled_from([0, 1, 2, 3, IGNORE])).map(torch.from_numpy)
LOGITS = arrays(np.float64, st.just((2, 4, 2, 3)), elements=st.floats(-5, 5)).map(torch.from_numpy)


def row(*masks):
    """One image of one row, one mask a class, background first."""
    return torch.tensor(masks)[None, :, None]


@given(masks=MASKS, label=LABELS)
@SOME
def test_each_pixel_belongs_to_the_only_mask_above_its_threshold(masks, label):
    got = pseudo_truth(masks, label)
    for n in range(2):
        present = [0, *(c for c in (1, 2, 3) if label[n, c - 1])]
        limits = {c: max(0.2, (0.6 if c else 0.7) * float(masks[n, c].max())) for c in present}
        for i in range(2):
            for j in range(3):
                claims = [c for c in present if masks[n, c, i, j] > limits[c]]
                assert int(got[n, i, j]) == (claims[0] if len(claims) == 1 else IGNORE)


@given(masks=MASKS, label=LABELS)
@SOME
def test_absent_classes_are_never_taught(masks, label):
    pixels = pixels_of_classes(pseudo_truth(masks, label), 3)
    assert (pixels[:, 1:][label == 0] == 0).all()


def test_pixels_claimed_twice_or_never_are_ignored():
    masks = row([0.9, 0.1, 0.65, 0.1], [0.1, 0.9, 0.65, 0.1])
    assert pseudo_truth(masks, torch.ones(1, 1)).flatten().tolist() == [0, 1, IGNORE, IGNORE]


def test_a_class_below_the_floor_has_no_pixel_and_cutoffs_are_shares_of_the_maximum():
    masks = row([0.8, 0.3, 0.5, 0.7], [0.0, 0.2, 0.1, 0.19])
    assert pseudo_truth(masks, torch.ones(1, 1)).flatten().tolist() == [0, IGNORE, IGNORE, 0]
    assert pseudo_truth(masks, torch.ones(1, 1), floor=0.15).flatten().tolist() == [0, 1, IGNORE, IGNORE]
    assert pseudo_truth(masks, torch.ones(1, 1), background=0.5).flatten().tolist() == [0, IGNORE, 0, 0]
    strict = pseudo_truth(masks, torch.ones(1, 1), background=0.95, foreground=0.96, floor=0.1)
    assert strict.flatten().tolist() == [0, 1, IGNORE, IGNORE]


@given(masks=MASKS, label=LABELS)
@SOME
def test_thresholds_and_counts_are_each_images_own(masks, label):
    both = pseudo_truth(masks, label)
    assert torch.equal(both, torch.cat([pseudo_truth(masks[n : n + 1], label[n : n + 1]) for n in (0, 1)]))


@given(truth=TRUTHS, label=LABELS)
@SOME
def test_an_image_counts_if_background_and_every_present_class_have_a_pixel(truth, label):
    wanted = [all((truth[n] == c).any() for c in (0, 1, 2, 3) if c == 0 or label[n, c - 1]) for n in range(2)]
    assert complete(truth, label).tolist() == wanted
    shares = [float((truth[n] != IGNORE).float().mean()) * wanted[n] for n in range(2)]
    assert float(share_supervised(truth, label)) == pytest.approx(sum(shares) / 2)


@given(logits=LOGITS, truth=TRUTHS, label=LABELS)
@SOME
def test_the_loss_against_loops(logits, truth, label):
    x, t = logits.numpy(), truth.numpy()
    total = 0.0
    for n in range(2):
        if not complete(truth, label)[n]:
            continue
        sure = int((t[n] != IGNORE).sum())
        for i in range(2):
            for j in range(3):
                c = t[n, i, j]
                if c != IGNORE:
                    scores = x[n, :, i, j]
                    entropy = np.log(np.exp(scores).sum()) - scores[c]
                    total += (sure - (t[n] == c).sum()) / (1 + sure) * entropy
    assert float(balanced_cross_entropy(logits, truth, label)) == pytest.approx(total / 12, rel=1e-6, abs=1e-9)


def test_images_that_lack_a_class_and_ignored_pixels_get_no_gradient():
    truth = torch.tensor([[[0, 1, IGNORE]], [[0, 0, IGNORE]]])
    logits = torch.zeros(2, 2, 1, 3, requires_grad=True)
    balanced_cross_entropy(logits, truth, torch.ones(2, 1)).backward()
    assert logits.grad[0, :, :, :2].all()
    assert not logits.grad[0, :, :, 2].any() and not logits.grad[1].any()


def test_a_batch_without_a_sure_image_costs_nothing_and_can_be_learnt_from():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = balanced_cross_entropy(logits, torch.full((2, 4, 4), IGNORE), torch.ones(2, 2))
    loss.backward()
    assert float(loss.detach()) == 0 and not logits.grad.any()


def test_a_rare_class_weighs_as_much_as_a_frequent_one():
    truth = torch.zeros(1, 10, 10, dtype=torch.int64)
    truth[0, 0, :5] = 1
    logits = torch.zeros(1, 2, 10, 10, requires_grad=True)
    balanced_cross_entropy(logits, truth, torch.ones(1, 1)).backward()
    of_class = [logits.grad[:, 1][truth == c].abs().sum() for c in (0, 1)]
    torch.testing.assert_close(of_class[0], of_class[1])


def test_no_gradient_flows_through_pseudo_truth():
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 4
    label, gradients = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), []
    for frozen in (False, True):
        scores = x.clone().requires_grad_()
        refined = F.avg_pool2d(class_masks(scores), 3, 1, 1)
        truth = pseudo_truth(refined.detach() if frozen else refined, label, background=0.5)
        assert not truth.requires_grad
        balanced_cross_entropy(with_background_score(scores), truth, label).backward()
        gradients.append(scores.grad)
    assert gradients[0].any() and torch.equal(*gradients)


def test_masks_themselves_learn_nothing_from_their_truth():
    masks = torch.rand(1, 2, 4, 4, requires_grad=True)
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    balanced_cross_entropy(logits, pseudo_truth(masks, torch.ones(1, 1)), torch.ones(1, 1)).backward()
    assert masks.grad is None


def test_gradients_of_the_loss():
    truth = torch.tensor([[[0, 1], [1, IGNORE]]])
    logits = torch.randn(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: balanced_cross_entropy(x, truth, torch.ones(1, 1)), logits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pseudo_truth(row([0.5], [0.5]), torch.ones(1, 2)), "label has shape (1, 2)"),
        (lambda: pseudo_truth(row([0.5], [0.5]), torch.ones(1, 1), floor=1.2), "floor=1.2: give a number from 0 to 1"),
        (lambda: pseudo_truth(row([0.5], [0.5]), torch.ones(1, 1), background=-1.0), "background=-1.0: give"),
        (
            lambda: balanced_cross_entropy(torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 8).long(), torch.ones(1, 1)),
            "truth has shape (1, 8, 8), logits (1, 2, 4, 4): bring the logits to the grid of the truth",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(make, message):
    with pytest.raises((WsssError, SettingsError)) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)
