"""nGWP and the focal penalty against sums by hand; constant background; absent classes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.pooling import (
    class_masks,
    focal_mask_penalty,
    pool_scores,
    present_only,
    weighted_pooling,
    with_background_score,
)

SOME = settings(max_examples=40, deadline=None)
SCORES = arrays(np.float64, st.just((2, 3, 2, 4)), elements=st.floats(-9, 9)).map(torch.from_numpy)


def flat(*means):
    """Masks that have these means, background first, one image of 2 x 2 cells."""
    return torch.tensor(means).double().view(1, -1, 1, 1).expand(1, -1, 2, 2)


@given(scores=SCORES)
@SOME
def test_background_has_the_score_one_at_every_cell_and_classes_keep_theirs(scores):
    got = with_background_score(scores)
    assert (got[:, 0] == 1).all() and torch.equal(got[:, 1:], scores)


@given(scores=SCORES)
@SOME
def test_pooling_against_loops(scores):
    y, masks = pool_scores(scores, p=2.0, lam=0.1)
    x = scores.numpy()
    for n in range(2):
        parts = np.exp(np.concatenate([np.ones((1, 2, 4)), x[n]]))
        soft = parts / parts.sum(0)
        np.testing.assert_allclose(masks[n], soft, rtol=1e-10)
        for c in range(3):
            pooled = sum(soft[1 + c, i, j] * x[n, c, i, j] for i in range(2) for j in range(4))
            mean = soft[1 + c].mean()
            want = pooled / (1 + 8 * mean) + (1 - mean) ** 2 * math.log(0.1 + mean)
            assert float(y[n, c]) == pytest.approx(want, rel=1e-9, abs=1e-12)


@given(scores=SCORES)
@SOME
def test_cells_sum_to_one_and_the_order_of_cells_is_of_no_matter(scores):
    y, masks = pool_scores(scores)
    torch.testing.assert_close(masks.sum(1), torch.ones(2, 2, 4).double())
    torch.testing.assert_close(pool_scores(scores.flip(2, 3))[0], y)


def test_a_class_without_a_mask_has_the_score_nought_and_the_largest_penalty():
    y, _ = pool_scores(torch.full((1, 1, 4, 4), -60.0).double())
    assert float(y) == pytest.approx(math.log(0.01))


def test_pooling_tells_mean_score_where_the_mask_is_large():
    scores = torch.full((1, 1, 100, 100), 30.0)
    assert float(weighted_pooling(scores, class_masks(scores))) == pytest.approx(30, rel=1e-3)


def test_the_penalty_goes_to_nought_as_the_mask_goes_to_one_minus_lambda():
    penalty = torch.cat([focal_mask_penalty(flat(1 - m, m)) for m in (0.0, 0.3, 0.6, 0.9, 0.99)]).flatten()
    assert (penalty.diff() > 0).all()
    assert float(penalty[0]) == pytest.approx(math.log(0.01)) and float(penalty[-1]) == pytest.approx(0, abs=1e-12)


@given(mean=st.floats(0, 0.98), p=st.floats(0, 6), lam=st.floats(0.005, 0.02))
@SOME
def test_the_penalty_takes_away_and_never_more_than_its_bound(mean, p, lam):
    got = float(focal_mask_penalty(flat(1 - mean, mean), p, lam))
    assert math.log(lam) - 1e-9 <= got <= 0


def test_the_penalty_asks_a_small_mask_to_grow():
    scores = torch.full((1, 2, 4, 4), -3.0).double().requires_grad_()
    focal_mask_penalty(class_masks(scores)).sum().backward()
    assert (scores.grad > 0).all()


@given(scores=SCORES, present=arrays(np.float64, (2, 3), elements=st.sampled_from([0.0, 1.0])))
@SOME
def test_with_labels_absent_classes_are_nought_everywhere_and_the_rest_stays(scores, present):
    masks, label = class_masks(scores), torch.from_numpy(present)
    got = present_only(masks, label)
    assert (got[:, 1:][label == 0] == 0).all()
    assert torch.equal(got[:, 1:][label == 1], masks[:, 1:][label == 1])
    assert torch.equal(got[:, 0], masks[:, 0])


def test_gradients_of_the_pooled_scores():
    scores = torch.randn(1, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda x: pool_scores(x), scores.requires_grad_())


def test_half_precision_scores_are_pooled_in_single():
    y, masks = pool_scores(torch.zeros(1, 2, 64, 64, dtype=torch.bfloat16))
    assert y.dtype == masks.dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: class_masks(torch.zeros(2, 3)), "scores have shape (2, 3): give (images, classes, height, width)"),
        (lambda: focal_mask_penalty(flat(1.0, 0.0), lam=0.0), "p=3.0, lam=0.0: give an exponent of 0 or more"),
        (lambda: focal_mask_penalty(flat(1.0, 0.0), p=-1.0), "p=-1.0, lam=0.01: give an exponent of 0 or more"),
        (lambda: present_only(flat(0.5, 0.5), torch.ones(1, 2)), "label has shape (1, 2), masks (1, 2, 2, 2)"),
        (lambda: present_only(flat(0.5, 0.5), torch.ones(2, 1)), "label has shape (2, 1), masks (1, 2, 2, 2)"),
    ],
)
def test_mistakes_are_told_in_one_line(make, message):
    with pytest.raises((WsssError, SettingsError)) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)
