"""Hit scores and nonsink ratios: by hand, and against eager attention and loops over keys."""

from functools import cache

import pytest
import torch
from torch import Tensor

from lmm_lens import Lens, score_heads
from lmm_lens.core import kernels
from lmm_lens.errors import ScoreError
from tests.support.eager import Eager, phi, sinks_by_layer
from tests.support.models import FAMILIES, patches

# thresholds in the middle of what random models have: most patches may be sinks, which is told, and not what is tested
pytestmark = pytest.mark.filterwarnings("ignore:.*of the visual tokens are sinks")

VISUAL = range(2, 38)  # after <s> and USER:
BOX = (8, 8, 24, 40)
IN_BOX = [2 + 6 * row + column for row in range(1, 5) for column in (1, 2)]  # patches of 8 x 8 pixels, six a row
SELF_ATTENDING = [name for name in FAMILIES if name != "mllama"]


def row_of(*weights: float) -> Tensor:
    return torch.tensor(weights).reshape(1, 1, 1, -1)


def on(*keys: int, n: int) -> Tensor:
    return torch.tensor([[key in keys for key in range(n)]])


def slow_hit(weights: list[float], region: list[int]) -> float:
    best = max(range(len(weights)), key=lambda key: weights[key])
    return 1 / len(region) if best in region else 0.0


def slow_ratio(weights: list[float], visual: list[int], sinks: list[int]) -> float:
    mass = sum(weights[j] for j in visual)
    return sum(weights[j] for j in visual if j not in sinks) / mass if mass > 0 else 0.0


# ---------------------------------------------------------------------- hits


def test_a_hit_counts_one_over_the_patches_of_the_box():
    row = row_of(0.1, 0.2, 0.4, 0.3)
    assert float(kernels.hit(row, on(2, n=4))) == 1
    assert float(kernels.hit(row, on(1, 2, n=4))) == 0.5
    assert float(kernels.hit(row, on(0, 1, 3, n=4))) == 0


def test_most_attended_is_meant_of_all_keys_and_not_of_the_image_alone():
    assert float(kernels.hit(row_of(0.6, 0.3, 0.1), on(1, n=3))) == 0  # key 0 is text


def test_of_equal_keys_the_first_is_the_most_attended():
    assert float(kernels.hit(row_of(0.4, 0.4, 0.2), on(0, n=3))) == 1
    assert float(kernels.hit(row_of(0.4, 0.4, 0.2), on(1, n=3))) == 0


def test_patches_of_the_box_that_a_sliding_window_dropped_still_count():
    assert float(kernels.hit(row_of(0.1, 0.9), on(1, n=2), torch.tensor([4]))) == 0.25


def test_an_empty_box_is_never_hit_and_a_broken_row_has_no_score():
    assert float(kernels.hit(row_of(0.1, 0.9), on(n=2))) == 0
    assert bool(kernels.hit(row_of(0.1, torch.nan), on(0, n=2)).isnan())


def test_hits_of_many_rows_equal_a_loop():
    pattern = (3 * torch.randn(2, 3, 4, 9, generator=torch.Generator().manual_seed(0))).softmax(-1)
    regions = [[2, 3, 4, 5], [0, 8]]
    mask = torch.cat([on(*region, n=9) for region in regions])
    given = kernels.hit(pattern, mask)
    assert given.shape == (2, 3, 4)
    for b, region in enumerate(regions):
        expected = [[slow_hit(row, region) for row in head] for head in pattern[b].tolist()]
        torch.testing.assert_close(given[b], torch.tensor(expected))


@pytest.mark.parametrize("query", ["last", "answer"])
def test_hits_of_a_padded_batch_equal_eager_attention_on_each_prompt_alone(lens, asked, query):
    given = score_heads(lens, asked.batch, "hit", query, boxes=[BOX] * 7).per_prompt
    assert 0 < float((given > 0).float().mean()) < 1
    reference = Eager(lens.model)
    for row, prompt in enumerate(asked.singles):
        prefill, step = reference.decode(prompt.inputs)
        seen = prefill if query == "last" else step
        expected = [[slow_hit(seen.row(layer, 0, head, -1), IN_BOX) for head in range(8)] for layer in range(6)]
        torch.testing.assert_close(given[row], torch.tensor(expected))


