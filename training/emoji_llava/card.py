"""Takes a training run into the package: python -m training.emoji_llava.card --out DIR

Copies frozen.safetensors and adapted.safetensors of DIR, as far as they are there, beside the library with their
SHA-256, and writes the tables of the model card from DIR/VARIANT.json, of training, DIR/VARIANT.measured.json, of
evaluate.py, and DIR/seeds/seeds.json, of seeds.py. Nothing of the tables is typed by hand.
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from lmm_lens.bundled import emoji
from lmm_lens.bundled.emoji.questions import SEMANTIC_KINDS, VISUAL_KINDS
from training.emoji_llava.evaluate import FIRST

PACKAGE = Path(emoji.__file__).parent
CONDITIONS = {"image": "image", "blank": "blank picture", "wrong": "another's picture", "never shown": "never shown"}
BEGIN, END = "<!-- {}: written by training.emoji_llava.card -->", "<!-- end of {} -->"


def share(row: dict[str, float]) -> str:
    return f"{row['accuracy']:.3f}".replace("0.", ".", 1) if row["accuracy"] < 1 else "1.0"


def interval(row: dict[str, float]) -> str:
    return f"{share(row)} ({row['low']:.2f} to {row['high']:.2f})".replace("0.", ".")


def accuracies(measured: dict[str, Any]) -> str:
    kinds = ["name", FIRST, *(kind for kind in VISUAL_KINDS if kind != "name")]
    lines = ["| variant | shown | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 2) + "|"]
    for variant, own in measured.items():
        for condition, words in CONDITIONS.items():
            shown = interval if condition == "image" else share
            cells = [shown(own[condition][kind]) for kind in kinds]
            lines.append(f"| {variant} | {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def untrained(measured: dict[str, Any]) -> str:
    lines = ["| variant | shown | " + " | ".join(SEMANTIC_KINDS) + " |", "|---" * (len(SEMANTIC_KINDS) + 2) + "|"]
    for variant, own in measured.items():
        for condition in ("picture", "blank"):
            cells = [interval(own[f"untrained questions, {condition}"][k]) for k in SEMANTIC_KINDS]
            lines.append(f"| {variant} | {condition} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def stages(out: Path, measured: dict[str, Any]) -> str:
    lines = ["| stage | steps | CPU minutes | texts continued as SmolLM2 does |", "|---|---|---|---|"]
    for stage in ("align", *emoji.VARIANTS):
        file = out / f"{stage}.json"
        if file.is_file():
            report = json.loads(file.read_text())
            same = f"{measured[stage]['same text']:.0%}" if stage in measured else ""
            lines.append(f"| {stage} | {report['steps']:,} | {report['cpu_minutes']} | {same} |")
    return "\n".join(lines)


def seeds(out: Path) -> str | None:
    """The table of seeds.py; None where it was not run."""
    file = out / "seeds" / "seeds.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text())
    kinds = [kind for kind in next(iter(found.values())) if kind != "cpu_minutes"]
    lines = ["| seed | " + " | ".join(kinds) + " | CPU minutes |", "|---" * (len(kinds) + 2) + "|"]
    for seed, own in found.items():
        cells = [f"{own[kind]:.3f}".removeprefix("0") for kind in kinds]
        lines.append(f"| {seed} | " + " | ".join(cells) + f" | {own['cpu_minutes']} |")
    return "\n".join(lines)


def between(text: str, name: str, table: str) -> str:
    """The text with the table in its place."""
    begin, end = BEGIN.format(name), END.format(name)
    before, found, rest = text.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"the card has no place for the table {name}: {begin} ... {end}")
    return f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description="take a training run of emoji-llava into the package")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji-llava"))
    out = parser.parse_args().out
    folder = PACKAGE / "checkpoints"
    folder.mkdir(exist_ok=True)
    for variant in emoji.VARIANTS:
        if (out / f"{variant}.safetensors").is_file():
            shutil.copyfile(out / f"{variant}.safetensors", folder / f"{variant}.safetensors")
            (folder / f"{variant}.safetensors").chmod(0o644)  # safetensors writes it for the owner alone
    files = sorted(folder.glob("*.safetensors"))
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (folder / "SHA256SUMS").write_text("".join(sums))
    measured = {
        variant: json.loads((out / f"{variant}.measured.json").read_text())
        for variant in emoji.VARIANTS
        if (out / f"{variant}.measured.json").is_file()
    }
    card = PACKAGE / "README.md"
    text = card.read_text()
    for name, table in (
        ("accuracy", accuracies(measured)),
        ("questions never trained", untrained(measured)),
        ("stages", stages(out, measured)),
        ("seeds", seeds(out)),
    ):
        text = text if table is None else between(text, name, table)
    card.write_text(text)


if __name__ == "__main__":
    main()
