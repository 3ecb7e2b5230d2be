"""What the attention tap costs beside a plain forward pass, in time and memory: `python -m benchmarks.attention_tap`.

A random LLaVA of medium size reads 700 tokens (one picture) and 3,000 tokens (five pictures): 576 visual tokens a
picture, and 90 text tokens after the last. Every row of the table is a forward pass of the same weights with something
done to it, divided by the plain sdpa forward in time and in peak memory. All cases run once a round, in random order,
and a case's time is compared with the plain pass of its own round. The vision tower is not part of the measure: it runs
once before, and every pass is given its features.

To add a row, add a `Case` to `CASES`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import argparse
import copy
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from lmm_lens import AblateHeads, HeadSet, Lens, Prompt, Read, kernels, score_heads

from .timing import interleaved, machine, peak_bytes, show, spread, write

RESULTS = Path(__file__).parent / "results"
TITLE = "What the attention tap costs"
IMAGE_TOKEN, TOKENS_PER_IMAGE, TEXT_AFTER_IMAGE = 999, 576, 90
LENGTHS = {700: 1, 3000: 5}  # tokens: pictures among them
SIZES = {  # "7b" is the shape of LLaVA-1.5-7B, for a GPU
    "mid": {"num_hidden_layers": 8, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 2816},
    "7b": {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008},
}
N_ZEROED, MEMORY_TARGET = 16, 1.1


@dataclass(frozen=True)
class Setting:
    """What a case may use. The three models share their weights.

    Attributes:
        plain: a model that no lens was ever made for.
        eager: the same with eager attention.
        lens: on a model of its own.
        prompt: the inputs of every pass, picture features included.
        heads: random heads to edit.
    """

    plain: LlavaForConditionalGeneration
    eager: LlavaForConditionalGeneration
    lens: Lens
    prompt: Prompt
    heads: HeadSet

    def forward(self, model: LlavaForConditionalGeneration, **options: bool) -> Any:
        """A pass of transformers, without the lens."""
        with torch.no_grad():
            return model(**self.prompt.inputs, use_cache=False, logits_to_keep=1, **options)

    def zero_heads(self, rows: str) -> Any:
        """A pass with the chosen heads zeroed in some rows."""
        return self.lens.run(self.prompt, [AblateHeads(self.heads, rows=rows)], logits="last")

    def visual_mass(self, rows: str) -> Any:
        """A pass that reads how much each of some rows looks at the pictures, in every head of every layer."""
        visual = self.prompt.mask("visual")
        mass = Read("pattern", rows=rows, reduce=lambda a, at: kernels.mass(a, at.columns(visual, a.shape[-1])))
        return self.lens.run(self.prompt, read=[mass], logits="last")


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: what is done to the forward pass.
        run: does it.
        target: how many times the plain pass it may take; with one, its peak memory has a target too.
        same_logits: whether the model's logits must be those of the plain pass, to the last bit.
        rival: another way to the same end; slow, and measured in a third of the rounds.
    """

    name: str
    run: Callable[[Setting], Any]
    target: float | None = None
    same_logits: bool = False
    rival: bool = False


PLAIN = Case("plain forward (sdpa)", lambda s: s.forward(s.plain))
CASES = (
    PLAIN,
    Case("a lens made, none open", lambda s: s.forward(s.lens.model), 1.05, same_logits=True),
    Case("`lens.run`, nothing asked", lambda s: s.lens.run(s.prompt, logits="last"), 1.05, same_logits=True),
    Case("`score_heads`, all heads, last row", lambda s: score_heads(s.lens, s.prompt), 1.05, same_logits=True),
    Case("visual mass, all heads, 90 rows after the image", lambda s: s.visual_mass("after_image"), 1.1, True),
    Case("zero 16 random heads, 90 rows after the image", lambda s: s.zero_heads("after_image"), 1.1),
    Case("zero 16 random heads, all rows", lambda s: s.zero_heads("all")),
    Case("eager attention", lambda s: s.forward(s.eager), rival=True),
    Case("eager, all patterns kept", lambda s: s.forward(s.eager, output_attentions=True), rival=True),
)


def build(size: str, device: torch.device) -> LlavaForConditionalGeneration:
    """A random LLaVA: fp32 on the CPU, bf16 on a GPU."""
    text = LlamaConfig(vocab_size=1000, max_position_embeddings=4096, **SIZES[size])
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=336, patch_size=14
    )
    torch.manual_seed(0)
    with device:
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN)
        model = LlavaForConditionalGeneration(config)
    return model.eval().to(torch.bfloat16 if device.type == "cuda" else torch.float32)


def twin(model: LlavaForConditionalGeneration, attention: str) -> LlavaForConditionalGeneration:
    """A model of its own on the same weights."""
    copied = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    copied.set_attn_implementation(attention)
    return copied


def prompt_of(lens: Lens, n_tokens: int) -> Prompt:
    """Random text around pictures whose features are computed here."""
    n_visual = LENGTHS[n_tokens] * TOKENS_PER_IMAGE
    ids = torch.randint(3, IMAGE_TOKEN, (1, n_tokens), generator=torch.Generator().manual_seed(n_tokens))
    start = n_tokens - TEXT_AFTER_IMAGE - n_visual
    ids[:, start : start + n_visual] = IMAGE_TOKEN
    pixels = torch.randn(LENGTHS[n_tokens], 3, 336, 336, device=lens.device, dtype=lens.model.dtype)
    with torch.no_grad():
        pictures = {"image": lens.model.get_image_features(pixels, return_dict=True)}
    return lens.prompt(inputs={"input_ids": ids, "mm_encoder_outputs": pictures})


