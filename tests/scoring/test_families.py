"""Every metric at both queries on every family, against eager attention and loops over keys."""

from functools import cache

import pytest
import torch
from torch import Tensor

from lmm_lens import AblateHeads, HeadScores, Lens, score_heads
from tests.support.eager import Eager, Keys, Pass, phi, scores, sinks_by_layer
from tests.support.models import FAMILIES, another, joined, patches

# thresholds in the middle of what random models have: most patches may be sinks, which is told, and not what is tested
pytestmark = pytest.mark.filterwarnings("ignore:.*of the visual tokens are sinks")

METRICS = ("visual_mass", "nonsink_mass", "concentration", "visual_preference")
SELF_ATTENDING = [name for name in FAMILIES if name != "mllama"]
# families whose full pass over a longer prompt is the decoding step without its cache; the others attend both ways
RECOMPUTABLE = [name for name in SELF_ATTENDING if name not in ("paligemma", "paligemma2", "gemma3")]
DIMS = (3, 40)
ABLATED = {1: (0, 2)}  # layer 1 has heads in every family


class Family:
    """A tiny model, a prompt of it, and sinks that some of its visual tokens are."""

    def __init__(self, name: str) -> None:
        self.model, self.inputs = FAMILIES[name]()
        self.lens = Lens(self.model)
        self.prompt = self.lens.prompt(inputs=self.inputs)
        self.visual = patches(self.inputs["input_ids"][0].tolist())
        self.threshold = self._threshold()

    def _threshold(self) -> float:
        """In the widest gap of phi near its median, so that rounding decides nothing and some tokens are sinks."""
        resid = Eager(self.model).prefill(self.inputs).resid
        found = sorted(phi(x, DIMS) for layer in resid.values() for x in layer[0])
        middle = range(len(found) // 3, 2 * len(found) // 3)
        at = max(middle, key=lambda i: found[i + 1] - found[i])
        return (found[at] + found[at + 1]) / 2

    def score(self, metric: str, query: str, *interventions: AblateHeads) -> Tensor:
        sinks = {"sink_dims": DIMS, "sink_threshold": self.threshold} if metric == "nonsink_mass" else {}
        given = score_heads(self.lens, self.prompt, metric, query, interventions=interventions, **sinks)
        assert isinstance(given, HeadScores)
        return given.per_prompt[0]

    def expected(self, metric: str, prefill: Pass, seen: Pass) -> Tensor:
        keys = Keys(self.visual, sinks_by_layer(prefill, 0, DIMS, self.threshold))
        return scores(metric, seen, -1, keys)


@cache
def family(name: str) -> Family:
    return Family(name)


def close(given: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=0, equal_nan=True)


@pytest.mark.parametrize("name", SELF_ATTENDING)
def test_every_metric_at_the_last_token_equals_eager_attention(name):
    case = family(name)
    seen = Eager(case.model).prefill(case.inputs)
    for metric in METRICS:
        close(case.score(metric, "last"), case.expected(metric, seen, seen))


@pytest.mark.parametrize("name", SELF_ATTENDING)
def test_every_metric_at_the_answer_equals_an_eager_decoding_step(name):
    case = family(name)
    prefill, step = Eager(case.model).decode(case.inputs)
    for metric in METRICS:
        close(case.score(metric, "answer"), case.expected(metric, prefill, step))


@pytest.mark.parametrize("name", RECOMPUTABLE)
def test_the_answer_row_equals_the_last_row_of_the_longer_prompt_without_a_cache(name):
    case = family(name)
    prefill, longer = Eager(case.model).again_with_answer(case.inputs)
    for metric in METRICS:
        close(case.score(metric, "answer"), case.expected(metric, prefill, longer))


@pytest.mark.parametrize("name", SELF_ATTENDING)
def test_heads_ablated_beforehand_are_scored_as_in_a_model_without_them(name):
    case = family(name)
    heads = [(layer, head) for layer, chosen in ABLATED.items() for head in chosen]
    eager = Eager(case.model, heads)
    seen = eager.prefill(case.inputs)
    given = case.score("nonsink_mass", "last", AblateHeads(heads))
    close(given, case.expected("nonsink_mass", seen, seen))
    prefill, step = eager.decode(case.inputs)
    close(
        case.score("visual_preference", "answer", AblateHeads(heads)), case.expected("visual_preference", prefill, step)
    )
    assert bool((given != case.score("nonsink_mass", "last"))[2:].any())  # later layers see the difference


@pytest.mark.parametrize("name", SELF_ATTENDING)
def test_the_sinks_of_these_tests_are_some_visual_tokens_and_not_all(name):
    case = family(name)
    raw, nonsink = case.score("visual_mass", "last"), case.score("nonsink_mass", "last")
    scored = ~raw.isnan()
    assert bool((nonsink[scored] <= raw[scored] + 1e-6).all())
    assert 0 < float(nonsink[scored].sum()) < float(raw[scored].sum())


@pytest.mark.parametrize("name", SELF_ATTENDING)
@pytest.mark.parametrize("query", ["last", "answer"])
def test_a_left_padded_batch_scores_like_its_prompts_one_by_one(name, query):
    case = family(name)
    prompts = [case.inputs, another(case.inputs)]
    batch = case.lens.prompt(inputs=joined(prompts))
    singles = [case.lens.prompt(inputs=inputs) for inputs in prompts]
    for metric in ("visual_mass", "concentration"):
        together = score_heads(case.lens, batch, metric, query).per_prompt
        apart = score_heads(case.lens, singles, metric, query).per_prompt
        close(together, apart)
        assert not torch.allclose(together[0].nan_to_num(), together[1].nan_to_num(), atol=1e-4)


def test_a_right_padded_batch_is_scored_at_each_rows_own_last_token():
    case = family("llava")
    prompts = [case.inputs, another(case.inputs)]
    batch = case.lens.prompt(inputs=joined(prompts, side="right"))
    apart = score_heads(case.lens, [case.lens.prompt(inputs=inputs) for inputs in prompts]).per_prompt
    close(score_heads(case.lens, batch).per_prompt, apart)


def test_layers_of_linear_attention_have_no_scores():
    table = family("qwen3_5").score("visual_mass", "last")
    assert table.isnan().all(1).tolist() == [True, False, True, False]
    assert not table[1::2].isnan().any()


def test_cross_attention_layers_are_not_scored_by_the_text_position_of_the_image_token():
    case = family("mllama")
    table = case.score("visual_mass", "last")
    assert bool(table[1].isnan().all()) or torch.allclose(table[1], torch.ones(4))  # every key there is of the image
