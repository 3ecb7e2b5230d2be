"""What the study of vision heads would cost on a model of 7B, an estimate: `python -m benchmarks.plan_7b`.

`lmm-lens study heads CONFIG --plan` measures on the model itself. This is for a model that is not at hand: the shape of
LLaVA-1.5-7B with random weights is measured at one layer and at two, a layer's time is the difference, and what the
study does is counted in forwards of the whole model: its sets of heads are drawn as the study draws them.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lmm_lens import Lens, Prompt
from lmm_lens.studies.curves import Arm, arms
from lmm_lens.studies.head_study import HeadSettings

from .model import twin
from .real_models import LLAVA, TEXT_AFTER, TEXT_BEFORE, RealModel
from .size_7b import var_of
from .timing import machine, peak_bytes, seconds, show, write

RESULTS = Path(__file__).parent / "results"
N_PROMPTS, N_TEXT_TOKENS, GPU = 500, TEXT_BEFORE + TEXT_AFTER, 0.1


@dataclass(frozen=True)
class Forward:
    """A forward of the whole model.

    Attributes:
        seconds: estimated.
        weights: bytes.
        beside: bytes that a forward with VAR in it holds at most beside the weights.
    """

    seconds: float
    weights: int
    beside: int


def measured(model: RealModel, device: torch.device, rounds: int) -> Forward:
    """A forward of one layer and of two; of all, as many more layers."""
    times, beside = [], 0
    for n_layers in (1, 2):
        lens = model.build(n_layers, device)
        prompt = model.prompt(lens)
        times.append(timed(lens, prompt, rounds))
        beside = peak_bytes(partial(lens.run, prompt, [var_of(model)], logits="last"), device)
        twin.cache_clear()
    each = times[1] - times[0]
    return Forward(times[0] + (model.n_layers - 1) * each, model.weights(model.n_layers), beside)


def timed(lens: Lens, prompt: Prompt, rounds: int) -> float:
    """Seconds of a plain forward, the median."""
    plain = twin(lens.model, "sdpa")

    def forward() -> None:
        with torch.no_grad():
            plain(**prompt.inputs, use_cache=False, logits_to_keep=1)

    forward()
    return statistics.median(seconds(forward, lens.device) for _ in range(rounds))


def replayed(drawn: tuple[Arm, ...], n_layers: int) -> float:
    """Forwards that removing sets of heads in all rows takes: of each set, the layers from its first head on."""
    sets = [each for arm in drawn for each in arm.units]
    return sum(n_layers - min(layer for layer, _ in heads) for heads in sets) / n_layers


def stages(model: RealModel, settings: HeadSettings) -> list[tuple[str, int, float]]:
    """Of each stage: what, how many samples, and how many forwards of a sample with its picture each takes."""
    n_layers, n_heads = model.n_layers, int(model.config["text_config"]["num_attention_heads"])
    n_tokens = model.n_visual + N_TEXT_TOKENS
    maps = torch.rand(n_layers, n_heads, generator=torch.Generator().manual_seed(0))
    removed = replayed(arms(maps, settings.ks, settings.controls, settings.seed), n_layers)
    one_row = n_heads * (n_layers + 1) / 2 / n_tokens  # each head's last row in all layers from its own on
    return [
        ("looks: every head of every sample", N_PROMPTS, 1.0),
        ("effects: every head removed, last row", N_PROMPTS // 2, 1 + one_row),
        ("removed: sets of heads, all rows, with a picture", N_PROMPTS // 2, 1 + removed),
        ("removed: the same, without a picture", N_PROMPTS, (1 + removed) * N_TEXT_TOKENS / n_tokens),
    ]


def main() -> None:
    """Measure, count, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan_7b", description="The plan of a study at 7B")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    forward = measured(LLAVA, device, options.rounds)
    found = [(what, n, n * each) for what, n, each in stages(LLAVA, HeadSettings())]
    total = sum(forwards for *_, forwards in found)
    lines = [["", "samples", "forwards", "hours here", f"hours at {GPU} s a forward"]]
    for what, n, forwards in [*found, ("in all", N_PROMPTS, total)]:
        hours = (f"{forwards * each / 3600:,.1f}" for each in (forward.seconds, GPU))
        lines.append([what, f"{n:,}", f"{forwards:,.0f}", *hours])
    notes = (
        f"{machine(device)}. An estimate: no model of 7B was run. A forward of {LLAVA.name} of "
        f"{LLAVA.n_visual + N_TEXT_TOKENS} tokens, {LLAVA.n_visual} of them a picture, takes {forward.seconds:.1f} s "
        f"here: {LLAVA.n_layers} layers as long as the second of two in random bf16 weights (median of "
        f"{options.rounds}). {GPU} s are what a GPU takes at 90 TFLOP/s. Replays are counted as the rows and layers "
        "that they run; tokenising, pictures, the vision tower and files are not counted. Memory: "
        f"{forward.weights / 1e9:.1f} GB of weights, and {forward.beside / 1e9:.2f} GB that a forward with VAR holds "
        "beside them; replays take more, up to what is free, in batches."
    )
    show(lines, notes)
    name = f"plan_7b{'' if device.type == 'cpu' else f'_{device.type}'}.md"
    write(lines, f"A study of vision heads on 7B, {N_PROMPTS} prompts: the plan", notes, RESULTS / name)


if __name__ == "__main__":
    main()
