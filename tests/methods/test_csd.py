"""CSD: co-occurrence by brute force, composites pixel by pixel, two divergences that never teach the teacher."""

import copy
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from wsss_lib import backbones
from wsss_lib.data import PseudoMaskSet, TrainingSet, train_transform
from wsss_lib.data.samples import Batch
from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.methods import csd
from wsss_lib.methods.base import Method, Progress
from wsss_lib.methods.cam import CAM
from wsss_lib.methods.csd import (
    CSD,
    REFERENCE_CELLS,
    background_consistency,
    cells_inside,
    co_occurrence,
    compose,
    foreground_consistency,
    resampling_matrix,
    source_probability,
)
from wsss_lib.settings import load

BITS = st.integers(0, 1)
LABELS = arrays(np.int8, st.tuples(st.integers(1, 12), st.integers(1, 6)), elements=BITS)
MAPS = arrays(np.float32, st.just((2, 2, 4, 3, 3)), elements=st.floats(-30, 30, width=32))  # teacher and student
CELLS = arrays(bool, st.just((2, 3, 3)))
CHI_SQUARE = {2: 13.8, 3: 16.3, 5: 20.5, 8: 26.1}  # by degrees of freedom: exceeded once in a thousand
CONSISTENCIES = [foreground_consistency, background_consistency]


class Bank:
    """Sources as `InstanceBank` offers them: counts of each class, nothing behind them."""

    def __init__(self, counts):
        starts = np.cumsum([0, *counts]).tolist()
        self.of_class = [list(range(a, b)) for a, b in pairwise(starts)]
        self.available = torch.tensor([n > 0 for n in counts])

    def __len__(self):
        return sum(len(indices) for indices in self.of_class)

    def scene(self, index, seed):
        raise AssertionError("no source is needed here")


def numbers(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def far_from(expected, drawn):
    likely = expected > 0
    assert not drawn[~likely].any()
    return ((drawn - expected)[likely] ** 2 / expected[likely]).sum() > CHI_SQUARE[likely.sum() - 1]


def distribution(scores):
    scores = np.exp(scores - scores.max())
    return scores / scores.sum()


def divergence(teacher, student, cells):
    """The sum over cells of KL(soft-max of the teacher || soft-max of the student), a mean over images."""
    total = 0.0
    for n, y, x in zip(*np.nonzero(cells.numpy()), strict=True):
        p, q = (distribution(m[n, :, y, x].double().numpy()) for m in (teacher, student))
        total += float((p * np.log(p / q)).sum())
    return total / len(cells)


# Which class is pasted where


@given(label=LABELS)
@settings(max_examples=60, deadline=None)
def test_the_counts_are_those_of_a_double_loop_with_images_of_one_class_on_the_diagonal(label):
    _, n_classes = label.shape
    expected = np.zeros((n_classes, n_classes))
    for i in range(n_classes):
        for j in range(n_classes):
            for image in label:
                together = image[i] and image[j]
                expected[i, j] += together if i != j else together and image.sum() == 1
    counts = co_occurrence(torch.from_numpy(label))
    assert np.array_equal(counts.numpy(), expected) and torch.equal(counts, counts.T)


@given(label=LABELS)
@settings(max_examples=60, deadline=None)
def test_rows_of_the_matrix_sum_to_one_and_a_class_that_never_occurs_points_at_itself(label):
    counts = co_occurrence(torch.from_numpy(label))
    matrix = resampling_matrix(counts)
    assert matrix.min() >= 0
    torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix)))
    for row, count, itself in zip(matrix, counts, torch.eye(len(matrix)), strict=True):
        torch.testing.assert_close(row, count / count.sum() if count.any() else itself)


@given(label=LABELS, target=st.data())
@settings(max_examples=60, deadline=None)
def test_the_mixture_sums_to_one_and_of_one_class_is_its_row(label, target):
    matrix = resampling_matrix(co_occurrence(torch.from_numpy(label)))
    k = len(matrix)
    present = torch.tensor(target.draw(st.lists(BITS, min_size=k, max_size=k).filter(any))).float()
    available = torch.tensor(target.draw(st.lists(st.booleans(), min_size=k, max_size=k).filter(any)))
    chances = source_probability(matrix, present, available)
    assert float(chances.sum()) == pytest.approx(1) and chances.min() >= 0 and not chances[~available].any()
    torch.testing.assert_close(source_probability(matrix, present), (present @ matrix) / present.sum())
    for row, one in zip(matrix, torch.eye(k), strict=True):
        torch.testing.assert_close(source_probability(matrix, one), row)


