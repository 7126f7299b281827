"""The gate: its expectation in training, its mixture at test, and that no batch leaves a trace."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss_lib.errors import SettingsError, WsssError
from wsss_lib.nn.stochastic_gate import stochastic_gate

SOME = settings(max_examples=30, deadline=None)


def streams(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator), torch.randn(*shape, generator=generator)


@given(psi=st.floats(0, 0.8), seed=st.integers(0, 2**31))
@SOME
def test_an_element_is_shallow_or_deep_made_up_for_and_nothing_else(psi, seed):
    deep, shallow = streams(2, 3, 5, 4)
    torch.manual_seed(seed)
    got = stochastic_gate(deep, shallow, psi)
    made_up = (deep - psi * shallow) / (1 - psi)
    is_shallow, is_deep = got.isclose(shallow), got.isclose(made_up)
    assert (is_shallow | is_deep).all()


@pytest.mark.parametrize("psi", [0.1, 0.3, 0.6])
def test_the_expectation_in_training_is_the_deep_stream_and_not_what_the_test_gives(psi):
    torch.manual_seed(0)
    deep, shallow = torch.tensor(1.0), torch.tensor(-2.0)
    n = 400_000
    mean = float(stochastic_gate(deep.expand(n), shallow.expand(n), psi).mean())
    assert mean == pytest.approx(1, abs=0.03)
    assert float(stochastic_gate(deep, shallow, psi, training=False)) == pytest.approx(1 - 3 * psi)


@pytest.mark.parametrize("psi", [0.3, 0.75])
def test_the_share_of_shallow_elements_is_psi(psi):
    torch.manual_seed(1)
    got = stochastic_gate(torch.ones(100_000), torch.zeros(100_000), psi)
    assert float((got == 0).float().mean()) == pytest.approx(psi, abs=0.01)


def test_each_element_is_drawn_for_itself():
    torch.manual_seed(0)
    drawn = stochastic_gate(torch.ones(4, 6, 8, 8), torch.zeros(4, 6, 8, 8)) == 0
    for axes in ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)):
        share = drawn.float().mean(axes)
        assert (share > 0).all() and (share < 1).all()


@given(psi=st.floats(0, 0.99))
@SOME
def test_equal_streams_come_out_as_they_are(psi):
    deep, _ = streams(2, 3, 4, 4)
    deep = deep.double()
    for training in (True, False):
        torch.testing.assert_close(stochastic_gate(deep, deep, psi, training), deep)


def test_without_a_share_the_deep_stream_goes_through():
    deep, shallow = streams(2, 3, 4, 4)
    for training in (True, False):
        assert torch.equal(stochastic_gate(deep, shallow, 0.0, training), deep)


def test_a_seed_gives_the_same_bytes_and_the_test_draws_nothing():
    deep, shallow = streams(2, 3, 4, 4)
    torch.manual_seed(7)
    first = stochastic_gate(deep, shallow)
    torch.manual_seed(7)
    stochastic_gate(deep, shallow, training=False)
    assert torch.equal(stochastic_gate(deep, shallow), first)
    assert not torch.equal(stochastic_gate(deep, shallow), first)


def test_a_batch_of_another_size_after_the_first_is_as_good():
    for shape in ((4, 3, 8, 8), (2, 3, 5, 9), (1, 3, 1, 1), (4, 3, 8, 8)):
        assert stochastic_gate(*streams(*shape)).shape == shape


def test_both_streams_learn_in_training_and_at_test():
    for training in (True, False):
        deep, shallow = (x.requires_grad_() for x in streams(2, 3, 8, 8))
        torch.manual_seed(0)
        stochastic_gate(deep, shallow, training=training).square().sum().backward()
        assert deep.grad.any() and shallow.grad.any()


@pytest.mark.parametrize("psi", [-0.1, 1.0, float("nan")])
def test_another_share_is_refused(psi):
    with pytest.raises(SettingsError, match=r"psi=.*: give a share from 0 up to, but not, 1"):
        stochastic_gate(torch.zeros(2), torch.zeros(2), psi)


def test_streams_of_two_grids_are_refused():
    with pytest.raises(WsssError, match="bring them to one grid") as error:
        stochastic_gate(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 8, 8))
    assert "\n" not in str(error.value)
