"""The tower's patterns, heads' outputs and scores against attention written out from its own weights, in fp64."""

import copy

import pytest
import torch

from lmm_lens import Lens, attention_map, score_heads
from tests.support.evidence import picture
from tests.support.families import lens_of
from tests.support.tower_reference import attended

CLOSE = 1e-10
LOUD = {"internvl": 60, "ovis2": 300}  # by how much queries and keys are larger than in a fresh model
QUICK = ("llava", "qwen2_5_vl", "pixtral", "llama4", "mllama")
LATER = (
    "gemma3",
    "paligemma",
    "llava_next",
    "lfm2_vl",
    "qwen2_vl",
    "qwen3_vl",
    "qwen3_5",
    "internvl",
    "qianfan_ocr",
    "idefics2",
    "idefics3",
    "smolvlm",
    "mistral3",
    "lighton_ocr",
    "ovis2",
    "aya_vision",
    "glm4v",
    "hyperclovax_vision_v2",
)
FAMILIES = [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in LATER)]


def exact(name):
    """A lens in fp64 whose heads look somewhere, and a prompt; with two pictures of different sizes where it packs."""
    given = lens_of(name)
    model = copy.deepcopy(given.model).double()
    with torch.no_grad():
        for each in given.adapter.tower.paths:
            for part, weight in model.get_submodule(each).named_parameters():
                if weight.ndim == 2 and any(named in part for named in ("q_proj", "k_proj", "qkv")):
                    weight.mul_(LOUD.get(name, 12))
    lens = Lens(model, given.processor)
    packs = name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "pixtral", "mistral3")
    images = [picture(90, 60), picture(60, 120)] if packs else picture(90, 60)
    inputs = lens.prompt("What is this?", images=images).inputs
    inputs = {key: x.double() if torch.is_tensor(x) and x.is_floating_point() else x for key, x in inputs.items()}
    return lens, lens.prompt(inputs=inputs)


@pytest.mark.parametrize("name", FAMILIES)
def test_patterns_and_outputs_are_those_of_the_weights(name):
    lens, prompt = exact(name)
    tower = lens.adapter.tower
    run = lens.run(prompt, read=["vision.pattern", "vision.z", "vision.attn_out"])
    modules = [layer.attention for layer in tower.layers]
    expected = attended(lens.model, prompt.inputs, modules, lens.vision.n_heads)
    patches = run.tower.masks.get("image")
    far = 0.0
    for layer, each in enumerate(expected):
        pattern, z = run.reads["vision.pattern", layer], run.reads["vision.z", layer]
        torch.testing.assert_close(pattern, each.pattern, atol=CLOSE, rtol=0)
        torch.testing.assert_close(z, each.z, atol=CLOSE, rtol=CLOSE)
        far = max(far, float(each.pattern.std(-1).max()))
        if patches is not None:
            entropy = -torch.xlogy(each.pattern, each.pattern).sum(-1).transpose(1, 2)[patches].mean(0)
            scores = score_heads(lens, prompt, "entropy", part="vision")
            torch.testing.assert_close(scores.values[layer].double(), entropy, atol=1e-6, rtol=1e-6)
    assert far > 0.01, "heads that look evenly would hide a wrong key"


def test_a_map_adds_the_written_out_pattern_up_in_its_tokens():
    lens, prompt = exact("qwen2_5_vl")
    (first, last) = [layer.attention for layer in lens.adapter.tower.layers]
    expected = attended(lens.model, prompt.inputs, [first, last], lens.vision.n_heads)[1].pattern
    found = attention_map(lens, prompt, heads=[(1, 1)], part="vision")
    # of the tower's own order, windows together, back to that of the picture
    made_of = lens.vision.patches(prompt).made_of[:, 0].double()
    mean = expected[0, 1].mean(0)
    visual = prompt.mask("visual")[0]
    torch.testing.assert_close(found.weights[0, 0, visual].double(), made_of @ mean, atol=1e-6, rtol=0)
