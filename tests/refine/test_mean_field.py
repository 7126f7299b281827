"""The dense CRF against exact mean field with full kernel matrices."""

import numpy as np
import pytest

from wsss_lib.errors import WsssError
from wsss_lib.refine import mean_field
from wsss_lib.refine.mean_field import HARD, LA_HA, PRESETS, DenseCRFSettings, dense_crf, hard_probability

# Coupling so weak that small errors of the lattice do not grow into another fixed point: with the published
# weights and noise for a unary, mean field has several, and exact solvers part ways, too.
WEAK = DenseCRFSettings(5, 1.5, 1, 4, 20, 2)


def exact_mean_field(image, probability, settings):
    """Krahenbuhl and Koltun's updates with pairwise matrices, normalised symmetrically as pydensecrf does.

    A pixel sends a message to itself as well: pydensecrf leaves the diagonal in.
    """
    labels, height, width = probability.shape
    place = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2).astype(float)
    colour = image.reshape(-1, 3).astype(float)

    def kernel(*features):
        k = np.exp(-0.5 * sum(((f[:, None] - f[None]) ** 2).sum(-1) for f in features))
        scale = 1 / np.sqrt(k.sum(1))
        return k * scale[:, None] * scale[None]

    pairwise = settings.gaussian_compat * kernel(place / settings.gaussian_sxy)
    pairwise += settings.bilateral_compat * kernel(place / settings.bilateral_sxy, colour / settings.bilateral_srgb)
    unary = np.log(np.maximum(probability, 1e-5)).reshape(labels, -1)
    energy = unary
    for _ in range(settings.iterations + 1):
        q = np.exp(energy - energy.max(0))
        q /= q.sum(0)
        energy = unary + q @ pairwise
    return q.reshape(probability.shape)


