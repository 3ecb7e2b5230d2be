"""What a step costs in batches and over long prompts: `python -m benchmarks.long_steps`.

Where many keys are read, a step is bound by memory and not by the host, and an edit of the pattern reads the keys, or
keys and values, a second time. Each row is held against what the attention operation itself takes there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LogitsProcessor

from lmm_lens import VAR, AblateHeads, Knockout, Lens, Prompt

from .model import BOS, SINK_DIMS, given_pictures
from .timing import machine, show, write

RESULTS = Path(__file__).parent / "results" / "long_steps.md"
WIDTH, N_HEADS, D_HEAD, N_LAYERS, AFTER = 512, 8, 128, 2, 90
N_NEW = 14
POINTS = ((1, 588), (8, 588), (32, 588), (1, 2891), (8, 2891), (1, 8036))
"""Batch rows and visual tokens of each."""


class Stamps(LogitsProcessor):
    """Notes when each step ends, by the time of the computing thread."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.at.append(time.thread_time())
        return scores

    def steps(self) -> list[float]:
        """Seconds of the steps; the prompt's pass and the first two, in which attention is checked, are left out."""
        return [after - before for before, after in zip(self.at[2:], self.at[3:], strict=False)]


def built(batch: int, n_visual: int) -> tuple[Lens, Prompt]:
    """A decoder with heads as wide as those of a 7B model, and a prompt whose pictures hold sinks."""
    text = LlamaConfig(
        vocab_size=1000,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        head_dim=D_HEAD,
        max_position_embeddings=1 << 14,
        bos_token_id=BOS,
    )
    return given_pictures(text, batch, 1 + n_visual + AFTER, AFTER)


def edits(lens: Lens) -> dict[str, Any]:
    """By what is measured."""
    heads = [(layer, layer) for layer in range(lens.n_layers)]
    dims = tuple(dim % WIDTH for dim in SINK_DIMS)
    return {
        "one head of each layer ablated": AblateHeads(heads, rows="all"),
        "knockout of the image": Knockout("image", "after_image"),
        "VAR in all layers": VAR(0.6, 0.0, 0.0, 8.0, dims, first_layer=0, skip_last_layer=False),
    }


def timed(call: Callable[..., Any]) -> list[float]:
    """Seconds of the late steps of one generation."""
    stamps = Stamps()
    call(max_new_tokens=N_NEW, logits_processor=[stamps])
    return stamps.steps()


def plainly(lens: Lens, prompt: Prompt, **options: Any) -> Any:
    """A generation of transformers."""
    with torch.no_grad():
        return lens.model.generate(**prompt.inputs, do_sample=False, pad_token_id=0, **options)


def attention_seconds(batch: int, n_keys: int, rounds: int = 15) -> float:
    """The fused kernel by itself on one row a batch member."""
    query = torch.randn(batch, N_HEADS, 1, D_HEAD)
    key, value = (torch.randn(batch, N_HEADS, n_keys, D_HEAD) for _ in range(2))
    times = []
    for _ in range(rounds):
        began = time.thread_time()
        functional.scaled_dot_product_attention(query, key, value)
        times.append(time.thread_time() - began)
    return statistics.median(times)


def measured(batch: int, n_visual: int, rounds: int) -> list[list[str]]:
    """A heading and a row a call."""
    lens, prompt = built(batch, n_visual)
    for name, edit in edits(lens).items():
        if not lens.run(prompt, [edit], logits="last").reports[0].n_edits:
            raise SystemExit(f"{name} edits nothing here, so its cost says nothing")
    calls: dict[str, Callable[..., Any]] = {
        "model.generate": partial(plainly, lens, prompt),
        "lens.generate": partial(lens.generate, prompt),
        **{name: partial(lens.generate, prompt, [edit]) for name, edit in edits(lens).items()},
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name] += timed(call)
    own = attention_seconds(batch, prompt.n_tokens)
    first = statistics.median(times["model.generate"])
    what = f"**{batch} x {n_visual:,} visual tokens** (attention {own * 1000:.2f} ms a layer)"
    lines = [[what, "", "", "", ""]]
    for name, of_steps in times.items():
        took = statistics.median(of_steps)
        more = (took - first) / N_LAYERS
        lines.append([name, f"{took * 1000:.2f}", f"{took / first:.2f}", f"{more * 1000:.2f}", f"{more / own:.2f}"])
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_steps", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [["", "ms a step", "ratio", "more a layer, ms", "in units of attention"]]
    for batch, n_visual in POINTS:
        lines += measured(batch, n_visual, options.rounds)
        print(lines[-1], flush=True)
    notes = (
        f"{machine(torch.device('cpu'))}. {N_LAYERS} layers of {N_HEADS} heads x {D_HEAD}, width {WIDTH}, fp32; "
        f"medians of {options.rounds} generations, in turn. The unit is the fused kernel of one layer, by itself. "
        "A row that takes less than the model alone does shows how much the machine's speed went up and down."
    )
    show(lines, notes)
    write(lines, "What a step costs in batches and over long prompts", notes, RESULTS)


if __name__ == "__main__":
    main()
