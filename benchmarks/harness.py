"""What every benchmark shares: what a case is, how cases are measured, and their table.

Every case is divided by its base, the plain sdpa forward of the same weights if nothing else, in time and peak memory.
All cases of one base run once a round, in random order, and a time is compared with the base's of the same round.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook

from lmm_lens import HeadSet, Lens, Prompt

from .model import LENGTHS, SIZES, build, prompt_of, twin
from .timing import interleaved, machine, peak_bytes, show, spread, write

RESULTS = Path(__file__).parent / "results"
N_HEADS_EDITED, N_NEW, MEMORY_TARGET = 16, 50, 1.1


@dataclass(frozen=True)
class Setting:
    """What a case may use.

    Attributes:
        lens: on a model of its own.
        prompt: the inputs of every pass, picture features included.
        heads: random heads to edit.
    """

    lens: Lens
    prompt: Prompt
    heads: HeadSet

    def model(self, attention: str = "sdpa") -> Any:
        """A model without a lens, on the lens's weights, with one of transformers' attention functions."""
        return twin(self.lens.model, attention)

    def forward(self, model: Any, **options: bool) -> Any:
        """A pass of transformers."""
        with torch.no_grad():
            return model(**self.prompt.inputs, use_cache=False, logits_to_keep=1, **options)

    def generate(self, model: Any) -> Any:
        """New tokens by transformers."""
        with torch.no_grad():
            return model.generate(**self.prompt.inputs, max_new_tokens=N_NEW, do_sample=False)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: what is done.
        run: does it.
        target: how many times its base it may take; with one, its peak memory has a target too.
        base: what it is compared with; None for the plain forward. Bases themselves are compared with themselves.
        same_logits: the case that must give the same logits, in every step of a generation.
        tolerance: how far these logits may differ, in fp32; 0 is to the last bit.
        rival: another way to the same end; slow, and measured in a third of the rounds.
        lengths: of prompts at which it is measured.
    """

    name: str
    run: Callable[[Setting], Any]
    target: float | None = None
    base: Case | None = None
    same_logits: Case | None = None
    tolerance: float = 0.0
    rival: bool = False
    lengths: Sequence[int] = tuple(LENGTHS)


PLAIN = Case("plain forward (sdpa)", lambda s: s.forward(s.model()))


def base_of(case: Case, cases: Sequence[Case]) -> Case:
    """What a case is compared with."""
    return case if case in {other.base for other in cases} else case.base or PLAIN


@dataclass(frozen=True)
class Row:
    """What came out for one case at one length.

    Attributes:
        ratio: of its time to that of its base in the same round, the median over rounds.
        seconds: of each call.
        memory_ratio: of its peak memory to that of its base.
        memory: peak bytes of tensors held at once, above what was held before the call.
        difference: the largest, of the logits of the first answer token to those of the base.
        edits: rows times heads that the interventions of the first call edited.
    """

    ratio: float
    seconds: list[float]
    memory_ratio: float
    memory: int
    difference: float
    edits: int


Results = Mapping[int, Mapping[str, Row]]


def watched(case: Case, setting: Setting) -> tuple[int, Tensor]:
    """How many edits a case reports, and the next token's logits [step, vocab] of each pass, of whichever model."""
    result, logits = logits_of(setting.lens.model, lambda: case.run(setting))
    return sum(report.n_edits for report in getattr(result, "reports", ())), logits


def logits_of(model: Any, call: Callable[[], Any]) -> tuple[Any, Tensor]:
    """What a call returns, and the logits [step, vocab] of each pass in it, of a model or one that shares weights."""
    head: Any = model.lm_head
    seen: list[Tensor] = []

    def see(module: torch.nn.Module, args: Any, out: Any) -> None:
        if getattr(module, "weight", None) is head.weight:
            seen.append(out[0, -1].float())

    hook = register_module_forward_hook(see)
    result = call()
    hook.remove()
    return result, torch.stack(seen)


def remember(first: dict[str, tuple[int, Tensor]], case: Case, setting: Setting) -> None:
    """Keep what `watched` gives of a case."""
    first[case.name] = watched(case, setting)


