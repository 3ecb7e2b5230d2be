"""What reading, editing and sweeping the vision tower costs: `python -m benchmarks.tower`.

Two models: the bundled one, and a random LLaVA with a tower of CLIP ViT-B/16's size (12 layers x 12 heads of 64, 197
tokens) before a small decoder. Reading and editing are beside the plain forward of the same round; a sweep over heads
is beside one plain forward a head with a hook that sets the head's slice of the output projection's input to zero,
and its logits are compared with those forwards'. Attribution patching and circuits, of which one pass answers for
thousands of patches, heads or edges, are beside one plain forward too.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from lmm_lens import (
    AblateHeads,
    Circuit,
    HeadSet,
    Lens,
    Prompt,
    Read,
    attribution_patching,
    find_circuit,
    score_heads,
    shapes,
)
from lmm_lens.answers.items import Item
from lmm_lens.effects.tower import TowerAblation, tower_units
from lmm_lens.effects.work import EffectsWork
from lmm_lens.replay.batches import Batches

from .sweeps import store
from .timing import interleaved, machine, seconds, show, spread, write

RESULTS = Path(__file__).parent / "results"
IMAGE, N_PATCHES = 999, 196
CLIP = "CLIP ViT-B/16's size, 12 x 12 heads, 197 tokens"
BUNDLED = "bundled model, 3 x 4 heads, 37 tokens"


def build() -> Lens:
    """A random LLaVA with a tower of that size and a decoder that costs little beside it."""
    text = LlamaConfig(
        vocab_size=1000, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4
    )
    vision = CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=16,
    )
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1)
    model: Any = LlavaForConditionalGeneration(config)
    return Lens(model.eval())


def prompt_of(lens: Lens, seed: int = 0) -> Prompt:
    """A picture of noise and twenty tokens of text behind it, the same for every seed."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, IMAGE, (1, 1 + N_PATCHES + 20), generator=draw)
    ids[:, 1 : 1 + N_PATCHES] = IMAGE
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(seed))
    return lens.prompt(inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels})


def plain(lens: Lens, prompt: Prompt) -> Tensor:
    """The rival: the model itself, logits of the last token alone."""
    with torch.no_grad():
        model: Any = lens.model
        logits: Tensor = model(**prompt.inputs, use_cache=False, logits_to_keep=1).logits
        return logits[0, -1]


def zeroed(lens: Lens, prompt: Prompt, layer: int, head: int) -> Tensor:
    """The same with a head of the tower set to zero."""
    parts = lens.adapter.tower.layers[layer]

    def before(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].clone()
        z[..., head * parts.d_head : (head + 1) * parts.d_head] = 0
        return (z, *args[1:])

    projection: Any = parts.output_projection
    hook = projection.register_forward_pre_hook(before)
    try:
        return plain(lens, prompt)
    finally:
        hook.remove()


def cases(lens: Lens, prompt: Prompt) -> dict[str, tuple[Callable[[], object], str]]:
    """What is timed beside the plain forward, with what it may cost."""
    few = HeadSet(
        [(layer, 1) for layer in range(lens.vision.n_used)], lens.vision.n_layers, lens.vision.n_heads, "vision"
    )

    def run(*, edits: Any = (), read: Any = ()) -> Callable[[], object]:
        return partial(lens.run, prompt, edits, read, logits="last")

    return {
        "plain forward": (partial(plain, lens, prompt), ""),
        "`lens.run`, nothing asked": (run(), "1.05"),
        "read `vision.resid_post`, all layers": (run(read=["vision.resid_post"]), "1.05"),
        "read `vision.pattern` of the class token, all heads": (
            run(read=[Read("vision.pattern", rows="class")]),
            "1.05",
        ),
        "zero a head a layer, all rows": (run(edits=[AblateHeads(few)]), "1.05"),
        "even attention of the class token, a head a layer": (
            run(edits=[AblateHeads(few, "uniform", "class")]),
            "1.05",
        ),
        "read `projector`": (run(read=["projector"]), "1.05"),
        "`score_heads`, entropy of all patches": (partial(score_heads, lens, prompt, "entropy", part="vision"), ""),
    }


def estimates(lens: Lens, clean: Prompt, corrupt: Prompt) -> dict[str, Callable[[], Any]]:
    """What answers for many parts of the tower from one backward pass."""
    answers = [(3, 4)]
    return {
        "`attribution_patching`, every patch after every layer": partial(
            attribution_patching, lens, clean, corrupt, "vision.resid_post", "patch", answers=answers
        ),
        "`attribution_patching`, every head": partial(
            attribution_patching, lens, clean, corrupt, "vision.z", "head", answers=answers
        ),
        '`find_circuit(tower=True, method="eap")`': partial(
            find_circuit, lens, clean, corrupt, answer=3, against=4, tower=True, method="eap"
        ),
    }


