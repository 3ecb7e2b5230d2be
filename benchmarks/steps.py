"""What a step costs beside the model: `python -m benchmarks.steps`.

On a model so small that the host's work shows, as a GPU makes it show on a large one: the bundled model, one thread.
Every row is host time of the calling thread; a generation is 60 tokens, a pass one prompt.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from lmm_lens import VAR, AblateHeads, Knockout, Lens, Read, find_sinks, score_heads, shapes

from .timing import interleaved, machine, show, write

RESULTS = Path(__file__).parent / "results"
N_NEW, ROUNDS = 60, 11
SYNCHRONISING = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero")


def operations(function: Callable[[], object]) -> tuple[int, int]:
    """How many operations of torch a call takes, and how many of them wait for the device."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        function()
    counted = {event.key: event.count for event in recorded.key_averages() if event.key.startswith("aten::")}
    return sum(counted.values()), counted.get(SYNCHRONISING[0], 0)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lens = Lens.demo()
    example = shapes.examples(1, ["color"], seed=0)[0]
    prompt = lens.prompt(example.question, images=example.image)
    sinks = find_sinks(lens, prompt)
    heads = [(layer, layer % lens.n_heads) for layer in range(lens.n_layers)]
    var = VAR(0.6, 0.0, 0.0, sinks.threshold, sinks.dims, first_layer=0, skip_last_layer=False)
    settings: dict[str, Any] = {"max_new_tokens": N_NEW, "eos_token_id": []}

    def generate(*edits: Any, read: Any = ()) -> Any:
        return lens.generate(prompt, list(edits), read, **settings)

    def plain() -> Any:
        return lens.model.generate(**prompt.inputs, do_sample=False, pad_token_id=0, **settings)

    def forward() -> Any:
        with torch.no_grad():
            return lens.model(**prompt.inputs, use_cache=False)

    pattern = Read("pattern", rows="generating", reduce=lambda rows, context: rows.sum(-1))
    generations: dict[str, Callable[[], Any]] = {
        "model.generate": plain,
        "lens.generate": generate,
        "one head of each layer ablated, all rows": partial(generate, AblateHeads(heads, rows="all")),
        "... in the rows after the image": partial(generate, AblateHeads(heads, rows="after_image")),
        "a pattern read": partial(generate, read=[pattern]),
        "knockout of the image": partial(generate, Knockout("image", "after_image")),
        "VAR in all layers": partial(generate, var),
    }
    passes: dict[str, Callable[[], Any]] = {
        "model(...)": forward,
        "lens.run": partial(lens.run, prompt),
        "score_heads": partial(score_heads, lens, [prompt]),
        "... of 16 prompts in one call, each": partial(score_heads, lens, [prompt] * 16),
        "lens.run with VAR": partial(lens.run, prompt, [var]),
    }
    shared = {"... of 16 prompts in one call, each": 16}
    device = torch.device("cpu")
    for function in (*generations.values(), *passes.values()):
        function()
    lines = [["", "ms", "ratio", "more a layer and step, ms", "operations a step", "waits"]]
    for name, functions, n_steps in (("60 tokens", generations, N_NEW), ("one pass", passes, 1)):
        times = interleaved(functions, options.rounds, device)
        first = statistics.median(next(iter(times.values()))) / n_steps
        lines.append([f"**{name}**", "a token" if n_steps > 1 else "", "", "", "", ""])
        for each, function in functions.items():
            n_in_call = n_steps * shared.get(each, 1)
            took = statistics.median(times[each]) / n_in_call
            n_operations, n_waits = operations(function)
            more = (took - first) * 1000 / lens.n_layers
            counts = [f"{n_operations / n_in_call:.0f}", f"{n_waits / n_in_call:.1f}"]
            lines.append([each, f"{took * 1000:.2f}", f"{took / first:.2f}", f"{more:.3f}", *counts])
    notes = (
        f"{machine(device)}. The bundled model, {lens.n_layers} layers, {prompt.n_tokens} tokens; medians of "
        f"{options.rounds} interleaved rounds. Waits are reads of a number from the device."
    )
    show(lines, notes)
    write(lines, "What a step costs beside the model", notes, RESULTS / "steps.md")


if __name__ == "__main__":
    main()