def test_where_no_likely_class_has_a_source_all_that_have_are_equally_likely():
    chances = source_probability(torch.eye(4), torch.tensor([1.0, 0, 0, 0]), torch.tensor([False, True, True, False]))
    assert chances.tolist() == [0, 0.5, 0.5, 0]


def test_without_any_source_the_error_is_one_line():
    with pytest.raises(WsssError, match="no class has a source; collect instances first") as error:
        source_probability(torch.eye(2), torch.ones(2), torch.zeros(2, dtype=torch.bool))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("counts", [[6, 1, 3, 2], [6, 0, 3, 2]])
def test_sources_are_drawn_as_the_mixture_says_and_evenly_within_a_class(host, counts):
    labels = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    method, target = CSD(host, Bank(counts), labels.float()), torch.tensor([1.0, 0.0, 1.0, 0.0])
    torch.manual_seed(0)
    drawn = np.array([method.draw_source(target) for _ in range(3000)])
    of_class = np.array([np.isin(drawn, indices).sum() for indices in method.bank.of_class])
    chances = source_probability(method.matrix, target, method.bank.available)
    assert not far_from(3000 * chances.numpy(), of_class)
    assert not far_from(np.full(6, of_class[0] / 6), np.bincount(drawn, minlength=6)[:6])


def test_without_resampling_every_source_is_as_likely_whatever_the_target(host):
    method = CSD(host, Bank([6, 1, 2]), labels=None)
    torch.manual_seed(0)
    drawn = np.bincount([method.draw_source(torch.tensor([1.0, 0.0, 0.0])) for _ in range(1800)], minlength=9)
    assert not far_from(np.full(9, 200), drawn)


# What is pasted and where it counts


@given(seed=st.integers(0, 2**31), size=st.tuples(st.integers(1, 9), st.integers(1, 9)))
@settings(max_examples=20, deadline=None)
def test_a_composite_is_the_source_in_the_region_and_the_target_outside(seed, size):
    source, target = numbers(2, 3, *size, seed=seed), numbers(2, 3, *size, seed=seed + 1)
    where = numbers(2, 1, *size, seed=seed + 2) > 0
    composite, everywhere = compose(source, target, where), where.expand_as(source)
    assert torch.equal(composite[everywhere], source[everywhere])
    assert torch.equal(composite[~everywhere], target[~everywhere])


