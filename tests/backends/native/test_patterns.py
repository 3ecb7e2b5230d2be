"""Edits of the attention pattern, alone and composed, against loops over single rows of the full pattern."""

import pytest
import torch

from lmm_lens import AblateHeads, Lens, Read
from lmm_lens.core import tiles
from tests.support.cases import Case, case, close, edits_of, plain
from tests.support.eager import Eager
from tests.support.models import FAMILIES
from tests.support.programs import PROGRAMS, Step, interventions, reference_edit

READS = (("some", (2, 0), "last"), ("every", None, "all"))
KINDS = ["llava", "gemma3", "paligemma2", "qwen2_5_vl"]  # plain, sliding window, soft cap, three-axis positions


def edit_of(case: Case, program, inputs=None):
    inputs = case.inputs if inputs is None else inputs
    real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    return reference_edit(program, case.self_attending, inputs["input_ids"], real)


def reads(case: Case) -> list[Read]:
    return [Read("pattern", case.self_attending, heads, rows, name=name) for name, heads, rows in READS]


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_edited_patterns_equal_the_reference(family, program):
    with family.reference.editing(pattern=edit_of(family, program)):
        expected = family.reference.run(family.inputs)
    edits = interventions(program, family.self_attending)
    run = family.lens.run(family.prompt, edits, read=[*reads(family), Read("z", family.attending)])
    close(run.logits, expected)
    assert not torch.allclose(expected, family.logits, atol=1e-4), "nothing was edited"
    for layer in family.self_attending:
        pattern = family.reference.read("pattern", layer)
        close(run.reads["every", layer], pattern)
        close(run.reads["some", layer], pattern[:, [2, 0], -1:])
    for layer in family.attending:
        close(run.reads["z", layer], family.reference.read("z", layer))


@pytest.mark.parametrize("program", ["rows within rows", "overlapping heads and rows"])
def test_edited_patterns_equal_the_reference_while_generating(family, program):
    steps = PROGRAMS[program]
    with family.reference.editing(pattern=edit_of(family, steps)):
        tokens, logits = family.reference.generate(family.inputs, 5)
    edits = interventions(steps, family.self_attending)
    given = family.lens.generate(family.prompt, edits, max_new_tokens=5, logits=True)
    assert torch.equal(given.tokens, tokens)
    close(given.logits, logits)


@pytest.mark.parametrize("program", ["rows within rows", "overlapping heads and rows"])
def test_edited_patterns_of_a_left_padded_batch_equal_the_prompts_alone(family, program):
    prompts, batch = family.pair("left")
    edits = interventions(PROGRAMS[program], family.self_attending)
    joint = family.lens.run(family.lens.prompt(inputs=batch), edits, read=reads(family))
    for row, inputs in enumerate(prompts):
        alone = family.lens.run(family.lens.prompt(inputs=inputs), edits, read=reads(family))
        n_tokens = inputs["input_ids"].shape[1]
        close(joint.logits[row, -n_tokens:], alone.logits[0])
        for layer in family.self_attending:
            close(joint.reads["some", layer][row][..., -n_tokens:], alone.reads["some", layer][0])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_small_chunks_give_the_same_edits(name, program, monkeypatch):
    family = case(name)
    batch = family.lens.prompt(inputs=family.pair("left")[1])
    edits = interventions(program, family.self_attending)
    whole = family.lens.run(batch, edits, read=reads(family))
    for elements in (1, 200):
        monkeypatch.setattr(tiles, "CHUNK_ELEMENTS", elements)
        small = family.lens.run(batch, edits, read=reads(family))
        close(small.logits, whole.logits, 2e-6)
        assert edits_of(small) == edits_of(whole)
        for key, value in whole.reads.items():
            torch.testing.assert_close(small.reads[key], value, atol=2e-6, rtol=0, equal_nan=True)


def test_edits_are_counted_in_rows_times_heads_of_each_pass(family):
    program = [Step("away", (0, 2), "last"), Step("sharpen", None, "after_image")]
    edits = interventions(program, family.self_attending)
    n_layers, n_after = len(family.self_attending), len(family.scopes["after_image"])
    run = family.lens.run(family.prompt, edits, read=["pattern"])
    assert edits_of(run) == [2 * n_layers, 4 * n_after * n_layers]
    given = family.lens.generate(family.prompt, edits, max_new_tokens=4)
    assert edits_of(given) == [2 * n_layers, 4 * (n_after + 3) * n_layers]


def test_an_edit_of_the_pattern_and_then_of_z(family):
    program = PROGRAMS["one edit"]
    edits = [*interventions(program, family.self_attending), AblateHeads(family.heads)]
    run = family.lens.run(family.prompt, edits)
    from tests.support.reference import zeroing

    zero = zeroing(family.heads, lambda row, position: True)
    with family.reference.editing(pattern=edit_of(family, program), z=zero):
        close(run.logits, family.reference.run(family.inputs))


@pytest.mark.parametrize("name", KINDS)
def test_the_gradient_passes_through_an_edited_pattern(name):
    family, program = case(name), PROGRAMS["overlapping heads and rows"]
    edits = interventions(program, family.self_attending)
    logits = family.lens.run(family.prompt, edits, grad=True).logits
    (given,) = torch.autograd.grad(logits[0, -1, 7], family.model.get_input_embeddings().weight)
    reference = family.reference
    reference.passes, reference.seen = [], 0
    with reference.editing(pattern=edit_of(family, program)):
        logits = reference.model(**family.inputs, use_cache=False).logits
    (expected,) = torch.autograd.grad(logits[0, -1, 7], reference.model.get_input_embeddings().weight)
    close(given, expected)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_vl"])
