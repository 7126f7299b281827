"""Masks of a single-stage method: views by a loop, who says which classes are there, and what lies in the folders."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wsss_lib import backbones, methods
from wsss_lib.data.masks import read_mask
from wsss_lib.data.transforms import normalize, resize_image
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.pooling import pool_scores
from wsss_lib.refine.dense_crf import MaskSettings, pseudo_mask
from wsss_lib.refine.mean_field import DenseCRFSettings
from wsss_lib.segment import single_stage
from wsss_lib.segment.single_stage import FOLDERS, SingleStageSettings, predict_masks, segment_single_stage
from wsss_lib.settings import load

CRF = MaskSettings("power", alpha=5.0, crf=DenseCRFSettings(iterations=2))
PLAIN = MaskSettings("constant", threshold=0.25, crf=None)


class Pictures:
    """Stands in for a VOCFolder: images in memory, of two sizes, and labels of which some have no class."""

    def __init__(self, n=5):
        draw = torch.Generator().manual_seed(2)
        sizes = [(24, 20), (17, 29)]
        self.images = {
            f"i{k}": torch.randint(0, 256, (3, *sizes[k % 2]), generator=draw, dtype=torch.uint8) for k in range(n)
        }
        self.given = {image_id: torch.tensor([k % 2, k // 2 % 2, 0.0]) for k, image_id in enumerate(self.images)}

    def image(self, image_id):
        return self.images[image_id]

    def size(self, image_id):
        return tuple(self.images[image_id].shape[1:])

    def labels(self, ids):
        return torch.stack([self.given[image_id] for image_id in ids])


class Small(nn.Module):
    """Three classes' scores at a quarter of the size, otherwise in the mirror, and noisy in training."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        first, last = nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.Conv2d(8, 3, 1)
        self.net = nn.Sequential(first, nn.ReLU(), nn.Dropout(0.5), last)

    def segment(self, image):
        return pool_scores(6 * self.net(image))


class Fixed(nn.Module):
    """Says the same of every image."""

    def __init__(self, masks, scores):
        super().__init__()
        self.masks, self.scores = torch.tensor(masks)[None, :, None], torch.tensor(scores)[None]

    def segment(self, image):
        return self.scores.expand(len(image), -1), self.masks.expand(len(image), -1, -1, -1)


@pytest.fixture
def method():
    return Small().eval()


@pytest.fixture
def image():
    return torch.randn(2, 3, 22, 31, generator=torch.Generator().manual_seed(1))


def written(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.png")}


# Views


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5, 1.5, 2.0), (0.01,)])
@pytest.mark.parametrize("flip", [False, True])
def test_masks_are_the_mean_and_probabilities_the_maximum_over_the_views(method, image, scales, flip):
    masks, probabilities = [], []
    with torch.no_grad():
        for scale in scales:
            view = resize_image(image, (max(1, round(22 * scale)), max(1, round(31 * scale))))
            for mirrored in (False, True) if flip else (False,):
                y, soft = method.segment(view.flip(3) if mirrored else view)
                soft = F.interpolate(soft, (22, 31), mode="bilinear", align_corners=False)
                masks.append(soft.flip(3) if mirrored else soft)
                probabilities.append(1 / (1 + (-y).exp()))
    probability, mean = predict_masks(method, image, scales, flip)
    torch.testing.assert_close(mean, sum(masks) / len(masks))
    torch.testing.assert_close(probability, torch.stack(probabilities).max(0).values)
    assert len(masks) == 1 or scales == (0.01,) or not torch.allclose(mean, masks[0])


def test_masks_have_the_images_size_and_sum_to_one(method, image):
    probability, masks = predict_masks(method, image, (1.0, 0.7))
    assert probability.shape == (2, 3) and masks.shape == (2, 4, 22, 31)
    torch.testing.assert_close(masks.sum(1), torch.ones(2, 22, 31))


def test_the_mirror_image_has_mirrored_masks_and_the_same_probabilities(method, image):
    (here, masks), (there, mirrored) = (predict_masks(method, x, (1.0, 0.5)) for x in (image, image.flip(3)))
    torch.testing.assert_close(here, there)
    torch.testing.assert_close(masks, mirrored.flip(3))


def test_an_image_is_segmented_alike_alone_and_in_a_batch(method, image):
    for together, alone in zip(predict_masks(method, image), predict_masks(method, image[1:]), strict=True):
        torch.testing.assert_close(together[1:], alone)


def test_without_words_there_is_one_scale_and_the_mirror(method, image):
    for short, long in zip(predict_masks(method, image), predict_masks(method, image, (1.0,), True), strict=True):
        assert torch.equal(short, long)


@pytest.mark.parametrize("scales", [(), (1.0, 0.0), (-1.0,)])
def test_impossible_scales_are_refused(method, image, scales):
    for make in (lambda: predict_masks(method, image, scales), lambda: SingleStageSettings(scales)):
        with pytest.raises(SettingsError, match="give one or more positive factors") as error:
            make()
        assert "scales=" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("cut", [-0.1, 1.1, float("nan")])
