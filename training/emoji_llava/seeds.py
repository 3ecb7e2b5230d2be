"""How much of the alignment is luck: python -m training.emoji_llava.seeds [--out DIR] [--steps N]

Trains stage `align` with three seeds, each in DIR/SEED, which goes on where it was cut, and measures on arrangements
that were never drawn in training how many patches point nearest to the right word. The rule, written before any of
them ran: the seed of the recipe is the one that is gone on with, whichever is best; the others only say how far apart
they lie. DIR/seeds.json is what card.py makes the table of.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lmm_lens.bundled.emoji.render import render
from lmm_lens.bundled.emoji.scenes import NAMES, SEEN, UNSEEN, random_scene
from training.emoji_llava.alignment import look, to_pixels
from training.emoji_llava.train import Run

SEEDS = (0, 1, 2)
TEST_SEED = 2026
N_SCENES = 200
WORDS = {"things": SEEN, "things kept from the language model": UNSEEN}
BACKGROUND = "background"


@torch.no_grad()
def pointing_right(run: Run, names: Sequence[str], n: int = N_SCENES) -> tuple[float, float]:
    """Of pictures with one to four of some things: the share of these things' patches, and of the background's, whose
    nearest word among all names and colours is the right one."""
    scenes = [random_scene(random.Random(f"{TEST_SEED} {i}"), names=names) for i in range(n)]
    visual = look(run.model, to_pixels([render(scene, i) for i, scene in enumerate(scenes)]))
    labels, nearest = run.alignment.labels(scenes), run.alignment.nearest(visual)
    is_right, of_things = nearest == labels, labels < len(NAMES)
    return is_right[of_things].float().mean().item(), is_right[~of_things].float().mean().item()


def measured(run: Run, n: int = N_SCENES) -> dict[str, float]:
    """The shares by what the patches show."""
    found = {}
    for kind, names in WORDS.items():
        found[kind], behind = pointing_right(run, names, n)
        found.setdefault(BACKGROUND, behind)  # of the first kind: it is the same background
    return {kind: round(share, 3) for kind, share in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="train the alignment of emoji-llava with three seeds")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji-llava/seeds"))
    parser.add_argument("--steps", type=int, help="in place of the recipe's")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for seed in SEEDS:
        out = arguments.out / str(seed)
        out.mkdir(parents=True, exist_ok=True)
        run = Run("align", out, seed, arguments.steps)
        run.train()
        run.finish()
        found[str(seed)] = {**measured(run), "cpu_minutes": round(run.state.cpu / 60, 1)}
        print(seed, found[str(seed)], flush=True)
        (arguments.out / "seeds.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
