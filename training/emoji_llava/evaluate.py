"""Measures emoji-llava: python -m training.emoji_llava.evaluate [--variant frozen|adapted] [--n 500] [--out FILE]

Exact match of the whole answer with its end, on arrangements never drawn in training: every token leads given the right
ones before it, which is what greedy decoding gives. Several questions of a picture are packed behind it (packing.py).
The weights are the committed ones, in fp32.

"blank" shows a white picture, "wrong" another random scene's; "never shown" are pictures of the twelve things that the
language model met in no training picture. Text: 200 prompts without a picture, continued by twelve tokens, against
SmolLM2-135M-Instruct itself.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmm_lens.bundled import emoji
from lmm_lens.bundled.emoji.language import language_model
from lmm_lens.bundled.emoji.questions import SEMANTIC, at, background, count, everything, exist, name
from lmm_lens.bundled.emoji.render import render
from lmm_lens.bundled.emoji.scenes import SEEN, UNSEEN, Scene, random_scene
from lmm_lens.bundled.worlds import N_PATCHES, Question
from training.emoji_llava.alignment import look, to_pixels
from training.emoji_llava.packing import IGNORED, Packer

TEST_SEED = 2026
ROWS = 8
LONGEST = 12  # tokens of a continued text
FIRST = "name, first word"
Asked = tuple[Scene, int, list[Question]]  # what is shown, the seed it is drawn with, what is asked of it


@torch.no_grad()
def right(model: Any, packer: Packer, asked: Sequence[Asked]) -> list[tuple[str, bool]]:
    """(kind, whether the whole answer is right) of every question."""
    results = []
    language = model.model.language_model
    for start in range(0, len(asked), ROWS):
        part = asked[start : start + ROWS]
        questions = [row for _, _, row in part]
        packed = packer.pack(questions, max(packer.need(row) for row in questions))
        embedded = language.embed_tokens(packed.ids)
        visual = look(model, to_pixels([render(scene, seed) for scene, seed, _ in part]))
        embedded[:, packer.first_patch : packer.first_patch + N_PATCHES] = visual
        hidden = language(
            inputs_embeds=embedded, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
        )[0]
        for row, own in enumerate(questions):
            for number, question in enumerate(own):
                here = (packed.question[row] == number) & (packed.labels[row] != IGNORED)
                leading = model.lm_head(hidden[row, here]).argmax(-1)
                hits = leading == packed.labels[row, here]
                results.append((question.kind, bool(hits.all())))
                if question.kind == "name":  # a name is one token: whether it is said, whatever is said after it
                    results.append((FIRST, bool(hits[0])))
    return results


def scenes(n: int, condition: str) -> list[Asked]:
    """n pictures of one to four things with a question of each kind, and n of one thing to be named."""
    names = UNSEEN if condition == "never shown" else SEEN
    asked: list[Asked] = []
    for i in range(n):
        rng = random.Random(f"{TEST_SEED} {i}")
        scene, one = random_scene(rng, names=names), random_scene(rng, (1, 1), names=names)
        shown = {"blank": Scene(()), "wrong": random_scene(rng, names=names)}.get(condition, scene)
        shown_one = {"blank": Scene(()), "wrong": random_scene(rng, (1, 1), names=names)}.get(condition, one)
        named = name(one, rng)
        assert named is not None
        kinds = [background(scene, rng), exist(scene, rng, names), count(scene, rng), at(scene, rng)]
        asked += [(shown, 2 * i, [*kinds, everything(scene, rng)]), (shown_one, 2 * i + 1, [named])]
    return asked


def semantic(n: int, blank: bool) -> list[Asked]:
    """n questions of each kind that was never trained, which need what the language model knows of the things."""
    asked: list[Asked] = []
    for kind, ask in SEMANTIC.items():
        rng, found = random.Random(f"{TEST_SEED} {kind}"), 0
        while found < n:
            scene = random_scene(rng, (2, 3))
            question = ask(scene, rng)
            if question:
                asked.append((Scene(()) if blank else scene, found, [question]))
                found += 1
    return asked


def table(results: Sequence[tuple[str, bool]]) -> dict[str, dict[str, float]]:
    """By kind: accuracy, its 95% interval (Wilson), and how many were asked."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for kind, hit in results:
        hits[kind].append(hit)
    rows = {}
    z = 1.96
    for kind, own in hits.items():
        n, share = len(own), sum(own) / len(own)
        center, spread = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
        low, high = ((center + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
        rows[kind] = {"accuracy": round(share, 3), "low": round(max(low, 0), 3), "high": round(high, 3), "n": n}
    return rows


def texts(n: int) -> list[str]:
    """Questions without a picture."""
    things = ("the capital of", "the opposite of", "the color of", "the plural of", "a good name for")
    words = ("France", "hot", "grass", "Japan", "big", "snow", "Egypt", "up", "the sky", "Italy", "day", "blood", *SEEN)
    asked = [f"What is {thing} {word}?" for word in words for thing in things]
    return random.Random(TEST_SEED).sample(asked, n)


@torch.no_grad()
def same_text(model: Any, processor: Any, n: int) -> float:
    """Share of prompts that model and language model alone continue by the same twelve tokens."""
    from transformers import AutoModelForCausalLM

    alone = AutoModelForCausalLM.from_pretrained(language_model(), dtype=torch.float32).eval()
    template = processor.apply_chat_template
    same: list[bool] = []
    for start in range(0, n, 20):
        chats = [[{"role": "user", "content": text}] for text in texts(n)[start : start + 20]]
        prompts = [template(chat, add_generation_prompt=True) for chat in chats]
        inputs = processor.tokenizer(prompts, return_tensors="pt", padding=True)
        made: list[Tensor] = [
            each.generate(**inputs, max_new_tokens=LONGEST, min_new_tokens=LONGEST, do_sample=False)
            for each in (model, alone)
        ]
        same += (made[0] == made[1]).all(1).tolist()
    return sum(same) / len(same)


def main() -> None:
    parser = argparse.ArgumentParser(description="measure emoji-llava")
    parser.add_argument("--variant", choices=emoji.VARIANTS, default="frozen")
    parser.add_argument("--n", type=int, default=500, help="questions of each kind")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    model, processor = emoji.load(arguments.variant)
    packer = Packer(processor.tokenizer)
    measured: dict[str, Any] = {"variant": arguments.variant, "n": arguments.n}
    for condition in ("image", "blank", "wrong", "never shown"):
        measured[condition] = table(right(model, packer, scenes(arguments.n, condition)))
        print(condition, {kind: row["accuracy"] for kind, row in measured[condition].items()}, flush=True)
    for condition in ("picture", "blank"):
        part = semantic(arguments.n // 5, condition == "blank")
        measured[f"untrained questions, {condition}"] = table(right(model, packer, part))
    measured["same text"] = same_text(model, processor, 200)
    measured["cpu_minutes"] = round((time.process_time() - began) / 60, 1)
    print(json.dumps(measured), flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
