"""What readouts cost beside a plain forward, in time and memory: `python -m benchmarks.readouts`.

The lenses make a product with the output embedding, or with a bank, for each row and layer, which no plain forward
makes: they are compared with a forward and these products alone, too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lmm_lens import EmbeddingBank, Lens, Prompt, attention_map, direct_attribution, latent_lens, logit_lens
from lmm_lens.readouts.vocabulary import LEAST

from .model import SIZES, build, prompt_of, twin
from .timing import interleaved, machine, peak_bytes, resident_peak, show, spread, table

RESULTS = Path(__file__).parent / "results"
N_WORDS = {"mid": 32_000, "wide": 150_000, "7b": 150_000}
LENGTH = {"mid": 700, "wide": 3000, "7b": 3000}
PLAIN, PRODUCTS, BANK_PRODUCTS = "plain forward (sdpa)", "forward + W_U of each row", "forward + bank x each row"
N_BANK = 2000


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what is done.
        run: does it.
        products: the line with its matrix products alone; None where there are none.
        time, memory: the most it may take, as multiples: of the products' time, or of the plain forward's; and of the
            plain forward's memory. None for lines without a target.
    """

    name: str
    run: Callable[[], Any]
    products: str | None = None
    time: float | None = None
    memory: float | None = None


def forward(model: Any, prompt: Prompt, **options: bool) -> Any:
    """A pass of transformers."""
    with torch.no_grad():
        return model(**prompt.inputs, use_cache=False, logits_to_keep=1, **options)


def with_products(lens: Lens, prompt: Prompt, matrix: torch.Tensor, norm: Any, step: int) -> None:
    """A forward, and the products of every image row of every layer with a matrix, a few rows at a time."""
    image = prompt.mask("image")[0].to(lens.device)

    def multiply(module: Any, args: Any, out: torch.Tensor) -> None:
        rows = out[0][image]
        for start in range(0, len(rows), step):
            norm(rows[start : start + step]) @ matrix.T

    hooks = [layer.module.register_forward_hook(multiply) for layer in lens.adapter.layers]
    try:
        forward(lens.model, prompt)
    finally:
        for hook in hooks:
            hook.remove()


def everything_kept(lens: Lens, prompt: Prompt) -> None:
    """What scripts do: all hidden states, all logits of all layers, and then the best words."""
    out = forward(lens.model, prompt, output_hidden_states=True)
    image = prompt.mask("image")[0].to(lens.device)
    model = lens.model
    with torch.no_grad():
        rows = torch.stack([hidden[0][image] for hidden in out.hidden_states[1:]])
        logits = model.lm_head(model.model.language_model.norm(rows))
        logits.softmax(-1).topk(5)


