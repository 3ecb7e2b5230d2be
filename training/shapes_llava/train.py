"""Trains shapes-llava, from nothing to both checkpoints.

python -m training.shapes_llava.train [--stage tasks|sinks|all] [--out DIR] [--seed N]

Stage `tasks` (2400 steps) gives the checkpoint "plain": cross-entropy on answers, several questions a
picture, and over the first 500 steps a per-patch probe on the vision tower, in place of vision pre-training.
Stage `sinks` (900 steps) starts from it and gives the default checkpoint: planted attention sinks
(planting.py) and a square-root penalty on the visual attention that is not on a sink, which leaves a few
visual heads.
Seeds come from seeds.json. One thread: a run on two threads is not reproducible to the bit.

DIR gets plain/ and sinks/ as `from_pretrained` takes them, the fp32 weights tasks.safetensors and
sinks.safetensors, a report of each stage on the validation set, and SHA256SUMS to compare with the
committed checkpoints'.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmm_lens.bundled.shapes import TEXT_KINDS, VISUAL_KINDS, examples
from lmm_lens.bundled.shapes.processor import build_processor
from lmm_lens.bundled.shapes.questions import TEXT, VISUAL
from lmm_lens.bundled.shapes.render import render
from lmm_lens.bundled.shapes.scenes import COLORS, SHAPES, Scene, random_scene
from lmm_lens.bundled.worlds import N_PATCHES, Question, cell_patches
from training.shapes_llava.architecture import build_model, digest, save_checkpoint, write_checksums
from training.shapes_llava.attention import METER, NAME
from training.shapes_llava.evaluate import accuracy
from training.shapes_llava.packing import IGNORED, Packed, pack
from training.shapes_llava.planting import plant, sink_loss, sink_mask

HERE = Path(__file__).parent
SEEDS = json.loads((HERE / "seeds.json").read_text())
VISUAL_WEIGHTS = {"color": 2, "shape": 2, "where": 1.5, "count": 2.5, "exist": 2.5, "at": 1.5, "list": 2}
TEXT_WEIGHTS = {"arith": 2.5, "next": 0.8, "opposite": 0.5, "repeat": 0.7}
TEXT_SHARE = 0.2  # of the questions asked beside a picture
PATCH_CLASSES = 1 + len(COLORS) * len(SHAPES)  # empty, or one of the things


@dataclass(frozen=True)
class Stage:
    steps: int
    learning_rate: float
    sinks: bool = False
    batch: int = 32  # pictures
    length: int = 120  # tokens a row
    warmup: int = 150
    weight_decay: float = 0.03
    probe_steps: int = 500
    sink_weight: float = 0.3
    penalty_weight: float = 0.15
    penalty_warmup: int = 100

    @property
    def variant(self) -> str:
        return "sinks" if self.sinks else "plain"


STAGES = {
    "tasks": Stage(steps=2400, learning_rate=1.5e-3),
    "sinks": Stage(steps=900, learning_rate=1e-3, sinks=True, probe_steps=0),
}


def question_stream(scene: Scene | None, rng: random.Random) -> Iterator[Question]:
    """Endless random questions on a scene, one in five of them text-only; all text-only without a scene."""
    while True:
        if scene is None or rng.random() < TEXT_SHARE:
            kind = rng.choices(TEXT_KINDS, [TEXT_WEIGHTS[kind] for kind in TEXT_KINDS])[0]
            yield TEXT[kind](rng)
            continue
        kind = rng.choices(VISUAL_KINDS, [VISUAL_WEIGHTS[kind] for kind in VISUAL_KINDS])[0]
        question = VISUAL[kind](scene, rng)
        if question:
            yield question


def to_pixels(images: np.ndarray) -> Tensor:
    """What the image processor does: uint8 [batch, 48, 48, 3] -> [batch, 3, 48, 48] in -1..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def patch_classes(scenes: list[Scene]) -> Tensor:
    """What lies in each patch's cell, 0 for nothing: [scene, patch]."""
    classes = torch.zeros(len(scenes), N_PATCHES, dtype=torch.long)
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            content = 1 + COLORS.index(thing.color) * len(SHAPES) + SHAPES.index(thing.shape)
            classes[row, list(cell_patches(thing.cell))] = content
    return classes


def make_optimizer(modules: list[nn.Module], stage: Stage) -> torch.optim.AdamW:
    """AdamW; biases, gains and embeddings are not decayed."""
    named = [item for module in modules for item in module.named_parameters()]
    decayed = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if not (p.ndim == 2 and "embed" not in name)]
    groups = [
        {"params": decayed, "weight_decay": stage.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=stage.learning_rate, betas=(0.9, 0.98), eps=1e-8, fused=True)


def rate(step: int, stage: Stage) -> float:
    """Linear warm-up, then half a cosine down to a fiftieth."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / stage.steps))
    return stage.learning_rate * min(1, (step + 1) / stage.warmup) * (0.02 + 0.98 * cosine)


def answer_loss(model: Any, batch: Packed, pixels: Tensor | None) -> Tensor:
    """Cross-entropy of the answers' tokens."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(
            input_ids=batch.ids,
            pixel_values=pixels,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
        )[0]
        rows = batch.labels != IGNORED
        return nn.functional.cross_entropy(model.lm_head(hidden[rows]).float(), batch.labels[rows])


