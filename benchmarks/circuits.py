"""What circuits and screened sweeps cost: `python -m benchmarks.circuits`.

Scores of all edges are compared in time and peak memory with a forward with gradients: one forward of the decoder and
the backward pass of a logit difference to its input embeddings, parameters frozen, of the plain Hugging Face model. A
screened sweep is compared with the sweep over every head, in time and in which heads it finds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from lmm_lens import HeadEffects, Lens, Prompt, data, find_circuit, head_effects
from lmm_lens.circuits.pair import pair_of
from lmm_lens.circuits.patched import PatchedForwards
from lmm_lens.patching.probe import differentiable

from .model import SIZES, build, prompt_of
from .timing import interleaved, machine, peak_bytes, seconds, show, spread, table

RESULTS = Path(__file__).parent / "results"
ANSWERS = (3, 4)  # any two tokens of a random model
N_BEST, VERIFIED, N_SAMPLE, MEMORY_TARGET = 10, (20, 10), 16, 2.5
MANY: dict[str, Any] = {
    "num_hidden_layers": 32,
    "hidden_size": 256,
    "num_attention_heads": 32,
    "intermediate_size": 512,
}


def with_gradients(lens: Lens, prompt: Prompt) -> Tensor:
    """The base: forward and backward of the plain model, to what enters its first layer."""
    entered: list[Tensor] = []

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        entered.append((args[0] if args else kwargs["hidden_states"]).detach().requires_grad_())
        return ((entered[0], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": entered[0]})

    hook = lens.adapter.layers[0].module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        with differentiable(lens.model):
            logits = lens.model(**prompt.inputs, use_cache=False, logits_to_keep=1).logits[0, -1]
            found: Tensor = torch.autograd.grad(logits[ANSWERS[0]] - logits[ANSWERS[1]], entered[0])[0]
    finally:
        hook.remove()
    return found


def edges(lens: Lens, rounds: int, device: torch.device) -> tuple[list[list[str]], float]:
    """Header and a row a way to score edges; how far the base varied."""
    clean, corrupt = (prompt_of(lens, 700) for _ in range(2))  # the same text, another picture
    answers: dict[str, Any] = {"answer": ANSWERS[0], "against": ANSWERS[1]}
    forwards = PatchedForwards(pair_of(lens, clean, corrupt, [ANSWERS], by_span=True, keep_corrupt=True))
    keep = torch.rand(forwards.graph.exists.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    calls: dict[str, Callable[[], object]] = {
        "forward with gradients": partial(with_gradients, lens, clean),
        "find_circuit, EAP": partial(find_circuit, lens, clean, corrupt, method="eap", **answers),
        "find_circuit, EAP-IG, 5 steps": partial(find_circuit, lens, clean, corrupt, **answers),
        "one forward with half of the edges patched": partial(forwards.logit_differences, keep),
    }
    memory = {name: peak_bytes(call, device) for name, call in calls.items()}
    times = interleaved(calls, rounds, device)
    base = next(iter(calls))
    lines = [["", "time", "memory", "target: memory"]]
    for name in calls:
        ratio = statistics.median(x / y for x, y in zip(times[name], times[base], strict=True))
        took = statistics.median(times[name]) * 1000
        held = f"{memory[name] / memory[base]:.2f} ({memory[name] / 2**20:,.0f} MiB)"
        target = f"{MEMORY_TARGET}" if name.startswith("find") else ""
        lines.append([name, f"{ratio:.2f} ({took:,.0f} ms)", held, target])
    n = f"{len(forwards.graph.edges):,} edges at {len(forwards.graph.spans)} spans"
    lines[0][0] = f"{lens.n_layers} layers x {lens.n_heads} heads, 700 tokens, {n}"
    return lines, spread(times[base]) if rounds > 1 else 0.0


def many_heads(device: torch.device) -> Lens:
    """A random model of 1,024 heads."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=84, patch_size=14
    )
    torch.manual_seed(0)
    with device, torch.no_grad():
        text = LlamaConfig(vocab_size=1000, **MANY)
        model: Any = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=text, image_token_index=999)
        )
        for weight in model.model.language_model.layers.parameters():
            if weight.ndim == 2:
                weight.mul_(2)
    return Lens(model.eval())


