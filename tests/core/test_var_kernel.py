"""The redistribution of attention, against the paper's numbers and loops over single rows."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.edited import redistribute
from tests.support.known_row import BY_FRACTION, ROW, SINK, VISUAL


def edit(row, visual=VISUAL, sink=SINK, p=0.6, rho=0.5, least=0.2):
    """One row: the new row, whether it was chosen, what was moved."""
    pattern = torch.tensor(row, dtype=torch.float64).reshape(1, 1, 1, -1)
    edited, chosen, moved, _ = redistribute(pattern, torch.tensor([visual]), torch.tensor([sink]), p, rho, least)
    return edited.flatten().tolist(), bool(chosen), float(moved)


@pytest.mark.parametrize("p", BY_FRACTION)
def test_the_known_row_gives_the_known_answer(p):
    edited, chosen, moved = edit(ROW, p=p)
    assert edited == pytest.approx(BY_FRACTION[p], abs=1e-9)
    assert chosen
    assert moved == pytest.approx(p * 0.4)


@pytest.mark.parametrize(("rho", "expected"), [(0.5, True), (0.77, True), (0.78, False), (0.8, False), (0.9, False)])
def test_the_known_row_is_chosen_up_to_its_nonsink_ratio(rho, expected):
    edited, chosen, _ = edit(ROW, rho=rho)
    assert chosen is expected
    assert edited == pytest.approx(BY_FRACTION[0.6] if expected else ROW, abs=1e-9)


@pytest.mark.parametrize(("least", "expected"), [(0.2, True), (0.44, True), (0.46, False), (1.0, False)])
def test_the_known_row_is_chosen_up_to_its_visual_mass(least, expected):
    edited, chosen, _ = edit(ROW, least=least)
    assert chosen is expected
    assert edited == pytest.approx(BY_FRACTION[0.6] if expected else ROW, abs=1e-9)


def test_both_criteria_hold_at_equality():
    row = [0.5, 0.25, 0.25]
    visual, sink = [False, True, True], [True, True, False]
    assert edit(row, visual, sink, rho=0.5, least=0.5)[1]


def test_text_sinks_give_where_no_patch_is_a_sink():
    edited, chosen, moved = edit([0.5, 0.1, 0.3, 0.1], [False, False, True, True], [True, False, False, False])
    assert chosen
    assert moved == pytest.approx(0.3)
    assert edited == pytest.approx([0.2, 0.1, 0.3 + 0.3 * 0.75, 0.1 + 0.3 * 0.25])


def test_all_of_a_sinks_attention_can_be_taken():
    edited, _, moved = edit(ROW, p=1.0)
    assert edited == pytest.approx([0, 0.1, 0, 0.35 * 0.75 / 0.35 * 20 / 35, 0.75 * 15 / 35, 0.15])
    assert moved == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("row", "visual", "sink"),
    [
        (ROW, VISUAL, [False] * 6),  # no sink
        (ROW, [False] * 6, SINK),  # no image
        (ROW, VISUAL, VISUAL),  # every patch is a sink
        ([0.6, 0.1, 0.3, 0.0, 0.0, 0.0], VISUAL, SINK),  # no attention on the other patches
        ([0.0, 0.3, 0.0, 0.3, 0.3, 0.1], VISUAL, SINK),  # no attention on the sinks
    ],
)
def test_where_nothing_can_be_moved_the_row_stays_to_the_last_bit(row, visual, sink):
    edited, chosen, _ = edit(row, visual, sink, rho=0.0, least=0.0)
    assert edited == row
    assert not chosen


def test_keys_with_no_attention_get_none():
    edited, chosen, _ = edit([0.4, 0.0, 0.1, 0.0, 0.5, 0.0])
    assert chosen
    assert [edited[1], edited[3], edited[5]] == [0, 0, 0]


# ---------------------------------------------------------------------- many rows


def pattern_and_masks(seed: int = 0, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(3, 4, 9, 12, generator=generator)
    hidden = torch.ones(9, 12).triu(4).bool()  # row i sees keys 0 .. i + 3
    pattern = scores.masked_fill(hidden, -math.inf).softmax(-1).to(dtype)
    visual, sink = torch.zeros(3, 12, dtype=torch.bool), torch.zeros(3, 12, dtype=torch.bool)
    visual[0, 2:8], visual[1, 5:9] = True, True  # the third has no image
    sink[0, [0, 3, 10]], sink[1, [1, 2]], sink[2, 0] = True, True, True
    return pattern, visual, sink


def slow_row(row, visual, sink, p, rho, least):
    on_image = sum(a for a, v in zip(row, visual, strict=True) if v)
    on_others = sum(a for a, v, s in zip(row, visual, sink, strict=True) if v and not s)
    budget = p * sum(a for a, s in zip(row, sink, strict=True) if s)
    if on_image < least or on_others < rho * on_image or on_others == 0 or budget == 0:
        return row, False
    return [
        a * (1 - p) if s else a + budget * a / on_others if v else a for a, v, s in zip(row, visual, sink, strict=True)
    ], True


@pytest.mark.parametrize("criteria", [(0.6, 0.5, 0.2), (0.6, 0.9, 0.0), (1.0, 0.0, 0.6), (0.1, 0.75, 0.35)])
def test_many_rows_are_edited_as_one_by_one(criteria):
    pattern, visual, sink = pattern_and_masks()
    edited, chosen, moved, _ = redistribute(pattern, visual, sink, *criteria)
    for b, h, i in np.ndindex(*pattern.shape[:3]):
        row = pattern[b, h, i].tolist()
        expected, is_chosen = slow_row(row, visual[b].tolist(), sink[b].tolist(), *criteria)
        assert bool(chosen[b, h, i]) is is_chosen
        assert edited[b, h, i].tolist() == pytest.approx(expected, abs=1e-6)
        if is_chosen:
            taken = sum(a for a, s in zip(row, sink[b].tolist(), strict=True) if s)
            assert float(moved[b, h, i]) == pytest.approx(criteria[0] * taken, abs=1e-6)
    assert 0 < int(chosen.sum()) < chosen.numel()


def test_every_row_still_sums_to_one_and_stays_positive():
    pattern, visual, sink = pattern_and_masks()
    for p in (0.1, 0.6, 1.0):
        edited, chosen, *_ = redistribute(pattern, visual, sink, p, 0.0, 0.0)
        torch.testing.assert_close(edited.sum(-1), torch.ones(pattern.shape[:3]))
        assert edited.min() >= 0
        assert chosen.any()
        assert torch.equal(edited == 0, (pattern == 0) | (chosen[..., None] & sink[:, None, None] & (p == 1.0)))


def test_rows_that_are_not_chosen_and_other_keys_stay_to_the_last_bit():
    pattern, visual, sink = pattern_and_masks()
    edited, chosen, *_ = redistribute(pattern, visual, sink, 0.6, 0.7, 0.3)
    assert torch.equal(edited[~chosen], pattern[~chosen])
    other = (~visual & ~sink)[:, None, None].expand(pattern.shape)
    assert torch.equal(edited[other], pattern[other])


def test_the_pattern_that_is_given_is_not_changed():
    pattern, visual, sink = pattern_and_masks()
    before = pattern.clone()
    redistribute(pattern, visual, sink, 0.6, 0.0, 0.0)
    assert torch.equal(pattern, before)


def test_non_sink_patches_keep_their_shares_of_each_other():
    pattern, visual, sink = pattern_and_masks(dtype=torch.float64)
    edited, chosen, *_ = redistribute(pattern, visual, sink, 0.6, 0.0, 0.0)
    nonsink = (visual & ~sink)[:, None, None] & chosen[..., None] & (pattern > 0)
    factor = torch.where(nonsink, edited / pattern.clamp_min(1e-300), torch.nan)
    spread = factor.nan_to_num(-torch.inf).amax(-1) - factor.nan_to_num(torch.inf).amin(-1)
    assert spread[chosen].max() < 1e-12
    assert (factor[nonsink] > 1).all()


def test_taking_in_two_steps_equals_taking_at_once():
    """Sinks keep (1 - p)(1 - q) of their attention; the patches' shares do not change."""
    pattern, visual, sink = pattern_and_masks(dtype=torch.float64)
    first, *_ = redistribute(pattern, visual, sink, 0.5, 0.0, 0.0)
    twice, *_ = redistribute(first, visual, sink, 0.2, 0.0, 0.0)
    once, *_ = redistribute(pattern, visual, sink, 0.6, 0.0, 0.0)
    torch.testing.assert_close(twice, once)


def test_the_linear_form_gives_the_same_outputs():
    """(a' - a) values = p [ m_K / m_A * sum_A a v - sum_K a v ], with A the patches that are no sinks."""
    pattern, visual, sink = pattern_and_masks(dtype=torch.float64)
    values = torch.randn(3, 4, 12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    edited, chosen, *_ = redistribute(pattern, visual, sink, 0.6, 0.0, 0.0)
    on_sinks = pattern * sink[:, None, None]
    on_others = pattern * (visual & ~sink)[:, None, None]
    gain = on_sinks.sum(-1, keepdim=True) / on_others.sum(-1, keepdim=True)
    change = 0.6 * (gain * (on_others @ values) - on_sinks @ values)
    torch.testing.assert_close((edited @ values)[chosen], (pattern @ values + change)[chosen])


def test_a_gradient_passes_through():
    pattern, visual, sink = pattern_and_masks(dtype=torch.float64)
    pattern.requires_grad_()
    weight = torch.randn(pattern.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (redistribute(pattern, visual, sink, 0.6, 0.5, 0.2)[0] * weight).sum().backward()
    assert pattern.grad is not None
    assert pattern.grad.isfinite().all()
