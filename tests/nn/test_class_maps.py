"""Maps for the losses of SEAM and CPN: scaled, with a background, one class a cell; the hardest errors by sorting."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.class_maps import (
    hardest_mean,
    keep_strongest,
    min_max,
    min_pooling_loss,
    soft_masks,
    with_background,
)

SHAPES = array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=5)
SCORES = arrays(np.float32, SHAPES, elements=st.floats(-50, 50, width=32))
SHARES = arrays(np.float32, SHAPES, elements=st.floats(0, 1, width=32))
SOME = settings(max_examples=60, deadline=None)


@given(scores=SCORES, data=st.data(), eps=st.sampled_from([1e-5, 0.1]))
@SOME
def test_min_max_is_its_equation_for_present_classes_and_zero_for_absent_ones(scores, data, eps):
    n, k = scores.shape[:2]
    label = data.draw(arrays(np.float32, (n, k), elements=st.sampled_from([0, 1])))
    got = min_max(torch.from_numpy(scores), torch.from_numpy(label), eps).numpy()
    for i in range(n):
        for c in range(k):
            positive = np.maximum(scores[i, c].astype(np.float64), 0)
            expected = (positive - positive.min()) / (np.ptp(positive) + eps) * label[i, c]
            np.testing.assert_allclose(got[i, c], expected, atol=1e-5)
    assert got.min() >= 0 and got.max() <= 1


def test_min_max_does_not_depend_on_the_scale_of_the_scores_and_a_flat_map_says_nothing():
    draw = torch.Generator().manual_seed(0)
    scores, label = torch.randn(2, 3, 4, 4, generator=draw), torch.ones(2, 3)
    torch.testing.assert_close(min_max(7 * scores, label), min_max(scores, label), rtol=0, atol=1e-4)
    assert not min_max(torch.full((1, 2, 3, 3), 5.0), torch.ones(1, 2)).any()


@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_the_gradient_of_a_class_with_hardly_a_score_is_bounded_by_eps(eps):
    maps = torch.tensor([[[[0.0, 0.5e-6, 1e-6]]]]).requires_grad_()
    min_max(maps, torch.ones(1, 1), eps)[0, 0, 0, 1].backward()
    assert 0.5 / eps < maps.grad[0, 0, 0, 1] <= 1 / eps


def test_min_max_of_half_precision_is_computed_in_float32_and_double_stays():
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert min_max(torch.rand(1, 2, 3, 3).to(dtype), torch.ones(1, 2)).dtype == expected


def test_min_max_refuses_a_label_of_other_classes():
    with pytest.raises(WsssError, match=r"label has shape \(2, 4\): give \(2, 3\)") as error:
        min_max(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4))
    assert "\n" not in str(error.value)


@given(shares=SHARES, alpha=st.sampled_from([0.5, 1.0, 4.0]))
@SOME
def test_background_is_what_the_strongest_class_leaves(shares, alpha):
    got = with_background(torch.from_numpy(shares), alpha).numpy()
    assert np.array_equal(got[:, 1:], shares)
    np.testing.assert_allclose(got[:, 0], (1 - shares.max(1)) ** alpha, atol=1e-6)


@given(shares=SHARES.filter(lambda shares: shares.shape[1] > 1))
@SOME
def test_in_each_cell_the_largest_class_and_the_background_stay(shares):
    got = keep_strongest(torch.from_numpy(shares))
    n, _, h, w = shares.shape
    for i in range(n):
        for y in range(h):
            for x in range(w):
                background, *classes = shares[i, :, y, x]
                kept = [value if value == max(classes) else 0 for value in classes]
                assert got[i, :, y, x].tolist() == [background, *kept]


@given(scores=SCORES)
@SOME
def test_soft_masks_hold_one_class_a_cell_and_the_rest_is_background(scores):
    masks = soft_masks(torch.from_numpy(scores).requires_grad_())
    assert not masks.requires_grad and masks.min() >= 0 and masks.max() <= 1
    torch.testing.assert_close(masks[:, 0] + masks[:, 1:].amax(1), torch.ones_like(masks[:, 0]))
    positive = np.maximum(scores, 0)
    scaled = positive / (positive.max((2, 3), keepdims=True) + 1e-5)
    expected = np.where(scaled == scaled.max(1, keepdims=True), scaled, 0)
    np.testing.assert_allclose(masks[:, 1:].numpy(), expected, atol=1e-5)


@given(errors=SHARES, share=st.floats(0.01, 1))
@SOME
def test_the_hardest_mean_is_that_of_each_images_largest_errors_and_never_below_the_mean(errors, share):
    flat = np.sort(errors.reshape(len(errors), -1).astype(np.float64), 1)[:, ::-1]
    expected = flat[:, : max(1, round(share * flat.shape[1]))].mean()
    got = float(hardest_mean(torch.from_numpy(errors), share))
    assert got == pytest.approx(expected, abs=1e-6) and got >= errors.mean() - 1e-6


def test_all_errors_are_the_plain_mean_and_each_image_has_its_own_hardest():
    errors = torch.rand(3, 2, 4, 5)
    torch.testing.assert_close(hardest_mean(errors, 1.0), errors.mean())
    easy_and_hard = torch.cat([torch.zeros(1, 1, 2, 5), torch.ones(1, 1, 2, 5)])
    assert hardest_mean(easy_and_hard, 0.2) == 0.5


def test_only_the_hardest_errors_learn():
    errors = torch.arange(10.0).view(1, 1, 2, 5).requires_grad_()
    hardest_mean(errors, 0.2).backward()
    assert errors.grad.flatten().tolist() == [0.0] * 8 + [0.5] * 2


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_another_share_is_refused(share):
    with pytest.raises(SettingsError, match=f"share={share}: give more than 0, up to 1"):
        hardest_mean(torch.zeros(1, 1, 2, 2), share)


@given(scores=SCORES)
@SOME
def test_min_pooling_is_the_mean_of_the_lowest_quarter_of_the_largest_class(scores):
    n, _, h, w = scores.shape
    largest = np.sort(np.maximum(scores, 0).max(1).reshape(n, -1).astype(np.float64), 1)
    expected = largest[:, : max(1, round(h * w / 4))].mean()
    assert float(min_pooling_loss(torch.from_numpy(scores))) == pytest.approx(expected, abs=1e-4)


def test_min_pooling_lowers_only_the_lowest_cells():
    maps = torch.tensor([[[[0.1, 0.2], [0.7, 0.9]]]]).requires_grad_()
    min_pooling_loss(maps, share=0.5).backward()
    assert maps.grad.flatten().tolist() == [0.5, 0.5, 0.0, 0.0]
