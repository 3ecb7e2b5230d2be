"""What a step costs beside the model: `python -m benchmarks.steps`.

On a model so small that the host's work shows, as a GPU makes it show on a large one: the bundled one, one thread.
Every row is processor time; a generation is 60 tokens, a pass one prompt. The rivals are VAR written by hand for this
model alone, with nothing checked or counted, and eager attention with its edit, vectorised and head by head.
`benchmarks.long_steps` has batches and long prompts, `benchmarks.pretrained` the pretrained model.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from lmm_lens import VAR, AblateHeads, Knockout, Lens, Prompt, Read, find_sinks, score_heads, shapes

from .harness import logits_of
from .interventions import AT_ONCE, HEAD_BY_HEAD
from .least import LeastVAR
from .model import twin
from .timing import interleaved, machine, show, write

RESULTS = Path(__file__).parent / "results"
N_NEW, ROUNDS = 60, 11
SYNCHRONISING = "aten::_local_scalar_dense"
LEAST, TOLERANCE = LeastVAR(), 1e-4
HEADING = ["", "ms", "ratio", "more a layer and step, ms", "operations a step", "waits"]
Calls = Mapping[str, Callable[[], Any]]


class Asked:
    """A model, a prompt, and what is measured on them.

    Args:
        lens: with the native backend.
        prompt: one row with a picture.
    """

    def __init__(self, lens: Lens, prompt: Prompt) -> None:
        self.lens, self.prompt = lens, prompt
        sinks = find_sinks(lens, prompt)
        self.var = VAR(0.6, 0.0, 0.0, sinks.threshold, sinks.dims, first_layer=0, skip_last_layer=False)
        self.settings: dict[str, Any] = {"max_new_tokens": N_NEW, "eos_token_id": []}

    def generate(self, *edits: Any, read: Any = ()) -> Any:
        """A generation under a lens."""
        return self.lens.generate(self.prompt, list(edits), read, **self.settings)

    def plainly(self, model: Any) -> Any:
        """One without."""
        return model.generate(**self.prompt.inputs, do_sample=False, pad_token_id=0, **self.settings)

    def generations(self, rivals: bool) -> Calls:
        """By what is asked of them."""
        heads = [(layer, layer % self.lens.n_heads) for layer in range(self.lens.n_layers)]
        pattern = Read("pattern", rows="generating", reduce=lambda rows, context: rows.sum(-1))
        calls: dict[str, Callable[[], Any]] = {
            "model.generate": partial(self.plainly, self.lens.model),
            "lens.generate": self.generate,
            "one head of each layer ablated, all rows": partial(self.generate, AblateHeads(heads, rows="all")),
            "... in the rows after the image": partial(self.generate, AblateHeads(heads, rows="after_image")),
            "a pattern read": partial(self.generate, read=[pattern]),
            "knockout of the image": partial(self.generate, Knockout("image", "after_image")),
            "VAR in all layers": partial(self.generate, self.var),
        }
        if rivals:
            calls["... by hand, nothing checked or counted"] = self.by_hand(LEAST)
            calls["eager attention, nothing edited"] = partial(self.plainly, twin(self.lens.model, "eager"))
            for rival, how in ((AT_ONCE, "all heads at once"), (HEAD_BY_HEAD, "head by head")):
                calls[f"... with VAR's edit, {how}"] = self.by_hand(rival)
        return calls

    def by_hand(self, rival: Any) -> Callable[[], Any]:
        """A generation of a rival, after its logits are found to be those under VAR."""
        call = partial(self.edited, rival, twin(self.lens.model, rival.name))
        own, wanted = (logits_of(self.lens.model, each)[1] for each in (call, partial(self.generate, self.var)))
        if not torch.allclose(own, wanted, rtol=0, atol=TOLERANCE):
            raise SystemExit(f"{rival.name} does not give the logits of VAR")
        return call

    def edited(self, rival: Any, model: Any) -> Any:
        """A generation of a rival."""
        with rival.on(model, self.prompt, self.var):
            return self.plainly(model)

    def forward(self) -> Any:
        """A pass without a lens."""
        with torch.no_grad():
            return self.lens.model(**self.prompt.inputs, use_cache=False)

    def passes(self, lens: Lens, base: str, plain: Callable[[], Any]) -> Calls:
        """Single passes with a backend, and what they are held against."""
        return {
            base: plain,
            "lens.run": partial(lens.run, self.prompt),
            "score_heads": partial(score_heads, lens, [self.prompt]),
            "... of 16 prompts in one call, each": partial(score_heads, lens, [self.prompt] * 16),
            "lens.run with VAR": partial(lens.run, self.prompt, [self.var]),
        }


def empty_trace(lens: Lens, prompt: Prompt) -> Any:
    """A trace of nnsight's that reads the logits alone."""
    model: Any = lens.envoy
    with torch.no_grad(), model.trace(**prompt.inputs, use_cache=False):
        logits = model.lm_head.output.save()
    return logits.detach()


