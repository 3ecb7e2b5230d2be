"""No step of a generation waits for the device because of a read or an edit: counted by torch's own profiler."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lmm_lens import VAR, AblateHeads, Knockout, KnockoutSinks, Lens, Read, find_sinks
from lmm_lens.bundled import shapes

pytestmark = pytest.mark.long
WAITING = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal")
FEW, MANY = 4, 12


@pytest.fixture(scope="module")
def prompts(lens):
    examples = shapes.examples(2, ["color", "shape"], seed=0)
    return {n: lens.prompt([e.question for e in examples[:n]], images=[e.image for e in examples[:n]]) for n in (1, 2)}


def waits(lens, prompt, n_new, edits, reads):
    """How often a generation asks the device for a number."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        lens.generate(prompt, edits, reads, max_new_tokens=n_new, eos_token_id=[])
    return sum(event.count for event in recorded.key_averages() if event.key in WAITING)


def a_step(lens, prompt, edits=(), reads=()):
    """How often a step does, once numbers that are made once are made."""
    lens.generate(prompt, edits, reads, max_new_tokens=2, eos_token_id=[])
    few, many = (waits(lens, prompt, n, edits, reads) for n in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def row_sum(rows, context):
    return rows.sum(-1)


@pytest.mark.parametrize(
    ("what", "n_rows"), [("ablation", 1), ("knockout", 1), ("VAR", 1), ("sinks", 1), ("read", 1), ("all", 2)]
)
def test_a_step_waits_no_more_than_without(lens, prompts, what, n_rows):
    prompt = prompts[n_rows]
    sinks = find_sinks(lens, prompt)
    var = VAR(0.6, 0.0, 0.0, sinks.threshold, sinks.dims, first_layer=0, skip_last_layer=False)
    edits = {
        "ablation": [AblateHeads([(layer, 1) for layer in range(lens.n_layers)])],
        "knockout": [Knockout("image", "after_image")],
        "VAR": [var],
        "sinks": [KnockoutSinks(sinks.dims, sinks.threshold)],
        "read": [],
    }
    edits["all"] = [*edits["ablation"], *edits["VAR"], *edits["sinks"]]
    reads = [Read("pattern", rows="generating", reduce=row_sum)] if what in ("read", "all") else []
    with torch.no_grad():
        assert a_step(lens, prompt, edits[what], reads) == a_step(lens, prompt)


@pytest.mark.parametrize("backend", ["native", "nnsight"])
def test_a_step_of_a_lens_waits_no_more_than_one_of_the_model(backend, lens, prompts):
    def plain(n_new):
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            lens.model.generate(**prompts[1].inputs, do_sample=False, max_new_tokens=n_new, eos_token_id=[])
        return sum(event.count for event in recorded.key_averages() if event.key in WAITING)

    with torch.no_grad():
        few, many = plain(FEW), plain(MANY)
        assert a_step(Lens.demo(backend=backend), prompts[1]) == (many - few) / (MANY - FEW)