def test_a_model_loaded_with_eager_attention_is_edited_alike(name):
    program = PROGRAMS["rows within rows"]
    fused, (model, inputs) = case(name), FAMILIES[name]()
    model.set_attn_implementation("eager")
    eager = Lens(model)
    edits = interventions(program, fused.self_attending)
    close(eager.run(eager.prompt(inputs=inputs), edits).logits, fused.lens.run(fused.prompt, edits).logits, 5e-6)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_5_vl"])
def test_a_double_model_is_edited_in_double(name):
    model, inputs = FAMILIES[name]()
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    double, program = Case(name, model.double(), inputs), PROGRAMS["rows within rows"]
    with double.reference.editing(pattern=edit_of(double, program)):
        expected = double.reference.run(inputs)
    close(double.lens.run(double.prompt, interventions(program, double.self_attending)).logits, expected, 1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", KINDS)
def test_in_half_precision_an_edit_is_no_less_exact_than_eager_attention(name, dtype):
    """Truth: the reference in fp64 on the same rounded weights. Compared: the error at the first edited layer's z."""
    model, inputs = FAMILIES[name]()
    program, layer = PROGRAMS["rows within rows"], case(name).self_attending[0]
    half = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    exact = {key: value.double() if value.is_floating_point() else value for key, value in half.items()}
    low = Case(name, model.to(dtype), half)
    truth = Case(name, FAMILIES[name]()[0].to(dtype).double(), exact)
    for one, given in ((low, half), (truth, exact)):
        with one.reference.editing(pattern=edit_of(one, program)):
            one.reference.run(given)
    run = low.lens.run(low.prompt, interventions(program, [layer]), read=[Read("z", [layer])])
    right = truth.reference.read("z", layer)
    error = (run.reads["z", layer] - right).abs()
    eagers = (low.reference.read("z", layer) - right).abs()
    assert error.mean() <= eagers.mean() * 1.05
    assert error.max() <= eagers.max() * 1.5


def in_place(x, context):
    return x.mul_(0.5)


def halved(x, context):
    return x * 0.5


@pytest.mark.parametrize("site", ["pattern", "z", "resid_pre", "mlp_out"])
def test_an_edit_may_work_in_place(site):
    from lmm_lens import Intervention
    from lmm_lens.core.taps import Tap
    from lmm_lens.prompts.rows import bind_rows

    class Halve(Intervention):
        def __init__(self, function):
            self.function = function

        def taps(self, prompt, shape):
            return [Tap(site, 1, bind_rows("after_image", prompt), self.function, edits=True)]

    llava = case("llava")
    given = llava.lens.run(llava.prompt, [Halve(in_place)]).logits
    expected = llava.lens.run(llava.prompt, [Halve(halved)]).logits
    close(given, expected)
    assert not torch.allclose(given, llava.logits, atol=1e-3)


@pytest.mark.parametrize("site", ["pattern", "z", "resid_pre", "mlp_out"])
def test_a_read_never_changes_the_model_not_even_in_place(site):
    llava = case("llava")
    read = Read(site, [1], rows="after_image", reduce=in_place)
    assert torch.equal(llava.lens.run(llava.prompt, read=[read]).logits, plain(llava.model, llava.inputs))


@pytest.mark.parametrize("backend", ["native", "nnsight", "transformer_lens"])
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
@pytest.mark.parametrize("name", ["gemma3", "llava"])
def test_keys_of_a_generation_are_the_tokens_from_the_first_on(name, options, backend):
    """A window that holds few of them, a cache with room for more: as in one eager pass over the whole text."""
    known = case(name)
    lens = known.on(backend)
    made = lens.generate(
        known.prompt, read=[Read("pattern", rows="generating")], max_new_tokens=5, eos_token_id=[], **options
    )
    n = known.prompt.n_tokens
    seen = Eager(known.model).prefill(continued(known.prompt.inputs, made.tokens[:, :-1]))
    for layer in known.self_attending:
        expected = seen.weights[layer][:, :, n - 1 :]
        given = made.reads["pattern", layer]
        assert given.shape == expected.shape
        assert (torch.nan_to_num(given) - expected).abs().max() < 1e-5


def test_a_reduction_of_a_pattern_gets_the_keys_that_the_layer_holds_and_can_ask_for_all():
    known, held = case("gemma3"), []

    def all_of_them(rows, context):
        held.append((rows.shape[-1], context.visible().shape[-1]))
        return context.on_tokens(rows)

    reads = [Read("pattern", [0], rows="generating"), Read("pattern", [0], None, "generating", all_of_them, "own")]
    made = known.lens.generate(known.prompt, read=reads, max_new_tokens=5, eos_token_id=[])
    assert torch.equal(made.reads["own", 0], made.reads["pattern", 0])
    assert all(n == visible for n, visible in held)
    assert held[-1][0] < made.reads["pattern", 0].shape[-1]


def continued(inputs, tokens):
    """The inputs of a prompt with tokens behind it."""
    fill = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    zeros = torch.zeros_like(tokens)
    names = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"} & inputs.keys()
    return inputs | {key: torch.cat([inputs[key], fill.get(key, zeros).to(inputs[key].dtype)], 1) for key in names}
