"""What every benchmark shares: a model, its prompts, what a case is, how cases are measured, and their table.

A random LLaVA of medium size reads 700 tokens (one picture) and 3,000 tokens (five pictures): 576 visual tokens a
picture, and 90 text tokens after the last. The vision tower is not part of the measure: it runs once before, and every
pass is given its features. Five tokens are made attention sinks, as real models have them: the first and four patches
hold massive values in two dimensions of the residual stream, which the keys read.

Every case is divided by its base, most often the plain sdpa forward of the same weights, in time and in peak memory.
Cases with one base run once a round, in random order, and a case's time is compared with its base's of the same round.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from lmm_lens import HeadSet, Lens, Prompt

from .timing import interleaved, machine, peak_bytes, show, spread, write

RESULTS = Path(__file__).parent / "results"
BOS, IMAGE_TOKEN, TOKENS_PER_IMAGE, TEXT_AFTER_IMAGE = 1, 999, 576, 90
LENGTHS = {700: 1, 3000: 5}  # tokens: pictures among them
SIZES = {  # "7b" is the shape of LLaVA-1.5-7B, for a GPU
    "mid": {"num_hidden_layers": 8, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 2816},
    "7b": {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008},
}
SINK_DIMS, SINK_PATCHES, MASSIVE, KEY_GAIN = (100, 500), (50, 200, 300, 431), 100.0, 8.0
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

    def model(self, attention: str = "sdpa") -> LlavaForConditionalGeneration:
        """A model without a lens, on the lens's weights, with one of transformers' attention functions."""
        return twin(self.lens.model, attention)

    def forward(self, model: LlavaForConditionalGeneration, **options: bool) -> Any:
        """A pass of transformers."""
        with torch.no_grad():
            return model(**self.prompt.inputs, use_cache=False, logits_to_keep=1, **options)

    def generate(self, model: LlavaForConditionalGeneration) -> Any:
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
        base: what it is compared with; None for the plain forward.
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


def build(size: str, device: torch.device) -> LlavaForConditionalGeneration:
    """A random LLaVA that can have sinks and never ends its answers: fp32 on the CPU, bf16 on a GPU."""
    text = LlamaConfig(vocab_size=1000, max_position_embeddings=4096, bos_token_id=BOS, **SIZES[size])
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=336, patch_size=14
    )
    torch.manual_seed(0)
    with device, torch.no_grad():
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN)
        model = LlavaForConditionalGeneration(config)
        model.get_input_embeddings().weight[BOS, list(SINK_DIMS)] = MASSIVE
        for layer in model.model.language_model.layers:
            layer.self_attn.k_proj.weight[:, list(SINK_DIMS)] *= KEY_GAIN
    model.generation_config.eos_token_id = None
    return model.eval().to(torch.bfloat16 if device.type == "cuda" else torch.float32)


@cache
def twin(model: LlavaForConditionalGeneration, attention: str) -> LlavaForConditionalGeneration:
    """A model of its own on the same weights."""
    copied = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    copied.set_attn_implementation(attention)
    return copied


def prompt_of(lens: Lens, n_tokens: int) -> Prompt:
    """Random text around pictures whose features are computed here; the first picture has sinks."""
    n_visual = LENGTHS[n_tokens] * TOKENS_PER_IMAGE
    ids = torch.randint(3, IMAGE_TOKEN, (1, n_tokens), generator=torch.Generator().manual_seed(n_tokens))
    start = n_tokens - TEXT_AFTER_IMAGE - n_visual
    ids[:, 0], ids[:, start : start + n_visual] = BOS, IMAGE_TOKEN
    pixels = torch.randn(LENGTHS[n_tokens], 3, 336, 336, device=lens.device, dtype=lens.model.dtype)
    with torch.no_grad():
        pictures = lens.model.get_image_features(pixels, return_dict=True)
    for dim in SINK_DIMS:
        pictures.pooler_output[0][list(SINK_PATCHES), dim] = MASSIVE
    return lens.prompt(inputs={"input_ids": ids, "mm_encoder_outputs": {"image": pictures}})


@dataclass(frozen=True)
class Row:
    """What came out for one case at one length.

    Attributes:
        ratio: of its time to that of its base in the same round, the median over rounds.
        seconds: of each call.
        memory: peak bytes of tensors held at once, above what was held before the call.
        difference: the largest, of the logits of the first answer token to those of the base.
        result: what the first call returned.
    """

    ratio: float
    seconds: list[float]
    memory: int
    difference: float
    result: Any


Results = Mapping[int, Mapping[str, Row]]


def watched(case: Case, setting: Setting) -> tuple[Any, Tensor]:
    """What a case returns, and the logits [step, vocab] that each pass gives for the next token, of whichever model."""
    head, seen = setting.lens.model.lm_head.weight, []

    def see(module: torch.nn.Module, args: Any, out: Any) -> None:
        if getattr(module, "weight", None) is head:
            seen.append(out[0, -1].float())

    hook = register_module_forward_hook(see)
    result = case.run(setting)
    hook.remove()
    return result, torch.stack(seen)


def measure(cases: Sequence[Case], setting: Setting, rounds: int, device: torch.device) -> dict[str, Row]:
    """Every case at one length. The first calls warm up, and give peak memory and logits."""
    first: dict[str, tuple[Any, Tensor]] = {}
    memory: dict[str, int] = {}
    groups: dict[tuple[str, bool], dict[str, Case]] = {}
    for case in cases:
        memory[case.name] = peak_bytes(lambda c=case: first.update({c.name: watched(c, setting)}), device)
        base = case.base or PLAIN
        groups.setdefault((base.name, case.rival), {base.name: base})[case.name] = case
        if case.same_logits is None or (case.tolerance and setting.lens.model.dtype != torch.float32):
            continue
        own, wanted = first[case.name][1], first[case.same_logits.name][1]
        if own.shape != wanted.shape or float((own - wanted).abs().max()) > case.tolerance:
            raise SystemExit(f"the logits must be those of {case.same_logits.name!r}, and are not: {case.name!r}")
    rows: dict[str, Row] = {}
    for (base_name, rival), group in groups.items():
        calls = {name: partial(case.run, setting) for name, case in group.items()}
        times = interleaved(calls, max(1, rounds // 3) if rival else rounds, device)
        for name in group.keys() - rows.keys():
            ratio = statistics.median(own / base for own, base in zip(times[name], times[base_name], strict=True))
            difference = float((first[name][1][0] - first[base_name][1][0]).abs().max())
            rows[name] = Row(ratio, times[name], memory[name], difference, first[name][0])
    return rows


def table_of(cases: Sequence[Case], results: Results) -> list[list[str]]:
    """Header and rows, as text."""
    header = ["forward pass"]
    for n_tokens in results:
        header += [f"time, {n_tokens:,} tokens", f"memory, {n_tokens:,} tokens"]
    lines = [[*header, "target: time, memory", "logits differ by"]]
    for case in cases:
        line = [case.name]
        for rows in results.values():
            row, base = rows.get(case.name), rows.get((case.base or PLAIN).name)
            if row and base:
                line.append(f"{row.ratio:.2f} ({statistics.median(row.seconds) * 1000:,.0f} ms)")
                line.append(f"{row.memory / base.memory:.2f} ({row.memory / 2**20:,.0f} MiB)")
            else:
                line += ["", ""]
        worst = max(rows[case.name].difference for rows in results.values() if case.name in rows)
        lines.append([*line, f"{case.target}, {MEMORY_TARGET}" if case.target else "", f"{worst:.1g}"])
    return lines


def notes_of(results: Results, lens: Lens, device: torch.device) -> str:
    """On what, with what and when it was measured, and how noisy the machine was."""
    plain = {n: rows[PLAIN.name].seconds for n, rows in results.items()}
    rounds = " and ".join(f"{len(times)} rounds at {n:,} tokens" for n, times in plain.items())
    noise = " and ".join(f"{spread(times):.0%}" for times in plain.values())
    return (
        f"{machine(device)}. {lens}, {lens.model.dtype}. Time and peak memory are multiples of the plain forward, "
        f"times the medians of {rounds}. The plain forward itself varied by {noise} (interquartile range)."
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
