"""The scores' mathematics, against loops over single numbers and against answers worked by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lmm_lens.core import kernels

# keys: text sink, text, visual sink, visual, visual, text
ROW = torch.tensor([0.30, 0.10, 0.10, 0.20, 0.15, 0.15])
VISUAL = torch.tensor([False, False, True, True, True, False])
SINK = torch.tensor([True, False, True, False, False, False])


def one_row(*weights: float) -> Tensor:
    return torch.tensor(weights).reshape(1, 1, 1, -1)


def on(*keys: int, n: int) -> Tensor:
    return torch.tensor([[key in keys for key in range(n)]])


def some_pattern(batch: int = 2, heads: int = 3, rows: int = 4, keys: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(batch, heads, rows, keys, generator=generator)).softmax(-1)


def some_keys(batch: int = 2, keys: int = 9) -> Tensor:
    mask = torch.zeros(batch, keys, dtype=torch.bool)
    mask[0, 2:7] = True
    mask[1, [0, 5, 8]] = True
    return mask


def slow_mass(weights: list[float], keys: list[bool]) -> float:
    return sum(weight for weight, chosen in zip(weights, keys, strict=True) if chosen)


def slow_concentration(weights: list[float], keys: list[bool]) -> float:
    inside = [weight for weight, chosen in zip(weights, keys, strict=True) if chosen]
    shares = [weight / sum(inside) for weight in inside]
    return 1 + sum(p * math.log(p) for p in shares if p > 0) / math.log(len(inside))


@pytest.mark.parametrize(
    ("fast", "slow"),
    [
        (kernels.mass, slow_mass),
        (kernels.concentration, slow_concentration),
        (kernels.visual_preference, lambda w, k: slow_mass(w, k) * slow_concentration(w, k)),
    ],
)
def test_a_score_of_many_rows_equals_a_loop_over_single_numbers(fast, slow):
    pattern, keys = some_pattern(), some_keys()
    given = fast(pattern, keys)
    assert given.shape == pattern.shape[:3]
    for batch, head, row in np.ndindex(*given.shape):
        expected = slow(pattern[batch, head, row].tolist(), keys[batch].tolist())
        assert float(given[batch, head, row]) == pytest.approx(expected, abs=1e-6)


def test_mass_of_the_papers_known_row():
    row = ROW.reshape(1, 1, 1, -1)
    assert float(kernels.mass(row, VISUAL[None])) == pytest.approx(0.45)
    assert float(kernels.mass(row, (VISUAL & ~SINK)[None])) == pytest.approx(0.35)
    assert float(kernels.mass(row, torch.ones(1, 6, dtype=torch.bool))) == pytest.approx(1)
    assert float(kernels.mass(row, torch.zeros(1, 6, dtype=torch.bool))) == 0


def test_even_attention_has_no_concentration():
    row = one_row(0.5, 0.1, 0.1, 0.1, 0.1, 0.1)
    assert float(kernels.concentration(row, on(1, 2, 3, 4, 5, n=6))) == pytest.approx(0, abs=1e-6)


def test_attention_on_one_patch_is_fully_concentrated():
    row = one_row(0.7, 0.0, 0.3, 0.0)
    assert float(kernels.concentration(row, on(1, 2, 3, n=4))) == pytest.approx(1)


def test_attention_split_between_two_of_four_patches_is_half_concentrated():
    row = one_row(0.2, 0.4, 0.4, 0.0, 0.0)
    assert float(kernels.concentration(row, on(1, 2, 3, 4, n=5))) == pytest.approx(0.5)


def test_concentration_does_not_depend_on_how_much_lies_on_the_image():
    much, little = one_row(0.1, 0.6, 0.3), one_row(0.997, 0.002, 0.001)
    keys = on(1, 2, n=3)
    assert float(kernels.concentration(much, keys)) == pytest.approx(
        float(kernels.concentration(little, keys)), abs=1e-5
    )


@pytest.mark.parametrize("score", [kernels.concentration, kernels.visual_preference, kernels.mass])
def test_a_row_without_attention_on_the_keys_scores_zero(score):
    assert float(score(one_row(1.0, 0.0, 0.0), on(1, 2, n=3))) == 0
    assert float(score(one_row(0.5, 0.5, 0.0), on(n=3))) == 0


def test_a_single_key_is_fully_concentrated_however_little_it_gets():
    assert float(kernels.concentration(one_row(0.99, 0.01), on(1, n=2))) == 1
    assert float(kernels.visual_preference(one_row(0.99, 0.01), on(1, n=2))) == pytest.approx(0.01)


@pytest.mark.parametrize("weight", [1e-20, 1e-41])
def test_even_attention_of_vanishing_mass_has_no_concentration(weight):
    row = one_row(1.0, weight, weight, weight)
    assert float(kernels.concentration(row, on(1, 2, 3, n=4))) == pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize("score", [kernels.concentration, kernels.visual_preference, kernels.mass])
def test_a_broken_pattern_is_not_scored_as_if_it_were_whole(score):
    pattern = some_pattern()
    pattern[1, 2, 3, 5] = torch.nan
    broken = score(pattern, some_keys()).isnan()
    assert broken.nonzero().tolist() == [[1, 2, 3]]


def test_scores_stay_between_zero_and_one_on_extreme_rows():
    pattern = (200 * torch.randn(4, 4, 4, 9, generator=torch.Generator().manual_seed(1))).softmax(-1)
    for score in (kernels.mass, kernels.concentration, kernels.visual_preference):
        values = score(pattern, some_keys().repeat(2, 1))
        assert float(values.min()) >= 0
        assert float(values.max()) <= 1 + 1e-6


# ---------------------------------------------------------------------- sinks


def test_sink_score_by_hand():
    x = torch.tensor([[[3.0, -4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])  # rms 2.5, and a token of nothing
    assert kernels.sink_score(x, (0,))[0].tolist() == pytest.approx([1.2, 0])
    assert kernels.sink_score(x, (0, 1))[0].tolist() == pytest.approx([1.6, 0])
    assert kernels.sink_score(x, (2, 3))[0].tolist() == pytest.approx([0, 0])


def test_sink_score_without_dimensions_is_zero():
    assert kernels.sink_score(torch.ones(2, 3, 4), ()).tolist() == [[0.0] * 3] * 2


def test_sink_score_reaches_the_square_root_of_the_width_and_no_more():
    x = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(0))
    x[0, 0] = 0
    x[0, 0, 9] = 1e4
    phi = kernels.sink_score(x, tuple(range(64)))
    assert float(phi[0, 0]) == pytest.approx(8, rel=1e-5)
    assert float(phi.max()) <= 8


def test_sink_score_of_half_precision_is_computed_in_single():
    x = torch.full((1, 1, 16), 300.0, dtype=torch.float16)  # its square overflows in fp16
    assert float(kernels.sink_score(x, (3,))) == pytest.approx(1)


def test_sink_score_does_not_depend_on_scale():
    x = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(kernels.sink_score(100 * x, (4, 5)), kernels.sink_score(x, (4, 5)), rtol=1e-4, atol=0)
