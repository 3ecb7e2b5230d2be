"""`with lens.apply(...)`: everything in the block is edited, whoever calls the model, and nothing after it."""

import threading

import pytest
import torch

from lmm_lens import AblateHeads, Intervention, Lens, LensError
from lmm_lens.core.taps import Tap
from lmm_lens.prompts.rows import bind_rows
from tests.support.cases import case, close, hooks_of_ours, plain
from tests.support.models import IMAGE
from tests.support.programs import PROGRAMS, interventions

ONE = PROGRAMS["one edit"]


def edits_for(family):
    return [*interventions(ONE, family.self_attending), AblateHeads(family.heads, rows="after_image")]


def generated(model, inputs, **options):
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=5, do_sample=False, **options)
    return out[:, inputs["input_ids"].shape[1] :]


def test_a_direct_call_is_edited_like_a_run(family):
    edits = edits_for(family)
    with family.lens.apply(*edits):
        inside = plain(family.model, family.inputs)
    close(inside, family.lens.run(family.prompt, edits).logits, 1e-6)
    assert not torch.allclose(inside, family.logits, atol=1e-3)
    assert torch.equal(plain(family.model, family.inputs), family.logits)


def test_the_models_own_generate_is_edited_like_the_lenss(family):
    edits = edits_for(family)
    with family.lens.apply(*edits):
        inside = generated(family.model, family.inputs)
    assert torch.equal(inside, family.lens.generate(family.prompt, edits, max_new_tokens=5).tokens)


def test_each_prompt_of_a_block_is_looked_at_anew(family):
    edits = edits_for(family)
    prompts, batch = family.pair("left")
    with family.lens.apply(*edits):
        inside = [plain(family.model, inputs) for inputs in prompts]
        joint = generated(family.model, batch)
    for inputs, logits in zip(prompts, inside, strict=True):
        close(logits, family.lens.run(family.lens.prompt(inputs=inputs), edits).logits, 1e-6)
    assert torch.equal(joint, family.lens.generate(family.lens.prompt(inputs=batch), edits, max_new_tokens=5).tokens)


def test_runs_of_the_lens_are_edited_once_and_before_their_own_edits():
    llava = case("llava")
    block, own = interventions(ONE, llava.self_attending), interventions(PROGRAMS["the same twice"], [1])
    with llava.lens.apply(*block) as lens:
        assert lens is llava.lens
        inside = lens.run(llava.prompt, own).logits
        tokens = lens.generate(llava.prompt, own, max_new_tokens=4).tokens
    assert torch.equal(inside, llava.lens.run(llava.prompt, [*block, *own]).logits)
    assert torch.equal(tokens, llava.lens.generate(llava.prompt, [*block, *own], max_new_tokens=4).tokens)
    assert not torch.equal(inside, llava.lens.run(llava.prompt, [*own, *block]).logits)


def test_positional_arguments_are_seen_too():
    llava = case("llava")
    with llava.lens.apply(AblateHeads(llava.heads)), torch.no_grad():
        inside = llava.model(llava.inputs["input_ids"], llava.inputs["pixel_values"]).logits
    close(inside, llava.lens.run(llava.prompt, [AblateHeads(llava.heads)]).logits, 1e-6)


def test_generation_in_a_thread_of_its_own_is_edited():
    llava = case("llava")
    edits, found = edits_for(llava), []
    with llava.lens.apply(*edits):
        thread = threading.Thread(target=lambda: found.append(generated(llava.model, llava.inputs)))
        thread.start()
        thread.join()
    assert torch.equal(found[0], llava.lens.generate(llava.prompt, edits, max_new_tokens=5).tokens)


def test_a_conversation_by_hand_is_edited_step_by_step(family):
    """Prefill, then one token after the other with the cache: what a user's own loop does."""
    edits = edits_for(family)
    expected = family.lens.generate(family.prompt, edits, max_new_tokens=3, logits=True)
    extra = {"token_type_ids": torch.zeros(1, 1).long()} if family.name == "gemma3" else {}
    with family.lens.apply(*edits), torch.no_grad():
        out = family.model(**family.inputs, use_cache=True)
        logits = [out.logits[:, -1]]
        for _ in range(2):
            last = logits[-1].argmax(-1, keepdim=True)
            cache = out.past_key_values
            if family.name == "mllama":
                looks = family.inputs["cross_attention_mask"][:, -1:]
                extra = {"cross_attention_mask": looks}
            out = family.model(input_ids=last, past_key_values=cache, use_cache=True, **extra)
            logits.append(out.logits[:, -1])
    close(torch.stack(logits, 1), expected.logits)


def test_a_second_generation_does_not_see_the_first_ones_prompt():
    llava = case("llava")
    short = {**llava.inputs, "input_ids": torch.tensor([[1, *[IMAGE] * 16, 33, 34]])}
    edits = edits_for(llava)
    with llava.lens.apply(*edits):
        generated(llava.model, llava.inputs)
        inside = generated(llava.model, short)
    alone = llava.lens.generate(llava.lens.prompt(inputs=short), edits, max_new_tokens=5).tokens
    assert torch.equal(inside, alone)


def test_each_prompt_of_a_block_starts_with_a_fresh_state():
    """What taps leave to each other, such as which tokens are sinks, must not reach the next picture."""
    llava, found = case("llava"), []

    class Remember(Intervention):
        def taps(self, prompt, shape):
            def run(x, context):
                found.append(context.state.sums.get(("left by", 0)))
                context.state.sums["left by", 0] = torch.tensor(context.n_seen)
                return x * 0.9

            return [Tap("resid_pre", 0, bind_rows("after_image", prompt), run, edits=True)]

    with llava.lens.apply(Remember()):
        for inputs in llava.pair()[0]:
            generated(llava.model, inputs)
    assert [None if left is None else int(left) for left in found] == [None, 27, 28, 29, 30, None, 25, 26, 27, 28]


