"""Prefill and decoding with reads and edits, against a reference that generates with its own attention and hooks."""

import pytest
import torch

from lmm_lens import AblateHeads, Lens, LensError, Read
from lmm_lens.bundled import shapes
from lmm_lens.errors import ModelError
from tests.support.cases import Case, case, close, edits_of
from tests.support.models import FAMILIES
from tests.support.reference import attention_of, without_heads, zeroing

NEW = 6  # the prefill gives the first token, five decoding steps the others
WIDE = ["llava", "qwen2_5_vl", "gemma3", "paligemma2", "idefics3", "qwen3_5", "mllama"]  # one of each kind


def plain_generation(model, inputs, **options):
    settings = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, **options}
    with torch.no_grad():
        out = model.generate(**inputs, output_logits=True, **settings)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)


def ablated_generation(case: Case, scope: str, **options):
    edit = [AblateHeads(case.heads, rows=scope)]
    return case.lens.generate(case.prompt, edit, max_new_tokens=NEW, logits=True, **options)


def in_scope(case: Case, scope: str):
    """Whether a position, prompt or generated, belongs to a scope."""
    n_prompt = case.prompt.n_tokens
    generated = {"all": range(999), "after_image": range(999), "last": range(0), "answer": range(1)}[scope]
    chosen = case.scopes.get(scope, [])
    return lambda row, position: position in chosen or (position - n_prompt) in generated


def test_without_interventions_generation_is_the_models_own(family):
    tokens, logits = plain_generation(family.model, family.inputs)
    given = family.lens.generate(family.prompt, max_new_tokens=NEW, logits=True)
    assert torch.equal(given.tokens, tokens)
    assert torch.equal(given.logits, logits)


def test_generation_without_some_heads_equals_generation_without_their_output_weights(family):
    tokens, logits = plain_generation(without_heads(family.model, family.heads), family.inputs)
    given = ablated_generation(family, "all")
    assert torch.equal(given.tokens, tokens)
    close(given.logits, logits)


@pytest.mark.parametrize("scope", ["after_image", "last", "answer"])
def test_every_step_edits_the_rows_of_its_scope(family, scope):
    with family.reference.editing(z=zeroing(family.heads, in_scope(family, scope))):
        tokens, logits = family.reference.generate(family.inputs, NEW)
    given = ablated_generation(family, scope)
    assert torch.equal(given.tokens, tokens)
    close(given.logits, logits)
    assert not torch.allclose(given.logits, plain_generation(family.model, family.inputs)[1], atol=1e-3)


def test_rows_are_counted_over_all_passes(family):
    n_after, n_heads = len(family.scopes["after_image"]), len(family.heads)
    for scope, rows in {"after_image": n_after + NEW - 1, "last": 1, "answer": 1}.items():
        assert edits_of(ablated_generation(family, scope)) == [rows * n_heads]


def test_reads_of_all_passes_follow_each_other(family):
    tokens, _ = family.reference.generate(family.inputs, NEW)
    reads = [Read("z", family.attending, rows="after_image"), Read("resid_pre", rows="answer")]
    given = family.lens.generate(family.prompt, read=reads, max_new_tokens=NEW)
    assert torch.equal(given.tokens, tokens)
    n_prompt, after = family.prompt.n_tokens, family.scopes["after_image"]
    assert given.positions["z"].tolist() == [[*after, *range(n_prompt, n_prompt + NEW - 1)]]
    assert given.positions["resid_pre"].tolist() == [[n_prompt]]
    passes = family.reference.passes
    for layer in family.attending:
        prefill, *steps = [p.sites["z"][layer] for p in passes]
        close(given.reads["z", layer], torch.cat([prefill[:, after], *steps], 1))
    for layer in range(family.n_layers):
        close(given.reads["resid_pre", layer], passes[1].sites["resid_pre"][layer])


def test_the_pattern_of_the_answer_row_equals_the_references(family):
    family.reference.generate(family.inputs, NEW)
    read = Read("pattern", family.attending, rows="answer")
    given = family.lens.generate(family.prompt, read=[read], max_new_tokens=NEW)
    for layer in family.attending:
        expected = family.reference.passes[1].sites["pattern"][layer]
        gone = given.reads["pattern", layer].shape[-1] - expected.shape[-1]  # tokens that have left a window
        close(given.reads["pattern", layer], torch.nn.functional.pad(expected, (gone, 0)))


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "idefics2"])
def test_patterns_of_all_passes_are_joined_with_zeros_for_keys_to_come(name):
    family = case(name)
    family.reference.generate(family.inputs, NEW)
    read = Read("pattern", family.attending, rows="after_image")
    given = family.lens.generate(family.prompt, read=[read], max_new_tokens=NEW)
    n_keys = family.prompt.n_tokens + NEW - 1
    for layer in family.attending:
        parts = [p.sites["pattern"][layer] for p in family.reference.passes]
        parts[0] = parts[0][:, :, family.scopes["after_image"]]
        wide = [torch.nn.functional.pad(part, (0, n_keys - part.shape[-1])) for part in parts]
        close(given.reads["pattern", layer], torch.cat(wide, 2))


def test_a_left_padded_batch_is_continued_as_its_prompts_alone(family):
    prompts, batch = family.pair("left")
    edit = [AblateHeads(family.heads, rows="after_image")]
    joint = family.lens.generate(family.lens.prompt(inputs=batch), edit, max_new_tokens=NEW, logits=True)
    for row, inputs in enumerate(prompts):
        alone = family.lens.generate(family.lens.prompt(inputs=inputs), edit, max_new_tokens=NEW, logits=True)
        assert torch.equal(joint.tokens[row], alone.tokens[0])
        close(joint.logits[row], alone.logits[0], 2e-5)


