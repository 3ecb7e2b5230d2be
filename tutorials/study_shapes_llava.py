"""What lmm-lens finds in shapes-llava: visual heads, their ablation, a colour's way to the answer, sinks and VAR.

Run with `make study`. Prints every table and writes them to tutorials/results/study_shapes_llava.md; the outcome is
whatever it is. Everything is measured on pictures that training never showed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from lmm_lens import (
    VAR,
    KnockoutSinks,
    Lens,
    ablation_table,
    activation_patching,
    attribution_patching,
    exact_match,
    find_sinks,
    image_table,
    score_heads,
)
from lmm_lens.bundled import shapes
from lmm_lens.statistics.resampling import bootstrap_interval

BATCH = 50
SHORT_ANSWERS = ("color", "shape", "where", "count", "exist", "at")
CONSOLE = Console(width=120)
RESULTS = Path(__file__).parent / "results" / "study_shapes_llava.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=300, help="visual questions in each experiment")
    parser.add_argument("--var-n", type=int, default=600, help="visual questions in the experiments with sinks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    sections = [
        *where_it_looks(arguments.n),
        *what_heads_do(arguments.n),
        *how_a_colour_travels(),
        *sinks_and_var(arguments.var_n),
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    about = f"shapes-llava, `make study`, {arguments.n} and {arguments.var_n} held-out questions, one thread."
    body = "\n\n".join(f"## {title}\n\n{note}\n\n{table}" for title, note, table in sections)
    RESULTS.write_text(f"# A study of shapes-llava\n\n{about}\n\n{body}\n", encoding="utf-8")
    CONSOLE.print(f"wrote {RESULTS.name} after {time.perf_counter() - started:.0f} s")


def section(title: str, note: str, table: pd.DataFrame, digits: int = 3) -> tuple[str, str, str]:
    """Print a table and return it for the file."""
    CONSOLE.rule(title)
    CONSOLE.print(note, highlight=False, markup=False)
    text = table.to_string(index=False, float_format=lambda x: f"{x:.{digits}f}")
    CONSOLE.print(text, highlight=False, markup=False)
    return title, note, f"```\n{text}\n```"


def batches(lens: Lens, examples: list[shapes.Example]) -> list:
    """Prompts of fifty questions each."""
    groups = [examples[start : start + BATCH] for start in range(0, len(examples), BATCH)]
    return [lens.prompt([e.question for e in group], images=[e.image for e in group]) for group in groups]


def where_it_looks(n: int):
    """Raw and non-sink visual mass, in the default checkpoint and in the plain one."""
    for variant in ("sinks", "plain"):
        lens = Lens.demo(variant)
        prompts = batches(lens, shapes.examples(n, seed=11))
        raw = score_heads(lens, prompts, "visual_mass")
        nonsink = score_heads(lens, prompts, "nonsink_mass")
        table = pd.DataFrame(
            {
                "by raw mass": [f"L{layer}H{head} {raw.values[layer, head]:.2f}" for layer, head in raw.top(8)],
                "by non-sink mass": [
                    f"L{layer}H{head} {nonsink.values[layer, head]:.2f}" for layer, head in nonsink.top(8)
                ],
            }
        )
        above = int((nonsink.values > 0.1).sum())
        note = (
            f"Mean over {n} questions, last prompt token. {int((raw.values > 0.1).sum())} of 48 heads have raw mass "
            f"above 0.1, {above} have non-sink mass above 0.1."
        )
        yield section(f"Where it looks: the {variant} checkpoint", note, table)


def what_heads_do(n: int):
    """Ablation of the top heads in each row scope, with random heads of the same layers; and the picture's controls."""
    lens = Lens.demo()
    visual, text = shapes.examples(n, seed=12), shapes.examples(n // 2, kinds=shapes.TEXT_KINDS, seed=12)
    prompts, text_prompts = batches(lens, visual), batches(lens, text)
    heads = score_heads(lens, prompts, "nonsink_mass").top(8, layers=range(1, lens.n_layers))
    answers = [example.answer for example in visual]
    table = ablation_table(lens, prompts, answers, heads)
    yield section("What the top 8 heads do: visual questions", f"Zeroed: {heads}.", table)
    table = ablation_table(lens, text_prompts, [example.answer for example in text], heads, rows=("all",))
    yield section("What the top 8 heads do: text-only questions", f"Zeroed: {heads}.", table)
    yield section("What the picture does", "Exact match with three pictures.", image_table(lens, prompts, answers))


def how_a_colour_travels(n: int = 64):
    """Pairs of pictures that differ in one object's colour: which layer carries it where, and which heads move it."""
    lens = Lens.demo()
    pairs = shapes.color_pairs(n, seed=13)
    clean, corrupt = (
        lens.prompt([pair[side].question for pair in pairs], images=[pair[side].image for pair in pairs])
        for side in (0, 1)
    )
    own = [shapes.boxes(pair[0].scene)[_asked(pair)] for pair in pairs]
    positions = [list(clean.positions_in_box(box, row=row)) for row, box in enumerate(own)]
    groups = {"object": positions}
    spans = activation_patching(lens, clean, corrupt, site="resid_pre", by="span", groups=groups)
    table = pd.DataFrame(spans.values.numpy(), columns=list(spans.units))
    table.insert(0, "layer", range(len(table)))
    note = "Effect of putting the clean residual stream into the corrupt run, 0 = still corrupt, 1 = clean answer."
    yield section("How a colour travels: resid_pre by layer and span", note, table, digits=2)
    true = activation_patching(lens, clean, corrupt, site="z", by="head", rows="all")
    fast = attribution_patching(lens, clean, corrupt, site="z", by="head", rows="all")
    best = true.top(6)
    table = pd.DataFrame(
        {
            "head": [f"L{layer}H{head}" for layer, head in best],
            "patching": [float(true.values[layer, head]) for layer, head in best],
            "attribution": [float(fast.values[layer, head]) for layer, head in best],
        }
    )
    agreement = f"{true.rank_correlation(fast):.2f}"
    note = f"z at all rows. Spearman correlation of attribution with patching over 48 heads: {agreement}."
    yield section("How a colour travels: the heads that move it", note, table, digits=2)


def _asked(pair: tuple[shapes.Example, shapes.Example]) -> shapes.Thing:
    (thing,) = set(pair[0].scene.things) - set(pair[1].scene.things)
    return thing


def sinks_and_var(n: int):
    """Where the sinks are, what masking them does, and what VAR does, each beside its control."""
    lens = Lens.demo()
    report = find_sinks(lens, batches(lens, shapes.examples(BATCH, seed=14)))
    yield section("Where the sinks are", repr(report), report.per_layer(), digits=2)
    plain = Lens.demo("plain")
    nothing = find_sinks(plain, batches(plain, shapes.examples(BATCH, seed=14)))
    CONSOLE.print(f"plain checkpoint: {nothing}", highlight=False, markup=False)
    for condition in ("clean", "faint", "noisy"):
        examples = shapes.examples(n, kinds=SHORT_ANSWERS, seed=15, condition=condition)
        prompts, answers = batches(lens, examples), [example.answer for example in examples]
        base = exact_match(lens, prompts, answers)
        sinks = {"sink_dims": report.dims, "sink_threshold": report.threshold}
        edits = {
            "sinks masked": KnockoutSinks(**sinks),
            "as many random patches masked": KnockoutSinks(**sinks, control=0),
            "VAR, rho 0.5": VAR(**sinks, min_nonsink_ratio=0.5),
            "VAR, rho 0.8": VAR(**sinks, min_nonsink_ratio=0.8),
            "VAR, rho 0.5, random tokens": VAR(**sinks, min_nonsink_ratio=0.5, control=0),
            "VAR in all heads": VAR(**sinks, min_nonsink_ratio=0, min_visual_mass=0),
        }
        rows: list[dict[str, object]] = [{"condition": "nothing", "accuracy": float(base.float().mean())}]
        for name, edit in edits.items():
            right = exact_match(lens, prompts, answers, [edit])
            difference = right.float() - base.float()
            low, high = bootstrap_interval(difference)
            gains, losses = int((difference > 0).sum()), int((difference < 0).sum())
            rows.append(
                {
                    "condition": name,
                    "accuracy": float(right.float().mean()),
                    "change": float(difference.mean()),
                    "low": float(low),
                    "high": float(high),
                    "gains": gains,
                    "losses": losses,
                }
            )
        note = f"{n} questions about {condition} pictures; change with its 95% interval over paired questions."
        yield section(f"Masking sinks and VAR: {condition} pictures", note, pd.DataFrame(rows).fillna(0))


if __name__ == "__main__":
    main()
