"""Traces of a generation, one pass a step; and what a trace refuses."""

import nnsight
import pytest
import torch

from lmm_lens import LensError, Read
from lmm_lens.backends.nnsight.travel import TRAVELLING
from lmm_lens.errors import HookError, PromptError
from tests.support.cases import SITES, case
from tests.support.changes import Change, shifted
from tests.support.nnsight_lenses import FOUR, TOLERANCE, edit_of, generating

STEPS = 4
OPTIONS = {"max_new_tokens": STEPS, "eos_token_id": []}
pytestmark = pytest.mark.filterwarnings("ignore:.*was never reached")


@pytest.fixture(params=["nnsight", "remote"], ids=["here", "as on a server"])
def backend(request):
    return request.param


@pytest.mark.parametrize("edit", ["", "zero_after_image", "var", "knockout"])
@pytest.mark.parametrize("name", FOUR)
def test_reads_of_every_step_are_the_native_ones(name, edit, backend):
    family, lens = case(name), case(name).on(backend)
    layer, edits = family.self_attending[-1], [edit_of(name, edit)] if edit else []
    reads = [Read(site, [layer], rows="all") for site in ("resid_pre", "pattern", "z")]
    expected = family.lens.generate(family.prompt, edits, reads, **OPTIONS)
    with lens.trace(family.prompt, edits, **OPTIONS) as tracer:
        seen = nnsight.save([])
        for _ in tracer.iter[:STEPS]:
            seen.append((lens.read(layer, "resid_pre"), lens.read(layer, "pattern"), lens.read(layer, "z")))
        tokens = tracer.result.save()
    assert torch.equal(tokens[:, family.prompt.n_tokens :], expected.tokens)
    assert [len(step) for step in seen] == [3] * STEPS
    for place, site in ((0, "resid_pre"), (2, "z")):
        joint = torch.cat([step[place] for step in seen], 1)
        assert (joint - expected.reads[site, layer]).abs().max() < TOLERANCE
    last = expected.reads["pattern", layer][:, :, -1]
    width = seen[-1][1].shape[-1]  # a sliding window holds fewer
    assert (seen[-1][1][:, :, -1] - last[..., :width]).abs().max() < TOLERANCE


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", ["llava", "qwen3_5"])
def test_writes_of_every_step_are_the_native_edit(name, site, backend):
    family, lens = case(name), case(name).on(backend)
    layer = family.layers_of(site)[-1]
    expected = family.lens.generate(family.prompt, [Change(site, layer, shifted)], logits=True, **OPTIONS)
    with lens.trace(family.prompt, **OPTIONS) as tracer:
        logits = nnsight.save([])
        for _ in tracer.iter[:STEPS]:
            lens.write(layer, site, shifted(lens.read(layer, site)))
            logits.append(lens.envoy.lm_head.output[:, -1])
        tokens = tracer.result.save()
    assert torch.equal(tokens[:, family.prompt.n_tokens :], expected.tokens)
    assert (torch.stack(list(logits), 1) - expected.logits).abs().max() < TOLERANCE
    assert not torch.allclose(expected.logits[:, 0], family.logits[:, -1], atol=1e-3)


@pytest.mark.parametrize("again", ["read", "write"])
def test_on_a_server_a_stream_that_was_written_in_a_step_is_gone(again):
    with pytest.raises(
        HookError, match=r"gone past resid_pre of layer 1: it was written before in .*\n  on a server ask"
    ):
        written_and(again)


def written_and(again):
    """Write a stream in every step on a server, and ask for it again."""
    family, lens = case("llava"), case("llava").on("remote")
    with lens.trace(family.prompt, **OPTIONS) as tracer:
        for _ in tracer.iter[:STEPS]:
            stream = lens.read(1, "resid_pre")
            lens.write(1, "resid_pre", stream * 2)
            if again == "read":
                stream = lens.read(1, "resid_pre")
            else:
                lens.write(1, "resid_pre", stream)


def test_without_a_cache_each_pass_has_all_rows_and_edits_the_right_ones():
    family, lens, edits = case("llava"), case("llava").on("nnsight"), [edit_of("llava", "zero_after_image")]
    expected = family.lens.generate(family.prompt, edits, **generating())
    with lens.trace(family.prompt, edits, **OPTIONS, use_cache=False) as tracer:
        shapes = nnsight.save([])
        for _ in tracer.iter[:STEPS]:
            shapes.append(lens.read(2, "resid_pre").shape[1])
        tokens = tracer.result.save()
    assert list(shapes) == [family.prompt.n_tokens + step for step in range(STEPS)]
    assert torch.equal(tokens[:, family.prompt.n_tokens :], expected.tokens[:, :STEPS])


# ---------------------------------------------------------------------- refusals


def traced(lens, prompt, *calls):
    """A trace in which the lens is called: (method, arguments)."""
    with lens.trace(prompt):
        for method, arguments in calls:
            getattr(lens, method)(*arguments)


def test_a_layer_that_is_not_there_is_refused():
    llava, lens = case("llava"), case("llava").on("nnsight")
    for layer in (3, 99, -1):
        with pytest.raises(HookError, match=rf"layer {layer} is out of range: the model has layers 0 to 2"):
            traced(lens, llava.prompt, ("read", (layer, "z")))
        with pytest.raises(HookError, match=rf"layer {layer} is out of range"):
            traced(lens, llava.prompt, ("write", (layer, "z", torch.zeros(1))))


