"""What holds for every method: losses, their weights, the groups of the optimiser."""

import numpy as np
import pytest
import torch

from wsss_lib import backbones, methods
from wsss_lib.data import Batch
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.methods.base import Losses, Method, Progress, multi_label_soft_margin
from wsss_lib.settings import load

REFINES = ("seam", "cpn")  # their activation maps are not the positive part of the scores


@pytest.fixture
def logits():
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def label():
    return (torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.4).float()


def test_the_soft_margin_loss_is_its_equation(logits, label):
    s, y = logits.double().numpy(), label.double().numpy()
    sigmoid = 1 / (1 + np.exp(-s))
    expected = -(y * np.log(sigmoid) + (1 - y) * np.log(1 - sigmoid)).mean()
    assert float(multi_label_soft_margin(logits, label)) == pytest.approx(expected, rel=1e-6)


def test_the_soft_margin_loss_is_torchs(logits, label):
    expected = torch.nn.functional.multilabel_soft_margin_loss(logits, label)
    torch.testing.assert_close(multi_label_soft_margin(logits, label), expected)


def test_the_soft_margin_loss_is_finite_for_huge_scores_and_computed_in_float32():
    loss = multi_label_soft_margin(torch.tensor([[1e4, -1e4]], dtype=torch.bfloat16), torch.tensor([[0, 1]]))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(1e4, rel=1e-2)


def test_the_soft_margin_loss_is_symmetric_in_right_and_wrong(logits, label):
    torch.testing.assert_close(multi_label_soft_margin(logits, label), multi_label_soft_margin(-logits, 1 - label))


def test_the_soft_margin_loss_falls_to_zero_with_sure_and_right_scores(label):
    assert float(multi_label_soft_margin(100 * (2 * label - 1), label)) < 1e-6


def test_the_soft_margin_loss_takes_mixtures_of_labels(logits, label):
    other = label.flip(0)
    mixed = multi_label_soft_margin(logits, 0.3 * label + 0.7 * other)
    expected = 0.3 * multi_label_soft_margin(logits, label) + 0.7 * multi_label_soft_margin(logits, other)
    torch.testing.assert_close(mixed, expected)


def test_the_soft_margin_loss_refuses_other_shapes(logits):
    with pytest.raises(WsssError, match=r"\(5, 3\).*\(5, 7\)"):
        multi_label_soft_margin(logits, torch.zeros(5, 3))


def test_the_total_is_the_weighted_sum_of_the_terms():
    terms = {"a": torch.tensor(1.0), "b": torch.tensor(2.0), "c": torch.tensor(4.0)}
    losses = Losses.weighted(terms, {"b": 0.5, "c": 0.0})
    assert float(losses.total) == 2.0
    assert losses.terms == terms


def test_a_weight_without_a_term_is_refused():
    with pytest.raises(WsssError, match="'z': the terms are a"):
        Losses.weighted({"a": torch.tensor(1.0)}, {"z": 1.0})


def test_progress_begins_at_zero():
    assert Progress().fraction == 0
    assert Progress(step=3, steps=4, epoch=1, epochs=2).fraction == 0.75


@pytest.mark.parametrize("n_classes", [0, -1])
def test_a_method_without_classes_is_refused(n_classes):
    with pytest.raises(WsssError, match=f"n_classes={n_classes}"):
        Method(n_classes)


@pytest.mark.parametrize("frozen", [0, 2, 3])
def test_what_learns_is_in_exactly_one_group_and_what_is_frozen_in_none(frozen):
    method = methods.build("cam", backbones.build("tiny").freeze(stages=frozen), 4)
    grouped = [id(p) for group in method.parameter_groups() for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in method.parameters() if p.requires_grad}


def test_the_classifier_learns_by_its_factor_and_the_backbone_by_one():
    method = methods.build("cam", backbones.build("tiny"), 4)
    groups = {group["name"]: group for group in method.parameter_groups(classifier_factor=20.0)}
    assert groups["backbone"]["lr_factor"] == 1
    assert groups["classifier"]["lr_factor"] == 20
    assert [id(p) for p in groups["classifier"]["params"]] == [id(method.classifier.weight)]
    assert {g["name"]: g["lr_factor"] for g in method.parameter_groups()}["classifier"] == 10