def measure(cases: Sequence[Case], setting: Setting, rounds: int, device: torch.device) -> dict[str, Row]:
    """Every case at one length. The first calls warm up, and give peak memory and logits."""
    first: dict[str, tuple[int, Tensor]] = {}
    memory: dict[str, int] = {}
    groups: dict[tuple[Case, bool], dict[str, Case]] = {}
    for case in cases:
        memory[case.name] = peak_bytes(partial(remember, first, case, setting), device)
        base = base_of(case, cases)
        groups.setdefault((base, case.rival), {base.name: base})[case.name] = case
        if case.same_logits is None or (case.tolerance and setting.lens.model.dtype != torch.float32):
            continue
        own, wanted = first[case.name][1], first[case.same_logits.name][1]
        if own.shape != wanted.shape or not bool(((own - wanted).abs() <= case.tolerance).all()):
            raise SystemExit(f"the logits must be those of {case.same_logits.name!r}, and are not: {case.name!r}")
    rows: dict[str, Row] = {}
    for (base, rival), group in groups.items():
        calls = {name: partial(case.run, setting) for name, case in group.items()}
        times = interleaved(calls, math.ceil(rounds / 3) if rival else rounds, device)
        for name in group.keys() - rows.keys():
            ratio = statistics.median(x / y for x, y in zip(times[name], times[base.name], strict=True))
            (edits, logits), (_, plain) = first[name], first[base.name]
            difference = float((logits[0] - plain[0]).abs().max())
            rows[name] = Row(ratio, times[name], memory[name] / memory[base.name], memory[name], difference, edits)
    return rows


def table_of(cases: Sequence[Case], results: Results) -> list[list[str]]:
    """Header and rows, as text."""
    header = ["", *(f"{what}, {n:,} tokens" for n in results for what in ("time", "memory"))]
    lines = [[*header, "target: time, memory", "logits differ by"]]
    for case in cases:
        line, worst = [case.name], 0.0
        for rows in results.values():
            row = rows.get(case.name)
            if row is None:
                line += ["", ""]
                continue
            line.append(f"{row.ratio:.2f} ({statistics.median(row.seconds) * 1000:,.0f} ms)")
            line.append(f"{row.memory_ratio:.2f} ({row.memory / 2**20:,.0f} MiB)")
            worst = max(worst, row.difference)
        lines.append([*line, f"{case.target}, {MEMORY_TARGET}" if case.target else "", f"{worst:.1g}"])
    return lines


def notes_of(results: Results, lens: Lens, device: torch.device) -> str:
    """On what, with what and when it was measured, and how noisy the machine was."""
    plain = {n: rows[PLAIN.name].seconds for n, rows in results.items()}
    rounds = " and ".join(f"{len(times)} rounds at {n:,} tokens" for n, times in plain.items())
    noise = " and ".join(f"{spread(times):.0%}" for times in plain.values())
    return (
        f"{machine(device)}. {lens}, {lens.model.dtype}. Time and peak memory are multiples of the plain forward, "
        f"times the medians of {rounds}, of a third of them for rivals. The plain forward itself varied by {noise} "
        "(interquartile range)."
    )


def main(name: str, title: str, cases: Sequence[Case], comment: Callable[[Results], str] = lambda results: "") -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=title)
    parser.add_argument("--repeats", type=int, default=5, help="rounds at 700 tokens; a third of them at 3,000")
    parser.add_argument("--quick", action="store_true", help="three rounds at 700 tokens alone; writes no file")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", choices=SIZES, default="mid", help="of the decoder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)

    model = build(options.size, device)
    twin(model, "sdpa")  # before there is a lens
    lens = Lens(model)
    shape = lens.n_layers, lens.n_heads
    heads = HeadSet(random.Random(0).sample([*HeadSet.all(*shape)], N_HEADS_EDITED), *shape)
    rounds = {700: 3} if options.quick else {700: options.repeats, 3000: max(2, options.repeats // 3)}
    results = {}
    for length, n_rounds in rounds.items():
        setting = Setting(lens, prompt_of(lens, length), heads)
        results[length] = measure([case for case in cases if length in case.lengths], setting, n_rounds, device)
    lines, notes = table_of(cases, results), f"{notes_of(results, lens, device)} {comment(results)}".strip()
    show(lines, notes)
    if not options.quick:
        write(lines, title, notes, RESULTS / f"{name}{'' if device.type == 'cpu' else f'_{device.type}'}.md")
