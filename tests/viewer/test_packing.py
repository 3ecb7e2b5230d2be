"""Attention in few bytes comes back within the bound that the page promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_lens.viewer.packing import COARSE, FINE, MAX_FINE, pack_weights, steps_for, unpack


def rows(seed, shape=(3, 4, 50), sharpness=6.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * sharpness).softmax(-1)


@pytest.mark.parametrize("steps", [COARSE, FINE])
@given(seed=st.integers(0, 10**6), sharpness=st.floats(0, 30))
@settings(max_examples=25, deadline=None)
def test_every_weight_comes_back_within_one_step_of_its_rows_largest(steps, seed, sharpness):
    given_ = rows(seed, sharpness=sharpness).double()
    back = torch.from_numpy(unpack(pack_weights(given_.float(), steps), (3, 4, 50), steps))
    largest = given_.amax(-1, keepdim=True)
    assert bool(((back - given_).abs() <= largest / steps + 1e-7 * largest).all())


def test_the_bound_is_tight_so_that_a_looser_packing_would_fail():
    given_ = rows(0, (1, 1, 20_000), 1.0)
    error = (torch.from_numpy(unpack(pack_weights(given_, COARSE), (1, 1, 20_000), COARSE)) - given_).abs().max()
    assert float(error / given_.max()) > 0.6 / COARSE


def test_the_largest_weight_of_a_row_is_exact():
    given_ = rows(1)
    back = unpack(pack_weights(given_, COARSE), (3, 4, 50), COARSE)
    assert back.max(-1) == pytest.approx(given_.amax(-1).numpy(), abs=0)


def test_a_row_of_zeros_and_a_head_that_is_not_there():
    given_ = rows(2)
    given_[0, 1], given_[2, 3] = 0, torch.nan
    back = unpack(pack_weights(given_, FINE), (3, 4, 50), FINE)
    assert (back[0, 1] == 0).all()
    assert (back[2, 3] != back[2, 3]).all()


def test_large_pages_spend_one_byte_a_weight_and_small_ones_two():
    assert (steps_for(MAX_FINE), steps_for(MAX_FINE + 1)) == (65535, 255)
    noise = torch.rand(8, 8, 500).softmax(-1)
    assert len(pack_weights(noise, COARSE).weights) < 0.75 * len(pack_weights(noise, FINE).weights)