def test_a_hook_point_that_is_not_there_is_refused_and_the_others_listed():
    llava, lens = case("llava"), case("llava").on("nnsight")
    for method, arguments in (("read", (1, "hook_z")), ("write", (1, "hook_z", torch.zeros(1)))):
        with pytest.raises(HookError, match=r"layer 1 has no hook point 'hook_z'") as caught:
            traced(lens, llava.prompt, (method, arguments))
        assert all(site in str(caught.value) for site in SITES)


@pytest.mark.parametrize("site", ["pattern", "z", "attn_out"])
def test_a_layer_without_heads_has_none_of_their_hook_points(site):
    family, lens = case("qwen3_5"), case("qwen3_5").on("nnsight")
    with pytest.raises(HookError, match=f"layer 0 has no hook point '{site}'\n  it has: .*resid_pre"):
        traced(lens, family.prompt, ("read", (0, site)))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("shape", [(2, 3), (1, 1, 1), (1, 1, 1, 1)])
def test_a_value_of_the_wrong_shape_is_refused(site, shape):
    llava, lens = case("llava"), case("llava").on("nnsight")
    expected = tuple(llava.lens.run(llava.prompt, read=[site]).reads[site, 1].shape)
    with pytest.raises(HookError) as caught:
        traced(lens, llava.prompt, ("write", (1, site, torch.zeros(shape))))
    assert str(expected) in str(caught.value)
    assert str(shape) in str(caught.value)
    assert torch.equal(lens.run(llava.prompt).logits, llava.logits)


def test_reads_against_the_order_of_the_model_are_an_error():
    llava, lens = case("llava"), case("llava").on("nnsight")
    for first, then in (((2, "z"), (1, "z")), ((1, "z"), (1, "pattern")), ((1, "resid_post"), (1, "resid_pre"))):
        with pytest.raises(Exception, match="already ran past it"):
            traced(lens, llava.prompt, ("read", first), ("read", then))


@pytest.mark.parametrize("site", SITES)
def test_outside_a_trace_nothing_can_be_read_or_written(site):
    lens = case("llava").on("nnsight")
    with pytest.raises(ValueError, match=r"outside of interleaving|lens\.trace"):
        lens.read(1, site)
    with pytest.raises(ValueError, match=r"outside of interleaving|lens\.trace"):
        lens.write(1, site, torch.zeros(1, 27, 4, 16))


def test_several_prompts_are_refused():
    llava, lens = case("llava"), case("llava").on("nnsight")
    for prompts in ([llava.prompt, llava.prompt], (llava.prompt,)):
        with pytest.raises(PromptError, match=rf"a trace takes one prompt, given {len(prompts)}"):
            lens.trace(prompts)
    with pytest.raises(PromptError, match=r"expected a prompt made by lens\.prompt"):
        lens.trace("What color is the circle?")


def test_an_edit_that_touches_nothing_is_refused():
    llava, lens = case("llava"), case("llava").on("nnsight")
    prompt = llava.lens.prompt(inputs={"input_ids": torch.tensor([[1, 5, 6]])})
    with pytest.raises(LensError, match="touches nothing: rows 'after_image'"):
        lens.trace(prompt, [edit_of("llava", "zero_after_image")])


def test_other_backends_have_no_traces(lens):
    prompt = lens.prompt("What color is the circle?")
    for call in (lambda: lens.trace(prompt), lambda: lens.read(1, "z"), lambda: lens.envoy):
        with pytest.raises(
            LensError, match=r"the native backend has no envoy: use Lens\(\.\.\., backend=\"nnsight\"\)"
        ):
            call()


@pytest.mark.parametrize("site", SITES)
def test_what_is_no_tensor_is_refused(site):
    llava, lens = case("llava"), case("llava").on("nnsight")
    with pytest.raises(HookError, match=f"{site} of layer 1 takes a tensor, given int: 0"), lens.trace(llava.prompt):
        lens.write(1, site, 0)


def test_a_pattern_is_read_once_a_step_on_a_server():
    llava, lens = case("llava"), case("llava").on("remote")
    said = "asked for twice in one step of a generation on a server\n  keep what"
    with pytest.raises(HookError, match=said), lens.trace(llava.prompt, **OPTIONS) as tracer:  # noqa: PT012
        for _ in tracer.iter[:STEPS]:
            lens.read(2, "pattern")
            lens.read(2, "pattern")


@pytest.mark.parametrize("own", ["output", "input"])
def test_the_users_own_envoys_may_come_first_in_a_step(own):
    llava, lens = case("llava"), case("llava").on("nnsight")
    expected = llava.lens.generate(llava.prompt, (), [Read("pattern", [2], rows="all")], **OPTIONS)
    before = lens.envoy.model.language_model.layers[1 if own == "output" else 2]
    with lens.trace(llava.prompt, **OPTIONS) as tracer:
        seen = nnsight.save([])
        for _ in tracer.iter[:STEPS]:
            getattr(before, own)
            pattern = lens.read(2, "pattern")
            lens.write(2, "pattern", pattern)
            seen.append(lens.read(2, "pattern"))
    assert [step.shape[2] for step in seen] == [llava.prompt.n_tokens] + [1] * (STEPS - 1)
    assert (seen[-1][:, :, -1] - expected.reads["pattern", 2][:, :, -1]).abs().max() < TOLERANCE


def test_what_travels_is_of_where_the_trace_runs():
    """On a server the weights that come back, not the arguments of the call."""
    lens, prompt = case("llava").on("nnsight"), case("llava").prompt
    for remote, from_weights in (("local", True), (False, False)):
        lens.trace(prompt, remote=remote)
        token = TRAVELLING.set(True)
        layers = lens.__reduce_ex__(4)[1][0]
        TRAVELLING.reset(token)
        assert {envoys.from_weights for envoys in layers} == {from_weights}
