"""Trains emoji-llava, from nothing to both variants.

python -m training.emoji_llava.train [--stage align|frozen|adapted|all] [--out DIR] [--seed N] [--steps N]

Stage `align` trains tower and projector without the language model: patches point to the embedding of a name
(alignment.py). Stage `frozen` goes on through the language model, which stays as it is, with the loss of its answers,
with that of the alignment kept, and with eight embeddings behind the picture that say in which form to answer. Stage
`adapted` goes on from there with a low-rank adapter on the language model's attention.

Without a frozen variant of its own in DIR, `adapted` begins with the one that is in the box.

Lengths and rates are in recipe.json. One thread: a run on two threads is not reproducible to the bit. A run that was
cut goes on where its last checkpoint was written; with more `--steps` than an earlier one had, it goes on from where
that one began to lower its rate.

DIR gets STAGE.pt (checkpoint), STAGE.trunk.pt (before the rate falls), STAGE.json (report), and, of the last two,
STAGE.safetensors: what is committed, in fp16.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from lmm_lens.bundled.emoji import checkpoint
from lmm_lens.bundled.emoji.architecture import ADAPTER_SCALE, build_model, is_eye
from lmm_lens.bundled.emoji.language import language_model
from lmm_lens.bundled.emoji.processor import SOFT, build_tokenizer
from lmm_lens.bundled.emoji.questions import VISUAL
from lmm_lens.bundled.emoji.scenes import Scene, random_scene
from lmm_lens.bundled.worlds import N_PATCHES, Question
from training.emoji_llava.adapter import Adapter
from training.emoji_llava.alignment import Alignment, drawn, look, pictures_of_everything
from training.emoji_llava.attention import NAME as ATTENTION
from training.emoji_llava.packing import IGNORED, Packer
from training.emoji_llava.state import State, planned, trained_of

HERE = Path(__file__).parent
RECIPE = json.loads((HERE / "recipe.json").read_text())
STAGES = ("align", "frozen", "adapted")
SAVE_EVERY, TELL_EVERY = 50, 10
HINT = " Look at the picture and answer with one word"  # what the soft prompt starts from
KINDS = ("background", "exist", "count", "at", "list")


def share(step: int, recipe: dict[str, Any], steps: int) -> float:
    """Of the peak rate: linear warm-up, constant, and linear down to nothing over the last `decay` of the steps."""
    falling = recipe.get("decay", 1.0) * steps
    return float(min(1, (step + 1) / recipe["warm_up"], (steps - step) / falling))


def between(ends: list[float], step: int, settle: int) -> float:
    """From the first to the second number over the first `settle` steps."""
    return ends[0] + (ends[1] - ends[0]) * min(1.0, step / settle)


def asked(scene: Scene, rng: random.Random, weights: dict[str, int]) -> list[Question]:
    """Different questions on a scene, more than a row holds."""
    kinds = [kind for kind in KINDS for _ in range(weights.get(kind, 1))] + ["at", "exist", "at", "exist"]
    rng.shuffle(kinds)
    questions = [VISUAL[kind](scene, rng) for kind in kinds]
    return list(dict.fromkeys(question for question in questions if question))


class Run:
    """One stage of one seed."""

    def __init__(self, stage: str, out: Path, seed: int, steps: int | None = None) -> None:
        self.stage, self.out, self.recipe = stage, out, RECIPE[stage]
        self.steps = steps or self.recipe["steps"]
        self.falls_at = self._fell_at(self.steps)
        folder = language_model()
        self.tokenizer = build_tokenizer(folder)
        torch.manual_seed(seed)
        self.model = build_model(folder, self.tokenizer)
        self.model.requires_grad_(False)
        self.alignment = Alignment(self.model.get_input_embeddings().weight, self.tokenizer)
        self.packer = Packer(self.tokenizer)
        self.language = self.model.model.language_model
        trained = {name: p for name, p in self.model.named_parameters() if is_eye(name)}
        groups: list[dict[str, Any]] = [{"params": list(trained.values()), "peak": self.recipe["rate"]}]
        self.adapter: Adapter | None = None
        self.soft = torch.empty(0)
        if stage != "align":
            self.language.to(torch.bfloat16).set_attn_implementation(ATTENTION)
            hint = self.tokenizer.encode(HINT, add_special_tokens=False)[: len(SOFT)]
            self.soft = self.language.embed_tokens.weight[hint].float().clone().requires_grad_(True)
            trained["soft_prompt"] = self.soft
            groups.append({"params": [self.soft], "peak": self.recipe["soft_rate"], "weight_decay": 0.0})
        if stage == "adapted":
            self.adapter = Adapter(self.language, self.recipe["rank"], ADAPTER_SCALE)
            trained |= self.adapter.weights
            groups.append({"params": list(self.adapter.weights.values()), "peak": self.recipe["adapter_rate"]})
        for value in trained.values():
            value.requires_grad_(True)
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.02)
        self.state = State(trained, optimizer, random.Random(f"{stage} {seed}"), self.steps)
        self._start_from(seed)

    def _fell_at(self, steps: int) -> int:
        """The step at which the rate begins to fall."""
        falling: float = self.recipe.get("decay", 1.0)
        return round(steps * (1 - falling))

    def _start_from(self, seed: int) -> None:
        """The latest checkpoint that leads to where this run goes, or the stage before."""
        for file in (self.file(".pt"), self.file(".trunk.pt")):
            if not file.is_file():
                continue
            done, steps = planned(file)
            if steps == self.steps or done <= min(self.falls_at, self._fell_at(steps)):
                self.state.load(file)
                print(f"{self.stage}: going on after step {done}", flush=True)
                return
        if self.stage != "align":
            with torch.no_grad():
                for name, value in self._before().items():
                    self.state.trained[name].copy_(value)

    def _before(self) -> dict[str, Tensor]:
        """What the stage before trained. `adapted` begins with the frozen variant as it is committed, in fp16."""
        if self.stage == "frozen":
            return trained_of(self.out / "align.pt")
        own = self.out / "frozen.safetensors"
        file = own if own.is_file() else checkpoint("frozen")
        print(f"{self.stage}: beginning with {file}", flush=True)
        return load_file(file)

    def file(self, ending: str) -> Path:
        return self.out / f"{self.stage}{ending}"

    def losses(self) -> Iterator[tuple[Tensor, dict[str, float]]]:
        """Of each step: what is minimised, and what to tell of it."""
        rng, recipe = self.state.rng, self.recipe
        while True:
            if self.stage == "align":
                scenes, pixels = pictures_of_everything(rng, recipe["pictures"], tuple(recipe["things"]))
                with torch.autocast("cpu", torch.bfloat16):
                    visual = look(self.model, pixels)
                contrast, regression, right = self.alignment.loss(visual, self.alignment.labels(scenes))
                yield contrast + regression, {"contrast": contrast.item(), "aligned": right.item()}
                continue
            scenes = [random_scene(rng, split="train") for _ in range(recipe["rows"])]
            pixels = drawn(scenes, rng)
            questions = [asked(scene, rng, recipe.get("weights", {})) for scene in scenes]
            more, more_pixels = pictures_of_everything(rng, recipe["extra"], (2, 6))
            with torch.autocast("cpu", torch.bfloat16):
                visual = look(self.model, torch.cat([pixels, more_pixels]))
            answering, told = self.answering(visual[: len(scenes)], questions)
            contrast, regression, right = self.alignment.loss(visual[len(scenes) :], self.alignment.labels(more))
            step, settle = self.state.step, recipe["settle"]
            kept = between(recipe["contrast"], step, settle) * contrast
            kept = kept + between(recipe["regression"], step, settle) * regression
            yield answering + kept, {"loss": answering.item(), "aligned": right.item(), **told}

    def answering(self, visual: Tensor, questions: list[list[Question]]) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of the answers' tokens, and by kind the share of these that lead, ends left out."""
        packed = self.packer.pack(questions, self.recipe["length"])
        embedded = self.language.embed_tokens(packed.ids)
        first, soft = self.packer.first_patch, self.packer.first_soft
        embedded[:, first : first + N_PATCHES] = visual.to(embedded.dtype)
        embedded[:, soft : soft + len(SOFT)] = self.soft.to(embedded.dtype)
        hidden = self.language(
            inputs_embeds=embedded, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
        )[0]
        rows = packed.labels != IGNORED
        labels = packed.labels[rows]
        logits = (hidden[rows] @ self.language.embed_tokens.weight.T).float()
        right = (logits.argmax(-1) == labels).tolist()
        hits = defaultdict(list)
        for (row, at), hit, label in zip(rows.nonzero().tolist(), right, labels.tolist(), strict=True):
            if label != self.packer.end:
                hits[questions[row][int(packed.question[row, at])].kind].append(hit)
        return functional.cross_entropy(logits, labels), {k: sum(v) / len(v) for k, v in hits.items()}

    def train(self) -> None:
        began, before = time.process_time(), self.state.cpu
        told: dict[str, list[float]] = defaultdict(list)
        losses = self.losses()
        everything = list(self.state.trained.values())
        while self.state.step < self.steps:
            if self.state.step == self.falls_at and self.stage != "align":
                self.state.save(self.file(".trunk.pt"))
            for group in self.state.optimizer.param_groups:
                group["lr"] = group["peak"] * share(self.state.step, self.recipe, self.steps)
            loss, values = next(losses)
            self.state.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(everything, 1.0)
            self.state.optimizer.step()
            self.state.step += 1
            self.state.cpu = before + time.process_time() - began
            for name, value in values.items():
                told[name].append(value)
            if self.state.step % TELL_EVERY == 0:
                line = {name: round(sum(v) / len(v), 3) for name, v in sorted(told.items())}
                print(f"{self.stage} {self.state.step} cpu {self.state.cpu / 60:.1f} min {line}", flush=True)
                told.clear()
            if self.state.step % SAVE_EVERY == 0:
                self.state.save(self.file(".pt"))
        self.state.save(self.file(".pt"))

    def finish(self) -> None:
        """The report, and the trained parts as they are committed."""
        report = {"stage": self.stage, "steps": self.steps, "cpu_minutes": round(self.state.cpu / 60, 1)}
        self.file(".json").write_text(json.dumps(report, indent=2) + "\n")
        if self.stage != "align":
            parts = {name: value.detach().half().contiguous() for name, value in self.state.trained.items()}
            save_file(parts, self.file(".safetensors"))
        print(json.dumps(report), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="train emoji-llava")
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji-llava"))
    parser.add_argument("--seed", type=int, default=RECIPE["seed"])
    parser.add_argument("--steps", type=int, help="of one stage, in place of the recipe's")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for stage in STAGES if arguments.stage == "all" else [arguments.stage]:
        run = Run(stage, arguments.out, arguments.seed, arguments.steps)
        run.train()
        run.finish()


if __name__ == "__main__":
    main()