def rows_of(lens: Lens, prompt: Prompt) -> list[Row]:
    """The lines, in order."""
    model: Any = lens.model
    generator = torch.Generator().manual_seed(0)
    d_model, layers = lens.shape.d_model, tuple(range(lens.n_layers))
    vectors = torch.nn.functional.normalize(torch.randn(len(layers), N_BANK, d_model, generator=generator), dim=-1)
    words = tuple(map(str, range(N_BANK)))
    bank = EmbeddingBank(layers, vectors, ("",), words, torch.zeros(N_BANK, dtype=torch.long), lens.identity)
    matrix, norm = model.lm_head.weight.detach(), model.model.language_model.norm
    entries = vectors.flatten(0, 1)
    by_words = partial(with_products, lens, prompt, matrix, norm, max(1, LEAST // len(matrix)))
    by_bank = partial(with_products, lens, prompt, entries, torch.nn.Identity(), max(1, LEAST // len(entries)))
    return [
        Row(PLAIN, lambda: forward(twin(model, "sdpa"), prompt)),
        Row("`attention_map`, last row, all heads", lambda: attention_map(lens, prompt), None, 1.1, 1.1),
        Row("`direct_attribution` by head", lambda: direct_attribution(lens, prompt, 5, 6, by="head"), None, 1.1, 1.1),
        Row("`direct_attribution` by span", lambda: direct_attribution(lens, prompt, 5, 6, by="span"), None, 1.1, 1.1),
        Row(PRODUCTS, by_words),
        Row("`logit_lens`, all image rows", lambda: logit_lens(lens, prompt, words=[5, 6]), PRODUCTS, 2.0, 1.5),
        Row("all hidden states, all logits kept", lambda: everything_kept(lens, prompt), PRODUCTS),
        Row(BANK_PRODUCTS, by_bank),
        Row("`latent_lens`, all image rows", lambda: latent_lens(lens, prompt, bank), BANK_PRODUCTS, 2.0, 1.5),
    ]


def with_many_words(rounds: int) -> tuple[list[list[str]], str]:
    """The logit lens at 2,880 visual tokens and 150,000 words, by the process's own memory."""
    cpu = torch.device("cpu")
    lens = Lens(build("wide", cpu, N_WORDS["wide"]))
    prompt = prompt_of(lens, LENGTH["wide"])
    names = PLAIN, PRODUCTS, "`logit_lens`, all image rows"
    calls = {row.name: row.run for row in rows_of(lens, prompt) if row.name in names}
    peaks: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    timed = {name: partial(_kept, peaks[name], call) for name, call in calls.items()}
    times = interleaved(timed, rounds, cpu)

    def ratio(name: str, base: str) -> str:
        return f"{statistics.median(x / y for x, y in zip(times[name], times[base], strict=True)):.2f}"

    whole = {name: statistics.median(peak for peak, _ in peaks[name]) for name in names}
    more = {name: statistics.median(peak - before for peak, before in peaks[name]) for name in names}
    n_image = int(prompt.mask("image").sum())
    head = f"{lens.n_layers} layers, {n_image:,} visual tokens, {N_WORDS['wide']:,} words"
    lines = [
        [head, "time", "time / its products", "the process at most", "of it beside the model", "target: time, memory"]
    ]
    for name in names:
        own = name == names[-1]
        memory = [f"{x[name] / x[PLAIN]:.2f} ({x[name] / 2**20:,.0f} MiB)" for x in (whole, more)]
        took = f"{ratio(name, PLAIN)} ({statistics.median(times[name]):.0f} s)"
        lines.append([name, took, ratio(name, PRODUCTS) if own else "", *memory, "2.0, 1.5" if own else ""])
    kept = n_image * lens.n_layers * N_WORDS["wide"] * 4 / 2**30
    notes = (
        f"{machine(cpu)}. {lens}, {lens.model.dtype}; {prompt.n_tokens:,} tokens. Medians of {rounds} rounds; memory: "
        f"VmHWM of the process, beside the model what it grew by during the call. All logits would be {kept:,.1f} GiB. "
        "A layer more costs its own products, and of what it says a few numbers a row are kept."
    )
    return lines, notes


def _kept(peaks: list[tuple[int, int]], call: Callable[[], object]) -> None:
    peaks.append(resident_peak(call))


def main() -> None:
    """Measure, print, write; a part that was not measured stays in the file as it was."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readouts", description=main.__doc__)
    parser.add_argument(
        "--only", choices=("readouts", "words"), default="readouts", help="which part; words takes many minutes"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", choices=SIZES, default="mid", help="of the decoder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    path = RESULTS / f"readouts{'' if device.type == 'cpu' else '_cuda'}.md"
    before = path.read_text(encoding="utf-8").strip().split("\n\n")[1:] if path.exists() else []
    parts = before[:2]
    if options.only != "words":
        lines, notes = measured(options, device)
        show(lines, notes)
        parts = [table(lines), notes]
    words = before[2:]
    if options.only != "readouts" and device.type == "cpu":
        lines, notes = with_many_words(options.repeats)
        show(lines, notes)
        words = [table(lines), notes]
    path.write_text("\n\n".join(["# What readouts cost", *parts, *words]) + "\n", encoding="utf-8")


def measured(options: argparse.Namespace, device: torch.device) -> tuple[list[list[str]], str]:
    """Every readout beside a plain forward: header and rows, and notes."""
    lens = Lens(build(options.size, device, N_WORDS[options.size]))
    prompt = prompt_of(lens, LENGTH[options.size])
    rows = rows_of(lens, prompt)
    memory = {row.name: peak_bytes(row.run, device) for row in rows}
    times = interleaved({row.name: row.run for row in rows}, options.repeats, device)

    def ratio(name: str, base: str) -> float:
        return statistics.median(x / y for x, y in zip(times[name], times[base], strict=True))

    lines = [["", "time / plain", "time / its products", "memory / plain", "target: time, memory"]]
    for row in rows:
        seconds = f"{ratio(row.name, PLAIN):.2f} ({statistics.median(times[row.name]):.1f} s)"
        products = f"{ratio(row.name, row.products):.2f}" if row.products else ""
        held = f"{memory[row.name] / memory[PLAIN]:.2f} ({memory[row.name] / 2**20:,.0f} MiB)"
        target = f"{row.time}, {row.memory}" if row.time else ""
        lines.append([row.name, seconds, products, held, target])
    n_image = int(prompt.mask("image").sum())
    notes = (
        f"{machine(device)}. {lens}, {lens.model.dtype}, {N_WORDS[options.size]:,} words; {prompt.n_tokens} tokens, "
        f"{n_image} of them visual; a bank of {N_BANK:,} words after each layer. Times are medians of "
        f"{options.repeats} rounds; the plain forward varied by {spread(times[PLAIN]):.0%} (interquartile range). A "
        "target of time is of the products where there are any. Each call reads all weights once, to say of which "
        "model it is."
    )
    return lines, notes


if __name__ == "__main__":
    main()