def test_a_cut_that_is_no_probability_is_refused(cut):
    with pytest.raises(SettingsError, match=r"class_cut=.*: give a probability from 0 to 1"):
        SingleStageSettings(class_cut=cut)


def test_the_published_test_has_four_scales_the_mirror_a_cut_of_a_tenth_and_a_background_of_a_quarter():
    got = SingleStageSettings()
    assert (got.scales, got.flip, got.class_cut) == ((1.0, 0.5, 1.5, 2.0), True, 0.1)
    assert (got.mask.background, got.mask.threshold, got.mask.crf, got.mask.pamr) == ("constant", 0.25, None, None)


# Classes


def test_two_pixels_by_hand(tmp_path):
    # Three pixels' masks: background, then two classes. Class 1 is predicted (sigmoid(0) = 0.5), class 2 is given.
    method = Fixed([[0.5, 0.1, 0.74], [0.3, 0.2, 0.25], [0.2, 0.7, 0.01]], [0.0, -3.0])
    folder = Pictures(1)
    folder.images["i0"], folder.given["i0"] = torch.zeros(3, 1, 3, dtype=torch.uint8), torch.tensor([0.0, 1.0])
    segment_single_stage(method, folder, ["i0"], tmp_path, SingleStageSettings((1.0,), flip=False, mask=PLAIN))
    predicted, given = (read_mask(tmp_path / name / "i0.png").tolist() for name in FOLDERS)
    assert predicted == [[1, 0, 0]]  # 0.3 beats 0.25, 0.2 does not, an equal score is background's
    assert given == [[0, 2, 0]]  # 0.2 does not beat 0.25, 0.7 does


@pytest.mark.parametrize(("cut", "there"), [(0.0, [1, 2]), (0.04, [1, 2]), (0.05, [1]), (0.49, [1]), (0.5, [])])
def test_a_class_is_there_if_its_probability_exceeds_the_cut(tmp_path, cut, there):
    method = Fixed([[0.0, 0.0], [0.6, 0.4], [0.4, 0.6]], [0.0, -3.0])  # sigmoid: 0.5, 0.047
    folder = Pictures(1)
    folder.images["i0"], folder.given["i0"] = torch.zeros(3, 1, 2, dtype=torch.uint8), torch.zeros(2)
    segment_single_stage(method, folder, ["i0"], tmp_path, SingleStageSettings((1.0,), False, cut, PLAIN))
    assert sorted(set(read_mask(tmp_path / "masks" / "i0.png").ravel())) == (there or [0])


