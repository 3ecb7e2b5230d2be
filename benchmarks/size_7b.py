"""What things cost at the shapes of released 7B models: `python -m benchmarks --size 7b`.

The weights are random bf16, the decoder has as many layers as memory holds (`--layers`, `--gib`), everything else is as
released. Each verb is a multiple of the plain forward or of the plain generation of the same weights. Costs that a
decoder of few layers makes look larger are those that a call has once, whatever the depth: reading the weights for the
model's identity, the products with the output embedding.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from lmm_lens import VAR, Lens, Prompt, logit_lens, score_heads
from lmm_lens.answers.items import Item
from lmm_lens.effects.ablations import Ablation, units_of
from lmm_lens.effects.work import EffectsWork
from lmm_lens.replay.batches import Batches

from .model import twin
from .real_models import MODELS, RealModel
from .timing import interleaved, machine, peak_bytes, show, spread, table

RESULTS = Path(__file__).parent / "results"
N_NEW = 8
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
"""Operations that wait for the device to hand a number or a shape to Python; on a GPU its own calls are counted."""
PASS = "a pass"
CUDA_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
PLAIN, GENERATED, SWEEP = "plain forward (sdpa)", f"plain generation of {N_NEW}", "sweep: every head, last row"


@dataclass(frozen=True)
class Row:
    """A verb on one model.

    Attributes:
        name: of the verb.
        time, memory: as multiples of its base's.
        seconds: of one call.
        bytes: the most that one call holds above the weights.
    """

    name: str
    time: float
    memory: float
    seconds: float
    bytes: int


def var_of(model: RealModel) -> VAR:
    """VAR in every layer, head and row behind the picture that sees a sink: the most it can cost."""
    settings: dict[str, Any] = {"min_nonsink_ratio": 0, "min_visual_mass": 0, "first_layer": 0}
    return VAR(sink_dims=model.sink_dims, skip_last_layer=False, **settings)


def sweep_of(lens: Lens, prompt: Prompt) -> Callable[[], Any]:
    """Every head ablated alone in the last row, of a prompt after the first, which also checks the sweep."""
    units = units_of(lens, None)
    work = EffectsWork(lens, Ablation(units[:1], "zero", "last"), Batches(None, lens.device))
    work(Item("first", prompt, answer=(3, 4)))
    work.ablation = Ablation(units, "zero", "last")
    return lambda: work(Item("", copy.copy(prompt), answer=(3, 4)))  # a prompt of its own is recorded anew


def generations(lens: Lens, prompt: Prompt, var: VAR, n_new: int) -> dict[str, Callable[[], Any]]:
    """New tokens by transformers, by us, and under VAR."""

    def plain() -> Any:
        with torch.no_grad():
            model = twin(lens.model, "sdpa")
            return model.generate(**prompt.inputs, max_new_tokens=n_new, do_sample=False, pad_token_id=0)

    return {
        f"plain generation of {n_new}": plain,
        f"`generate` {n_new}": partial(lens.generate, prompt, max_new_tokens=n_new),
        f"`generate` {n_new}: VAR, every layer and head": partial(lens.generate, prompt, [var], max_new_tokens=n_new),
    }


def verbs(lens: Lens, prompt: Prompt, var: VAR) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Name -> its base and what it does, in order."""

    def plain() -> Any:
        with torch.no_grad():
            return twin(lens.model, "sdpa")(**prompt.inputs, use_cache=False, logits_to_keep=1)

    by_forward: dict[str, Callable[[], Any]] = {
        PLAIN: plain,
        "`run`": partial(lens.run, prompt, logits="last"),
        "`score_heads`, all heads": partial(score_heads, lens, prompt, metric="visual_mass"),
        "VAR, every layer and head": partial(lens.run, prompt, [var], logits="last"),
        "`logit_lens`, last row": partial(logit_lens, lens, prompt, rows="last"),
        "`logit_lens`, all image rows": partial(logit_lens, lens, prompt),
        SWEEP: sweep_of(lens, prompt),
    }
    by_step = generations(lens, prompt, var, N_NEW)
    return {name: (PLAIN, call) for name, call in by_forward.items()} | {
        name: (GENERATED, call) for name, call in by_step.items()
    }


