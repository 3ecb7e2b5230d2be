"""A lens on a service gives the native answer: runs, reads, generations, traces. `served` sends over a real socket."""

from dataclasses import dataclass
from typing import Any

import nnsight
import pytest
import torch

from lmm_lens import AblateHeads, HeadSet, Intervention, Lens, Read
from lmm_lens.core.taps import Tap
from lmm_lens.prompts.rows import bind_rows
from tests.backends.remote.clients import same, same_generation, same_run
from tests.backends.remote.service import Service
from tests.support.cases import SITES


@dataclass(frozen=True)
class Halve(Intervention):
    """Half of an activation of layer 2."""

    site: str

    def taps(self, prompt: Any, shape: Any) -> list[Tap]:
        return [Tap(self.site, 2, bind_rows("all", prompt), lambda x, context: x * 0.5, edits=True)]


HEADS = HeadSet([(1, 2), (3, 4), (4, 0)], n_layers=6, n_heads=8)


def test_a_run_and_the_reads_of_all_hook_points(served: Lens, native: Lens, batch: Any, service: Service) -> None:
    n_before = len(service.log())
    given, expected = (lens.run(batch, read=list(SITES)) for lens in (served, native))
    same_run(given, expected)
    assert len(given.reads) == 6 * len(SITES)
    entry = service.log()[-1]
    assert len(service.log()) == n_before + 1  # one job
    assert entry["env"] == {"attn_implementation": "eager"}
    assert entry["api_key"]


@pytest.mark.parametrize("site", SITES)
def test_some_rows_and_heads_of_a_hook_point(served: Lens, native: Lens, batch: Any, site: str) -> None:
    heads = [5, 1] if site in ("pattern", "z") else None
    read = [Read(site, [4, 2], heads=heads, rows="question", name="mine")]
    same_run(served.run(batch, read=read, logits="last"), native.run(batch, read=read, logits="last"))


def test_the_remote_of_a_call_goes_before_that_of_the_lens(
    native: Lens, batch: Any, service: Service, sent: list
) -> None:
    lens = Lens.demo(backend="nnsight")
    n_before = len(service.log())
    same_run(lens.run(batch), native.run(batch))
    assert len(service.log()) == n_before
    same_run(lens.run(batch, remote=service.url), native.run(batch))
    assert len(service.log()) == n_before + 1
    given = lens.generate(batch, max_new_tokens=2, logits=True, remote=service.url)
    same_generation(given, native.generate(batch, max_new_tokens=2, logits=True))
    assert len(service.log()) == n_before + 2
    assert lens.remote is False


def test_generation_of_several_tokens_from_a_left_padded_batch(served: Lens, native: Lens, batch: Any) -> None:
    options = {"read": [Read("z", [3]), Read("pattern", [2], rows="generating")], "eos_token_id": []}
    edits = [AblateHeads(HEADS, rows="after_image")]
    for chosen in ([], edits):
        given, expected = (
            lens.generate(batch, chosen, max_new_tokens=5, logits=True, **options) for lens in (served, native)
        )
        assert given.tokens.shape == (3, 5)
        same_generation(given, expected)
        for key, value in expected.reads.items():
            same(given.reads[key], value)


def test_generation_that_stops_early(served: Lens, native: Lens, batch: Any) -> None:
    given, expected = (lens.generate(batch, max_new_tokens=20, logits=True) for lens in (served, native))
    assert expected.tokens.shape[1] < 20, "the model should say its stop token before"
    same_generation(given, expected)
    stop = int(expected.tokens[0, 0])  # at the very first step
    row = native.prompt(inputs={name: value[:1] for name, value in batch.inputs.items()})
    given, expected = (
        lens.generate(row, max_new_tokens=4, eos_token_id=stop, logits=True) for lens in (served, native)
    )
    assert expected.tokens.shape[1] == 1
    same_generation(given, expected)


# ---------------------------------------------------------------------- traces


@pytest.mark.parametrize("site", SITES)
def test_a_trace_reads_and_writes_each_hook_point(served: Lens, native: Lens, batch: Any, site: str) -> None:
    expected = native.run(batch, [Halve(site)], read=[Read(site, [2])])
    original = native.run(batch, read=[Read(site, [2])]).reads[site, 2]
    with served.trace(batch):
        value = served.read(2, site).save()
        served.write(2, site, value * 0.5)
        logits = served.envoy.output.logits.save()
    real = batch.mask("all")
    across = value.movedim(2, 1)[real] if site == "pattern" else value[real]
    rows = original.movedim(2, 1) if site == "pattern" else original
    same(across, rows[~rows.flatten(2).isnan().any(-1)])
    same(logits[real], expected.logits[real])
    assert (logits[real] - native.run(batch).logits[real]).abs().max() > 1e-2


def test_a_trace_uses_the_prompts_masks_and_edits_come_before_the_block(served: Lens, native: Lens, pair: Any) -> None:
    prompt, edits = pair[0], [AblateHeads(HEADS)]
    expected = native.run(prompt, edits, read=["pattern", "z"])
    with served.trace(prompt, edits):
        mass = (served.read(3, "pattern")[:, :, -1] * prompt.mask("image")[:, None]).sum(-1).save()
        z = served.read(3, "z").save()
    same(mass, (expected.reads["pattern", 3][:, :, -1] * prompt.mask("image")[:, None]).sum(-1))
    same(z, expected.reads["z", 3])
    assert z[:, :, 4].abs().max() == 0


def test_a_trace_that_generates(served: Lens, native: Lens, pair: Any) -> None:
    edits = [AblateHeads(HEADS, rows="after_image")]
    expected = native.generate(pair[0], edits, read=[Read("z", [3], rows="generating")], max_new_tokens=3)
    with served.trace(pair[0], edits, max_new_tokens=3) as tracer:
        steps = nnsight.save([])
        for _ in tracer.iter[:3]:
            steps.append(served.read(3, "z")[:, -1:])
    same(torch.cat(steps, 1)[:, :2], expected.reads["z", 3][:, :2])


def test_nnsights_own_names_work_in_a_trace(served: Lens, native: Lens, pair: Any) -> None:
    with served.trace(pair[0]):
        attended = nnsight.save(served.envoy.model.language_model.layers[1].self_attn.output[0])
    same(attended, native.run(pair[0], read=["attn_out"]).reads["attn_out", 1])
