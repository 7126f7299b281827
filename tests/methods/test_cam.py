"""CAM: the classifier's scores and its maps are two views of one thing."""

from types import SimpleNamespace

import pytest
import torch

from wsss_lib import backbones
from wsss_lib.localize import normalize_cam
from wsss_lib.methods.base import Progress, multi_label_soft_margin
from wsss_lib.methods.cam import CAM, build, class_maps, class_scores

LABEL = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


@pytest.fixture
def method():
    torch.manual_seed(0)
    return CAM(backbones.build("tiny"), n_classes=3).eval()


@pytest.fixture
def image():
    return torch.randn(2, 3, 50, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_of_the_maps_before_relu_is_the_logits(method, image, dtype):
    method, image = method.to(dtype), image.to(dtype)
    maps = class_maps(method.backbone(image), method.weight)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(maps.mean((2, 3)), method.logits(image), rtol=tolerance, atol=tolerance)


def test_maps_and_scores_are_their_equations():
    draw = torch.Generator().manual_seed(0)
    features, weight = torch.randn(2, 5, 3, 4, generator=draw), torch.randn(6, 5, generator=draw)
    maps = class_maps(features, weight)
    for n, k, y, x in ((0, 0, 0, 0), (1, 5, 2, 3), (1, 2, 1, 0)):
        assert float(maps[n, k, y, x]) == pytest.approx(float(weight[k] @ features[n, :, y, x]), abs=1e-5)
    torch.testing.assert_close(class_scores(features, weight), features.mean((2, 3)) @ weight.T)


def test_the_cam_is_the_positive_part_of_the_maps(method, image):
    maps = class_maps(method.backbone(image), method.weight)
    assert (maps < 0).any()
    assert torch.equal(method.cam(image), maps.clamp(min=0))


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_scaling_the_classifier_leaves_normalised_maps_unchanged(method, image, factor):
    with torch.no_grad():
        before = normalize_cam(method.cam(image), LABEL)
        method.classifier.weight *= factor
        after = normalize_cam(method.cam(image), LABEL)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-3)  # eps is 1e-5 of maxima around 0.1


def test_the_loss_is_the_soft_margin_of_the_logits_at_every_progress(method, image):
    batch = SimpleNamespace(image=image, label=LABEL)
    expected = multi_label_soft_margin(method.logits(image), LABEL)
    for progress in (Progress(), Progress(step=9, steps=10, epoch=4, epochs=5)):
        losses = method.loss(batch, progress)
        assert set(losses.terms) == {"classify"}
        assert torch.equal(losses.total, expected) and torch.equal(losses.terms["classify"], expected)


def test_it_learns_a_batch_by_heart(method, image):
    method.train()
    batch = SimpleNamespace(image=image, label=LABEL)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = method.loss(batch, Progress()).total
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_it_sees_nothing_but_images_and_labels(method, image):
    asked = set()

    class Batch:
        def __getattr__(self, name):
            asked.add(name)
            return {"image": image, "label": LABEL}[name]

    method.loss(Batch(), Progress())
    assert asked == {"image", "label"}


def test_the_classifier_has_no_bias_and_one_weight_a_class_and_channel(method):
    assert method.classifier.bias is None
    assert method.weight.shape == (3, 64)


def test_the_registry_ignores_settings_that_cam_does_not_have():
    for settings in (None, {"lam": 1}, SimpleNamespace(lam=1)):
        assert build(backbones.build("tiny"), 3, settings).n_classes == 3