def waits_of_a_step(lens: Lens, call: Callable[[], object]) -> float:
    """How often a decoding step waits for the device: of a generation, between its second pass and its last."""
    cuda = lens.device.type == "cuda"
    names = CUDA_WAITS if cuda else WAITS

    def mark(*_: object) -> None:
        with record_function(PASS):
            pass

    decoders = (lens.model.get_decoder(), twin(lens.model, "sdpa").get_decoder())
    hooks = [decoder.layers[0].register_forward_pre_hook(mark) for decoder in decoders]
    try:
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as recorded:
            call()
    finally:
        for hook in hooks:
            hook.remove()
    events = recorded.profiler.kineto_results.events()
    passes = sorted(event.start_ns() for event in events if event.name() == PASS)
    found = [event for event in events if event.name() in names and passes[1] <= event.start_ns() < passes[-1]]
    return len(found) / (len(passes) - 2)


def measured(lens: Lens, model: RealModel, rounds: int) -> tuple[list[Row], float, list[float]]:
    """The rows of one model, how far the plain forward varied, and the waits of a decoding step."""
    prompt, var = model.prompt(lens), var_of(model)
    if not lens.run(prompt, [var], logits="last").reports[0].n_edits:
        raise SystemExit(f"VAR has nothing to edit in {model.name}, so its cost says nothing")
    all_of = verbs(lens, prompt, var)
    memory = {name: peak_bytes(call, lens.device) for name, (_, call) in all_of.items()}
    times = interleaved({name: call for name, (_, call) in all_of.items()}, rounds, lens.device)
    rows = []
    for name, (base, _) in all_of.items():
        ratio = statistics.median(own / other for own, other in zip(times[name], times[base], strict=True))
        rows.append(Row(name, ratio, memory[name] / memory[base], statistics.median(times[name]), memory[name]))
    counts = [waits_of_a_step(lens, call) for call in generations(lens, prompt, var, N_NEW).values()]
    return rows, spread(times[PLAIN]) if rounds > 1 else 0.0, counts


def section(
    lens: Lens, model: RealModel, rows: list[Row], varied: float, counts: list[float]
) -> tuple[list[list[str]], str]:
    """The table of one model, and what it was measured on."""
    lines = [["", "time", "", "memory", ""]]
    for row in rows:
        held = f"{row.bytes / 2**20:,.0f} MiB"
        lines.append([row.name, f"{row.time:.2f}", f"{row.seconds:.2f} s", f"{row.memory:.2f}", held])
    plain, ours, var = counts
    note = (
        f"{lens.n_layers} of {model.n_layers} layers, {lens.n_heads} heads of {lens.d_head}; {model.n_visual:,} image "
        f"tokens of {model.n_visual + 124:,}. The plain forward varied by {varied:.0%}. Waits for the device in a "
        f"decoding step: {plain:.1f} plain, {ours:.1f} with `lens.generate`, {var:.1f} with VAR."
    )
    return lines, note


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Costs at the shapes of 7B models")
    parser.add_argument("--size", choices=["7b"], required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="all by default")
    parser.add_argument("--layers", type=int, help="of the decoder; as many as memory holds by default")
    parser.add_argument("--gib", type=float, default=8.0, help="memory for weights on a CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    free = 0.8 * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else options.gib * 2**30
    path = RESULTS / f"size_7b{'' if device.type == 'cpu' else f'_{device.type}'}.md"
    parts = sections(path)  # of models that are not measured now, as they are
    for key in options.models:
        model = MODELS[key]
        lens = model.build(min(options.layers or model.fitting(free), model.n_layers), device)
        lines, note = section(lens, model, *measured(lens, model, options.rounds))
        show(lines, f"{model.name}. {note}")
        parts[model.name] = f"{table(lines)}\n\n{note} Medians of {options.rounds} rounds, {date.today()}."
        write(path, parts, device)
        del lens
        twin.cache_clear()
        gc.collect()


def sections(path: Path) -> dict[str, str]:
    """What a file says of each model, by its name."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = (part.split("\n\n", 1) for part in text.split("\n\n## ")[1:])
    return {name: "\n\n".join(rest.split("\n\n")[:2]) for name, rest in found}


def write(path: Path, parts: Mapping[str, str], device: torch.device) -> None:
    """Write what is measured so far, in the order of the models."""
    names = [model.name for model in MODELS.values() if model.name in parts]
    notes = (
        f"{machine(device)}. Random bf16 weights in the shapes of the released models, fewer layers where memory holds "
        "no more; the pictures' features are given. Time and memory are multiples of the plain forward, or of the "
        "plain generation, of the same weights in the same round; memory is above "
        "the weights. A sweep is of one prompt, without the check of its first; `logit_lens` in all image rows makes "
        "their products with the output embedding in every layer, which no plain forward makes. Waits are operations "
        "that hand a number or a shape to Python."
    )
    listed = [f"## {name}\n\n{parts[name]}" for name in names]
    path.write_text("\n\n".join(["# What things cost at the size of 7B models", *listed, notes]) + "\n")


if __name__ == "__main__":
    main()