def bare_bridge(lens: Lens, prompt: Prompt) -> Any:
    """A forward of TransformerLens's bridge."""
    with torch.no_grad():
        return lens.bridge(prompt.inputs["input_ids"], pixel_values=prompt.inputs["pixel_values"], use_cache=False)


def operations(function: Callable[[], object]) -> tuple[int, int]:
    """How many operations of torch a call takes, and how many of them wait for the device."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        function()
    counted = {event.key: event.count for event in recorded.key_averages() if event.key.startswith("aten::")}
    return sum(counted.values()), counted.get(SYNCHRONISING, 0)


def measured(name: str, calls: Calls, n_layers: int, n_steps: int, rounds: int) -> list[list[str]]:
    """A heading and a row a call, each held against the first."""
    for function in calls.values():
        function()
    times = interleaved(calls, rounds, torch.device("cpu"), time.process_time)
    first = statistics.median(next(iter(times.values()))) / n_steps
    lines = [[f"**{name}**", "a token" if n_steps > 1 else "", "", "", "", ""]]
    for each, function in calls.items():
        n_in_call = n_steps * (16 if each.startswith("... of 16") else 1)
        took = statistics.median(times[each]) / n_in_call
        n_operations, n_waits = operations(function)
        more = (took - first) * 1000 / n_layers
        counts = [f"{n_operations / n_in_call:.0f}", f"{n_waits / n_in_call:.1f}"]
        lines.append([each, f"{took * 1000:.2f}", f"{took / first:.2f}", f"{more:.3f}", *counts])
    return lines


def shapes_asked() -> Asked:
    """The bundled model."""
    lens, example = Lens.demo(), shapes.examples(1, ["color"], seed=0)[0]
    return Asked(lens, lens.prompt(example.question, images=example.image))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked, n_layers = shapes_asked(), Lens.demo().n_layers
    traced, bridged = (Lens.demo(backend=backend) for backend in ("nnsight", "transformer_lens"))
    packed = Lens(asked.lens.model, asked.lens.processor, backend="nnsight", remote="local")
    lines = [HEADING]
    lines += measured("60 tokens", asked.generations(rivals=True), n_layers, N_NEW, options.rounds)
    for name, lens, base, plain in (
        ("one pass", asked.lens, "model(...)", asked.forward),
        ("one pass, nnsight", traced, "an empty trace", partial(empty_trace, traced, asked.prompt)),
        ("one pass, TransformerLens", bridged, "a bare bridge", partial(bare_bridge, bridged, asked.prompt)),
    ):
        calls = asked.passes(lens, base, plain)
        if lens is traced:
            packing = partial(packed.run, asked.prompt, [asked.var])
            calls = {**calls, '... packed and unpacked, remote="local"': packing}
        lines += measured(name, calls, n_layers, 1, options.rounds)
    notes = (
        f"{machine(torch.device('cpu'))}. The bundled model, {n_layers} layers, {asked.prompt.n_tokens} tokens; "
        f"medians of {options.rounds} interleaved rounds. Waits are reads of a number from the device."
    )
    show(lines, notes)
    write(lines, "What a step costs beside the model", notes, RESULTS / "steps.md")


if __name__ == "__main__":
    main()