def test_a_right_padded_batch_is_not_continued(family):
    prompt = family.lens.prompt(inputs=family.pair("right")[1])
    with pytest.raises(LensError, match=r"padded on the right.*\n.*padding_side = 'left'"):
        family.lens.generate(prompt, max_new_tokens=2)


# transformers 5.23 itself fails with a static cache and paligemma2
@pytest.mark.parametrize("name", [name for name in WIDE if name != "paligemma2"])
@pytest.mark.parametrize("scope", ["after_image", "last"])
def test_a_static_cache_gives_the_same_answer(name, scope):
    family = case(name)
    dynamic = ablated_generation(family, scope)
    static = ablated_generation(family, scope, cache_implementation="static")
    assert torch.equal(static.tokens, dynamic.tokens)
    close(static.logits, dynamic.logits)


@pytest.mark.parametrize("name", WIDE)
def test_without_a_cache_the_answer_is_the_same(name):
    family = case(name)
    cached = ablated_generation(family, "after_image")
    uncached = ablated_generation(family, "after_image", use_cache=False)
    assert torch.equal(uncached.tokens, cached.tokens)
    close(uncached.logits, cached.logits)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_beams_and_several_answers_are_refused(options):
    llava = case("llava")
    for rows in ("all", "after_image"):
        with pytest.raises(LensError, match=r"batch of 2, but the prompt has 1 rows\n.*beam search"):
            ablated_generation(llava, rows, **options)


def test_sampling_is_the_users_own():
    llava = case("llava")

    def sampled(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            options = {"do_sample": True, "temperature": 5.0}
            return llava.lens.generate(llava.prompt, max_new_tokens=NEW, **options).tokens.tolist()

    assert sampled(0) == sampled(0)
    assert len({str(sampled(seed)) for seed in range(4)}) > 1


def test_generation_stops_at_the_end_token():
    llava = case("llava")
    free = llava.lens.generate(llava.prompt, max_new_tokens=NEW)
    end = int(free.tokens[0, 2])
    stopped = llava.lens.generate(llava.prompt, max_new_tokens=NEW, eos_token_id=end)
    first = free.tokens[0].tolist().index(end)
    assert stopped.tokens[0].tolist() == free.tokens[0, : first + 1].tolist()


def test_the_models_own_generation_settings_are_left_alone():
    model, inputs = FAMILIES["llava"]()
    model.generation_config.temperature, model.generation_config.do_sample = 0.5, True
    before = model.generation_config.to_dict()
    lens = Lens(model)
    lens.generate(lens.prompt(inputs=inputs), max_new_tokens=2, logits=True)
    assert model.generation_config.to_dict() == before


def test_the_reference_runs_through_attention_of_its_own():
    """Guards the oracle: were its attention never called, every comparison above would be empty."""
    reference = case("llava").reference
    reference.run(case("llava").inputs)
    assert set(reference.passes[0].sites["pattern"]) == {0, 1, 2}
    assert attention_of(reference.layers[0]).config._attn_implementation == "reference_eager"


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("guidance_scale", 1.5, "runs the model twice"),
        ("prompt_lookup_num_tokens", 3, "some of which are rejected"),
        ("assistant_early_exit", 1, "some of which are rejected"),
        ("prefill_chunk_size", 4, "read in several passes"),
    ],
)
def test_what_makes_other_passes_than_one_a_token_is_refused(option, value, why):
    llava = case("llava")
    with pytest.raises(LensError, match=rf"cannot generate with {option}={value}: .*{why}"):
        llava.lens.generate(llava.prompt, **{option: value})


def test_also_when_the_models_own_settings_ask_for_it():
    model, inputs = FAMILIES["llava"]()
    lens = Lens(model)
    prompt = lens.prompt(inputs=inputs)
    model.generation_config.prompt_lookup_num_tokens = 3
    with pytest.raises(LensError, match=r"set model.generation_config.prompt_lookup_num_tokens to None"):
        lens.generate(prompt)
    assert lens.generate(prompt, max_new_tokens=2, prompt_lookup_num_tokens=None).tokens.shape == (1, 2)


def test_options_that_would_be_ignored_are_refused():
    llava = case("llava")
    with pytest.raises(LensError, match=r"does not know the option 'temperatur': .*as 'temperature'"):
        llava.lens.generate(llava.prompt, temperatur=0.5)
    with pytest.raises(LensError, match=r"does not know the option 'assistant_tokenizer'.*\n.*lens.apply"):
        llava.lens.generate(llava.prompt, assistant_tokenizer=None)
    for option, instead in {"output_scores": "logits=True", "output_attentions": 'read=\\["pattern"\\]'}.items():
        with pytest.raises(LensError, match=rf"does not take {option}\n.*{instead}"):
            llava.lens.generate(llava.prompt, **{option: True})


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"logits": True}])
def test_nan_logits_of_any_step_are_an_error(options):
    """The model goes wrong at its third token."""
    model, processor = shapes.load()
    lens = Lens(model, processor)
    example = shapes.examples(1, ["color"])[0]
    prompt = lens.prompt(example.question, images=example.image)

    def poison(module, args, kwargs, output):
        if module.seen == 2:
            output.logits[..., 3] = float("nan")
        module.seen += 1
        return output

    model.seen = 0
    handle = model.register_forward_hook(poison, with_kwargs=True)
    try:
        with pytest.raises(ModelError, match=f"NaN in the logits after {prompt.n_tokens + 2} tokens"):
            lens.generate(prompt, max_new_tokens=5, eos_token_id=[], **options)
    finally:
        handle.remove()
