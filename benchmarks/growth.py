"""How costs grow with tokens, layers, heads, batch and new tokens, beside the plain forward's or generation's.

`python -m benchmarks.growth`. A cost that is c x^e has the exponent e, which is fitted here over one axis at a time
with the others held. Nothing of ours may grow faster than its base by more than `SLACK` and end up above it by as much.

An edit of rows of the pattern computes these rows beside the kernel, which has computed them too. What that must cost
is measured by the same forward whose kernel computes these rows twice, `TWICE`: nothing of ours, and a base for edits
of so many rows that this part, which grows with the square of the tokens, is not small beside the rest, which does not.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from .growth_verbs import OURS, PLAIN, QUARTER, TWICE, VAR_HERE, VERBS, WIDTH, Point, base_of, measures
from .timing import interleaved, machine, peak_bytes, show, table, write

RESULTS = Path(__file__).parent / "results" / "growth.md"
SLACK = 0.1
AXES: dict[str, Sequence[int]] = {
    "layers": (2, 4, 8, 16),
    "heads": (4, 8, 16, 32),
    "batch": (1, 2, 4, 8),
    "new": (32, 64, 128, 256, 512),
}
LONG, FEWER = 4000, 5  # above so many tokens there are so many times fewer rounds
Costs = Mapping[str, Sequence[tuple[float, float]]]
"""Of every verb, seconds and peak bytes at each point of an axis."""


def exponent(xs: Sequence[int], costs: Sequence[float]) -> float:
    """The slope of log cost over log x, least squares, of the upper half of the points, where little is fixed."""
    n = upper_half(xs)
    pairs = [(math.log(x), math.log(max(cost, 1e-9))) for x, cost in zip(xs[-n:], costs[-n:], strict=True)]
    x_mean, y_mean = (statistics.fmean(pair[index] for pair in pairs) for index in (0, 1))
    return sum((x - x_mean) * (y - y_mean) for x, y in pairs) / sum((x - x_mean) ** 2 for x, _ in pairs)


def upper_half(xs: Sequence[int]) -> int:
    """How many points are fitted, the last ones."""
    return max(2, math.ceil(len(xs) / 2) + 1)


def measured(point: Point, names: Sequence[str], rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds and peak bytes of verbs at one point."""
    lens, prompt = point.build()
    if not lens.run(prompt, [VAR_HERE], logits="last").reports[0].n_edits:
        raise SystemExit("VAR has nothing to edit here, so its cost says nothing")
    device = torch.device("cpu")
    calls = {name: partial(VERBS[name], lens, prompt, point) for name in names}
    memory = {name: peak_bytes(call, device) for name, call in calls.items()}
    times = interleaved(calls, rounds if point.tokens <= LONG else fewer(rounds), device)
    return {name: (statistics.median(times[name]), memory[name]) for name in names}


@dataclass(frozen=True)
class Grown:
    """How the costs of verbs grow along one axis.

    Attributes:
        xs: its points.
        costs: there.
    """

    xs: Sequence[int]
    costs: Costs

    def exponent(self, name: str, what: int) -> float:
        """Of its time, 0, or memory, 1."""
        return exponent(self.xs, [cost[what] for cost in self.costs[name]])

    def ratio(self, name: str, what: int, base: str) -> float:
        """Its cost at the last point as a multiple of its base's."""
        return self.costs[name][-1][what] / self.costs[base][-1][what]

    def added(self, name: str, what: int) -> float | None:
        """The exponent of what it costs more than its base; None where that is no more than `SLACK` of it somewhere."""
        base, n = base_of(name), upper_half(self.xs)
        pairs = list(zip(self.costs[name], self.costs[base], strict=True))
        if any(own[what] < (1 + SLACK) * plain[what] for own, plain in pairs[-n:]):
            return None
        return exponent(self.xs, [own[what] - plain[what] for own, plain in pairs])

    def is_faster(self, name: str, what: int, base: str) -> bool:
        """Whether it grows faster than its base, and ends up above it."""
        above = self.exponent(name, what) - self.exponent(base, what)
        return above > SLACK and self.ratio(name, what, base) > 1 + SLACK


