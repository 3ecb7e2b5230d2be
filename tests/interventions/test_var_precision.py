"""VAR in half precision: its error is no larger than that of eager attention with the same edit."""

import copy

import pytest
import torch

from lmm_lens import VAR, Lens
from tests.support.models import another
from tests.support.oracle import ScoreReference, SlowVAR
from tests.support.planted import planted

NOISE = 1.1
NAMES = ["llava", "qwen2_5_vl", "mistral3", "gemma3", "paligemma2", "internvl", "glm4v"]
# everywhere and everything, so that the edit stands out from rounding and no row stands at a threshold
SETTINGS = {"min_visual_mass": 0.0, "min_nonsink_ratio": 0.0, "transfer_fraction": 1.0, "skip_last_layer": False}


def cast(inputs, dtype):
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def eager_logits(model, inputs, settings):
    reference = ScoreReference(model)
    slow = SlowVAR(reference, inputs, **settings)
    with reference.editing(pattern=slow):
        return reference.run(inputs).float(), slow.counts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_is_no_worse_than_eager(dtype):
    table = {}
    for name in NAMES:
        case = planted(name)
        settings = {**case.settings, **SETTINGS, "first_layer": 0}
        half = copy.deepcopy(case.model).to(dtype)
        exact_model, lens = copy.deepcopy(half).float(), Lens(half)
        errors = []
        for inputs in (case.inputs, another(case.inputs), another(case.inputs, seed=2)):
            rounded = cast(inputs, dtype)
            prompt = lens.prompt(inputs=rounded)
            run = lens.run(prompt, [VAR(**settings)])
            eager, counts = eager_logits(half, rounded, settings)
            exact, exact_counts = eager_logits(exact_model, cast(rounded, torch.float32), settings)
            assert run.reports[0].edits == counts == exact_counts
            given = [run.logits, eager, lens.run(prompt).logits]
            rows = prompt.mask("after_image")
            errors.append([(logits.float() - exact)[rows].abs().mean() for logits in given])
        table[name] = torch.tensor(errors).mean(0).tolist()
    ours, eagers, unedited = (sum(column) for column in zip(*table.values(), strict=True))
    assert ours <= NOISE * eagers, table
    assert all(row[0] <= 1.3 * row[1] for row in table.values()), table  # a family alone is a small sample
    print(table)
    assert unedited > 2 * ours, "the edit drowns in rounding, so nothing was tested"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_5"])
def test_generation_in_half_precision_is_edited_too(name, dtype):
    case = planted(name)
    lens = Lens(copy.deepcopy(case.model).to(dtype))
    prompt = lens.prompt(inputs=cast(case.inputs, dtype))
    settings = {**case.settings, **SETTINGS}
    given = lens.generate(prompt, [VAR(**settings)], max_new_tokens=4, logits=True, use_cache=True)
    uncached = lens.generate(prompt, [VAR(**settings)], max_new_tokens=4, logits=True, use_cache=False)
    assert given.logits.isfinite().all()
    same = given.tokens[0] == uncached.tokens[0]
    assert same[0]
    torch.testing.assert_close(given.logits[:, 0], uncached.logits[:, 0], atol=0.05, rtol=0)
    assert all(count > 0 for count in given.reports[0].edits.values())


def test_a_double_model_is_edited_in_double():
    case = planted("llava")
    double = copy.deepcopy(case.model).double()
    inputs = cast(case.inputs, torch.float64)
    lens = Lens(double)
    logits = lens.run(lens.prompt(inputs=inputs), [VAR(**case.settings)]).logits
    reference = ScoreReference(double)
    with reference.editing(pattern=SlowVAR(reference, inputs, **case.settings)):
        expected = reference.run(inputs)
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, expected, atol=1e-12, rtol=0)
