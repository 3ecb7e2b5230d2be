"""What travels to a server, in a process where nothing checks shapes: wrapped by jaxtyping, as in this suite, functions
of the library travel by value that elsewhere would be left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

CALLS = {
    "sinks": "find_sinks(lens, prompts)",
    "VAR that finds its sinks": "lens.run(prompt, [VAR(sink_dims='auto', sink_threshold='auto')])",
    "VAR and its control": "lens.generate(prompt, [VAR.for_task('general', lens, control=0)], max_new_tokens=2)",
    "sinks knocked out": "lens.run(prompt, [KnockoutSinks('auto', 'auto')])",
    "metrics": "[score_heads(lens, prompts, each) for each in ('visual_mass', 'concentration', 'nonsink_mass')]",
    "region": "score_heads(lens, prompt, 'region_mass', boxes=[(8, 8, 32, 32)])",
    "means": "head_means(lens, prompts)",
    "ablations": "[lens.run(prompt, [AblateHeads([(1, 2)], mode)]) for mode in ('zero', 'uniform')]",
    "tokens": "lens.run(prompt, [AblateTokens('image')])",
    "routes": "lens.generate(prompt, [Knockout('image', 'last')], max_new_tokens=2)",
    "steering": "lens.generate(prompt, [Steer(way, [1, 2], 'after_image', 0.5, keep_norm=True)], max_new_tokens=2)",
    "scaled attention": "lens.run(prompt, [ScaleAttention('image', factor=1.3, heads=HeadSet([(1, 2)], 6, 8))])",
    "own pattern": "lens.run(prompt, [EditPattern(more)])",
    "own rows": "lens.run(prompt, [Edit('mlp_out', lambda x, context: x * (1 + context.layer), 'last')])",
    "back-patching": "lens.run(prompt, [PatchResidual([1], clean, rows='image', source_layer=3)])",
    "directions": "direction(lens, prompts[0], prompts[1])",
    "own scores": "score_heads(lens, prompt, largest)",
    "attention maps": "attention_map(lens, prompt, words='color', drop_sinks=True)",
    "words of tokens": "logit_lens(lens, prompt, words=['red'])",
    "neighbours of tokens": "latent_lens(lens, prompt, embedding_bank(lens, ['a red circle'], layers=[2]), top=2)",
    "attribution by layer": "direct_attribution(lens, prompt, 'red', 'blue')",
    "information flow": "information_flow(lens, prompt, [('image', 'last')], 2, layers=[1])",
    "patching": "activation_patching(lens, prompts[0], prompts[1], site='resid_pre', by='span')",
    "attribution of effects": "head_effects(lens, prompt, heads=HeadSet([(1, 2)], 6, 8))",
    "localization": "localize(lens, prompt, localization_heads(native, prompts))",
    "comparison": "compare(lens, data.shapes(2, seed=3), {'plain': [], 'ablated': AblateHeads([(1, 2)])})",
}
SCRIPT = """
import warnings
warnings.simplefilter("ignore")
import torch
from lmm_lens import *
from lmm_lens import data, shapes
native, lens = Lens.demo(), Lens.demo(backend="nnsight", remote="local")
examples = shapes.examples(2, ["color"], seed=3)
prompts = [lens.prompt(each.question, images=each.image) for each in examples]
prompt = prompts[0]
way = direction(native, prompts[0], prompts[1])
clean = native.run(prompt, read=[Read("resid_pre", [3])])
def more(pattern, keys):
    return torch.where(keys["image"], 1.3 * pattern, pattern)
def largest(pattern, keys):
    return pattern.amax(-1)
for name, call in {calls!r}.items():
    try:
        eval(call)
    except Exception as error:
        print(name, "--", type(error).__name__, str(error).splitlines()[0])
    else:
        print(name, "-- done")
"""


def test_every_call_travels_from_a_plain_process():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    script = SCRIPT.format(calls=CALLS)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[3],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [f"{name} -- done" for name in CALLS], done.stderr[-2000:]
