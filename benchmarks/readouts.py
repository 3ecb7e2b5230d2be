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
from .timing import interleaved, machine, peak_bytes, show, spread, write

RESULTS = Path(__file__).parent / "results"
N_WORDS = {"mid": 32_000, "7b": 150_000}
LENGTH = {"mid": 700, "7b": 3000}
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


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readouts", description=main.__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", choices=SIZES, default="mid", help="of the decoder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
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
    show(lines, notes)
    write(lines, "What readouts cost", notes, RESULTS / f"readouts{'' if device.type == 'cpu' else '_cuda'}.md")


if __name__ == "__main__":
    main()
