"""SF2 against loops and its equations, the fusions that it is compared to, and the paper's parameter counts."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.context import CONTEXTS
from wsss_lib.nn.fusion import FUSIONS, GCI, Alignment, TwoStreams, inject_cue, sample_at_offsets, upsample

SOME = settings(max_examples=25, deadline=None)
SIDES = st.integers(2, 9)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def millions(name):
    with torch.device("meta"):
        return sum(p.numel() for p in FUSIONS[name](256, 256, 256).parameters()) / 1e6


# Alignment


@given(h=SIDES, w=SIDES, height=SIDES, width=SIDES)
@SOME
def test_offsets_of_nought_are_bilinear_upsampling_with_aligned_corners(h, w, height, width):
    features = numbers(2, 3, h, w)
    got = sample_at_offsets(features, torch.zeros(2, 2, height, width))
    want = F.interpolate(features, (height, width), mode="bilinear", align_corners=True)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
    assert torch.equal(upsample(features, (height, width)), want)


def test_offsets_of_nought_in_single_precision_and_at_the_papers_size():
    features = numbers(1, 2, 41, 41).float()
    got = sample_at_offsets(features, torch.zeros(1, 2, 81, 81))
    torch.testing.assert_close(got, upsample(features, (81, 81)), rtol=0, atol=5e-5)


def test_sampling_against_loops():
    features, offsets = numbers(1, 2, 4, 5), 3 * numbers(1, 2, 6, 7, seed=1)
    got = sample_at_offsets(features, offsets)[0].numpy()
    padded = np.pad(features[0].numpy(), ((0, 0), (60, 60), (60, 60)))
    for i in range(6):
        for j in range(7):
            x = (2 * j / 6 - 1 + float(offsets[0, 0, i, j]) / 7 + 1) / 2 * 4  # in coarse cells
            y = (2 * i / 5 - 1 + float(offsets[0, 1, i, j]) / 6 + 1) / 2 * 3
            left, top = math.floor(x), math.floor(y)
            want = 0
            for q, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
                for r, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
                    want = want + weight_y * weight_x * padded[:, 60 + q, 60 + r]
            np.testing.assert_allclose(got[:, i, j], want, atol=1e-9)


@given(cells=st.integers(-2, 2), down=st.booleans())
@SOME
def test_one_coarse_cell_further_is_the_map_moved_by_one_cell(cells, down):
    features, offsets = numbers(1, 2, 6, 6), torch.zeros(1, 2, 6, 6, dtype=torch.float64)
    offsets[:, int(down)] = cells * 2 / 5 * 6  # cells are 2 / (6 - 1) units apart
    moved = F.pad(features, (3, 3, 3, 3)).roll(-cells, 2 if down else 3)[..., 3:-3, 3:-3]
    torch.testing.assert_close(sample_at_offsets(features, offsets), moved, rtol=0, atol=1e-9)


def test_a_unit_is_nearly_half_a_fine_cell():
    ramp = torch.arange(81.0).expand(1, 1, 81, 81)
    moved = sample_at_offsets(ramp, torch.ones(1, 2, 81, 81)) - ramp
    torch.testing.assert_close(moved[0, 0, 40, :-1], torch.full((80,), 0.5 * 80 / 81), rtol=0, atol=1e-4)


def test_gradients_reach_features_and_offsets():
    given_ = numbers(1, 2, 3, 3).requires_grad_(), (0.3 * numbers(1, 2, 4, 4, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(sample_at_offsets, given_)


def test_offsets_have_both_signs_and_nothing_without_weights():
    torch.manual_seed(0)
    align, deep, shallow = Alignment(8, 6), torch.randn(2, 8, 4, 4).abs(), torch.randn(2, 6, 8, 8).abs()
    offsets = align.offsets(deep, shallow)
    assert offsets.shape == (2, 2, 8, 8) and (offsets > 0).any() and (offsets < 0).any()
    torch.testing.assert_close(align.offsets(2 * deep, 2 * shallow), 2 * offsets)  # linear
    nn.init.zeros_(align.to_offsets.weight)
    torch.testing.assert_close(align(deep, shallow), upsample(deep, (8, 8)), rtol=0, atol=1e-5)


def test_alignment_under_autocast_keeps_single_precision_places():
    torch.manual_seed(0)
    align, deep, shallow = Alignment(8, 8), torch.randn(1, 8, 10, 10), torch.randn(1, 8, 20, 20)
    nn.init.zeros_(align.to_offsets.weight)
    with torch.autocast("cpu", torch.bfloat16):
        got = align(deep, shallow)
    torch.testing.assert_close(got.float(), upsample(deep, (20, 20)), rtol=0, atol=1e-4)


def test_offsets_learn_where_the_shallow_features_are():
    torch.manual_seed(0)
    shallow = numbers(1, 1, 8, 8).float()
    moved = shallow.roll(1, 3)  # the same, one cell to the right
    offsets = torch.zeros(1, 2, 8, 8, requires_grad=True)
    optimiser = torch.optim.Adam([offsets], 0.1)
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    errors = []
    for _ in range(60):
        optimiser.zero_grad()
        error = (sample_at_offsets(moved, offsets) - shallow)[inner].square().mean()
        error.backward()
        optimiser.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.3 * errors[0]


# Two streams


@pytest.mark.parametrize("combine", ["product", "sum", "concatenation"])
@pytest.mark.parametrize("align", [False, True])
def test_two_streams_against_their_equations(combine, align):
    torch.manual_seed(0)
    fusion = TwoStreams(5, 4, 3, combine, align).double().eval()
    deep, shallow = numbers(2, 5, 3, 3), numbers(2, 4, 6, 6, seed=1)

    def e(stream, place, x):
        conv, norm, _ = getattr(fusion, stream)[place]
        return norm(conv(x)).clamp(min=0)

    fine = fusion.align(deep, shallow) if align else F.interpolate(deep, (6, 6), mode="bilinear", align_corners=True)
    first_h, first_l = e("deep", "first", fine), e("shallow", "first", shallow)
    second_h, second_l = e("deep", "second", first_h), e("shallow", "second", first_l)
    both = {
        "product": second_h * second_l,
        "sum": second_h + second_l,
        "concatenation": torch.cat([second_h, second_l], 1),
    }[combine]
    got_h, got_l = fusion(deep, shallow)
    torch.testing.assert_close(got_h, e("deep", "last", first_h + e("deep", "combined", both)))
    torch.testing.assert_close(got_l, e("shallow", "last", first_l + e("shallow", "combined", both)))


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize(("coarse", "fine"), [((4, 4), (8, 8)), ((3, 5), (6, 9)), ((5, 5), (5, 5))])
def test_every_fusion_gives_two_streams_on_the_fine_grid_and_learns_in_all_its_weights(name, coarse, fine):
    torch.manual_seed(0)
    fusion = FUSIONS[name](10, 6, 7)
    streams = fusion(torch.randn(2, 10, *coarse), torch.randn(2, 6, *fine))
    assert [tuple(x.shape) for x in streams] == [(2, 7, *fine)] * 2
    sum((x * torch.randn(x.shape)).sum() for x in streams).backward()
    assert all(p.grad is not None for p in fusion.parameters())


@pytest.mark.parametrize("name", FUSIONS)
def test_each_stream_knows_of_the_other(name):
    torch.manual_seed(0)
    fusion = FUSIONS[name](10, 6, 7)
    for stream in (0, 1):
        deep, shallow = torch.randn(2, 10, 4, 4, requires_grad=True), torch.randn(2, 6, 8, 8, requires_grad=True)
        fusion(deep, shallow)[stream].square().sum().backward()
        assert deep.grad.any() and shallow.grad.any()


# The baseline's


def test_gci_against_its_equations():
    torch.manual_seed(0)
    fusion = GCI(5, 6, 3, reduced=2).double().eval()
    deep, shallow = numbers(2, 5, 3, 3), numbers(2, 6, 6, 6, seed=1)
    fine = F.interpolate(deep, (6, 6), mode="bilinear", align_corners=True)
    got_deep, got_shallow = fusion(deep, shallow)
    torch.testing.assert_close(got_deep, fusion.merge(torch.cat([fine, fusion.reduce(shallow)], 1)))
    cue = fusion.cue(got_deep).flatten(2).max(2).values
    gamma, beta = cue[:, :3, None, None], cue[:, 3:, None, None]
    want = fusion.last(((1 + gamma) * fusion.normalise(shallow) + beta).relu())
    torch.testing.assert_close(got_shallow, want)


def test_no_cue_changes_nothing_and_what_is_injected_is_mean_and_scale():
    x = numbers(2, 3, 20, 20)
    x = (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)
    assert torch.equal(inject_cue(x, torch.zeros(2, 6)), x)
    cue = numbers(2, 6, seed=1).abs()
    got = inject_cue(x, cue)
    torch.testing.assert_close(got.mean((2, 3)), cue[:, 3:])
    torch.testing.assert_close(got.std((2, 3)), 1 + cue[:, :3])


def test_the_cue_is_of_the_whole_image():
    torch.manual_seed(0)
    fusion = GCI(16, 16, 16).eval()
    shallow = torch.randn(1, 16, 8, 8, requires_grad=True)
    fusion(torch.randn(1, 16, 4, 4), shallow)[1][0, :, 0, 0].sum().backward()
    assert shallow.grad[0, :, 4:, 4:].any()


# WideResNet-38. Tables I and II print millions of the whole network that learn: the convolutions of its stages 3 to 7
# (its BatchNorms, and what comes before, are frozen), context, fusion, and three last convolutions (256, 256 and 20).

OTHERS = 104.20224 + 1.185812


@pytest.mark.parametrize(
    ("name", "context", "table"),
    [
        ("gci", "aspp", 137.10),
        ("sf2", "aspp", 140.92),
        ("sum", "aspp", 140.85),
        ("multiplication", "aspp", 140.85),
        ("concatenation", "aspp", 142.03),
        ("gci", "fca", 143.52),
        ("sf2", "fca", 147.34),
    ],
)
def test_the_network_has_the_parameters_of_the_paper(name, context, table):
    with torch.device("meta"):
        context = sum(p.numel() for p in CONTEXTS[context](4096, 256).parameters()) / 1e6
    assert round(OTHERS + context + millions(name), 2) == table


def test_sf2_adds_the_published_number():
    assert millions("gci") == pytest.approx(0.976992, abs=1e-9)
    assert millions("sf2") == pytest.approx(4.795 - 0.002048, abs=5e-4)  # less the biases that BatchNorm takes away
    assert round(millions("sf2") - millions("gci"), 2) == 3.82


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TwoStreams(4, 4, 4, combine="mean"), "combine='mean': choose product, sum, concatenation"),
        (lambda: sample_at_offsets(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 4, 4)), "give (N, 2, H, W)"),
        (lambda: sample_at_offsets(torch.zeros(1, 2, 3, 3), torch.zeros(2, 2, 4, 4)), "give (N, 2, H, W)"),
        *[
            (
                lambda name=name: FUSIONS[name](4, 3, 2)(torch.zeros(2, 5, 6, 6), torch.zeros(2, 3, 6, 6)),
                "deep features have shape (2, 5, 6, 6), shallow (2, 3, 6, 6): give (N, 4, h, w) and (N, 3, H, W)",
            )
            for name in FUSIONS
        ],
    ],
)
def test_mistakes_are_told_in_one_line(make, message):
    with pytest.raises((WsssError, SettingsError)) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)
