"""How costs grow with tokens, layers, heads, batch and new tokens, beside the plain forward's or generation's.

`python -m benchmarks.growth`. A cost that is c x^e has the exponent e, which is fitted here over one axis at a time
with the others held. Nothing of ours may grow faster than its base by more than `SLACK` and end up above it by as much.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lmm_lens import (
    VAR,
    AblateHeads,
    HeadSet,
    Knockout,
    Lens,
    Prompt,
    attention_map,
    direct_attribution,
    logit_lens,
    score_heads,
)

from .model import BOS, IMAGE_TOKEN, MASSIVE, SINK_DIMS, SINK_PATCHES
from .timing import interleaved, machine, peak_bytes, show, write

RESULTS = Path(__file__).parent / "results" / "growth.md"
WIDTH, PICTURE, SLACK = 128, 49, 0.1
AXES: dict[str, Sequence[int]] = {
    "tokens": (500, 1000, 2000),
    "layers": (2, 4, 8),
    "heads": (4, 8, 16, 32),
    "batch": (1, 2, 4),
    "new": (8, 16, 32, 64),
}


@dataclass(frozen=True)
class Point:
    """A model and a prompt.

    Attributes:
        tokens: of each row, pictures as many as there is room for before `after`.
        layers, heads: of the decoder, whose width stays.
        batch: rows.
        new: tokens that are generated.
        after: tokens behind the last picture; 0 for a quarter of the tokens.
    """

    tokens: int = 1000
    layers: int = 2
    heads: int = 8
    batch: int = 1
    new: int = 8
    after: int = 90

    def build(self) -> tuple[Lens, Prompt]:
        """The lens and the prompt; the picture's features are given, and hold sinks."""
        after = self.after or self.tokens // 4
        text = LlamaConfig(
            vocab_size=1000,
            hidden_size=WIDTH,
            intermediate_size=352,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=1 << 15,
            bos_token_id=BOS,
        )
        vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
        torch.manual_seed(0)
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)
        model: Any = LlavaForConditionalGeneration(config).eval()
        model.generation_config.eos_token_id = None
        n_pictures = (self.tokens - 1 - after) // PICTURE
        n_visual = n_pictures * PICTURE
        ids = torch.randint(3, IMAGE_TOKEN, (self.batch, self.tokens))
        start = self.tokens - after - n_visual
        ids[:, 0], ids[:, start : start + n_visual] = BOS, IMAGE_TOKEN
        pictures = torch.randn(self.batch * n_pictures, PICTURE, WIDTH) / 50
        for dim in SINK_DIMS:
            pictures[::n_pictures, [place % PICTURE for place in SINK_PATCHES], dim % WIDTH] = MASSIVE
        features: Any = [*pictures]  # a list, as the model's own are
        given = {"image": BaseModelOutputWithPooling(pooler_output=features)}
        lens = Lens(model)
        return lens, lens.prompt(inputs={"input_ids": ids, "mm_encoder_outputs": given})


VAR_HERE = VAR(
    sink_dims=tuple(dim % WIDTH for dim in SINK_DIMS),
    sink_threshold=8,
    min_nonsink_ratio=0,
    min_visual_mass=0,
    first_layer=0,
    skip_last_layer=False,
)


Verb = Callable[[Lens, Prompt, int], Any]
"""What is done with a lens and a prompt; a generation makes so many tokens."""
Grown = tuple[float, float, float, float]
"""Exponents of time and memory, and both as multiples of the base's at the last point."""


def plain(lens: Lens, prompt: Prompt, n_new: int) -> Any:
    """A pass of transformers, without us."""
    with torch.no_grad():
        return lens.model(**prompt.inputs, use_cache=False, logits_to_keep=1)


def plain_generate(lens: Lens, prompt: Prompt, n_new: int) -> Any:
    """New tokens by transformers."""
    with torch.no_grad():
        return lens.model.generate(**prompt.inputs, max_new_tokens=n_new, do_sample=False, pad_token_id=0)


def run(*edits: Any) -> Verb:
    """A pass of ours."""
    return lambda lens, prompt, n_new: lens.run(prompt, edits, logits="last")


def generate(*edits: Any) -> Verb:
    """New tokens by us."""
    return lambda lens, prompt, n_new: lens.generate(prompt, edits, max_new_tokens=n_new)


def ablate(lens: Lens, prompt: Prompt, n_new: int) -> Any:
    """Every second head zeroed behind the picture."""
    heads = [(layer, head) for layer in range(lens.n_layers) for head in range(0, lens.n_heads, 2)]
    edit = AblateHeads(HeadSet(heads, lens.n_layers, lens.n_heads), "zero", "after_image")
    return lens.run(prompt, [edit], logits="last")


KNOCKOUT = Knockout("image", "after_image")
PLAIN, GENERATED = "plain forward", "plain generation"
OF_A_PASS: dict[str, Verb] = {
    PLAIN: plain,
    "`run`": run(),
    "`score_heads`": lambda lens, prompt, n_new: score_heads(lens, prompt, metric="visual_mass"),
    "`attention_map`": lambda lens, prompt, n_new: attention_map(lens, prompt),
    "`logit_lens`, last row": lambda lens, prompt, n_new: logit_lens(lens, prompt, rows="last"),
    "`direct_attribution`": lambda lens, prompt, n_new: direct_attribution(lens, prompt, 5, 6, by="head"),
    "VAR": run(VAR_HERE),
    "`Knockout`": run(KNOCKOUT),
    "`AblateHeads`": ablate,
}
OF_A_GENERATION: dict[str, Verb] = {
    GENERATED: plain_generate,
    "`generate`": generate(),
    "`generate`: VAR": generate(VAR_HERE),
    "`generate`: `Knockout`": generate(KNOCKOUT),
}
VERBS = {name: (PLAIN, verb) for name, verb in OF_A_PASS.items()}
VERBS |= {name: (GENERATED, verb) for name, verb in OF_A_GENERATION.items()}
ONE_ROW = ("`attention_map`", "`logit_lens`, last row", "`direct_attribution`")
"""What takes one row of a batch."""


