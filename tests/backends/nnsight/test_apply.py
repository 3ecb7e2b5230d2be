"""`with lens.apply(...)`: runs, generations and traces inside it are edited; direct calls of the model are not.

The lens runs a twin of the model, so a call of the user's own model is its own affair: a block in which nothing else
ran is an error, never a silent no-op.
"""

import pytest
import torch

from lmm_lens import Lens
from lmm_lens.errors import InterventionError
from tests.support.cases import case, plain
from tests.support.models import FAMILIES
from tests.support.nnsight_lenses import WIDE, edit_of, generating


@pytest.fixture(params=["nnsight", "remote"], ids=["here", "as on a server"])
def backend(request):
    return request.param


@pytest.mark.parametrize("name", WIDE)
def test_runs_and_generations_are_edited(name):
    family = case(name)
    lens, edits = family.on("nnsight"), [edit_of(family.name, edit) for edit in ("zero_after_image", "knockout")]
    with lens.apply(*edits) as entered:
        assert entered is lens
        run = lens.run(family.prompt)
        generation = lens.generate(family.prompt, **generating())
    assert torch.equal(run.logits, lens.run(family.prompt, edits).logits)
    assert [report.edits for report in run.reports] == [r.edits for r in lens.run(family.prompt, edits).reports]
    assert (run.logits - family.lens.run(family.prompt, edits).logits).abs().max() < 1e-4
    assert torch.equal(generation.tokens, family.lens.generate(family.prompt, edits, **generating()).tokens)
    assert not torch.allclose(run.logits, family.logits, atol=1e-3)
    assert torch.equal(lens.run(family.prompt).logits, family.logits)


def test_traces_are_edited(backend):
    llava, lens, edit = case("llava"), case("llava").on(backend), edit_of("llava", "zero")
    expected = llava.lens.run(llava.prompt, [edit], read=["z"])
    with lens.apply(edit), lens.trace(llava.prompt):
        z = lens.read(2, "z").save()
        logits = lens.envoy.output.logits.save()
    assert (z - expected.reads["z", 2]).abs().max() < 1e-4
    assert (logits - expected.logits).abs().max() < 1e-4


def test_interventions_of_the_block_come_before_those_of_the_call():
    llava, lens = case("llava"), case("llava").on("nnsight")
    block, own = edit_of("llava", "uniform"), edit_of("llava", "knockout")
    with lens.apply(block):
        inside = lens.run(llava.prompt, [own]).logits
    assert (inside - llava.lens.run(llava.prompt, [block, own]).logits).abs().max() < 1e-4
    assert (inside - llava.lens.run(llava.prompt, [own, block]).logits).abs().max() > 1e-3


def test_nested_blocks_add_up(backend):
    llava, lens = case("llava"), case("llava").on(backend)
    outer, inner = edit_of("llava", "zero"), edit_of("llava", "knockout")
    with lens.apply(outer):
        with lens.apply(inner):
            both = lens.run(llava.prompt).logits
        one = lens.run(llava.prompt).logits
    assert (both - llava.lens.run(llava.prompt, [outer, inner]).logits).abs().max() < 1e-4
    assert (one - llava.lens.run(llava.prompt, [outer]).logits).abs().max() < 1e-4


@pytest.mark.parametrize("after_a_run", [False, True])
def test_a_direct_call_of_the_users_model_would_not_be_edited_and_is_refused(after_a_run):
    llava, lens = case("llava"), case("llava").on("nnsight")
    refused = pytest.raises(
        InterventionError, match=r"edits lens\.run, lens\.generate and lens\.trace, not direct calls"
    )
    with refused, lens.apply(edit_of("llava", "zero")):
        if after_a_run:
            lens.run(llava.prompt)
        plain(llava.model, llava.inputs)
    assert torch.equal(plain(llava.model, llava.inputs), llava.logits)


def test_a_block_in_which_nothing_ran_is_an_error(backend):
    with (
        pytest.raises(InterventionError, match=r"did not run inside this"),
        case("llava").on(backend).apply(edit_of("llava", "zero")),
    ):
        pass


def test_what_raises_in_the_block_reaches_the_user_and_the_block_is_over():
    llava, lens = case("llava"), case("llava").on("nnsight")
    with pytest.raises(ZeroDivisionError), lens.apply(edit_of("llava", "zero")):
        raise ZeroDivisionError
    assert torch.equal(lens.run(llava.prompt).logits, llava.logits)


def test_a_block_of_one_lens_does_not_reach_another():
    model, inputs = FAMILIES["llava"]()
    one, two = (Lens(model, backend="nnsight") for _ in range(2))
    prompt = one.prompt(inputs=inputs)
    with one.apply(edit_of("llava", "zero")):
        edited, free = one.run(prompt).logits, two.run(prompt).logits
    assert torch.equal(free, plain(model, inputs))
    assert not torch.allclose(edited, free, atol=1e-3)


def test_within_a_block_the_plain_model_can_be_asked_for():
    llava, lens = case("llava"), case("llava").on("nnsight")
    with lens.apply(edit_of("llava", "zero")):
        with lens.nothing_applied():
            free = lens.run(llava.prompt).logits
        edited = lens.run(llava.prompt).logits
    assert torch.equal(free, llava.logits)
    assert not torch.allclose(edited, free, atol=1e-3)