@pytest.mark.parametrize("mask", [PLAIN, CRF], ids=["plain", "crf"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_masks_are_the_pseudo_masks_of_the_classes_that_are_predicted_and_of_those_that_are_given(
    method, tmp_path, mask, batch_size
):
    folder = Pictures()
    alone = {i: predict_masks(method, normalize(picture)[None], (1.0, 0.5)) for i, picture in folder.images.items()}
    cut = float(torch.cat([probability for probability, _ in alone.values()]).median()) + 1e-4
    options = SingleStageSettings((1.0, 0.5), class_cut=cut, mask=mask)
    assert segment_single_stage(method, folder, tuple(alone), tmp_path, options, batch_size=batch_size) == 5
    for image_id, (probability, masks) in alone.items():
        picture = folder.image(image_id)
        here = {"masks": probability[0] > cut, "masks_with_labels": folder.given[image_id] > 0}
        for name, present in here.items():
            classes = present.nonzero().flatten().numpy()
            want = pseudo_mask(picture.permute(1, 2, 0).numpy(), masks[0, 1:].numpy()[classes], classes, mask)
            got = read_mask(tmp_path / name / f"{image_id}.png")
            assert (got == want).all() and set(got.ravel()) <= {0, *(1 + classes)}


@pytest.mark.parametrize("mask", [PLAIN, CRF, MaskSettings("power", crf=None)], ids=["plain", "crf", "power"])
def test_an_image_of_which_no_class_is_predicted_or_given_is_all_background(method, tmp_path, mask):
    folder = Pictures(1)
    segment_single_stage(method, folder, ["i0"], tmp_path, SingleStageSettings((1.0,), class_cut=1.0, mask=mask))
    for name in FOLDERS:
        found = read_mask(tmp_path / name / "i0.png")
        assert found.shape == (24, 20) and not found.any()


def test_absent_classes_are_nowhere_in_the_masks_with_labels(tmp_path):
    method = Fixed([[0.0] * 4, [0.1] * 4, [0.2] * 4, [0.7] * 4], [9.0, 9.0, 9.0])
    folder = Pictures(4)
    segment_single_stage(method, folder, tuple(folder.images), tmp_path, SingleStageSettings((1.0,)))
    for image_id in folder.images:
        assert (read_mask(tmp_path / "masks" / f"{image_id}.png") == 3).all()
        assert not (read_mask(tmp_path / "masks_with_labels" / f"{image_id}.png") == 3).any()


# Folders


def test_images_that_have_both_masks_are_passed_over_and_others_get_what_they_would_have_got(method, tmp_path):
    folder, options = Pictures(), SingleStageSettings((1.0,))
    ids = tuple(folder.images)
    assert segment_single_stage(method, folder, ids, tmp_path / "whole", options) == 5
    segment_single_stage(method, folder, ids[:3], tmp_path / "cut", options)
    kept = [tmp_path / "cut" / name / "i0.png" for name in FOLDERS]
    before = [path.stat().st_mtime_ns for path in kept]
    (tmp_path / "cut" / "masks_with_labels" / "i1.png").unlink()  # as if it had been stopped between the two
    asked = []
    folder.image = lambda image_id: asked.append(image_id) or folder.images[image_id]
    assert segment_single_stage(method, folder, ids, tmp_path / "cut", options) == 3
    assert sorted(asked) == ["i1", "i3", "i4"]
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert written(tmp_path / "cut") == written(tmp_path / "whole") and len(written(tmp_path / "whole")) == 10
    assert segment_single_stage(method, folder, ids, tmp_path / "cut", options) == 0


def test_an_interrupted_run_leaves_whole_masks_and_goes_on_with_the_rest(method, tmp_path):
    folder, options = Pictures(), SingleStageSettings((1.0,))
    read = folder.image

    def stopping(image_id):
        if image_id == "i3":
            raise KeyboardInterrupt
        return read(image_id)

    with patch.object(folder, "image", stopping), pytest.raises(KeyboardInterrupt):
        segment_single_stage(method, folder, tuple(folder.images), tmp_path, options)
    left = written(tmp_path)
    assert len(left) == 8  # images of equal size go together: 0, 2 and 4, then 1
    assert segment_single_stage(method, folder, tuple(folder.images), tmp_path, options) == 1
    assert left.items() <= written(tmp_path).items() and len(written(tmp_path)) == 10


def test_a_pool_refines_to_the_same_bytes_as_one_process(method, tmp_path):
    folder, options = Pictures(3), SingleStageSettings((1.0,), mask=CRF)
    for processes in (1, 2):
        out = tmp_path / str(processes)
        segment_single_stage(method, folder, tuple(folder.images), out, options, processes=processes)
    assert written(tmp_path / "1") == written(tmp_path / "2") and len(written(tmp_path / "1")) == 6


@pytest.mark.parametrize(("mask", "processes"), [(PLAIN, 1), (CRF, 3)], ids=["plain", "crf"])
def test_only_a_crf_is_worth_a_pool(method, tmp_path, mask, processes):
    with patch.object(single_stage, "work", return_value=()) as work:
        segment_single_stage(method, Pictures(1), ["i0"], tmp_path, SingleStageSettings((1.0,), mask=mask), processes=3)
    assert work.call_args.args[2] == processes


def test_dropout_is_off_while_segmenting(method, tmp_path):
    segment_single_stage(method.train(), Pictures(1), ["i0"], tmp_path, SingleStageSettings((1.0,)))
    assert not method.training


def test_an_error_names_the_image(method, tmp_path):
    folder = Pictures(2)
    wrong = {"image": "i1", "score": WsssError("cannot be refined")}

    def failing(picture, maps, classes, settings):
        if picture.shape[:2] == folder.size(wrong["image"]):
            raise wrong["score"]
        return np.zeros(picture.shape[:2], np.uint8)

    with (
        patch.object(single_stage, "pseudo_mask", failing),
        pytest.raises(WsssError, match=r"^masks/i1: cannot be refined$"),
    ):
        segment_single_stage(method, folder, ["i0", "i1"], tmp_path, SingleStageSettings((1.0,)))


@pytest.mark.parametrize("name", ["cam", "seam"])
def test_a_method_that_does_not_segment_is_refused_before_anything_is_written(tmp_path, name):
    made = methods.build(name, backbones.build("tiny"), 6, load("smoke"))
    with pytest.raises(WsssError, match="gives no masks itself: take a single-stage method") as error:
        segment_single_stage(made, Pictures(1), ["i0"], tmp_path / "out")
    assert "\n" not in str(error.value) and type(made).__name__ in str(error.value)
    assert not (tmp_path / "out").exists()


def test_ws_fcn_segments_images_of_any_size(tmp_path):
    torch.manual_seed(0)
    made = methods.build("ws_fcn", backbones.build("tiny"), 3, load("smoke"))
    options = SingleStageSettings((1.0, 0.5), class_cut=0.0, mask=MaskSettings("constant", threshold=0.0, crf=None))
    assert segment_single_stage(made, Pictures(2), ["i0", "i1"], tmp_path, options) == 2
    for image_id, size in (("i0", (24, 20)), ("i1", (17, 29))):
        found = read_mask(tmp_path / "masks" / f"{image_id}.png")
        assert found.shape == size and set(found.ravel()) <= {1, 2, 3}
