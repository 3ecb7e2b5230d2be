"""What the native backend refuses, this one refuses in the same words; what it respects, this one does."""

from dataclasses import replace

import pytest
import torch

from lmm_lens import AblateHeads, Lens, LensError, Read
from lmm_lens.bundled import shapes
from lmm_lens.core.trace import TraceLens
from lmm_lens.errors import HookError, ModelError
from tests.support.cases import case, plain
from tests.support.models import FAMILIES
from tests.support.nnsight_lenses import NEW, edit_of, generating, same_runs


def said(call):
    with pytest.raises(LensError) as caught:
        call()
    return type(caught.value), str(caught.value)


WRONG = {
    "a layer": lambda lens, prompt: lens.run(prompt, read=[Read("z", [3])]),
    "a negative layer": lambda lens, prompt: lens.run(prompt, read=[Read("z", [-1])]),
    "a head": lambda lens, prompt: lens.run(prompt, read=[Read("pattern", [1], heads=[4])]),
    "a head of z": lambda lens, prompt: lens.run(prompt, read=[Read("z", [1], heads=[-1])]),
    "a head to ablate": lambda lens, prompt: lens.run(prompt, [AblateHeads([(1, 4)])]),
    "a layer to ablate": lambda lens, prompt: lens.run(prompt, [AblateHeads([(3, 0)])]),
    "a hook point": lambda lens, prompt: lens.run(prompt, read=["hook_z"]),
    "rows": lambda lens, prompt: lens.run(prompt, read=[Read("z", rows="images")]),
    "a position": lambda lens, prompt: lens.run(prompt, read=[Read("z", rows=[27])]),
    "rows that are not there": lambda lens, prompt: lens.run(prompt, read=[Read("z", rows="answer")]),
    "two reads of one name": lambda lens, prompt: lens.run(prompt, read=["z", Read("z", rows="last")]),
    "no intervention": lambda lens, prompt: lens.run(prompt, [(0, 1)]),
    "a prompt": lambda lens, prompt: lens.run(prompt.inputs),
    "logits": lambda lens, prompt: lens.run(prompt, logits="first"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("backend", ["nnsight", "remote"], ids=["here", "as on a server"])
def test_what_is_not_there_is_refused_in_the_same_words(wrong, backend):
    llava = case("llava")
    expected = said(lambda: WRONG[wrong](llava.lens, llava.prompt))
    assert said(lambda: WRONG[wrong](case("llava").on(backend), llava.prompt)) == expected
    assert torch.equal(case("llava").on("nnsight").run(llava.prompt).logits, llava.logits)


@pytest.mark.parametrize("site", ["pattern", "z", "attn_out"])
@pytest.mark.parametrize("backend", ["nnsight", "remote"], ids=["here", "as on a server"])
def test_layers_without_heads_have_none_of_their_hook_points(site, backend):
    family = case("qwen3_5")
    with pytest.raises(HookError, match=rf"layer 0 \(Qwen3_5DecoderLayer\) has no {site}; it has resid_pre"):
        case("qwen3_5").on(backend).run(family.prompt, read=[Read(site, [0])])


def test_heads_of_layers_without_heads_are_refused():
    family = case("qwen3_5")
    calls = [lambda each: each.run(family.prompt, [AblateHeads([(0, 0)])])]
    calls.append(lambda each: each.run(family.prompt, read=[Read("pattern", [0], heads=[0])]))
    for call in calls:
        assert said(lambda call=call: call(case("qwen3_5").on("nnsight"))) == said(lambda call=call: call(family.lens))


@pytest.mark.parametrize("backend", ["nnsight", "remote"], ids=["here", "as on a server"])
@pytest.mark.parametrize("call", ["run", "generate"])
def test_a_layer_that_the_model_skips_is_an_error_as_natively(call, backend):
    """Mllama's cross-attention does nothing without a picture."""
    mllama = case("mllama")
    prompt = mllama.lens.prompt(inputs={"input_ids": torch.tensor([[1, 5, 6, 7]])})
    for lens in (mllama.lens, case("mllama").on(backend)):
        with pytest.raises(HookError, match="z of layer 1 did not fire, so nothing was read or edited there"):
            getattr(lens, call)(prompt, [AblateHeads([(0, 0), (1, 0)])])


# ---------------------------------------------------------------------- generation


@pytest.mark.parametrize("backend", ["nnsight", "remote"], ids=["here", "as on a server"])
@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
@pytest.mark.parametrize("edit", ["zero", "zero_after_image", "knockout"])
def test_beams_and_several_answers_are_refused(options, edit, backend):
    llava = case("llava")
    with pytest.raises(LensError, match=r"batch of 2, but the prompt has 1 rows\n.*beam search"):
        case("llava").on(backend).generate(llava.prompt, [edit_of("llava", edit)], max_new_tokens=3, **options)


def test_a_right_padded_batch_is_not_continued():
    llava = case("llava")
    prompt = llava.lens.prompt(inputs=llava.pair("right")[1])
    assert said(lambda: case("llava").on("nnsight").generate(prompt)) == said(lambda: llava.lens.generate(prompt))


@pytest.mark.parametrize("backend", ["nnsight", "remote"], ids=["here", "as on a server"])
def test_rows_that_end_early_are_padded_and_their_generated_tokens_edited_as_natively(backend):
    llava = case("llava")
    prompt = llava.lens.prompt(inputs=llava.pair("left")[1])
    edits, lens = [edit_of("llava", "zero_after_image"), edit_of("llava", "knockout")], case("llava").on(backend)
    free = llava.lens.generate(prompt, edits, max_new_tokens=6)
    for end in {int(free.tokens[0, 1]), int(free.tokens[1, 2])}:
        native, given = (
            each.generate(prompt, edits, [Read("z", [1], rows="all")], max_new_tokens=6, eos_token_id=end, logits=True)
            for each in (llava.lens, lens)
        )
        assert torch.equal(native.tokens, given.tokens)
        assert native.logits.shape == given.logits.shape
        assert (native.logits - given.logits).abs().max() < 1e-4
        assert [report.edits for report in native.reports] == [report.edits for report in given.reports]
        value, mine = native.reads["z", 1], given.reads["z", 1]
        torch.testing.assert_close(mine, value, atol=1e-4, rtol=1e-4, equal_nan=True)
    assert not torch.equal(native.tokens, free.tokens)


@pytest.mark.parametrize("backend", ["nnsight", "remote"], ids=["here", "as on a server"])
def test_a_generation_that_ends_before_its_time_is_as_long_as_the_native_one(backend):
    llava = case("llava")
    free = llava.lens.generate(llava.prompt, max_new_tokens=6)
    for position in (0, 2):
        end = int(free.tokens[0, position])
        native, given = (
            each.generate(llava.prompt, max_new_tokens=6, eos_token_id=end) for each in llava.lenses(backend)
        )
        assert torch.equal(native.tokens, given.tokens)
        assert given.tokens.shape[1] < 6
        assert given.logits is None


def test_the_users_generation_settings_are_used_and_left_alone():
    model, inputs = FAMILIES["llava"]()
    native = Lens(model)
    prompt = native.prompt(inputs=inputs)
    end = int(native.generate(prompt, max_new_tokens=6).tokens[0, 2])
    model.generation_config.eos_token_id = end
    model.generation_config.temperature, model.generation_config.do_sample = 0.5, True
    model.generation_config.num_beams = 3
    before = model.generation_config.to_dict()
    lens = Lens(model, backend="nnsight")
    one, other = (each.generate(prompt, max_new_tokens=6, logits=True) for each in (native, lens))
    assert torch.equal(one.tokens, other.tokens)
    assert one.tokens.shape[1] < 6
    assert (one.logits - other.logits).abs().max() < 1e-4
    assert model.generation_config.to_dict() == before


def test_sampling_is_the_users_own():
    llava = case("llava")

    def sampled(lens, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return lens.generate(llava.prompt, max_new_tokens=NEW, do_sample=True, temperature=5.0).tokens.tolist()

    for seed in range(3):
        assert sampled(case("llava").on("nnsight"), seed) == sampled(llava.lens, seed)
    assert len({str(sampled(case("llava").on("nnsight"), seed)) for seed in range(4)}) > 1


# ---------------------------------------------------------------------- what a lens is opened with


def test_a_model_in_nnsights_wrapping_can_be_given():
    from nnsight import TransformersModel

    model, processor = shapes.load("sinks")
    wrapped = TransformersModel(model, task="image-text-to-text", processor=processor)
    lens, native = Lens(wrapped, processor, backend="nnsight"), Lens.demo()
    assert lens.envoy is wrapped
    example = shapes.examples(1, seed=3)[0]
    prompt = lens.prompt(example.question, images=example.image)
    edits = [AblateHeads([(1, 4), (2, 0)])]
    same_runs(native.run(prompt, edits, read=["pattern"]), lens.run(prompt, edits, read=["pattern"]))
    native, given = (each.generate(prompt, edits, **generating()) for each in (native, lens))
    assert torch.equal(native.tokens, given.tokens)


def test_the_lens_says_what_it_is():
    assert "backend nnsight" in repr(case("llava").on("nnsight"))
    assert case("llava").on("nnsight").identity == case("llava").lens.identity
    assert case("llava").on("nnsight").device == case("llava").lens.device
    with pytest.raises(LensError, match="the nnsight backend has no bridge"):
        _ = case("llava").on("nnsight").bridge


def test_without_a_processor_texts_are_refused():
    llava = case("llava")
    with pytest.raises(LensError):
        case("llava").on("nnsight").prompt("What color is the circle?")
    with pytest.raises(ModelError, match=r"no processor, so nnsight cannot process text\n.*lens\.trace\(prompt\)"):
        case("llava").on("nnsight").envoy.processor("text")
    assert torch.equal(plain(llava.model, llava.inputs), llava.logits)


@pytest.mark.parametrize("backend", ["nnsight", "remote"], ids=["here", "as on a server"])
@pytest.mark.parametrize(
    "options", [{"guidance_scale": 1.5}, {"prompt_lookup_num_tokens": 3}, {"temperatur": 1.0}, {"output_scores": True}]
)
def test_generations_of_another_kind_are_refused_as_natively(options, backend):
    llava = case("llava")
    assert said(lambda: case("llava").on(backend).generate(llava.prompt, **options)) == said(
        lambda: llava.lens.generate(llava.prompt, **options)
    )


def test_without_a_cache_a_server_cannot_read_patterns():
    llava = case("llava")
    with pytest.raises(LensError, match="use_cache=False does not travel"):
        case("llava").on("remote").generate(llava.prompt, [edit_of("llava", "var")], use_cache=False)


def test_runs_inside_a_trace_are_refused():
    llava, lens = case("llava"), case("llava").on("nnsight")
    with pytest.raises(LensError, match="cannot be called inside a trace"), lens.trace(llava.prompt):
        lens.run(llava.prompt)
    assert torch.equal(lens.run(llava.prompt).logits, llava.lens.run(llava.prompt).logits)


def test_on_a_server_a_lens_says_what_it_has():
    trace_lens = TraceLens(case("llava").on("nnsight")._backend.model_envoys.layers, None, True)
    assert (trace_lens.n_layers, trace_lens.n_heads, trace_lens.d_head) == (3, 4, 16)
    with pytest.raises(AttributeError, match="read and write alone inside a trace that travels, and no 'run'"):
        trace_lens.run(case("llava").prompt)


def test_a_trace_answers_for_its_own_lens_only():
    llava, other = case("llava"), Lens(FAMILIES["llava"]()[0], backend="nnsight")
    with (
        pytest.raises(HookError, match="this trace is of another lens"),
        llava.on("nnsight").trace(llava.prompt),
    ):
        other.read(1, "z")
    with (
        pytest.raises(HookError, match="this trace is of another lens"),
        llava.on("nnsight").trace(llava.prompt),
    ):
        other.write(1, "z", torch.zeros(1, 27, 4, 16))


def test_gradients_reach_the_users_pixels():
    llava = case("llava")

    def gradient(lens):
        pixels = llava.prompt.inputs["pixel_values"].clone().requires_grad_()
        prompt = replace(llava.prompt, inputs={**llava.prompt.inputs, "pixel_values": pixels})
        lens.run(prompt, [AblateHeads(llava.heads)], grad=True).logits.logsumexp(-1).sum().backward()
        return pixels.grad

    expected = gradient(llava.lens)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(gradient(case("llava").on("nnsight")), expected, rtol=1e-5, atol=1e-7)
