"""Exact match by question type, by greedy generation in left-padded batches.

python -m training.shapes_llava.evaluate [--variant sinks] [--per-kind 300] prints the table of the model card:
accuracy with the image, with a blank one and with the wrong one.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lmm_lens.bundled.shapes import CONDITIONS, TEXT_KINDS, VARIANTS, VISUAL_KINDS, Example, examples, load

TEST_SEED = 2026
LONGEST_ANSWER = 16  # tokens; a list of five things has 14, and </s>


def prompt(processor: Any, example: Example) -> str:
    """The chat template's text for one example, up to and with ASSISTANT:."""
    content = [{"type": "text", "text": example.question}]
    if example.image is not None:
        content.insert(0, {"type": "image"})
    return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))


def answers(model: Any, processor: Any, asked: Sequence[Example], batch_size: int = 64) -> list[str]:
    """What the model says to each example. Prompts of similar length share a batch."""
    import torch

    texts = [prompt(processor, example) for example in asked]
    # text-only examples apart from the others: a batch has pixels for all its rows or for none
    order = sorted(range(len(asked)), key=lambda i: (asked[i].image is None, asked[i].kind, len(texts[i])))
    said = [""] * len(asked)
    for with_image in (True, False):
        chosen = [i for i in order if (asked[i].image is not None) == with_image]
        for start in range(0, len(chosen), batch_size):
            rows = chosen[start : start + batch_size]
            images = [asked[i].image for i in rows] if with_image else None
            inputs = processor(images=images, text=[texts[i] for i in rows], return_tensors="pt", padding=True).to(
                model.device
            )
            if with_image:
                inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
            with torch.no_grad():
                out = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
            new = out[:, inputs["input_ids"].shape[1] :]
            for i, text in zip(rows, processor.batch_decode(new, skip_special_tokens=True), strict=True):
                said[i] = text.strip()
    return said


def accuracy(model: Any, processor: Any, asked: Sequence[Example], batch_size: int = 64) -> dict[str, float]:
    """Share of answers that are exactly right, by kind, in the order kinds first appear."""
    right: dict[str, list[bool]] = defaultdict(list)
    for example, said in zip(asked, answers(model, processor, asked, batch_size), strict=True):
        right[example.kind].append(said == example.answer)
    return {kind: sum(hits) / len(hits) for kind, hits in right.items()}


def table(
    model: Any,
    processor: Any,
    per_kind: int,
    seed: int = TEST_SEED,
    conditions: Sequence[str] = CONDITIONS[:3],
) -> dict[str, dict[str, float]]:
    """Accuracy by condition and kind; text-only kinds are asked once, under "clean"."""
    rows = {}
    for condition in conditions:
        kinds = VISUAL_KINDS + TEXT_KINDS if condition == "clean" else VISUAL_KINDS
        asked = examples(per_kind * len(kinds), kinds, seed, condition)
        rows[condition] = accuracy(model, processor, asked)
    return rows


def visual_mean(by_kind: dict[str, float]) -> float:
    """Mean accuracy over the visual kinds."""
    return sum(by_kind[kind] for kind in VISUAL_KINDS) / len(VISUAL_KINDS)


def markdown(rows: dict[str, dict[str, float]]) -> str:
    kinds = VISUAL_KINDS + TEXT_KINDS
    lines = ["| image | visual mean | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 2) + "|"]
    for condition, by_kind in rows.items():
        cells = [f"{by_kind[kind]:.3f}" if kind in by_kind else "" for kind in kinds]
        lines.append(f"| {condition} | {visual_mean(by_kind):.3f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="accuracy of shapes-llava by question type")
    parser.add_argument("--variant", choices=VARIANTS, default=None, help="default: both")
    parser.add_argument("--per-kind", type=int, default=300)
    parser.add_argument("--seed", type=int, default=TEST_SEED)
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=CONDITIONS[:3])
    arguments = parser.parse_args()
    for variant in [arguments.variant] if arguments.variant else VARIANTS:
        rows = table(*load(variant), arguments.per_kind, arguments.seed, arguments.conditions)
        print(f"{variant}, {arguments.per_kind} unseen scenes a type\n{markdown(rows)}\n")


if __name__ == "__main__":
    main()