@given(
    where=arrays(bool, st.tuples(st.just(2), st.just(1), st.integers(4, 13), st.integers(4, 13))),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
@settings(max_examples=40, deadline=None)
def test_a_cell_is_inside_where_all_its_pixels_are(where, size):
    got = cells_inside(torch.from_numpy(where), size)
    height, width = where.shape[2:]
    for n in range(2):
        for i in range(size[0]):
            for j in range(size[1]):
                rows = slice(i * height // size[0], -(-(i + 1) * height // size[0]))
                columns = slice(j * width // size[1], -(-(j + 1) * width // size[1]))
                assert bool(got[n, i, j]) == where[n, 0, rows, columns].all()


class Plain(Method):
    """A host of one convolution: a cell sees its own 4 x 4 pixels and so many around them; keeps what it saw."""

    def __init__(self, around=0):
        super().__init__(3)
        self.mix, self.seen = nn.Conv2d(3, 3, 4 + 2 * around, stride=4, padding=around), []

    def maps(self, image):
        self.seen.append(image)
        return self.mix(image)


@pytest.fixture
def masks():
    """Object, background and padding (255): a column of cells each, and a column where the three meet."""
    mask = torch.zeros(2, 1, 16, 16, dtype=torch.long)
    mask[..., :4], mask[..., 8:12] = 1, 255
    mask[..., :6, 12:], mask[..., 6:10, 12:], mask[1, :, 10:, 12:] = 3, 255, 2
    return mask


def test_the_object_goes_into_one_composite_the_background_into_the_other_and_padding_into_none(masks):
    torch.manual_seed(0)
    host, source, target = Plain(), numbers(2, 3, 16, 16, seed=1), numbers(2, 3, 16, 16, seed=2)
    CSD(host, Bank([1, 1, 1])).consistency(source, target, masks)
    (views,) = host.seen
    alone, with_object, with_background = views.chunk(3)
    mask = masks.expand_as(source)
    inside, background, padding = (mask > 0) & (mask < 255), mask == 0, mask == 255
    assert torch.equal(alone, source)
    assert torch.equal(with_object[inside], source[inside]) and torch.equal(with_object[~inside], target[~inside])
    assert torch.equal(with_background[background], source[background])
    assert torch.equal(with_background[~background], target[~background])
    assert torch.equal(with_object[padding], target[padding])
    assert torch.equal(with_background[padding], target[padding])


def test_both_terms_are_their_equations(masks):
    torch.manual_seed(0)
    host, source, target = Plain(around=4), numbers(2, 3, 16, 16, seed=1), numbers(2, 3, 16, 16, seed=2)
    method = CSD(host, Bank([1, 1, 1]), dummy=0.3, temperature=0.5)
    with torch.no_grad():
        fg, bg = method.consistency(source, target, masks)
        inside, background = (masks > 0) & (masks < 255), masks == 0
        teacher, with_fg, with_bg = (
            host.maps(x) / 0.5 for x in (source, compose(source, target, inside), compose(source, target, background))
        )

    def two_way(maps):
        saliency = maps.clamp(min=0).sum(1, keepdim=True)
        return torch.cat([saliency, torch.full_like(saliency, 0.3)], 1)

    of_object = divergence(teacher, with_fg, cells_inside(inside, (4, 4)))
    of_background = divergence(two_way(teacher), two_way(with_bg), cells_inside(background, (4, 4)))
    assert of_object > 0.01 and float(fg) == pytest.approx(of_object * 196 / 16, rel=1e-4)
    assert of_background > 0.01 and float(bg) == pytest.approx(of_background * 196 / 16, rel=1e-4)


def test_a_host_that_sees_no_context_pays_nothing_for_another_one(masks):
    torch.manual_seed(0)
    source, target = numbers(2, 3, 16, 16, seed=1), numbers(2, 3, 16, 16, seed=2)
    fg, bg = CSD(Plain(around=0), Bank([1])).consistency(source, target, masks)
    assert abs(float(fg.detach())) < 1e-4 and abs(float(bg.detach())) < 1e-4


# The two divergences


@given(maps=MAPS, cells=CELLS)
@settings(max_examples=60, deadline=None)
def test_the_object_term_is_the_sum_of_divergences_over_its_cells_a_mean_over_images(maps, cells):
    teacher, student = torch.from_numpy(maps)
    cells = torch.from_numpy(cells)
    expected = divergence(teacher, student, cells) * REFERENCE_CELLS / 9
    assert float(foreground_consistency(teacher, student, cells)) == pytest.approx(expected, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("consistency", CONSISTENCIES)
@given(maps=MAPS, cells=CELLS)
@settings(max_examples=40, deadline=None)
def test_a_divergence_is_never_negative_and_zero_for_the_same_scores_and_for_no_cell(consistency, maps, cells):
    teacher, student = torch.from_numpy(maps)
    cells = torch.from_numpy(cells)
    assert float(consistency(teacher, student, cells)) > -1e-3
    assert abs(float(consistency(teacher, teacher.clone(), cells))) < 1e-3
    assert float(consistency(teacher, student, torch.zeros_like(cells))) == 0


@pytest.mark.parametrize("consistency", CONSISTENCIES)
def test_different_scores_cost_something_and_no_gradient_reaches_the_teacher(consistency):
    teacher, student = (numbers(2, 4, 3, 3, seed=seed).requires_grad_() for seed in (0, 1))
    loss = consistency(teacher, student, torch.ones(2, 3, 3, dtype=torch.bool))
    loss.backward()
    assert loss > 0 and teacher.grad is None and student.grad.abs().sum() > 0


@given(maps=MAPS, cells=CELLS, order=st.permutations(range(4)))
@settings(max_examples=40, deadline=None)
def test_the_background_term_knows_no_classes(maps, cells, order):
    teacher, student = torch.from_numpy(maps)
    cells = torch.from_numpy(cells)
    plain = background_consistency(teacher, student, cells)
    shuffled = background_consistency(teacher, student[:, list(order)], cells)
    torch.testing.assert_close(shuffled, plain, rtol=1e-4, atol=1e-3)


def test_the_object_term_does_know_the_classes():
    maps, everywhere = numbers(2, 4, 3, 3), torch.ones(2, 3, 3, dtype=torch.bool)
    assert float(foreground_consistency(maps, maps.flip(1), everywhere)) > 1
    assert float(background_consistency(maps, maps.flip(1), everywhere).abs()) < 1e-4


def test_the_background_term_depends_on_the_sum_of_positive_scores_alone():
    teacher, student = numbers(2, 4, 3, 3), numbers(2, 4, 3, 3, seed=1)
    everywhere = torch.ones(2, 3, 3, dtype=torch.bool)
    other = torch.where(student < 0, 5 * student, student)
    spread = student.relu().sum(1, keepdim=True).expand_as(student) / 4
    expected = background_consistency(teacher, student, everywhere)
    for same in (other, spread):
        torch.testing.assert_close(background_consistency(teacher, same, everywhere), expected)


@given(maps=MAPS, cells=CELLS, constant=st.floats(-20, 20, width=32))
@settings(max_examples=40, deadline=None)
def test_a_constant_on_all_classes_changes_the_object_term_by_nothing(maps, cells, constant):
    teacher, student = torch.from_numpy(maps)
    cells = torch.from_numpy(cells)
    plain = foreground_consistency(teacher, student, cells)
    for moved in ((teacher + constant, student), (teacher, student + constant)):
        torch.testing.assert_close(foreground_consistency(*moved, cells), plain, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("consistency", CONSISTENCIES)
def test_finer_maps_and_more_images_cost_the_same(consistency):
    teacher, student = numbers(2, 4, 14, 14), numbers(2, 4, 14, 14, seed=1)
    cells = numbers(2, 14, 14, seed=2) > 0
    expected = consistency(teacher, student, cells)

    def fine(x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    torch.testing.assert_close(consistency(fine(teacher), fine(student), fine(cells)), expected)
    torch.testing.assert_close(consistency(*(torch.cat([x, x, x]) for x in (teacher, student, cells))), expected)


def test_on_the_papers_grid_the_object_term_is_the_plain_sum_of_equation_3():
    teacher, student = numbers(1, 20, 14, 14, scale=3), numbers(1, 20, 14, 14, seed=1, scale=3)
    cells = numbers(1, 14, 14, seed=2) > 0.3
    got = foreground_consistency(teacher, student, cells)
    assert float(got) == pytest.approx(divergence(teacher, student, cells), rel=1e-5)


# The method


@pytest.fixture
def host():
    torch.manual_seed(0)
    return CAM(backbones.build("tiny"), n_classes=6)


@pytest.fixture(scope="module")
def batch(toy_folder):
    """Four images of several classes and two of one."""
    ids = toy_folder.split("train")
    several = [i for i in ids if toy_folder.label(i).sum() > 1][:4]
    one = [i for i in ids if toy_folder.label(i).sum() == 1][:2]
    dataset = TrainingSet(toy_folder, [*several, *one], train_transform(None, 64))
    samples = [dataset[i, i] for i in range(6)]
    return Batch(*(torch.stack(list(part)) for part in list(zip(*samples, strict=True))[:2]), tuple("abcdef"))


def losses(method, batch, seed=5):
    torch.manual_seed(seed)
    return method.loss(batch, Progress())


def test_the_total_is_the_hosts_loss_and_both_weighted_terms(host, bank, batch):
    got = losses(CSD(host.eval(), bank, bank.labels, lambda_fg=0.3, lambda_bg=2.0), batch)
    expected = losses(host, batch)
    assert list(got.terms) == ["classify", "fg", "bg"] and got.terms["fg"] > 0 and got.terms["bg"] > 0
    torch.testing.assert_close(got.terms["classify"], expected.total)
    torch.testing.assert_close(got.total, expected.total + 0.3 * got.terms["fg"] + 2.0 * got.terms["bg"])


def test_targets_are_the_images_of_several_classes_and_the_terms_a_mean_over_the_batch(host, bank, batch, monkeypatch):
    method, seen, asked = CSD(host, bank, bank.labels), [], []
    draw = method.draw_source
    monkeypatch.setattr(method, "draw_source", lambda label: asked.append(label) or draw(label))
    monkeypatch.setattr(method, "consistency", lambda *given: seen.append(given) or (torch.ones(()), torch.ones(())))
    got = losses(method, batch)
    source, target, mask = seen[0]
    assert torch.equal(target, batch.image[:4]) and torch.equal(torch.stack(asked), batch.label[:4])
    assert source.shape == target.shape and mask.shape == (4, 1, 64, 64)
    assert float(got.terms["fg"]) == float(got.terms["bg"]) == pytest.approx(4 / 6)


def test_the_chances_are_the_same_under_autocast():
    matrix, label = resampling_matrix(torch.arange(36.0).view(6, 6)), torch.ones(6)
    with torch.autocast("cpu", torch.bfloat16):
        mixture = source_probability(matrix, label)
    assert torch.equal(source_probability(matrix, label), mixture)


def test_without_targets_the_terms_are_zero_and_no_source_is_drawn(host, batch):
    single = Batch(batch.image[4:], batch.label[4:], batch.image_id[4:])
    got = losses(CSD(host.eval(), Bank([0] * 6), torch.eye(6), 1.0, 1.0), single)
    assert got.terms["fg"] == got.terms["bg"] == 0
    assert torch.equal(got.total, losses(host, single).total)


def test_without_weights_loss_and_gradient_are_exactly_the_hosts_and_no_source_is_drawn(host, batch):
    alone = copy.deepcopy(host)
    got = losses(CSD(host, Bank([0] * 6), torch.eye(6), lambda_fg=0.0, lambda_bg=0.0), batch).total
    expected = losses(alone, batch).total
    got.backward(), expected.backward()
    assert torch.equal(got, expected)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(host.parameters(), alone.parameters(), strict=True))


@pytest.mark.parametrize("given", [{"lambda_fg": -0.1}, {"lambda_bg": -1.0}, {"temperature": 0.0}])
def test_negative_weights_and_no_temperature_are_refused(host, given):
    name, value = next(iter(given.items()))
    with pytest.raises(SettingsError, match=f"{name}={value}.*: give weights of 0 or more") as error:
        CSD(host, Bank([1] * 6), **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.01, 0.1)])
def test_either_term_teaches_backbone_and_classifier(host, bank, batch, weights):
    before = batch.image.clone(), batch.label.clone()
    got = losses(CSD(host.train(), bank, bank.labels, *weights), batch)
    (got.total - got.terms["classify"]).backward()
    assert got.total.isfinite()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in host.parameters())
    assert torch.equal(batch.image, before[0]) and torch.equal(batch.label, before[1])


@pytest.mark.parametrize("training", [True, False])
def test_the_same_view_costs_nothing_in_either_mode(host, bank, training):
    method = CSD(host.train(training), bank)
    source, mask = method.sources([torch.ones(6)] * 3, like=torch.zeros(1))
    fg, bg = method.consistency(source, source, mask)
    assert abs(float(fg.detach())) < 1e-3 and abs(float(bg.detach())) < 1e-3


def test_the_temperature_divides_the_maps(host, bank):
    source, target, mask = numbers(2, 3, 32, 32), numbers(2, 3, 32, 32, seed=1), torch.ones(2, 1, 32, 32)
    mask[..., 16:] = 0
    with torch.no_grad():
        hot = CSD(host.eval(), bank, temperature=20.0).consistency(source, target, mask)
        host.classifier.weight /= 20
        plain = CSD(host, bank).consistency(source, target, mask)
    torch.testing.assert_close(hot, plain)


@pytest.mark.parametrize(("value", "zero"), [(0, {"fg"}), (1, {"bg"}), (255, {"fg", "bg"})])
def test_a_term_without_its_region_is_zero(host, bank, value, zero):
    source, target = numbers(2, 3, 32, 32), numbers(2, 3, 32, 32, seed=1)
    mask = torch.full((2, 1, 32, 32), 255)
    mask[..., 16:] = value
    terms = dict(zip(("fg", "bg"), CSD(host.train(), bank).consistency(source, target, mask), strict=True))
    assert {name for name, term in terms.items() if float(term.detach()) == 0} == zero


def test_the_teacher_passes_no_gradient_to_the_host(host, bank):
    source, target = numbers(2, 3, 32, 32), numbers(2, 3, 32, 32, seed=1)
    mask = (numbers(2, 1, 4, 4, seed=2) > 0).long().repeat_interleave(8, 2).repeat_interleave(8, 3)
    inside, method = mask > 0, CSD(host.eval(), bank)
    cells = cells_inside(inside, (8, 8))
    with torch.no_grad():
        constant = host.maps(source)
    sum(method.consistency(source, target, mask)).backward()
    got = [p.grad.clone() for p in host.parameters()]
    host.zero_grad()
    fg = foreground_consistency(constant, host.maps(compose(source, target, inside)), cells)
    bg = background_consistency(constant, host.maps(compose(source, target, ~inside)), ~cells)
    (fg + bg).backward()
    for gradient, parameter in zip(got, host.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-3)


def test_the_terms_leave_the_mode_of_every_layer(host, bank):
    host.backbone.freeze(1, norm=True)
    method = CSD(host.train(), bank)
    modes = [m.training for m in method.modules()]
    method.consistency(numbers(1, 3, 32, 32), numbers(1, 3, 32, 32, seed=1), torch.ones(1, 1, 32, 32))
    assert [m.training for m in method.modules()] == modes


def test_sources_are_scenes_of_the_bank_of_one_class_with_their_masks(host, bank, toy_folder):
    transform = train_transform(None, 64, pad=4)
    plain = PseudoMaskSet(toy_folder, bank.ids, bank.path / "masks", transform)
    method, labels = CSD(host, bank, bank.labels), [torch.eye(6)[0] + torch.eye(6)[3]] * 5
    torch.manual_seed(0)
    image, mask = method.sources(labels, like=torch.zeros(1))
    torch.manual_seed(0)
    seeds = torch.randint(2**62, (5,)).tolist()
    for row, seed in enumerate(seeds):
        expected = plain[method.draw_source(labels[row]), seed]
        assert torch.equal(image[row], expected.image) and torch.equal(mask[row, 0], expected.mask)
        assert len(set(mask[row].unique().tolist()) - {0, 255}) == 1
    assert torch.equal((image == 0).all(1, keepdim=True), mask == 255)


def test_the_seed_decides_the_loss(host, bank, batch):
    method = CSD(host.eval(), bank, bank.labels)
    first, again, other = (losses(method, batch, seed) for seed in (1, 1, 2))
    for name in ("fg", "bg"):
        assert torch.equal(first.terms[name], again.terms[name])
        assert not torch.equal(first.terms[name], other.terms[name])


def test_scores_and_maps_are_the_hosts(host, bank, batch):
    method = CSD(host, bank).eval()
    for name in ("logits", "maps", "cam"):
        assert torch.equal(getattr(method, name)(batch.image), getattr(host, name)(batch.image))
    assert method.backbone is host.backbone and method.n_classes == host.n_classes


def test_every_weight_is_there_once_and_in_one_group(host, bank):
    method = CSD(host, bank, bank.labels)
    assert list(method.state_dict()) == [f"host.{name}" for name in host.state_dict()]
    grouped = [id(p) for group in method.parameter_groups(7.0) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in host.parameters())
    assert {g["name"]: g["lr_factor"] for g in method.parameter_groups(7.0)} == {"backbone": 1.0, "classifier": 7.0}


def test_the_settings_reach_the_method(host, bank):
    overrides = {"csd.lambda_fg": 0.2, "csd.lambda_bg": 0.4, "csd.dummy": 0.7, "csd.resampling": False}
    overrides["csd.temperature"] = 3.0
    changed, plain = (csd.build(host, bank, load("smoke", values).csd) for values in (overrides, {}))
    assert changed.weights == {"fg": 0.2, "bg": 0.4} and changed.dummy == 0.7
    assert changed.temperature == 3.0 and changed.matrix is None
    section = load("smoke").csd
    assert plain.weights == {"fg": section.lambda_fg, "bg": section.lambda_bg} and plain.dummy == section.dummy
    assert torch.equal(plain.matrix, resampling_matrix(co_occurrence(bank.labels)))


@pytest.fixture
def training(train_briefly, bank):
    """`train_briefly` of a CSD."""
    return partial(train_briefly, lambda: CSD(CAM(backbones.build("tiny"), 6), bank, bank.labels))


def test_an_interrupted_training_draws_the_same_and_continues_to_the_same_bytes(training):
    whole = training("whole")
    with pytest.raises(KeyboardInterrupt):
        training("cut", stop=2)
    resumed = training("cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_micro_batches_without_a_target_train_too(training):
    assert all(value.isfinite().all() for value in training("single", micro_batch_size=1).values())