def test_the_mean_over_prompts_is_the_hit_rate_over_the_size_of_the_box(lens, asked):
    scores = score_heads(lens, asked.singles, "hit", boxes=[BOX] * 7)
    torch.testing.assert_close(scores.values * len(IN_BOX), (scores.per_prompt > 0).float().mean(0))
    top = scores.top(1).heads[0]
    assert float(scores.values[top]) == float(scores.values.max())


def test_hits_need_boxes_and_nothing_else(lens, asked):
    with pytest.raises(ScoreError, match=r"^hit needs boxes=\.\.\., one entry a prompt row$"):
        score_heads(lens, asked.batch, "hit")
    with pytest.raises(ScoreError, match=r"^hit takes no relevant tokens; retrieval_mass does$"):
        score_heads(lens, asked.batch, "hit", boxes=[BOX] * 7, relevant=[[2]] * 7)


# ---------------------------------------------------------------------- nonsink ratio


def test_the_ratio_of_the_papers_known_row():
    # keys: text sink, text, visual sink, visual, visual, text
    row = row_of(0.30, 0.10, 0.10, 0.20, 0.15, 0.15)
    ratio = kernels.nonsink_ratio(row, on(2, 3, 4, n=6), on(0, 2, n=6))
    assert float(ratio) == pytest.approx(0.7778, abs=1e-4)


def test_the_ratio_is_one_without_sinks_and_zero_with_sinks_alone():
    row = row_of(0.5, 0.3, 0.2)
    assert float(kernels.nonsink_ratio(row, on(1, 2, n=3), on(0, n=3))) == 1
    assert float(kernels.nonsink_ratio(row, on(1, 2, n=3), on(1, 2, n=3))) == 0


def test_a_row_that_does_not_look_has_ratio_zero_and_a_broken_row_none():
    assert float(kernels.nonsink_ratio(row_of(1.0, 0.0, 0.0), on(1, 2, n=3), on(n=3))) == 0
    assert bool(kernels.nonsink_ratio(row_of(torch.nan, 0.5), on(0, 1, n=2), on(n=2)).isnan())


@cache
def family(name: str):
    model, inputs = FAMILIES[name]()
    visual = patches(inputs["input_ids"][0].tolist())
    prefill, step = Eager(model).decode(inputs)
    found = sorted(phi(x, (3, 40)) for layer in prefill.resid.values() for x in layer[0])
    middle = range(len(found) // 3, 2 * len(found) // 3)
    at = max(middle, key=lambda i: found[i + 1] - found[i])  # in a gap, so that rounding decides nothing
    return model, inputs, visual, {"last": prefill, "answer": step}, (found[at] + found[at + 1]) / 2


@pytest.mark.parametrize("query", ["last", "answer"])
@pytest.mark.parametrize("name", SELF_ATTENDING)
def test_the_ratio_on_every_family_equals_eager_attention(name, query):
    model, inputs, visual, passes, threshold = family(name)
    lens = Lens(model)
    given = score_heads(
        lens, lens.prompt(inputs=inputs), "nonsink_ratio", query, sink_dims=(3, 40), sink_threshold=threshold
    ).per_prompt[0]
    sinks, seen = sinks_by_layer(passes["last"], 0, (3, 40), threshold), passes[query]
    expected = torch.full_like(given, torch.nan)
    for layer in seen.weights:
        for head in range(given.shape[1]):
            expected[layer, head] = slow_ratio(seen.row(layer, 0, head, -1), visual, sinks[layer])
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=0, equal_nan=True)


def test_the_ratio_is_nonsink_mass_over_visual_mass_with_the_cards_sinks(lens, asked):
    ratio = score_heads(lens, asked.batch, "nonsink_ratio")
    mass, nonsink = (score_heads(lens, asked.batch, m).per_prompt for m in ("visual_mass", "nonsink_mass"))
    torch.testing.assert_close(ratio.per_prompt * mass, nonsink, atol=1e-6, rtol=0)
    assert ratio.settings["sink_dims"] == [5, 77]
    assert 0 <= float(ratio.per_prompt.min()) <= float(ratio.per_prompt.max()) <= 1
