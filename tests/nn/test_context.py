"""FCA against plain convolutions and the paper's parameter counts, and the modules that it is compared to."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.context import (
    ASPP,
    CONTEXTS,
    FCA,
    PPM,
    LargeKernel,
    NonLocal,
    PooledContext,
    channel_attention,
    recalibrate,
    strip_pair,
)

SOME = settings(max_examples=25, deadline=None)
SMALL = {name: {"dilations": (1, 2, 3, 4)} if name in ("fca", "aspp") else {} for name in CONTEXTS}


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernels(k, width=2, out=3, seed=0):
    """Row, column, column, row."""
    shapes = [(out, width, 1, k), (out, out, k, 1), (out, width, k, 1), (out, out, 1, k)]
    return [numbers(*shape, seed=seed + i) for i, shape in enumerate(shapes)]


def millions(name, **settings):
    with torch.device("meta"):
        return sum(p.numel() for p in CONTEXTS[name](4096, 256, **settings).parameters()) / 1e6


# Strips


@given(k=st.sampled_from([1, 3, 5, 7]), dilation=st.integers(1, 4), seed=st.integers(0, 99))
@SOME
def test_a_strip_pair_is_a_full_convolution_with_the_outer_products_of_its_strips(k, dilation, seed):
    features, (row, column, column2, row2) = numbers(2, 2, 9, 8, seed=seed), kernels(k, seed=seed)
    # Inner then outer strip of every channel in between: a kernel of k x k that is their product, summed.
    full = torch.einsum("mcj,dmi->dcij", row[:, :, 0], column[:, :, :, 0])
    full = full + torch.einsum("mci,dmj->dcij", column2[:, :, :, 0], row2[:, :, 0])
    want = F.conv2d(features, full, padding=k // 2 * dilation, dilation=dilation)
    torch.testing.assert_close(strip_pair(features, [row, column], [column2, row2], dilation), want)


def test_on_one_channel_the_two_orders_are_one_full_kernel_of_rank_one():
    row, column = numbers(1, 1, 1, 5), numbers(1, 1, 5, 1, seed=1)
    image = numbers(1, 1, 8, 8, seed=2)
    got = strip_pair(image, [row, column], [column, row])
    torch.testing.assert_close(got, 2 * F.conv2d(image, column @ row, padding=2))


def test_a_strip_pair_reaches_all_of_its_square_and_nothing_else():
    spot = torch.zeros(1, 1, 15, 15, dtype=torch.float64)
    spot[..., 7, 7] = 1
    ones = torch.ones(1, 1, 1, 5).double(), torch.ones(1, 1, 5, 1).double()
    reached = strip_pair(spot, ones, ones[::-1], dilation=3)[0, 0].nonzero()
    assert sorted(map(tuple, reached.tolist())) == [(i, j) for i in range(1, 14, 3) for j in range(1, 14, 3)]


@pytest.mark.parametrize(("k", "dilation"), [(1, 1), (3, 12), (5, 24), (7, 36)])
def test_published_strips_keep_a_grid_of_41_cells(k, dilation):
    row, column, column2, row2 = kernels(k)
    assert strip_pair(numbers(1, 2, 41, 40), [row, column], [column2, row2], dilation).shape == (1, 3, 41, 40)


def test_strips_of_an_even_side_are_refused():
    row, column = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 3, 1)
    with pytest.raises(WsssError, match="first: a kernel of 1 x 2 cells: give odd sides"):
        strip_pair(torch.zeros(1, 1, 4, 4), [row, column], [column, row])


# Attention


def test_channel_attention_against_matrices():
    features, inner, outer = numbers(2, 4, 3, 5), numbers(6, 4, seed=1), numbers(4, 6, seed=2)
    got = channel_attention(features, inner, outer)
    for n in range(2):
        x = features[n].flatten(1).numpy()
        total = sum(outer.numpy() @ np.maximum(inner.numpy() @ v, 0) for v in (x.mean(1), x.max(1)))
        np.testing.assert_allclose(got[n, :, 0, 0], 1 / (1 + np.exp(-total)), rtol=1e-9)


@given(seed=st.integers(0, 999), scale=st.floats(0.1, 30))
@SOME
def test_recalibration_makes_each_cell_one_to_two_times_what_it_was(seed, scale):
    features, kernel = scale * numbers(2, 5, 4, 6, seed=seed), numbers(1, 2, 3, 3, seed=seed + 1)
    ratio = recalibrate(features, kernel) / features
    assert (ratio >= 1).all() and (ratio <= 2).all()
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))  # one factor for all channels of a cell


def test_recalibration_by_hand():
    features = torch.tensor([[[[1.0]], [[3.0]]]])  # mean 2, maximum 3
    kernel = torch.zeros(1, 2, 3, 3)
    kernel[0, :, 1, 1] = torch.tensor([0.5, -1.0])
    factor = 1 + 1 / (1 + math.exp(-(0.5 * 2 - 3)))
    torch.testing.assert_close(recalibrate(features, kernel), factor * features)


# FCA


@pytest.mark.parametrize("settings", [{}, {"srm": False}, {"eq4_strict": True}])
def test_fca_against_its_equations(settings):
    torch.manual_seed(0)
    fca = FCA(4, 3, kernels=(1, 3), dilations=(1, 2), **settings).double().eval()
    features = numbers(2, 4, 6, 5)
    inner, outer = (layer.weight for layer in fca.attention)
    parts = []
    for (row, column, column2, row2), k, d in zip(fca.strips, (1, 3), (1, 2), strict=True):
        pad = k // 2 * d
        along = F.conv2d(F.conv2d(features, row, padding=(0, pad), dilation=d), column, padding=(pad, 0), dilation=d)
        down = F.conv2d(F.conv2d(features, column2, padding=(pad, 0), dilation=d), row2, padding=(0, pad), dilation=d)
        parts.append((along + down) * channel_attention(along + down, inner, outer))
    if not settings.get("eq4_strict"):
        conv, norm, relu = fca.image.embed
        parts.append(relu(norm(conv(features.mean((2, 3), keepdim=True)))).expand(2, 3, 6, 5))
    conv, norm, *rest = fca.embed
    want = norm(conv(torch.cat(parts, 1)))
    assert len(rest) == bool(settings.get("eq4_strict")) and conv.kernel_size == ((3, 3) if rest else (1, 1))
    want = want.relu() if rest else want
    if settings.get("srm", True):
        want = recalibrate(want, fca.spatial.weight)
    torch.testing.assert_close(fca(features), want)


def test_one_attention_serves_all_branches():
    fca = FCA(4, 3)
    assert sum(p.numel() for p in fca.attention.parameters()) == 2 * 3 * 3
    fca.branches(torch.randn(2, 4, 5, 5))[2].sum().backward()
    assert all(p.grad.any() for p in fca.attention.parameters())


def test_without_relu_published_features_have_both_signs_and_strict_ones_do_not():
    torch.manual_seed(0)
    features = torch.randn(2, 8, 6, 6)
    assert (FCA(8, 4)(features) < 0).any()
    assert (FCA(8, 4, eq4_strict=True)(features) >= 0).all()


def test_fca_drops_elements_in_training_only():
    fca = FCA(4, 8, dilations=(1, 2, 3, 4))
    features = torch.randn(2, 4, 6, 6)
    assert 0.2 < float((fca(features) == 0).float().mean()) < 0.8
    assert torch.equal(fca.eval()(features), fca(features))


# All of them


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.parametrize("size", [(7, 9), (3, 3), (12, 5)])
def test_every_context_keeps_the_grid_and_learns_in_all_its_weights(name, size):
    torch.manual_seed(0)
    context = CONTEXTS[name](12, 5, **SMALL[name])
    found = context(torch.randn(2, 12, *size))
    assert found.shape == (2, 5, *size)
    (found * torch.randn(found.shape)).sum().backward()
    assert all(p.grad is not None for p in context.parameters())


@pytest.mark.parametrize("name", CONTEXTS)
def test_every_context_sees_further_than_its_cell(name):
    torch.manual_seed(0)
    context = CONTEXTS[name](48, 5, **SMALL[name]).eval()
    if name == "non_local":
        nn.init.normal_(context.expand.weight)
    features = torch.randn(1, 48, 9, 9, requires_grad=True)
    context(features)[0, :, 4, 4].sum().backward()
    assert features.grad[0, :, 4, 6].any()


def test_non_local_against_loops_and_starts_as_a_plain_embedding():
    torch.manual_seed(0)
    block, features = NonLocal(4, 3).double().eval(), numbers(2, 4, 3, 2)
    torch.testing.assert_close(block(features), block.embed(features))
    nn.init.normal_(block.expand.weight)
    projected = block.project(features).flatten(2).detach().numpy()
    theta, phi, g = projected[:, :2], projected[:, 2:4], projected[:, 4:]
    seen = np.zeros((2, 2, 6))
    for n in range(2):
        for p in range(6):
            alike = np.exp([theta[n, :, p] @ phi[n, :, q] for q in range(6)])
            seen[n, :, p] = g[n] @ alike / alike.sum()
    want = block.embed(features + block.expand(torch.from_numpy(seen).view(2, 2, 3, 2)))
    torch.testing.assert_close(block(features), want)


def test_pooled_parts_are_means_over_the_image():
    pooled = PooledContext(2, 2, bins=2).double().eval()
    nn.init.dirac_(pooled.embed[0].weight)
    features = numbers(1, 2, 6, 8).abs()
    corner = pooled(features)[0, :, 0, 0]
    torch.testing.assert_close(corner, features[0, :, :3, :4].mean((1, 2)) / (1 + 1e-5) ** 0.5)


# WideResNet-38. Tables I and II print millions of the whole network that learn: the convolutions of its stages 3 to 7
# (its BatchNorms, and what comes before, are frozen), context, fusion, and three last convolutions (256, 256 and 20).

OTHERS = 104.20224 + 0.976992 + 1.185812


@pytest.mark.parametrize(
    ("name", "table"),
    [("aspp", 137.10), ("fca", 143.52), ("non_local", 140.97), ("large_kernel", 157.75), ("ppm", 142.03)],
)
def test_the_network_has_the_parameters_of_the_paper(name, table):
    assert round(OTHERS + millions(name), 2) == table


def test_fca_adds_the_published_number_with_and_without_srm():
    assert millions("aspp") == pytest.approx(30.739456, abs=1e-9)
    for srm in (True, False):
        assert round(millions("fca", srm=srm) - millions("aspp"), 2) == 6.42


def test_equation_4_as_printed_would_have_more_than_the_paper_says():
    assert millions("fca", eq4_strict=True) - millions("aspp") == pytest.approx(7.40, abs=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FCA(4, 2, kernels=(2, 3), dilations=(1, 1)), "kernels=(2, 3), dilations=(1, 1): give odd kernels"),
        (lambda: FCA(4, 2, dilations=(1, 2)), "kernels=(1, 3, 5, 7), dilations=(1, 2): give odd kernels and as many"),
        (lambda: FCA(4, 2, dilations=(1, 2, 3, 0)), "dilations=(1, 2, 3, 0): give odd kernels and as many"),
        (lambda: FCA(4, 2, kernels=(), dilations=()), "kernels=(), dilations=()"),
        (lambda: ASPP(4, 2, dilations=(1, 0)), "dilations=(1, 0): give one or more, each 1 or more"),
        (lambda: PPM(4, 2, bins=()), "bins=(): give one or more"),
        (lambda: LargeKernel(4, 2, kernel=4), "kernel=4: give an odd number"),
        (lambda: ASPP(4, 2)(torch.zeros(1, 4, 5, 5)), "batch of one image"),
        *[
            (lambda name=name: CONTEXTS[name](4, 2)(torch.zeros(2, 5, 6, 6)), "give (images, 4, height, width)")
            for name in CONTEXTS
        ],
    ],
)
def test_mistakes_are_told_in_one_line(make, message):
    with pytest.raises((WsssError, SettingsError)) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)
