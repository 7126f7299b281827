"""Multi-scale testing, and the masks that it writes."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wsss_lib.data.masks import read_mask
from wsss_lib.data.transforms import normalize, resize_image
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.refine.mean_field import DenseCRFSettings, refined_labels
from wsss_lib.segment.predict import COMBINE, over_views, predict, segment


class Picture:
    """Stands in for a VOCFolder: images in memory, of two sizes."""

    def __init__(self, n=5):
        torch.manual_seed(2)
        sizes = [(24, 20), (16, 28)]
        self.images = {f"i{k}": torch.randint(0, 256, (3, *sizes[k % 2])).byte() for k in range(n)}

    def image(self, image_id):
        return self.images[image_id]

    def size(self, image_id):
        return tuple(self.images[image_id].shape[1:])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.ReLU(), nn.Conv2d(8, 21, 1)).eval()


@pytest.fixture
def image():
    torch.manual_seed(1)
    return torch.randn(2, 3, 22, 30)


def test_one_scale_without_mirror_is_the_plain_forward(model, image):
    plain = F.interpolate(model(image), (22, 30), mode="bilinear", align_corners=False).softmax(1)
    torch.testing.assert_close(predict(model, image, scales=(1,), flip=False), plain)


def test_probabilities_sum_to_1_at_image_size(model, image):
    probability = predict(model, image)
    assert probability.shape == (2, 21, 22, 30)
    torch.testing.assert_close(probability.sum(1), torch.ones(2, 22, 30))


def test_mirroring_the_image_mirrors_the_prediction(model, image):
    torch.testing.assert_close(predict(model, image.flip(-1)).flip(-1), predict(model, image))


def test_scales_are_averaged(model, image):
    both = predict(model, image, scales=(0.5, 1.5))
    each = [predict(model, image, scales=(s,)) for s in (0.5, 1.5)]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)


def views_by_hand(model, image, scales, flip):
    """Scores of each view at image size, the mirrored ones mirrored back: (V,N,C,H,W)."""
    size, found = image.shape[2:], []
    for scale in scales:
        view = resize_image(image, [max(1, round(side * scale)) for side in size])
        found.append(F.interpolate(model(view), size, mode="bilinear", align_corners=False))
        if flip:
            mirrored = F.interpolate(model(view.flip(3)), size, mode="bilinear", align_corners=False)
            found.append(mirrored.flip(3))
    return torch.stack(found)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0, 0.75, 0.5), (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), (0.01, 1.3)])
def test_views_are_combined_as_by_hand(model, scales, flip):
    image = torch.randn(2, 3, 21, 33, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        model[2].weight.mul_(20)  # far from linear, or all ways would be the same
        scores = views_by_hand(model, image, scales, flip)
    expected = {
        "mean": scores.softmax(2).mean(0),
        "mean_logits": scores.mean(0).softmax(1),
        "max": scores.amax(0).softmax(1),
    }
    assert set(expected) == set(COMBINE)
    for combine, probability in expected.items():
        found = predict(model, image, scales, flip, combine)
        torch.testing.assert_close(found, probability, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.sum(1), torch.ones(2, 21, 33))
    distances = [(expected[a] - expected[b]).abs().max() for a, b in (COMBINE[:2], COMBINE[1:], COMBINE[::2])]
    assert min(distances) > 1e-2


def test_of_a_single_view_all_ways_are_the_same(model, image):
    plain = predict(model, image, (1,), False)
    assert all(torch.equal(predict(model, image, (1,), False, combine), plain) for combine in COMBINE)


@pytest.mark.parametrize("combine", COMBINE)
def test_mirroring_the_image_mirrors_the_prediction_whatever_the_way(model, image, combine):
    here, there = (predict(model, x, (1, 0.5), True, combine) for x in (image, image.flip(-1)))
    torch.testing.assert_close(there.flip(-1), here)


def test_another_way_is_refused_before_the_network_is_asked():
    with pytest.raises(SettingsError, match="combine='median': choose one of mean, mean_logits, max") as error:
        predict(None, torch.zeros(1, 3, 4, 4), combine="median")
    assert "\n" not in str(error.value)


def test_views_are_seen_one_size_after_another(image):
    seen = []
    over_views(lambda views: seen.append(tuple(views.shape)) or torch.zeros(len(views), 1, 22, 30), image, (1, 0.5))
    assert seen == [(4, 3, 22, 30), (4, 3, 11, 15)]


def test_an_image_is_predicted_alike_alone_and_in_a_batch(model, image):
    torch.testing.assert_close(predict(model, image)[:1], predict(model, image[:1]))


@pytest.mark.parametrize("scales", [(), (1, 0), (-1,)])
def test_impossible_scales_are_refused(model, image, scales):
    with pytest.raises(WsssError, match="give one or more positive factors"):
        predict(model, image, scales=scales)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_masks_hold_the_strongest_class_whatever_the_batch_size(model, tmp_path, batch_size):
    folder = Picture()
    ids = tuple(folder.images)
    assert segment(model, folder, ids, tmp_path / "masks", scales=(1, 1.5), batch_size=batch_size) == 5
    for image_id in ids:
        probability = predict(model, normalize(folder.image(image_id))[None], scales=(1, 1.5))
        expected = probability[0].argmax(0).numpy()
        assert (read_mask(tmp_path / "masks" / f"{image_id}.png") == expected).all()


@pytest.mark.parametrize("combine", COMBINE)
def test_masks_follow_the_way_that_was_asked_for(model, tmp_path, combine):
    folder, options = Picture(2), {"scales": (0.4, 1, 2), "flip": False, "combine": combine}
    segment(model, folder, ["i0", "i1"], tmp_path, **options)
    for image_id, picture in folder.images.items():
        expected = predict(model, normalize(picture)[None], **options)[0].argmax(0).numpy()
        assert (read_mask(tmp_path / f"{image_id}.png") == expected).all()


def test_dropout_is_off_while_segmenting(model, tmp_path):
    noisy = nn.Sequential(model, nn.Dropout(0.9)).train()
    segment(noisy, Picture(1), ["i0"], tmp_path, scales=(1,))
    assert not noisy.training


def test_masks_that_exist_are_kept(model, tmp_path):
    folder = Picture()
    assert segment(model, folder, ["i0", "i1"], tmp_path, scales=(1,)) == 2
    before = (tmp_path / "i0.png").stat().st_mtime_ns
    assert segment(model, folder, tuple(folder.images), tmp_path, scales=(1,)) == 3
    assert (tmp_path / "i0.png").stat().st_mtime_ns == before


@pytest.mark.parametrize("processes", [1, 2])
def test_the_crf_refines_the_probabilities(model, tmp_path, processes):
    folder, crf = Picture(2), DenseCRFSettings(iterations=3)
    segment(model, folder, ["i0", "i1"], tmp_path, scales=(1,), flip=False, crf=crf, processes=processes)
    for image_id, picture in folder.images.items():
        probability = predict(model, normalize(picture)[None], scales=(1,), flip=False)[0].numpy()
        expected = refined_labels(picture.permute(1, 2, 0).numpy(), probability, crf)
        mask = read_mask(tmp_path / f"{image_id}.png")
        assert mask.dtype == np.uint8 and (mask == expected).all()