@dataclass(frozen=True)
class Row:
    """What came out for one case at one length.

    Attributes:
        ratio: of a pass's time to that of the plain pass in the same round, the median over rounds.
        seconds: of each pass.
        peak: bytes of tensors held at once, above what was held before the pass.
        difference: the largest, of the last token's logits to those of the plain pass.
    """

    ratio: float
    seconds: list[float]
    peak: int
    difference: float


def logits_of(case: Case, setting: Setting) -> Tensor:
    """The last token's logits as they leave whichever model the case runs."""
    seen: list[Tensor] = []
    models = (setting.plain, setting.eager, setting.lens.model)
    hooks = [m.lm_head.register_forward_hook(lambda _module, _args, out: seen.append(out[:, -1])) for m in models]
    case.run(setting)
    for hook in hooks:
        hook.remove()
    return seen[0].float()


def measure(setting: Setting, rounds: int, device: torch.device) -> dict[str, Row]:
    """Every case at one length. The first passes warm up, and give peak memory and logits."""
    logits: dict[str, Tensor] = {}
    peaks: dict[str, int] = {}
    for case in CASES:
        peaks[case.name] = peak_bytes(lambda c=case: logits.update({c.name: logits_of(c, setting)}), device)
        if case.same_logits and not torch.equal(logits[case.name], logits[PLAIN.name]):
            raise SystemExit(f"the model's logits changed, and must not: {case.name}")
    rows: dict[str, Row] = {}
    for rival in (False, True):
        group = {case.name: partial(case.run, setting) for case in CASES if case.rival == rival}
        calls = {PLAIN.name: partial(PLAIN.run, setting)} | group
        times = interleaved(calls, max(1, rounds // 3) if rival else rounds, device)
        for name in group:
            ratios = [own / plain for own, plain in zip(times[name], times[PLAIN.name], strict=True)]
            difference = float((logits[name] - logits[PLAIN.name]).abs().max())
            rows[name] = Row(statistics.median(ratios), times[name], peaks[name], difference)
    return rows


def table_of(results: dict[int, dict[str, Row]]) -> list[list[str]]:
    """Header and rows, as text."""
    header = ["forward pass"]
    for n_tokens in results:
        header += [f"time, {n_tokens:,} tokens", f"memory, {n_tokens:,} tokens"]
    lines = [[*header, "target: time, memory", "logits differ by"]]
    for case in CASES:
        line = [case.name]
        for rows in results.values():
            row, plain = rows[case.name], rows[PLAIN.name]
            line.append(f"{row.ratio:.2f} ({statistics.median(row.seconds) * 1000:,.0f} ms)")
            line.append(f"{row.peak / plain.peak:.2f} ({row.peak / 2**20:,.0f} MiB)")
        worst = max(rows[case.name].difference for rows in results.values())
        lines.append([*line, f"{case.target}, {MEMORY_TARGET}" if case.target else "", f"{worst:.1g}"])
    return lines


def notes_of(results: dict[int, dict[str, Row]], lens: Lens, device: torch.device) -> str:
    """On what, with what and when it was measured, and how noisy the machine was."""
    plain = {n: rows[PLAIN.name].seconds for n, rows in results.items()}
    rounds = " and ".join(f"{len(times)} rounds at {n:,} tokens" for n, times in plain.items())
    noise = " and ".join(f"{spread(times):.0%}" for times in plain.values())
    return (
        f"{machine(device)}. {lens}, {lens.model.dtype}. Time and peak memory are multiples of the plain forward, "
        f"times the medians of {rounds}. The plain forward itself varied by {noise} (interquartile range)."
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention_tap", description=TITLE)
    parser.add_argument("--repeats", type=int, default=5, help="rounds at 700 tokens; a third of them at 3,000")
    parser.add_argument("--quick", action="store_true", help="three rounds at 700 tokens alone; writes no file")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", choices=SIZES, default="mid", help="of the decoder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)

    model = build(options.size, device)
    plain, eager, lens = twin(model, "sdpa"), twin(model, "eager"), Lens(model)
    shape = lens.n_layers, lens.n_heads
    heads = HeadSet(random.Random(0).sample([*HeadSet.all(*shape)], N_ZEROED), *shape)
    rounds = {700: 3} if options.quick else {700: options.repeats, 3000: max(2, options.repeats // 3)}
    results = {
        n_tokens: measure(Setting(plain, eager, lens, prompt_of(lens, n_tokens), heads), n_rounds, device)
        for n_tokens, n_rounds in rounds.items()
    }
    lines, notes = table_of(results), notes_of(results, lens, device)
    show(lines, notes)
    if not options.quick:
        write(lines, TITLE, notes, RESULTS / f"attention_tap{'' if device.type == 'cpu' else f'_{device.type}'}.md")


if __name__ == "__main__":
    main()