def fewer(rounds: int) -> int:
    """Rounds where a call takes long."""
    return max(1, rounds // FEWER)


def grown(axis: str, xs: Sequence[int], base: Point, rounds: int) -> Grown:
    """What verbs cost along an axis."""
    names = [name for name in VERBS if measures(axis, name)]
    points = [measured(replace(base, **{axis.split(",")[0]: x}), names, rounds) for x in xs]
    return Grown(xs, {name: [point[name] for point in points] for name in names})


WHATS = ("time", "memory")


def table_of(results: Mapping[str, Grown]) -> list[list[str]]:
    """Header and rows as text: exponents, multiples of the base, and what grows faster than it."""
    lines = [["", *(f"{what} by {axis}" for axis in results for what in WHATS), "faster than its base"]]
    for name in VERBS:
        line, faster = [name], []
        for axis, found in results.items():
            for index, what in enumerate(WHATS):
                if name not in found.costs:
                    line.append("")
                    continue
                base = base_of(name)
                line.append(f"{found.exponent(name, index):.2f} ({found.ratio(name, index, base):.2f} x)")
                if name in OURS and found.is_faster(name, index, base):
                    faster.append(f"{what} by {axis}" + beside_twice(found, name, index, axis))
        lines.append([*line, "" if name not in OURS else "; ".join(faster) or "no"])
    return lines


def beside_twice(found: Grown, name: str, what: int, axis: str) -> str:
    """How an edit of many rows compares with a forward that computes these rows twice, if anything is compared."""
    if axis != QUARTER or base_of(name) != PLAIN:
        return ""
    than = "faster than" if found.is_faster(name, what, TWICE) else "not faster than"
    more = found.ratio(name, what, TWICE)
    return f" ({than} the forward that computes these rows twice, {found.exponent(TWICE, what):.2f}, {more:.2f} x it)"


def added_of(results: Mapping[str, Grown]) -> list[list[str]]:
    """The same of what verbs add to their base, where that is more than `SLACK` of it all along."""
    lines = [["", *(f"{what} by {axis}" for axis in results for what in WHATS)]]
    for name in [TWICE, *OURS]:
        line = [name]
        for found in results.values():
            for index in range(len(WHATS)):
                added = found.added(name, index) if name in found.costs else None
                share = "" if added is None else f" (+ {found.ratio(name, index, base_of(name)) - 1:.0%})"
                line.append("" if added is None else f"{added:.2f}{share}")
        if any(line[1:]):
            lines.append(line)
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description="How costs grow")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16000, help="the most; half as many take a fourth of the time")
    parser.add_argument("--quick", action="store_true", help="two small points an axis, one round; writes no file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 1 if options.quick else options.rounds
    results: dict[str, Grown] = {}
    tokens = [500 << n for n in range(20) if 500 << n <= options.tokens]
    axes: dict[str, tuple[Sequence[int], Point]] = {"tokens": (tokens, Point()), QUARTER: (tokens, Point(after=0))}
    axes |= {axis: (xs, Point()) for axis, xs in AXES.items()}
    for axis, (values, base) in axes.items():
        results[axis] = grown(axis, values[:2] if options.quick else values, base, rounds)
        lines, notes = table_of(results), notes_of(results, rounds)
        if not options.quick:
            write(lines, "How costs grow", notes, RESULTS)  # what there is so far
    show(lines, notes)


def notes_of(results: Mapping[str, Grown], rounds: int) -> str:
    """What was measured, and what is added to the base."""
    told = "; ".join(f"{axis} {found.xs[0]:,} to {found.xs[-1]:,}" for axis, found in results.items())
    return (
        f"{machine(torch.device('cpu'))}. Exponents e of cost = c x^e over the upper half of each axis, and in "
        f"brackets the cost at its last point as a multiple of the base's, which is the plain forward or generation; "
        f"medians of {rounds} rounds, of {fewer(rounds)} above {LONG:,} tokens; time is that of the computing thread. "
        f"Axes: {told}; the others 1,000 tokens, 2 layers, 8 heads, 1 row, 8 new tokens, width {WIDTH}. 90 rows behind "
        'the pictures are edited, under "a quarter edited" a quarter of all. Faster is what has an exponent of more '
        f"than {SLACK} above its base's and ends up at more than {1 + SLACK} times its cost.\n\n"
        "An edit of the pattern computes the rows that it edits beside the fused kernel, which has computed them too: "
        "what is added grows as attention does, with the square of the tokens where a share of all rows is edited, "
        "while a forward of few layers and a small width has parts that grow with the tokens alone. "
        f'"{TWICE[0].upper()}{TWICE[1:]}" is such a forward whose fused kernel computes these rows once more, with a '
        f"mask: nothing of ours.\n\n## What is added to the base\n\nThe exponents of the cost above the base's, where "
        f"it is more than {SLACK:.0%} of it at every point fitted, and its share of it at the last.\n\n"
        f"{table(added_of(results))}"
    )


if __name__ == "__main__":
    main()