def n_estimates(found: Any) -> int:
    """How many parts it answered for."""
    return int(found.n_edges if isinstance(found, Circuit) else found.values.numel())


def sweep(lens: Lens, prompt: Prompt, n_a_layer: int, rounds: int) -> tuple[list[float], float]:
    """Times as fast as one forward a head, and the largest difference of a logit."""
    vision, draw = lens.vision, random.Random(0)
    heads = [(layer, h) for layer in range(vision.n_used) for h in draw.sample(range(vision.n_heads), n_a_layer)]
    units = tower_units(lens, HeadSet(heads, vision.n_layers, vision.n_heads, "vision"))
    work = EffectsWork(lens, TowerAblation(units, "zero", "all"), Batches(None, lens.device))
    work(Item("warm", prompt, answer=(3, 4)))
    ratios, worst = [], 0.0
    device = torch.device("cpu")
    for _ in range(rounds):
        naive: dict[Any, Any] = {}
        found: dict[Any, Any] = {}
        rival = sum(seconds(partial(store, naive, at, partial(zeroed, lens, prompt, *at)), device) for at in heads)
        work._at_hand = None
        work.forwards._prompt = None  # recorded anew, as the first time
        mine = seconds(partial(store, found, "sweep", partial(work, Item("", prompt, answer=(3, 4)))), device)
        given = torch.stack([naive[at][[3, 4]].double() for at in heads])
        worst = max(worst, float((found["sweep"]["logits"][1:] - given).abs().max()))
        ratios.append(rival / mine)
    return ratios, worst


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tower", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two rounds; writes no file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 2 if options.quick else options.rounds
    device = torch.device("cpu")
    demo, large = Lens.demo(), build()
    ((red, blue),) = shapes.color_pairs(1, seed=0)
    bundled = [demo.prompt(each.question, images=each.image) for each in (red, blue)]
    settings = {
        CLIP: (large, [prompt_of(large), prompt_of(large, 1)], rounds, 4),
        BUNDLED: (demo, bundled, 8 * rounds, 4),
    }
    lines = [["", "ratio", "target", "of what", "logits differ by"]]
    noise = {}
    for name, (lens, (prompt, corrupt), times, n_a_layer) in settings.items():
        asked = cases(lens, prompt)
        for function, _ in asked.values():
            function()
        took = interleaved({case: function for case, (function, _) in asked.items()}, times, device)
        rival = took["plain forward"]
        noise[name] = spread(rival)
        for case, (_, target) in asked.items():
            if case == "plain forward":
                continue
            ratio = statistics.median(x / y for x, y in zip(took[case], rival, strict=True))
            lines.append([f"{case}; {name}", f"{ratio:.2f}", target, "of the plain forward", ""])
        few: dict[str, Callable[[], Any]] = {
            "plain forward": partial(plain, lens, prompt),
            **estimates(lens, prompt, corrupt),
        }
        parts = {case: n_estimates(function()) for case, function in few.items() if case != "plain forward"}
        took = interleaved(few, max(2, times // 3), device)
        for case, n in parts.items():
            ratio = statistics.median(x / y for x, y in zip(took[case], took["plain forward"], strict=True))
            lines.append([f"{case}; {name}", f"{ratio:.1f}", "", f"of the plain forward, for {n:,} estimates", ""])
        ratios, worst = sweep(lens, prompt, n_a_layer, max(2, rounds // 3))
        lines.append(
            [
                f"sweep, {n_a_layer} heads a layer; {name}",
                f"{statistics.median(ratios):.2f}",
                "1.7",
                "times as fast as a forward a head",
                f"{worst:.1g}",
            ]
        )
    told = ", ".join(f"{share:.0%}" for share in noise.values())
    notes = (
        f"{machine(device)}. Medians of {rounds} interleaved rounds ({8 * rounds} for the bundled model), "
        f"a third of them for estimates and sweeps, each ratio within its round; the plain forward varied by {told} "
        "(interquartile range). Where the decoder is far larger than the tower, a sweep is faster by its replay alone. "
        "On the bundled model a forward is so short that what a call costs once, some milliseconds of Python, is seen, "
        "and its decoder takes most of the time, so that a sweep gains less."
    )
    show(lines, notes)
    if not options.quick:
        write(lines, "The vision tower: read, edited, swept", notes, RESULTS / "tower.md")


if __name__ == "__main__":
    main()
