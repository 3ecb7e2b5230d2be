"""Scores, sinks and patching grids from a service are the native ones, and only what was asked for comes back."""

from typing import Any

import pytest
import torch

from lmm_lens import (
    AblateHeads,
    Lens,
    Read,
    activation_patching,
    attention_map,
    direct_attribution,
    find_sinks,
    logit_lens,
    score_heads,
)
from lmm_lens.bundled import shapes
from lmm_lens.core.taps import TapContext
from lmm_lens.scoring.metrics import HEAD_METRICS
from tests.backends.remote.clients import same
from tests.backends.remote.service import Service

pytestmark = pytest.mark.long
BOX = (8.0, 8.0, 32.0, 32.0)
SMALL = 8000  # bytes of a result that holds one number a head, layer and metric


def boxes_for(metric: str, n_rows: int) -> dict[str, Any]:
    return {"boxes": [BOX] * n_rows} if metric in ("region_mass", "hit", "retrieval_mass") else {}


@pytest.mark.parametrize("metric", HEAD_METRICS)
def test_every_metric_of_the_last_token(served: Lens, native: Lens, batch: Any, service: Service, metric: str) -> None:
    options = boxes_for(metric, batch.n_rows)
    given, expected = (score_heads(lens, batch, metric, **options) for lens in (served, native))
    same(given.per_prompt, expected.per_prompt)
    mine, theirs = given.settings, dict(expected.settings)
    assert mine.pop("min_mean_mass", 0) == pytest.approx(theirs.pop("min_mean_mass", 0), abs=1e-6)
    assert mine == theirs
    assert service.log()[-1]["result_bytes"] < SMALL


@pytest.mark.parametrize("metric", ["visual_mass", "nonsink_mass", "localization"])
def test_scores_of_the_answer_under_an_edit(
    served: Lens, native: Lens, batch: Any, service: Service, metric: str
) -> None:
    options = {"query": "answer", "interventions": [AblateHeads([(1, 2)])]}
    given, expected = (score_heads(lens, [batch, batch], metric, **options) for lens in (served, native))
    same(given.per_prompt, expected.per_prompt)
    assert service.log()[-1]["result_bytes"] < SMALL


def test_sinks(served: Lens, native: Lens, batch: Any) -> None:
    given, expected = (find_sinks(lens, [batch]) for lens in (served, native))
    assert (given.dims, given.dims_by_mean) == (expected.dims, expected.dims_by_mean)
    assert given.dims
    same(torch.tensor([given.threshold, *given.margin]), torch.tensor([expected.threshold, *expected.margin]))
    same(given.bos_ratio, expected.bos_ratio)
    same(given.mean_ratio, expected.mean_ratio)
    assert torch.equal(given.sinks[0], expected.sinks[0])
    same(given.phi[0], expected.phi[0])


def test_readouts(served: Lens, native: Lens, batch: Any) -> None:
    """Attention is added up there; streams of the rows are read as words here, by the weights that are here."""
    for options in ({"drop_sinks": True}, {"generated": 2}):
        given, expected = (attention_map(lens, batch, heads=[(1, 4), (2, 3)], **options) for lens in (served, native))
        same(given.weights, expected.weights)
    given, expected = (logit_lens(lens, batch, rows="last", words=["red"]) for lens in (served, native))
    same(given.logits, expected.logits)
    assert torch.equal(given.top, expected.top)
    given, expected = (direct_attribution(lens, batch, "red", "blue") for lens in (served, native))
    same(given.values.float(), expected.values.float())


GRIDS = [("resid_pre", "span"), ("resid_pre", "patch"), ("z", "head"), ("pattern", "head")]


@pytest.mark.parametrize(("site", "by"), GRIDS)
def test_patching_grids(served: Lens, native: Lens, pair: Any, service: Service, site: str, by: str) -> None:
    n_before = len(service.log())
    given, expected = (
        activation_patching(lens, *pair, site=site, by=by, layers=[4, 1], rows="all") for lens in (served, native)
    )
    same(given.per_pair, expected.per_pair)
    assert given.units == expected.units
    assert expected.per_pair.nan_to_num().abs().max() > 0.02
    jobs = service.log()[n_before + 2 :]
    assert jobs, "patching runs as jobs of several passes"
    assert all(job["result_bytes"] < SMALL for job in jobs)


def test_head_patching_of_other_rows_with_given_answers_and_groups(served: Lens, native: Lens, pair: Any) -> None:
    answers = [("red", "blue"), ("green", "red")]
    heads, groups = (
        [
            activation_patching(lens, *pair, site="z", by="head", rows="last", answers=answers, layers=[3])
            for lens in (served, native)
        ],
        [
            activation_patching(lens, *pair, by="span", groups={"first": [[2, 3], [4, 5]]}, layers=[2])
            for lens in (served, native)
        ],
    )
    for given, expected in (heads, groups):
        same(given.per_pair, expected.per_pair)


def test_results_do_not_grow_with_the_sequence(served: Lens, native: Lens, pair: Any, service: Service) -> None:
    short = native.prompt("what color is the star?", images=shapes.blank(0))
    long = native.prompt("what color is the star? " * 30, images=shapes.blank(0))
    assert long.n_tokens > 3 * short.n_tokens
    sizes = []
    for prompt in (short, long):
        before = len(service.log())
        score_heads(served, prompt, "nonsink_mass")
        score_heads(served, prompt, "localization", query="answer")
        other = native.prompt(inputs={**prompt.inputs, "pixel_values": prompt.inputs["pixel_values"].flip(-1) * 0.5})
        activation_patching(served, prompt, other, layers=[2], answers=[("red", "blue")], site="z", by="head")
        sizes.append([entry["result_bytes"] for entry in service.log()[before:]])
    assert len(sizes[0]) == len(sizes[1])
    for one, other in zip(*sizes, strict=True):
        assert abs(one - other) < 300
        assert max(one, other) < SMALL


def test_sinks_come_back_as_one_number_a_token(served: Lens, native: Lens, service: Service) -> None:
    sizes = []
    for question in ("what color is the star?", "what color is the star? " * 30):
        find_sinks(served, native.prompt(question, images=shapes.blank(0)))
        sizes.append([entry["result_bytes"] for entry in service.log()[-2:]])
    assert max(max(size) for size in sizes) < 2 * SMALL
    assert abs(sizes[0][0] - sizes[1][0]) < 600  # the statistics of dimensions do not know of tokens


def one_number(x: torch.Tensor, context: TapContext) -> torch.Tensor:
    return x[..., :1]  # a view of everything


def test_what_a_function_keeps_is_all_that_comes_back(served: Lens, native: Lens, service: Service) -> None:
    prompt = native.prompt("what color is the star? " * 30, images=shapes.blank(0))
    served.run(prompt, read=[Read("resid_post", rows="last", reduce=one_number)], logits="last")
    assert service.log()[-1]["result_bytes"] < SMALL
    served.run(prompt, read=[Read("resid_post", reduce=one_number)], logits="last")
    assert service.log()[-1]["result_bytes"] < 6 * prompt.n_tokens * 4 + 2 * SMALL
    served.generate(prompt, max_new_tokens=2, logits=True)
    assert service.log()[-1]["result_bytes"] < SMALL
