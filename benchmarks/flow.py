"""What information flow costs beside one forward a point: `python -m benchmarks.flow`.

The rival is what everybody writes: one full forward for each route, window and draw of random keys. Two of it: this
library's forward with the knockout, and, as the least that any such forward can cost, the plain Hugging Face forward
with its fused kernel, which knocks nothing out. A round times a few of each and then all points of one prompt; the
ratio is the mean forward times the number of points, over the replay. The logits of the sampled points are compared.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lmm_lens import Lens, Prompt, data
from lmm_lens.flow.cuts import FlowOn, FlowTask
from lmm_lens.flow.forced import answer_tokens
from lmm_lens.flow.measuring import ROUTES
from lmm_lens.flow.routes import as_routes
from lmm_lens.hooks.results import Run
from lmm_lens.replay.batches import Batches
from lmm_lens.replay.forwards import Forwards

from .model import SIZES, build, prompt_of
from .sweeps import store
from .timing import machine, seconds, show, spread, write

RESULTS = Path(__file__).parent / "results"
TARGET, N_SAMPLED = 5, 6
WINDOWS = (3, 9)


@dataclass(frozen=True)
class Row:
    """One kind of sweep.

    Attributes:
        ratio: of the plain forwards to the replay, in the same round, the median.
        knocked: of this library's own forwards with the knockout, likewise.
        points: how many forwards the rival needs.
        replay, forward: seconds, of all points and of one plain forward.
        difference: the largest, of the sampled points' logits.
    """

    ratio: float
    knocked: float
    points: int
    replay: list[float]
    forward: list[float]
    difference: float


def plain(lens: Lens, prompt: Prompt) -> Tensor:
    """A forward that knocks nothing out."""
    with torch.no_grad():
        logits: Tensor = lens.model(**prompt.inputs, use_cache=False, logits_to_keep=1).logits
        return logits[0, -1]


def all_points(task: FlowTask, forwards: Forwards, prompt: Prompt, number: int) -> None:
    """What `information_flow` does with one prompt and the model's own answer."""
    answer = answer_tokens(task.lens, forwards.clean(prompt)[0], None)
    FlowOn(task, prompt, number).of_row(forwards, 0, answer)


def measure(lens: Lens, prompts: Sequence[Prompt], window: int, rounds: int, device: torch.device) -> Row:
    """All points of one prompt a round."""
    task = FlowTask(lens, as_routes(ROUTES), tuple(range(lens.n_layers)), window, 1, 0, True)
    forwards = Forwards(lens, Batches(None, lens.device))
    all_points(task, forwards, prompts[-1], 0)  # the first prompt also pays for the check against the model
    ratios, knocked, replays, forward, worst, points = [], [], [], [], 0.0, 0
    for number in range(rounds):
        prompt = prompts[number % (len(prompts) - 1)]
        flow = FlowOn(task, prompt, number)
        points = len(flow.cells)
        changes = flow.changes(0, 0)
        sampled = changes[number % points :: max(1, points // N_SAMPLED)][:N_SAMPLED]
        base = [seconds(partial(plain, lens, prompt), device) for _ in sampled]
        found: dict[int, Run] = {}
        own = [
            seconds(partial(store, found, i, partial(lens.run, prompt, [change.intervention], logits="last")), device)
            for i, change in enumerate(sampled)
        ]
        spent = seconds(partial(all_points, task, forwards, prompt, number), device)
        logits, _ = forwards.replayed(prompt, 0, sampled)
        for mine, run in zip(logits, found.values(), strict=True):
            worst = max(worst, float((mine - run.logits[0, 0]).abs().max()))
        ratios.append(statistics.mean(base) * points / spent)
        knocked.append(statistics.mean(own) * points / spent)
        replays.append(spent)
        forward.append(statistics.mean(base))
    return Row(statistics.median(ratios), statistics.median(knocked), points, replays, forward, worst)


def table_of(results: dict[tuple[str, int], Row]) -> list[list[str]]:
    """Header and rows, as text."""
    head = ["", "window", "points", "times as fast as plain forwards", "target", "as knocked-out ones"]
    lines = [[*head, "all points", "one forward", "logits differ by"]]
    for (model, window), row in results.items():
        replay, forward = (f"{statistics.median(x) * 1000:,.0f} ms" for x in (row.replay, row.forward))
        target = str(TARGET) if model.startswith("8 layers") else ""
        ratios = [f"{row.ratio:.1f}", target, f"{row.knocked:.1f}"]
        lines.append([model, str(window), str(row.points), *ratios, replay, forward, f"{row.difference:.1g}"])
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flow", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round; writes no file")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", choices=SIZES, default="mid", help="of the decoder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    rounds = 1 if options.quick else options.rounds
    results: dict[tuple[str, int], Row] = {}

    lens = Lens(build(options.size, device))
    name = f"{lens.n_layers} layers x {lens.n_heads} heads, 700 tokens"
    prompts = [prompt_of(lens, 700) for _ in range(max(2, rounds) + 1)]  # one a round: a prompt is recorded once
    for window in WINDOWS:
        results[name, window] = measure(lens, prompts, window, rounds, device)
        print(name, window, f"{results[name, window].ratio:.1f}", flush=True)
    noise = spread(results[name, WINDOWS[0]].forward) if rounds > 1 else 0.0
    del lens

    demo = Lens.demo()
    asked = [sample.prompt(demo) for sample in data.shapes(n=21, seed=0)]
    name = f"bundled model, {demo.n_layers} x {demo.n_heads} heads, {asked[0].n_tokens} tokens"
    results[name, 3] = measure(demo, asked, 3, 4 * rounds, device)
    notes = (
        f"{machine(device)}. The routes image to question, image to last and question to last, with a draw of random "
        "keys; windows at the ends of a model that have the same layers count once. Recording the prompt is part of "
        f"all points. Medians of {rounds} rounds ({4 * rounds} for the bundled model); a round's rivals are the mean "
        f"of {N_SAMPLED} forwards, times the number of points; the plain one varied by {noise:.0%} (interquartile "
        "range). The first prompt of a call also pays for a forward that checks the replays against the model."
    )
    lines = table_of(results)
    show(lines, notes)
    if not options.quick:
        path = RESULTS / f"flow{'' if device.type == 'cpu' else f'_{device.type}'}.md"
        write(lines, "Information flow: all points of one prompt, beside one full forward a point", notes, path)


if __name__ == "__main__":
    main()