def measures(axis: str, name: str) -> bool:
    """Whether a verb has anything to do with an axis."""
    return name in OF_A_GENERATION if axis == "new" else axis != "batch" or name not in ONE_ROW


def exponent(xs: Sequence[int], costs: Sequence[float]) -> float:
    """The slope of log cost over log x, least squares, of the upper half of the points, where little is fixed."""
    n = max(2, math.ceil(len(xs) / 2) + 1)
    pairs = [(math.log(x), math.log(max(cost, 1e-9))) for x, cost in zip(xs[-n:], costs[-n:], strict=True)]
    x_mean, y_mean = (statistics.fmean(pair[index] for pair in pairs) for index in (0, 1))
    return sum((x - x_mean) * (y - y_mean) for x, y in pairs) / sum((x - x_mean) ** 2 for x, _ in pairs)


def measured(point: Point, names: Sequence[str], rounds: int) -> dict[str, tuple[float, int]]:
    """Seconds and peak bytes of verbs at one point."""
    lens, prompt = point.build()
    if not lens.run(prompt, [VAR_HERE], logits="last").reports[0].n_edits:
        raise SystemExit("VAR has nothing to edit here, so its cost says nothing")
    device = torch.device("cpu")
    calls = {name: partial(VERBS[name][1], lens, prompt, point.new) for name in names}
    memory = {name: peak_bytes(call, device) for name, call in calls.items()}
    times = interleaved(calls, rounds, device)
    return {name: (statistics.median(times[name]), memory[name]) for name in names}


def grown(axis: str, xs: Sequence[int], base: Point, rounds: int) -> dict[str, Grown]:
    """Of every verb, the exponents of time and memory, and both as multiples of its base's at the last point."""
    names = [name for name in VERBS if measures(axis, name)]
    points = [measured(replace(base, **{axis: x}), names, rounds) for x in xs]
    found = {}
    for name in names:
        against = VERBS[name][0]
        time, memory = (exponent(xs, [point[name][index] for point in points]) for index in (0, 1))
        last = points[-1]
        found[name] = time, memory, last[name][0] / last[against][0], last[name][1] / last[against][1]
    return found


def table_of(
    results: Mapping[str, Mapping[str, Grown]],
) -> tuple[list[list[str]], list[str]]:
    """Header and rows as text, and what grows faster than its base."""
    lines = [["", *(f"{what} by {axis}" for axis in results for what in ("time", "memory"))]]
    faster = []
    for name, (against, _) in VERBS.items():
        line = [name]
        for axis, found in results.items():
            for index, what in enumerate(("time", "memory")):
                if name not in found:
                    line.append("")
                    continue
                own, base, more = found[name][index], found[against][index], found[name][index + 2]
                line.append(f"{own:.2f} ({more:.2f} x)")
                if own > base + SLACK and more > 1 + SLACK:
                    faster.append(f"{name}, {what} over {axis}: {own:.2f} against {base:.2f}")
        lines.append(line)
    return lines, faster


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description="How costs grow")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=4000, help="the most; 16,000 take an hour")
    parser.add_argument("--quick", action="store_true", help="two small points an axis, one round; writes no file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 1 if options.quick else options.rounds
    results = {}
    axes = {**AXES, "tokens": [500 << n for n in range(20) if 500 << n <= options.tokens]}
    for axis, values in axes.items():
        xs = values[:2] if options.quick else values
        results[axis] = grown(axis, xs, Point(), rounds)
        if axis == "tokens":
            results["tokens, a quarter edited"] = grown(axis, xs, Point(after=0), rounds)
        told = "; ".join(f"{axis} {values[0]:,} to {values[-1]:,}" for axis, values in axes.items() if axis in results)
        lines, notes = table_of(results)[0], notes_of(results, told, rounds)
        if not options.quick:
            write(lines, "How costs grow", notes, RESULTS)  # what there is so far
    show(lines, notes)


def notes_of(results: Mapping[str, Mapping[str, Grown]], told: str, rounds: int) -> str:
    """What was measured, and what grows faster than its base."""
    faster = table_of(results)[1]
    verdict = "Faster than their base: " + "; ".join(faster) if faster else "Nothing grows faster than its base"
    return (
        f"{machine(torch.device('cpu'))}. Exponents e of cost = c x^e over the upper half of each axis, and in "
        f"brackets the cost at its last point as a multiple of the base's, medians of {rounds} rounds; time is that of "
        f"the computing thread. Axes: {told}; the others 1,000 tokens, 2 layers, 8 heads, 1 row, 8 new tokens, width "
        f'{WIDTH}. 90 rows behind the pictures are edited, under "a quarter edited" a quarter of all. {verdict} (by '
        f"more than {SLACK}, and above {1 + SLACK} times its base)."
    )


if __name__ == "__main__":
    main()