def test_an_unknown_method_lists_those_that_exist():
    with pytest.raises(WsssError) as error:
        methods.build("scam", backbones.build("tiny"), 4)
    assert "'scam'" in str(error.value) and "cam" in str(error.value).split(":")[1]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_keeps_the_promises_of_the_base_class(name, bank):
    torch.manual_seed(0)
    method = methods.build(name, backbones.build("tiny"), 6, load("smoke"), bank).train()
    image, label = torch.randn(2, 3, 64, 64), torch.tensor([[1.0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]])
    losses = method.loss(Batch(image, label, ("a", "b")), Progress(step=9, steps=10, epoch=2, epochs=3))
    losses.total.backward()  # late: what starts late has begun
    assert losses.total.isfinite() and all(term.ndim == 0 and term.isfinite() for term in losses.terms.values())
    assert all(p.grad is not None for group in method.parameter_groups() for p in group["params"])
    with torch.no_grad():
        maps, cam, logits = method.eval().maps(image), method.cam(image), method.logits(image)
    side = 32 if name in methods.SINGLE_STAGE else 16  # of the first map, or of the last
    assert cam.shape == maps.shape == (2, 6, side, side) and (cam >= 0).all()
    assert torch.equal(cam, maps.relu()) == (name not in (*REFINES, *methods.SINGLE_STAGE))
    assert logits.shape == (2, 6) and logits.isfinite().all()


@pytest.mark.parametrize("name", methods.WRAPPERS)
def test_a_host_that_has_a_host_is_refused(name, bank):
    for host in methods.WRAPPERS:
        with pytest.raises(WsssError, match=f"{name}.host='{host}' needs a host itself: choose one of cam"):
            methods.build(name, backbones.build("tiny"), 6, load("smoke", {f"{name}.host": host}), bank)


@pytest.mark.parametrize("name", methods.WRAPPERS)
def test_a_host_whose_patches_are_super_pixels_is_refused(name, bank):
    changed = load("smoke", {f"{name}.host": "cpn", "cpn.patches": "superpixel"})
    with pytest.raises(SettingsError, match=f"cpn.patches='superpixel': {name} makes new images"):
        methods.build(name, backbones.build("tiny"), 6, changed, bank)


@pytest.mark.parametrize("name", methods.WRAPPERS)
def test_an_unknown_host_is_one_line(name, bank):
    with pytest.raises(WsssError, match="'ham' is unknown: choose one of cam") as error:
        methods.build(name, backbones.build("tiny"), 6, load("smoke", {f"{name}.host": "ham"}), bank)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_method_starts_from_all_weights_of_cam_or_of_its_backbone_or_says_which_has_no_place(name, bank):
    method = methods.build(name, backbones.build("tiny"), 6, load("smoke"), bank)
    cam = methods.build("cam", backbones.build("tiny"), 6)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    if name == "deft":
        with pytest.raises(WsssError, match="DEFT has no place for classifier"):
            method.start_from(cam)
        assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
        return
    method.start_from(cam)
    taken = (method.host if name in methods.WRAPPERS else method).state_dict()
    given = cam.state_dict()
    if name in methods.SINGLE_STAGE:  # all after the backbone is another network's
        given = {key: value for key, value in given.items() if key.startswith("backbone.")}
    assert all(torch.equal(value, taken[key]) for key, value in given.items())
    if name not in methods.WRAPPERS:
        assert all(torch.equal(value, before[key]) for key, value in taken.items() if key not in given)


@pytest.mark.parametrize("name", methods.METHODS)
def test_those_and_only_those_that_are_registered_segment(name, bank):
    method = methods.build(name, backbones.build("tiny"), 6, load("smoke"), bank).eval()
    assert hasattr(method, "segment") is (name in methods.SINGLE_STAGE)
    if name not in methods.SINGLE_STAGE:
        return
    image = torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores, masks = method.segment(image)
        assert torch.equal(scores, method.logits(image)) and torch.equal(masks[:, 1:], method.cam(image))
    assert scores.shape == (2, 6) and masks.shape[:2] == (2, 7)
    torch.testing.assert_close(masks.sum(1), torch.ones(2, *masks.shape[2:]))
    assert masks.min() >= 0 and masks.max() <= 1


@pytest.mark.parametrize("name", [*methods.WRAPPERS, *REFINES, *methods.SINGLE_STAGE, "deft"])
def test_a_method_without_its_settings_is_one_line(name, bank):
    with pytest.raises(WsssError, match=f"{name}: settings without a section {name}; give those of a profile"):
        methods.build(name, backbones.build("tiny"), 6, {}, bank)


@pytest.mark.parametrize("name", REFINES)
def test_batch_norm_learns_its_statistics_from_whole_images_alone(name, batch):
    def statistics(method):
        return {key: value.clone() for key, value in method.state_dict().items() if "running" in key}

    method = methods.build(name, backbones.build("tiny"), 6, load("smoke")).train()
    twin = methods.build("cam", backbones.build("tiny"), 6).train()
    twin.backbone.load_state_dict(method.backbone.state_dict())
    twin.loss(batch, Progress())
    before = statistics(method)
    method.loss(batch, Progress())
    expected = statistics(twin)
    for key, value in statistics(method).items():
        assert not torch.equal(value, before[key])
        torch.testing.assert_close(value, expected[key])