def two_colours(height=9, width=8, seed=0):
    """A dark left and a light right half with a little noise, and random probabilities of 3 labels."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    image[:, width // 2 :] = 120
    image += rng.integers(0, 6, image.shape).astype(np.uint8)
    probability = rng.random((3, height, width)).astype(np.float32)
    return image, probability / probability.sum(0)


@pytest.mark.parametrize(("height", "width"), [(9, 8), (20, 24)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_marginals_agree_with_exact_mean_field(height, width, seed):
    image, probability = two_colours(height, width, seed)
    ours, exact = dense_crf(image, probability, WEAK), exact_mean_field(image, probability, WEAK)
    assert np.abs(ours - exact).max() < 0.05  # the permutohedral lattice approximates the Gaussians
    first, second = np.sort(exact, axis=0)[:-3:-1]
    clear = first - second > 0.1
    assert clear.mean() > 0.5 and (ours.argmax(0) == exact.argmax(0))[clear].all()


def test_published_settings_agree_with_exact_mean_field_on_a_clear_unary():
    image, noise = two_colours(16, 16)
    probability = 0.5 * noise
    probability[0, :, :8] += 0.5
    probability[2, :, 8:] += 0.5
    for settings in PRESETS.values():
        exact = exact_mean_field(image, probability, settings)
        assert np.abs(dense_crf(image, probability, settings) - exact).max() < 0.05


def test_marginals_are_probabilities():
    q = dense_crf(*two_colours())
    assert q.dtype == np.float32 and q.min() >= 0
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-5)


def test_permuting_labels_permutes_marginals():
    image, probability = two_colours()
    order = [2, 0, 1]
    np.testing.assert_allclose(
        dense_crf(image, probability[order], WEAK), dense_crf(image, probability, WEAK)[order], atol=1e-4
    )


def test_scores_need_not_sum_to_1():
    image, probability = two_colours()
    factor = np.linspace(0.2, 3, image.shape[1], dtype=np.float32)
    scaled = dense_crf(image, probability * factor, WEAK)
    np.testing.assert_allclose(scaled, dense_crf(image, probability, WEAK), atol=1e-4)


def test_a_uniform_image_with_a_constant_unary_keeps_its_winner_everywhere():
    image = np.full((12, 10, 3), 77, np.uint8)
    probability = np.broadcast_to(np.float32([0.3, 0.5, 0.2])[:, None, None], (3, 12, 10))
    q = dense_crf(image, probability)
    assert (q.argmax(0) == 1).all() and q[1].min() > 0.5


def test_a_speck_takes_the_label_of_its_surroundings():
    image = np.full((12, 10, 3), 77, np.uint8)
    probability = np.full((2, 12, 10), 0.2, np.float32)
    probability[0] = 0.8
    probability[:, 5, 5] = [0.3, 0.7]
    assert (dense_crf(image, probability).argmax(0) == 0).all()


def test_one_label_needs_no_crf():
    assert (dense_crf(np.zeros((3, 4, 3), np.uint8), np.zeros((1, 3, 4))) == 1).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (6, 1)])
def test_images_one_pixel_wide_work(height, width):
    q = dense_crf(np.zeros((height, width, 3), np.uint8), np.full((2, height, width), 0.5))
    assert q.shape == (2, height, width) and np.isfinite(q).all()


def test_probabilities_of_0_are_clipped():
    image, _ = two_colours()
    probability = np.zeros((2, *image.shape[:2]))
    probability[1] = 1
    q = dense_crf(image, probability)
    assert np.isfinite(q).all() and (q.argmax(0) == 1).all()


def test_memory_layout_and_precision_do_not_matter():
    image, probability = two_colours()
    mirrored = dense_crf(image[:, ::-1], probability[:, :, ::-1].astype(np.float64), WEAK)
    copied = dense_crf(image[:, ::-1].copy(), probability[:, :, ::-1].copy(), WEAK)
    np.testing.assert_allclose(mirrored, copied, atol=1e-6)
    fortran = dense_crf(np.asfortranarray(image), np.asfortranarray(probability), WEAK)
    np.testing.assert_array_equal(fortran, dense_crf(image, probability, WEAK))


def test_read_only_inputs_work():
    image, probability = two_colours()
    expected = dense_crf(image, probability, WEAK)
    image.flags.writeable = probability.flags.writeable = False
    np.testing.assert_array_equal(dense_crf(image, probability, WEAK), expected)


def test_inputs_stay_as_they_were():
    image, probability = two_colours()
    before = image.copy(), probability.copy()
    dense_crf(image, probability)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(probability, before[1])


@pytest.mark.parametrize("image", [np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4, 3)), np.zeros((5, 4), np.uint8)])
def test_a_picture_of_another_size_or_kind_is_refused_in_one_line(image):
    with pytest.raises(WsssError, match=r"give uint8 \(5, 4, 3\)") as caught:
        dense_crf(image, np.full((2, 5, 4), 0.5))
    assert "\n" not in str(caught.value)


def test_hard_probability_sums_to_1_and_points_to_the_mask():
    mask = np.random.default_rng(0).integers(0, 4, (5, 6))
    probability = hard_probability(mask, 4)
    np.testing.assert_allclose(probability.sum(0), 1, rtol=1e-6)
    assert (probability.argmax(0) == mask).all()


def test_classes_that_the_network_never_sees_leave_the_crf_and_change_nothing():
    image, probability = two_colours(16, 16)
    full = np.zeros((21, 16, 16), np.float32)
    full[[0, 8, 15]] = probability
    labels = mean_field.refined_labels(image, full, WEAK)
    assert labels.dtype == np.uint8
    assert (labels == np.uint8([0, 8, 15])[dense_crf(image, probability, WEAK).argmax(0)]).all()


def test_every_named_pipeline_has_a_preset_and_its_pair_is_sure_of_foreground_first():
    names = "irn psa seam mctformer cpn ws_fcn ssss deeplab_v2 seam_segment mctformer_segment"
    assert set(PRESETS) == set(names.split()) and set(HARD) <= set(PRESETS)
    assert {*LA_HA["power"], *LA_HA["constant"]} == set(["psa", "seam", "mctformer", "irn", "advcam", "recam", "amn"])
    assert all(low < high for low, high in LA_HA["power"].values())  # a high exponent leaves little background
    assert all(foreground > background for foreground, background in LA_HA["constant"].values())