def train(model: Any, stage: Stage, seed: int) -> None:
    """Train in place, one stage."""
    probe = nn.Linear(model.config.vision_config.hidden_size, PATCH_CLASSES)  # discarded afterwards
    seen: dict[str, Tensor] = {}
    hook = model.model.multi_modal_projector.register_forward_hook(
        lambda module, inputs, output: seen.update(features=inputs[0], projected=output)
    )
    if stage.sinks:
        plant(model)
    optimizer = make_optimizer([model, probe], stage)
    rng, noise = random.Random(seed + 1), np.random.default_rng(seed + 1)
    began, running = time.process_time(), None
    model.train()
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, stage)
        scenes = [random_scene(rng, split="train") for _ in range(stage.batch)]
        batch = pack([question_stream(scene, rng) for scene in scenes], stage.length, with_image=True)
        sinks = sink_mask(scenes)
        if stage.sinks:
            METER.start(batch.labels != IGNORED, sinks)
        answering = answer_loss(model, batch, to_pixels(render(scenes, noise)))
        loss = answering
        if stage.sinks:
            mass = METER.stop()  # [layer, head]
            strength = stage.penalty_weight * min(1, step / stage.penalty_warmup)
            loss = loss + strength * (mass + 1e-3).sqrt().mean()
            loss = loss + stage.sink_weight * sink_loss(seen["projected"], sinks)
        if step < stage.probe_steps:
            read = probe(seen["features"].float())  # [batch, patch, class]
            fading = 1 - step / stage.probe_steps
            target = patch_classes(scenes).flatten()
            loss = loss + 0.5 * fading * nn.functional.cross_entropy(read.flatten(0, 1), target)
        loss.backward()
        if step % 4 == 3:  # prompts without a picture
            streams = [question_stream(None, rng) for _ in range(stage.batch // 2)]
            (0.25 * answer_loss(model, pack(streams, 64, with_image=False), None)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running = answering.item() if running is None else 0.95 * running + 0.05 * answering.item()
        if step % 50 == 49:
            print(f"step {step + 1} loss {running:.4f} cpu {time.process_time() - began:.0f} s", flush=True)
        if step % 400 == 399:
            quick = examples(440, VISUAL_KINDS + TEXT_KINDS, seed=7)  # to watch
            print(f"  {_rounded(accuracy(model, build_processor(), quick))}", flush=True)
            model.train()
    hook.remove()
    model.eval()


def validate(model: Any) -> dict[str, float]:
    """Exact match on the fixed validation set, by kind."""
    kinds = VISUAL_KINDS + TEXT_KINDS
    n = SEEDS["validation"]["examples_per_kind"] * len(kinds)
    return accuracy(model, build_processor(), examples(n, kinds, SEEDS["validation"]["seed"]))


def _rounded(by_kind: dict[str, float]) -> dict[str, float]:
    return {kind: round(value, 3) for kind, value in by_kind.items()}


def run_stage(name: str, out: Path, seed: int) -> None:
    """Train one stage, write its checkpoint, its fp32 weights and a report."""
    torch.set_num_threads(1)
    began = time.process_time()
    stage = STAGES[name]
    model = build_model(seed, attention=NAME)
    if stage.sinks:
        model.load_state_dict(load_file(out / "tasks.safetensors"))
    train(model, stage, seed)
    minutes = (time.process_time() - began) / 60
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    folder = out / stage.variant
    save_checkpoint(state, stage.variant, folder)
    write_checksums(out)
    save_file(state, out / f"{name}.safetensors")
    scores = _rounded(validate(model))
    report = {
        "stage": name,
        "seed": seed,
        "cpu_minutes": round(minutes, 1),
        "weights_sha256": digest(folder / "model.safetensors"),
        "validation": scores,
        "minimum": min(scores.values()),
        "mean": round(sum(scores.values()) / len(scores), 4),
    }
    (out / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="train shapes-llava")
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--out", type=Path, default=Path("runs/shapes-llava"))
    parser.add_argument("--seed", type=int, default=None, help="default: the chosen one of seeds.json")
    arguments = parser.parse_args()
    for name in STAGES if arguments.stage == "all" else [arguments.stage]:
        seed = SEEDS[name]["chosen"] if arguments.seed is None else arguments.seed
        run_stage(name, arguments.out, seed)


if __name__ == "__main__":
    main()