def screens(lens: Lens, prompts: list[Prompt], device: torch.device) -> list[list[str]]:
    """A row a row scope and number of verified heads: the screened sweep beside the full one."""
    counted = f"{len(prompts)} prompt{'s' * (len(prompts) > 1)} of {prompts[0].n_tokens} tokens"
    lines = []
    for rows in ("all", "after_image"):
        found: dict[str, HeadEffects] = {}
        full = seconds(partial(sweep, found, "full", lens, prompts, rows), device)
        best = found["full"].top(N_BEST)
        for verified in VERIFIED:
            screened: dict[str, Any] = {"screen": "attribution", "verify": verified, "sample": N_SAMPLE}
            few = seconds(partial(sweep, found, "few", lens, prompts, rows, **screened), device)
            screen = found["few"].screen
            assert screen is not None
            first = best.heads[0] == found["few"].top(1).heads[0]
            said = f"{len(set(best) & set(screen.best))} of {N_BEST}{'' if first else ', not the first'}"
            times = [f"{full:.1f} s", f"{few:.1f} s", f"{few / full:.2f}"]
            name = f"{len(found['full'].units):,} heads, {counted}"
            told = [str(verified), *times, said, f"{screen.rank_correlation:.2f}"]
            lines.append([name, rows.replace("_", " "), *told])
    return lines


def sweep(
    found: dict[str, HeadEffects], name: str, lens: Lens, prompts: list[Prompt], rows: str, **screened: Any
) -> None:
    """Keep the effects that a sweep finds."""
    answers = [ANSWERS] * len(prompts)
    found[name] = head_effects(lens, prompts, rows=rows, metric="logit_difference", answers=answers, **screened)


def swept(device: torch.device, quick: bool) -> list[list[str]]:
    """Header and rows of screened sweeps: of the bundled model, and of a random one with 1,024 heads."""
    demo = Lens.demo()
    asked = [sample.prompt(demo) for sample in data.shapes(10, seed=0)]
    header = [
        "",
        "rows",
        "verified",
        "every head",
        "screened",
        "ratio",
        f"of the {N_BEST} best found",
        "rank correlation",
    ]
    lines = [header, *screens(demo, asked, device)]
    if not quick:
        wide = many_heads(device)
        ids = torch.randint(3, 999, (1, 45), generator=torch.Generator().manual_seed(0))
        ids[:, 2:38] = 999
        pixels = torch.randn(1, 3, 84, 84, generator=torch.Generator().manual_seed(1))
        lines += screens(wide, [wide.prompt(inputs={"input_ids": ids, "pixel_values": pixels})], device)
    return lines


def main() -> None:
    """Measure, print, write; a part that was not measured stays in the file as it was."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.circuits", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, and no sweep over 1,024 heads; writes no file")
    parser.add_argument("--only", choices=("edges", "screens"), help="measure one part")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", choices=SIZES, default="mid", help="of the decoder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device, rounds = torch.device(options.device), 1 if options.quick else options.rounds
    found: dict[str, list[str]] = {}
    if options.only != "screens":
        lines, noise = edges(Lens(build(options.size, device)), rounds, device)
        notes = (
            f"{machine(device)}. Multiples of a forward with gradients, the plain model's forward and its backward "
            f"pass to the input embeddings, medians of {rounds} interleaved rounds"
            + (f", in which it varied by {noise:.0%} (interquartile range)." if rounds > 1 else ".")
        )
        show(lines, notes)
        found["edges"] = [table(lines), notes]
    if options.only != "edges":
        lines = swept(device, options.quick)
        notes = (
            f"{machine(device)}. A screened sweep estimates every head from one backward pass a prompt, and ablates "
            f"exactly those verified, of the largest estimates, and {N_SAMPLE} random others; the rank correlation "
            f"is that of estimate and effect on the random ones. Found are those of the {N_BEST} best of the full "
            "sweep that were ablated."
        )
        show(lines, notes)
        found["screens"] = [table(lines), notes]
    if not options.quick:
        path = RESULTS / f"circuits{'' if device.type == 'cpu' else f'_{device.type}'}.md"
        before = path.read_text(encoding="utf-8").strip().split("\n\n")[1:] if path.exists() else []
        edges_told = found.get("edges") or before[:2]
        screens_told = found.get("screens") or before[2:]
        parts = ["# Circuits and screened sweeps", *edges_told, *screens_told]
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
