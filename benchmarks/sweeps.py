"""What causal sweeps cost beside one full forward per head: `python -m benchmarks.sweeps`.

The rival is what everybody writes: a plain Hugging Face forward for each head, with a hook that sets the head's slice
of W_O's input to zero in the rows in question. A round times a few such forwards, one in each layer, and then the sweep
over all heads of one prompt; the ratio is the mean of those forwards times the number of heads, over the sweep. The
logits of the sampled heads are compared.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmm_lens import Lens, Prompt, data
from lmm_lens.answers.items import Item
from lmm_lens.effects.ablations import Ablation, units_of
from lmm_lens.effects.work import EffectsWork
from lmm_lens.replay.batches import Batches
from lmm_lens.replay.ways import Way

from .model import SIZES, build, prompt_of
from .timing import machine, seconds, show, spread, write

RESULTS = Path(__file__).parent / "results"
SCOPES = {"last": 80, "after_image": 7, "all": 1.7}  # and how many times faster than the rival each has to be


@dataclass(frozen=True)
class Row:
    """One sweep.

    Attributes:
        ratio: to the rival in the same round, the median.
        sweep, forward: seconds of the sweep and of one of the rival's forwards.
        difference: the largest of the sampled heads' logits to the rival's.
        way: how the sweep was computed.
    """

    ratio: float
    sweep: list[float]
    forward: list[float]
    difference: float
    way: str


def zeroed(lens: Lens, prompt: Prompt, rows: str, layer: int, head: int) -> Tensor:
    """The rival: a plain forward with one head's output set to zero."""
    chosen = prompt.mask(rows)[0].to(lens.device)
    size = lens.shape.d_head[layer]

    def before(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].clone()
        z[:, chosen, head * size : (head + 1) * size] = 0
        return (z, *args[1:])

    projection: Any = lens.adapter.layers[layer].output_projection
    hook = projection.register_forward_pre_hook(before)
    try:
        with torch.no_grad():
            logits: Tensor = lens.model(**prompt.inputs, use_cache=False, logits_to_keep=1).logits
            return logits[0, -1]
    finally:
        hook.remove()


def store(kept: dict[Any, Any], name: object, compute: Callable[[], object]) -> None:
    """Keep what a timed call gives."""
    kept[name] = compute()


def measure(lens: Lens, prompts: Sequence[Prompt], rows: str, rounds: int, device: torch.device, first: bool) -> Row:
    """A sweep over every head, one prompt a round; with `first`, a new sweep each round, which checks itself."""
    units = units_of(lens, None)
    ablation = Ablation(units, "zero", rows)
    work = EffectsWork(lens, Ablation(units[:1], "zero", rows), Batches(None, lens.device))
    work(Item("warm", prompts[-1], answer=(3, 4)))  # what the first prompt of a sweep checks
    work.ablation = ablation
    ratios, sweeps, forwards, worst, way = [], [], [], 0.0, ""
    for number in range(rounds):
        prompt = prompts[number % (len(prompts) - 1)]
        heads = [(layer, random.Random(f"{number} {layer}").randrange(lens.n_heads)) for layer in range(lens.n_layers)]
        naive: dict[tuple[int, int], Tensor] = {}
        plain = [
            seconds(partial(store, naive, head, partial(zeroed, lens, prompt, rows, *head)), device) for head in heads
        ]
        if first:
            work = EffectsWork(lens, ablation, Batches(None, lens.device))
        found: dict[str, dict[str, Tensor]] = {}
        sweep = seconds(partial(store, found, "sweep", partial(work, Item("", prompt, answer=(3, 4)))), device)
        for head in heads:
            index = next(i for i, unit in enumerate(units) if unit.heads == (head,))
            mine = found["sweep"]["logits"][1 + index]
            worst = max(worst, float((mine - naive[head][[3, 4]].double().cpu()).abs().max()))
        way = tuple(Way)[int(found["sweep"]["way"])].words
        ratios.append(statistics.mean(plain) * len(units) / sweep)
        sweeps.append(sweep)
        forwards.append(statistics.mean(plain))
    return Row(statistics.median(ratios), sweeps, forwards, worst, way)


def table_of(results: dict[tuple[str, str, str], Row]) -> list[list[str]]:
    """Header and rows, as text."""
    lines = [["", "rows", "times as fast", "target", "sweep", "one forward", "logits differ by", "computed as"]]
    for (model, rows, which), row in results.items():
        sweep, forward = (f"{statistics.median(x) * 1000:,.0f} ms" for x in (row.sweep, row.forward))
        target = f"{SCOPES[rows]}" if model.startswith("8 layers") and not which else ""
        name = f"{model}{which}"
        lines.append([name, rows, f"{row.ratio:.1f}", target, sweep, forward, f"{row.difference:.1g}", row.way])
    return lines


def bundled_prompts(lens: Lens, n: int) -> list[Prompt]:
    """Questions about pictures."""
    return [sample.prompt(lens) for sample in data.shapes(n=n, seed=0)]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round; writes no file")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", choices=SIZES, default="mid", help="of the decoder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    rounds = 1 if options.quick else options.rounds
    results: dict[tuple[str, str, str], Row] = {}

    lens = Lens(build(options.size, device))
    name = f"{lens.n_layers} layers x {lens.n_heads} heads, 700 tokens"
    prompts = [prompt_of(lens, 700) for _ in range(max(2, rounds) + 1)]  # one a round: a prompt is recorded once
    for rows in SCOPES:
        results[name, rows, ""] = measure(lens, prompts, rows, max(1, rounds if rows != "all" else 2), device, False)
        print(name, rows, f"{results[name, rows, ''].ratio:.1f}", flush=True)
    results[name, "last", ", the first prompt of a sweep"] = measure(lens, prompts, "last", rounds, device, True)
    noise = spread(results[name, "last", ""].forward) if rounds > 1 else 0.0
    del lens

    demo = Lens.demo()
    asked = bundled_prompts(demo, 21)
    name = f"bundled model, {demo.n_layers} x {demo.n_heads} heads, {asked[0].n_tokens} tokens"
    for rows in SCOPES:
        results[name, rows, ""] = measure(demo, asked, rows, 4 * rounds, device, False)
    notes = (
        f"{machine(device)}. Medians of {rounds} rounds (2 for all rows of the large model, {4 * rounds} for the "
        "bundled one); a round's rival is the mean of one forward in each layer, times the number of heads; the "
        f"rival itself varied by {noise:.0%} (interquartile range). The first prompt of a sweep also pays for a "
        "forward that checks the replays against the model."
    )
    lines = table_of(results)
    show(lines, notes)
    if not options.quick:
        path = RESULTS / f"sweeps{'' if device.type == 'cpu' else f'_{device.type}'}.md"
        write(lines, "Causal sweeps: every head of one prompt, beside one full forward per head", notes, path)


if __name__ == "__main__":
    main()
