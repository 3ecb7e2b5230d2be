"""The user's model is the same after any run, also one that broke, and lenses on it do not disturb each other."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from lmm_lens import AblateHeads, Lens, Read
from lmm_lens.bundled import shapes
from lmm_lens.errors import ModelError
from tests.support.cases import SITES, case, plain
from tests.support.failing import Fails
from tests.support.models import FAMILIES
from tests.support.nnsight_lenses import edit_of, generating, same_runs
from tests.support.untouched import implementations, state


def reading(lens, prompt, edits):
    with lens.trace(prompt, edits):
        lens.read(2, "resid_post")


def dividing(lens, prompt, edits):
    with lens.trace(prompt, edits):
        z = lens.read(1, "z")
        lens.write(1, "z", z * (1 // 0))


def use_everything(name, lens):
    family = case(name)
    edits = [edit_of(name, edit) for edit in ("zero", "uniform", "knockout")]
    lens.run(family.prompt, edits, read=[Read(site, family.layers_of(site)) for site in SITES])
    lens.generate(family.prompt, edits, max_new_tokens=2)
    with lens.trace(family.prompt, edits):
        z = lens.read(family.attending[0], "z")
        lens.write(family.attending[0], "z", z * 0)
    with lens.trace(family.prompt, edits, max_new_tokens=2) as tracer:
        for _ in tracer.iter[:2]:
            lens.read(0, "resid_pre")


@pytest.mark.filterwarnings("ignore:.*was never reached")
def test_nothing_of_the_users_model_changes(family):
    before = state(family.model)
    weights = {name: tensor.clone() for name, tensor in family.model.state_dict().items()}
    inputs = {name: tensor.clone() for name, tensor in family.inputs.items()}
    use_everything(family.name, Lens(family.model, backend="nnsight"))
    assert state(family.model) == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in family.model.state_dict().items())
    assert all(torch.equal(tensor, inputs[name]) for name, tensor in family.inputs.items())
    assert torch.equal(plain(family.model, family.inputs), family.logits)


def test_the_model_behind_the_lens_shares_the_users_weights(family):
    mine = family.on("nnsight").envoy._module
    assert mine is not family.model
    assert {p.data_ptr() for p in mine.parameters()} == {p.data_ptr() for p in family.model.parameters()}


def test_a_change_of_the_users_weights_is_seen():
    model, inputs = FAMILIES["llava"]()
    lens = Lens(model, backend="nnsight")
    prompt = lens.prompt(inputs=inputs)
    before = lens.run(prompt).logits
    with torch.no_grad():
        model.get_decoder().layers[1].self_attn.o_proj.weight[:, :16] = 0
    after = lens.run(prompt).logits
    assert torch.equal(after, plain(model, inputs))
    assert not torch.allclose(after, before, atol=1e-3)


def test_the_users_processor_is_not_changed():
    model, processor = shapes.load("sinks")
    processor.tokenizer.padding_side = "right"
    Lens(model, processor, backend="nnsight")
    assert processor.tokenizer.padding_side == "right"


@pytest.mark.parametrize("site", SITES)
def test_after_an_exception_in_an_edit_everything_is_as_before(site):
    llava, lens = case("llava"), case("llava").on("nnsight")
    before, own = state(llava.model), implementations(lens.envoy._module)
    both = [edit_of("llava", "zero"), Fails(site)]
    for attempt in (
        lambda: lens.run(llava.prompt, both, read=SITES),
        lambda: lens.generate(llava.prompt, both, max_new_tokens=2),
    ):
        with pytest.raises(RuntimeError, match="the user's own mistake"):
            attempt()
        assert state(llava.model) == before
        assert implementations(lens.envoy._module) == own
        assert torch.equal(lens.run(llava.prompt).logits, llava.logits)
    with pytest.raises(RuntimeError, match="the user's own mistake"):
        reading(lens, llava.prompt, both)
    assert torch.equal(lens.run(llava.prompt).logits, llava.logits)


def test_after_an_exception_in_the_model_everything_is_as_before():
    llava, lens = case("llava"), case("llava").on("nnsight")
    broken = {**llava.inputs, "pixel_values": llava.inputs["pixel_values"][:, :2]}
    with pytest.raises(RuntimeError):
        lens.run(llava.lens.prompt(inputs=broken), [edit_of("llava", "zero")], read=SITES)
    assert torch.equal(lens.run(llava.prompt).logits, llava.logits)


def test_after_an_exception_in_a_block_everything_is_as_before():
    llava, lens = case("llava"), case("llava").on("nnsight")
    with pytest.raises(ZeroDivisionError):
        dividing(lens, llava.prompt, [edit_of("llava", "zero")])
    assert torch.equal(lens.run(llava.prompt).logits, llava.logits)


def test_no_state_reaches_the_next_run(family):
    """The order of runs does not matter, on prompts with the image at different places."""
    lens = family.on("nnsight")
    edits = [edit_of(family.name, "knockout"), AblateHeads(family.heads, rows="after_image")]
    prompts = [family.lens.prompt(inputs=inputs) for inputs in family.pair()[0]]
    forward = [lens.run(prompt, edits).logits for prompt in prompts]
    backward = [lens.run(prompt, edits).logits for prompt in reversed(prompts)][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert torch.equal(one, other)


def test_lenses_of_all_kinds_on_one_model_do_not_disturb_one_another():
    model, inputs = FAMILIES["llava"]()
    one, two, native = Lens(model, backend="nnsight"), Lens(model, backend="nnsight"), Lens(model)
    prompt = native.prompt(inputs=inputs)
    edit, other = [edit_of("llava", "zero")], [edit_of("llava", "knockout")]
    expected, plainly = native.run(prompt, edit), native.run(prompt)
    assert torch.equal(one.run(prompt, edit).logits, expected.logits)
    assert torch.equal(two.run(prompt).logits, plainly.logits)
    with native.apply(*other):
        assert not torch.equal(native.run(prompt).logits, plainly.logits)
        assert torch.equal(one.run(prompt, edit).logits, expected.logits)
        assert torch.equal(two.run(prompt).logits, plainly.logits)
    same_runs(native.run(prompt, other, read=SITES), two.run(prompt, other, read=SITES))


@pytest.mark.parametrize("lenses", ["one", "several"])
def test_threads_do_not_disturb_one_another(lenses):
    """Those of one lens take turns."""
    llava = case("llava")
    programs = [[AblateHeads(llava.heads[:1])], [edit_of("llava", "knockout")], []]
    expected = [llava.lens.generate(llava.prompt, program, **generating()).logits for program in programs]
    shared = Lens(llava.model, backend="nnsight")

    def work(program):
        lens = shared if lenses == "one" else Lens(llava.model, backend="nnsight")
        return [lens.generate(llava.prompt, program, **generating()).logits for _ in range(4)]

    patience = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor() as pool:
            given = list(pool.map(work, programs))
    finally:
        sys.setswitchinterval(patience)
    for runs, right in zip(given, expected, strict=True):
        for logits in runs:
            assert (logits - right).abs().max() < 1e-4
    again = [shared.generate(llava.prompt, program, **generating()).logits for program in programs]
    assert all((logits - right).abs().max() < 1e-4 for logits, right in zip(again, expected, strict=True))


@pytest.mark.parametrize("when", ["before the lens", "after the lens"])
@pytest.mark.parametrize("call", ["run", "generate", "trace"])
def test_a_model_in_training_mode_is_refused(when, call):
    model, inputs = FAMILIES["llava"]()
    if when == "before the lens":
        model.train()
    lens = Lens(model, backend="nnsight")
    prompt = lens.prompt(inputs=inputs)
    model.train()
    calls = {
        "run": lambda: lens.run(prompt),
        "generate": lambda: lens.generate(prompt, max_new_tokens=2),
        "trace": lambda: lens.trace(prompt),
    }
    with pytest.raises(ModelError, match=r"training mode.*\n.*call model.eval\(\)"):
        calls[call]()


@pytest.mark.parametrize("backend", ["native", "nnsight"])
def test_where_nan_stands_is_said(backend):
    model, inputs = FAMILIES["llava"]()
    lens = Lens(model, backend=backend)
    prompt = lens.prompt(inputs=inputs)
    nn.init.constant_(model.get_decoder().layers[1].mlp.down_proj.weight, float("nan"))
    for call in (lambda: lens.run(prompt), lambda: lens.generate(prompt, max_new_tokens=3)):
        with pytest.raises(ModelError, match="NaN in the model's activations, first at mlp_out of layer 1"):
            call()


def test_a_copy_of_a_lens_has_a_model_of_its_own():
    llava = case("llava")
    edit = [AblateHeads(llava.heads)]
    expected = case("llava").on("nnsight").run(llava.prompt, edit).logits
    other = copy.deepcopy(case("llava").on("nnsight"))
    assert torch.equal(other.run(llava.prompt, edit).logits, expected)
    with torch.no_grad():
        other.model.get_output_embeddings().weight.mul_(2)
    assert not torch.equal(other.run(llava.prompt, edit).logits, expected)
    assert torch.equal(case("llava").on("nnsight").run(llava.prompt, edit).logits, expected)


@pytest.mark.parametrize("remote", [False, "local"])
@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"logits": True}])
def test_nan_of_a_late_step_is_an_error(options, remote):
    """The model goes wrong at its third token."""
    model, inputs = FAMILIES["llava"]()
    seen = []

    def poison(module, args):
        seen.append(None)
        return (args[0] * torch.nan,) if len(seen) == 3 else None

    model.get_output_embeddings().register_forward_pre_hook(poison)
    lens = Lens(model, backend="nnsight", remote=remote)
    prompt = lens.prompt(inputs=inputs)
    seen.clear()
    with pytest.raises(ModelError, match=f"NaN in the logits after {prompt.n_tokens + 2} tokens"):
        lens.generate(prompt, max_new_tokens=5, eos_token_id=[], **options)
