"""Which tokens stand out, and the threshold, on streams whose sinks were written by hand; no model runs."""

from math import inf

import pytest
import torch

from lmm_lens.core.kernels import prominence, sink_score
from lmm_lens.sinks.threshold import between, decide, lower_edge

D, N = 576, 20
DIM = 507


def stream(heights: dict[int, float], base: float = 0.0, seed: int = 0) -> torch.Tensor:
    """[1, N, D]: normal numbers, `base` in the dimension on every token, and on some tokens these heights."""
    x = torch.randn(1, N, D, generator=torch.Generator().manual_seed(seed))
    x[..., DIM] = base
    for position, height in heights.items():
        x[0, position, DIM] = height
    return x


def decided(*layers: torch.Tensor, dims: tuple[int, ...] = (DIM,)):
    standing = torch.stack([prominence(x, dims) for x in layers], 1)
    phi = torch.stack([sink_score(x, dims) for x in layers], 1)
    return decide([standing], [phi], [torch.ones(1, N, dtype=torch.bool)], D), phi


def sinks(phi: torch.Tensor, threshold: float) -> dict[int, list[int]]:
    return {layer: (phi[0, layer] >= threshold).nonzero().flatten().tolist() for layer in range(phi.shape[1])}


def test_prominence_is_that_of_a_loop_and_has_no_limit():
    x = stream({0: 25_000.0, 3: -120.0}, base=7.0)
    x[0, 5, 9] = 40.0
    expected = []
    for token in x[0].double():
        others = [float(v) ** 2 for d, v in enumerate(token) if d not in (9, DIM)]
        expected.append(max(abs(float(token[9])), abs(float(token[DIM]))) / (sum(others) / len(others) + 1e-6) ** 0.5)
    assert prominence(x, (9, DIM))[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert expected[0] > 20_000
    assert float(sink_score(x, (DIM,))[0, 0]) < D**0.5


def test_a_dimension_that_is_large_on_every_token_hides_no_sink():
    """phi reads 23.99 and 23.5 there: no gap of one and a half."""
    found, phi = decided(*(stream({0: 25_000.0}, base=120.0, seed=i) for i in range(3)))
    assert phi.max() / phi.min() < 1.05
    assert sinks(phi, found.threshold) == {0: [0], 1: [0], 2: [0]}
    assert found.layers == (0, 1, 2)
    assert found.prominence == (pytest.approx(120, rel=0.15), pytest.approx(25_000, rel=0.15))


def test_sinks_far_from_each_other_are_all_found():
    """The first token is 500 times as prominent as two patches, and these 40 times as all else."""
    found, phi = decided(stream({0: 60_000.0, 5: 120.0, 9: 110.0}), stream({0: 60_000.0, 5: 120.0}))
    assert sinks(phi, found.threshold) == {0: [0, 5, 9], 1: [0, 5]}
    assert found.prominence[0] < 5


def test_sinks_of_some_layers_are_found_where_they_are():
    """The first token is a sink in layers 1 and 2 alone, and on the others as the rest."""
    found, phi = decided(
        stream({}, 20.0), stream({0: 5000.0}, 20.0), stream({0: 5000.0, 4: 4000.0}, 20.0), stream({}, 20.0)
    )
    assert sinks(phi, found.threshold) == {0: [], 1: [0], 2: [0, 4], 3: []}
    assert found.layers == (1, 2)


def test_what_falls_off_smoothly_in_one_layer_is_ordinary_in_all():
    """As in early layers of SmolLM2: words that stand out a little each, one above the other, and no gap."""
    ramp = {i: 100 * 0.8**i for i in range(12)}
    found, phi = decided(stream(ramp, 5.0), stream({0: 200.0}, 5.0), stream({0: 200.0}, 5.0))
    assert found.layers == (1, 2)
    assert sinks(phi, found.threshold) == {0: [], 1: [0], 2: [0]}
    assert found.prominence[0] == pytest.approx(100, rel=0.1)


def test_sinks_below_what_is_ordinary_elsewhere_are_said_to_be_missed():
    ramp = {i: 100 * 0.8**i for i in range(12)}
    found, phi = decided(stream(ramp, 5.0), stream({0: 200.0}, 5.0), stream({0: 80.0}, 2.0))
    assert found.layers == (1,)
    assert found.missed == (2,)
    assert sinks(phi, found.threshold)[2] == []


def test_all_tokens_alike_give_no_threshold():
    found, _ = decided(*(stream({}, base=120.0, seed=i) for i in range(3)))
    assert found.threshold == inf
    assert found.layers == ()


def test_most_tokens_are_never_sinks():
    """A gap above which more than half of the tokens lie tells who is low, not who stands out."""
    found, _ = decided(stream(dict.fromkeys(range(12), 1000.0), 5.0))
    assert found.threshold == inf


def test_a_gap_among_small_values_is_none():
    assert lower_edge(torch.tensor([0.1] * 9 + [3.0]), least=6.0) is None
    assert lower_edge(torch.tensor([0.1] * 9 + [7.0]), least=6.0) == pytest.approx(0.1)
    assert lower_edge(torch.tensor([5.0]), least=1.0) is None


def test_the_threshold_is_the_middle_without_the_limit_of_phi():
    """Prominence 30 and 187.5 of one dimension in 576 have the middle 75."""

    def phi(standing: float) -> float:
        return standing / ((standing**2 + D - 1) / D) ** 0.5

    assert between(phi(30), phi(187.5), D) == pytest.approx(phi(75), rel=1e-9)
    assert 23.9999999 < between(23.9999999, 24.0, D) < 24


def test_two_dimensions_that_phi_orders_otherwise_give_no_threshold_in_phi():
    """Two equal massive dimensions halve phi squared: 17 for a sink of 1,000, though an ordinary 60 reads 22."""
    x = stream({}, 60.0)
    x[0, 0, DIM], x[0, 0, 9] = 1000.0, 1000.0
    found, phi = decided(x, x, dims=(9, DIM))
    assert phi[0, 0, 0] < phi[0, 0, 1]
    assert found.threshold == inf
