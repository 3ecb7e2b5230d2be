"""On every family the nnsight backend gives the native backend's answer under every intervention, step by step."""

import pytest
import torch

from lmm_lens import AblateHeads, AblateTokens, Lens
from lmm_lens.errors import InterventionError
from tests.support.cases import Case, case
from tests.support.models import FAMILIES
from tests.support.nnsight_lenses import (
    CORE,
    EDITS,
    FOUR,
    MORE,
    WIDE,
    edit_of,
    generating,
    pairs,
    same_generation,
    same_runs,
)
from tests.support.programs import PROGRAMS, interventions


def test_without_interventions_generation_is_the_models_own(family):
    same_generation(family, family.on("nnsight"), tolerance=1e-12)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": []}
    with torch.no_grad():
        own = family.model.generate(**family.inputs, **options)[:, family.prompt.n_tokens :]
    assert torch.equal(family.on("nnsight").generate(family.prompt, **generating()).tokens, own)


OTHERS = [name for name in FAMILIES if name not in WIDE]


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        *pairs(FAMILIES, EDITS),
        *pairs(WIDE, MORE),
        *(pytest.param(*pair, marks=pytest.mark.long) for pair in pairs(OTHERS, MORE)),
    ],
)
def test_every_intervention_gives_the_native_forward_pass(name, edit):
    family, edits = case(name), [edit_of(name, edit)]
    native, given = (lens.run(family.prompt, edits, read=["resid_post"]) for lens in family.lenses("nnsight"))
    same_runs(native, given)
    if edit != "tokens":
        assert (native.logits - family.logits).abs().max() > 1e-3, "the edit has no effect to compare"
    assert native.reports[0].n_edits


STEP_BY_STEP = pairs(FAMILIES, CORE) + pairs(FOUR, [e for e in EDITS if e not in CORE]) + pairs(["llava"], MORE)


@pytest.mark.parametrize(("name", "edit"), STEP_BY_STEP)
def test_every_intervention_gives_the_native_answer_step_by_step(name, edit):
    same_generation(case(name), case(name).on("nnsight"), edit)


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
@pytest.mark.parametrize("name", WIDE)
def test_overlapping_edits_of_the_pattern_compose_as_they_do_natively(name, program):
    family = case(name)
    edits = interventions(program, family.self_attending)
    native, given = (each.run(family.prompt, edits, read=["pattern", "z"]) for each in family.lenses("nnsight"))
    same_runs(native, given)
    assert (native.logits - family.logits).abs().max() > 1e-3


def test_several_interventions_act_in_order(family):
    names = ["zero", "uniform", "knockout", "patch_heads"]
    edits = [edit_of(family.name, name) for name in names]
    for order in (edits, edits[::-1]):
        same_runs(*(each.run(family.prompt, order, read=["z"]) for each in family.lenses("nnsight")))


def test_pictures_that_enter_again_later_cannot_be_ablated_here_either():
    family = case("qwen3_vl")
    with pytest.raises(InterventionError, match="deepstack"):
        case("qwen3_vl").on("nnsight").run(family.prompt, [AblateTokens()])


# ---------------------------------------------------------------------- caches and kernels


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "idefics3", "qwen3_5", "mllama"])
@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"use_cache": False}])
@pytest.mark.parametrize("edit", ["zero_after_image", "var", "knockout"])
def test_caches_of_other_kinds_give_the_native_answer(name, options, edit):
    family = case(name)
    lenses = family.lenses("nnsight")
    native, given = (lens.generate(family.prompt, [edit_of(name, edit)], **generating(), **options) for lens in lenses)
    assert torch.equal(native.tokens, given.tokens)
    assert (native.logits - given.logits).abs().max() < 1e-4
    assert native.reports[0].edits == given.reports[0].edits


KERNELS = [(name, kernel) for name in ("llava", "gemma3", "qwen2_vl", "mllama") for kernel in ("eager", "sdpa")]
KERNELS += [("paligemma2", "eager")]  # soft-capped scores have no fused kernel


@pytest.mark.parametrize(("name", "implementation"), KERNELS)
def test_models_loaded_with_either_kernel_are_edited_alike(name, implementation):
    model, inputs = FAMILIES[name]()
    model.set_attn_implementation(implementation)
    native, given = Lens(model), Lens(model, backend="nnsight")
    prompt = native.prompt(inputs=inputs)
    assert torch.equal(given.run(prompt).logits, native.run(prompt).logits)
    for edit in ("zero", "var", "knockout", "patch_pattern"):
        same_runs(*(each.run(prompt, [edit_of(name, edit)], read=["pattern"]) for each in (native, given)))


def typed(name: str, dtype: torch.dtype) -> Case:
    model, inputs = FAMILIES[name]()
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    return Case(name, model.to(dtype), inputs)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_5_vl", "paligemma2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.bfloat16, 0.05)])
def test_models_in_other_precisions_give_the_native_answer(name, dtype, tolerance):
    family = typed(name, dtype)
    lens = Lens(family.model, backend="nnsight")
    edits = [*interventions(PROGRAMS["rows within rows"], family.self_attending), AblateHeads(family.heads)]
    native, given = (each.run(family.prompt, edits, read=["pattern", "z"]) for each in (family.lens, lens))
    assert given.logits.dtype == dtype
    same_runs(native, given, tolerance)
    assert (native.logits - family.logits).abs().max() > 2 * tolerance


@pytest.mark.parametrize("logits", ["all", "last"])
def test_logits_of_the_last_row_are_the_native_ones(family, logits):
    for side in ("left", "right"):
        prompt = family.lens.prompt(inputs=family.pair(side)[1])
        runs = [each.run(prompt, [AblateHeads(family.heads)], logits=logits) for each in family.lenses("nnsight")]
        assert runs[0].logits.shape == runs[1].logits.shape
        same_runs(*runs)