def test_nested_blocks_add_up():
    llava = case("llava")
    outer, inner = AblateHeads(llava.heads[:1]), AblateHeads(llava.heads[1:])
    with llava.lens.apply(outer):
        with llava.lens.apply(inner):
            both = llava.lens.run(llava.prompt).logits
        one = plain(llava.model, llava.inputs)
    assert torch.equal(both, llava.lens.run(llava.prompt, [outer, inner]).logits)
    close(one, llava.lens.run(llava.prompt, [outer]).logits, 1e-6)


def test_nested_blocks_both_edit_a_direct_call():
    llava = case("llava")
    outer, inner = AblateHeads(llava.heads[:1]), AblateHeads(llava.heads[1:])
    with llava.lens.apply(outer), llava.lens.apply(inner):
        both = plain(llava.model, llava.inputs)
    close(both, llava.lens.run(llava.prompt, [outer, inner]).logits, 1e-6)


def test_two_lenses_on_one_model_do_not_disturb_each_other():
    llava = case("llava")
    other = Lens(llava.model)
    mine, theirs = edits_for(llava), [AblateHeads([(1, 3)])]
    with llava.lens.apply(*mine):
        inside = other.run(other.prompt(inputs=llava.inputs), theirs, read=["pattern", "z"])
        after = plain(llava.model, llava.inputs)
    assert torch.equal(inside.logits, llava.lens.run(llava.prompt, theirs).logits)
    close(after, llava.lens.run(llava.prompt, mine).logits, 1e-6)


def test_blocks_may_end_in_another_order_than_they_began():
    llava = case("llava")
    other = Lens(llava.model)
    first, second = llava.lens.apply(AblateHeads([(0, 0)])), other.apply(*interventions(ONE, [0]))
    first.__enter__()
    second.__enter__()
    plain(llava.model, llava.inputs)  # the second's
    llava.lens.run(llava.prompt)
    first.__exit__(None, None, None)
    inside = plain(llava.model, llava.inputs)
    second.__exit__(None, None, None)
    close(inside, llava.lens.run(llava.prompt, interventions(ONE, [0])).logits, 1e-6)
    assert torch.equal(plain(llava.model, llava.inputs), llava.logits)


def test_another_model_is_not_edited():
    llava, twin = case("llava"), case("vipllava")
    with llava.lens.apply(*edits_for(llava)):
        assert torch.equal(plain(twin.model, twin.inputs), twin.logits)
        plain(llava.model, llava.inputs)


def test_a_block_in_which_nothing_runs_raises():
    llava = case("llava")
    with (
        pytest.raises(LensError, match=r"the model did not run inside this `with lens.apply.*\n.*lens.run"),
        llava.lens.apply(AblateHeads(llava.heads)),
    ):
        pass
    with pytest.raises(ZeroDivisionError), llava.lens.apply(AblateHeads(llava.heads)):
        1 / 0  # noqa: B018  (the user's own exception is not replaced)
    assert hooks_of_ours(llava.model) == []


def test_a_cache_of_an_unseen_prompt_is_refused():
    llava = case("llava")
    with torch.no_grad():
        cache = llava.model(**llava.inputs, use_cache=True).past_key_values
    with (
        pytest.raises(LensError, match=r"a cache of 27 tokens that were not seen here\n.*same `with` block"),
        llava.lens.apply(AblateHeads(llava.heads)),
    ):
        plain(llava.model, {"input_ids": torch.tensor([[9]])}, past_key_values=cache)


def test_a_cache_of_another_prompt_is_refused_after_one_was_run():
    llava = case("llava")
    with torch.no_grad():
        cache = llava.model(**llava.pair()[0][1], use_cache=True).past_key_values
    with llava.lens.apply(AblateHeads(llava.heads)):
        plain(llava.model, llava.inputs)
        with pytest.raises(LensError, match="a cache of 25 tokens that were not seen here"):
            plain(llava.model, {"input_ids": torch.tensor([[9]])}, past_key_values=cache)


def test_embeddings_without_token_ids_are_refused():
    llava = case("llava")
    embeddings = llava.model.get_input_embeddings()(llava.inputs["input_ids"])
    with (
        pytest.raises(LensError, match=r"must be called with input_ids.*\n.*inputs_embeds"),
        llava.lens.apply(AblateHeads(llava.heads)),
    ):
        plain(llava.model, {"inputs_embeds": embeddings})


def test_an_edit_that_finds_nothing_in_a_call_raises():
    llava = case("llava")
    text_only = {"input_ids": torch.tensor([[1, 5, 6]])}
    edit = AblateHeads(llava.heads, rows="after_image")
    with pytest.raises(LensError, match=r"touches nothing: rows 'after_image'"), llava.lens.apply(edit):
        plain(llava.model, text_only)
    with pytest.raises(LensError, match=r"touches nothing: rows 'after_image'"):
        llava.lens.run(llava.lens.prompt(inputs=text_only), [edit])


def test_what_is_no_intervention_is_refused():
    llava = case("llava")
    with pytest.raises(
        LensError, match=r"expected interventions such as AblateHeads\(heads\), given \(0, 1\) at place 1"
    ):
        llava.lens.run(llava.prompt, [AblateHeads(llava.heads), (0, 1)])
    assert torch.equal(
        llava.lens.run(llava.prompt, AblateHeads([(0, 1)])).logits,
        llava.lens.run(llava.prompt, [AblateHeads([(0, 1)])]).logits,
    )
