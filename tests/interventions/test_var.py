"""VAR in every family against loops over single rows of an eager pattern: prefill, decoding, batches, caches."""

import pytest
import torch

from lmm_lens import VAR, Read
from tests.support.cases import close, edits_of, honest, plain
from tests.support.models import FAMILIES, IMAGE
from tests.support.oracle import SlowVAR
from tests.support.planted import planted

TWINS = ("vipllava", "video_llava", "pixtral_llava", "smolvlm", "qwen2_vl")  # each runs as another family does
GENERATING = [name for name in FAMILIES if name not in TWINS]
NEW = 6  # the prefill gives the first token, five decoding steps the others
EFFECT = 1e-3  # what an edit changes, at least: a thousand times what the implementations differ by


@pytest.fixture(params=list(FAMILIES))
def case(request):
    """Each family, with sinks among its words and patches."""
    return planted(request.param)


@pytest.fixture(params=GENERATING)
def generating(request):
    """The same, without those that decode as another does."""
    return planted(request.param)


def slow_run(case, inputs):
    slow = SlowVAR(case.reference, inputs, **case.settings)
    with case.reference.editing(pattern=slow):
        return case.reference.run(inputs), slow


def slow_generation(case, inputs, **settings):
    slow = SlowVAR(case.reference, inputs, **{**case.settings, **settings})
    with case.reference.editing(pattern=slow):
        return *case.reference.generate(inputs, NEW), slow


def check_report(report, slow):
    assert report.edits == slow.counts
    assert report.moved.keys() == slow.moved.keys()
    for layer, moved in slow.moved.items():
        assert report.moved[layer] == pytest.approx(moved, abs=1e-4)


def test_a_prompt_is_edited_as_row_by_row(case):
    run = case.lens.run(case.prompt, [VAR(**case.settings)])
    expected, slow = slow_run(case, case.inputs)
    close(run.logits, expected)
    check_report(run.reports[0], slow)
    assert 0 < edits_of(run)[0] < len(slow.observed), "the criteria choose all or nothing, so they were not tested"
    assert (run.logits - case.logits).abs().max() > EFFECT


def test_there_are_sinks_among_words_and_patches(case):
    """Guards the planting: the first token or word, and patches, of every layer that is edited."""
    _, slow = slow_run(case, case.inputs)
    ids = case.inputs["input_ids"][0]
    for (sinks,) in slow.sinks.values():
        patches = {i for i in sinks if ids[i] == IMAGE}
        assert sinks - patches
        assert patches or case.name in ("idefics2", "mllama")
        assert len(patches) < int((ids == IMAGE).sum())


def test_the_pattern_that_is_read_is_the_edited_one(case):
    layers = case.self_attending
    run = case.lens.run(case.prompt, [VAR(**case.settings)], read=[Read("pattern", layers)])
    slow_run(case, case.inputs)
    for layer in layers:
        close(run.reads["pattern", layer], case.reference.read("pattern", layer))
        close(run.reads["pattern", layer].sum(-1), torch.ones(1, 4, case.prompt.n_tokens))


def test_every_decoding_step_is_edited_as_row_by_row(generating):
    case = generating
    given = case.lens.generate(case.prompt, [VAR(**case.settings)], max_new_tokens=NEW, logits=True)
    tokens, logits, slow = slow_generation(case, case.inputs)
    assert torch.equal(given.tokens, tokens)
    close(given.logits, logits)
    check_report(given.reports[0], slow)
    prefill = case.lens.run(case.prompt, [VAR(**case.settings)])
    assert edits_of(given)[0] > edits_of(prefill)[0], "no generated row was edited"
    unedited = case.lens.generate(case.prompt, max_new_tokens=NEW, logits=True)
    assert ((given.logits - unedited.logits).abs().amax(-1) > 1e-5).all(), "a step shows no effect"


def test_rows_of_a_left_padded_batch_are_edited_by_their_own_sinks(generating):
    case = generating
    prompts, batch = case.batch()
    prompt = case.lens.prompt(inputs=batch)
    looser = {"min_nonsink_ratio": 0.0, "min_visual_mass": case.settings["min_visual_mass"] / 2}
    var = VAR(**{**case.settings, **looser})
    given = case.lens.generate(prompt, [var], max_new_tokens=NEW, logits=True)
    tokens, logits, slow = slow_generation(case, batch, **looser)
    assert torch.equal(given.tokens, tokens)
    close(given.logits, logits)
    check_report(given.reports[0], slow)
    counts = []
    for row, inputs in enumerate(prompts):
        single = honest(lambda alone=inputs: case.lens.run(case.lens.prompt(inputs=alone), [var], logits="last"))
        close(given.logits[row, 0], single.logits[0, 0], 2e-5)
        counts += edits_of(single)
    assert edits_of(case.lens.run(prompt, [var])) == [sum(counts)]
    assert sum(count > 0 for count in counts) >= 2


def test_a_right_padded_batch_is_edited_row_by_row(case):
    prompts, batch = case.pair("right")
    run = case.lens.run(case.lens.prompt(inputs=batch), [VAR(**case.settings)])
    expected, slow = slow_run(case, batch)
    assert run.reports[0].edits == slow.counts
    for row, inputs in enumerate(prompts):
        n_tokens = inputs["input_ids"].shape[1]
        close(run.logits[row, :n_tokens], expected[row, :n_tokens])


def test_other_parameters_are_those_of_the_definition(case):
    """All of the sinks' attention, any row that looks at the image at all, the last layer too."""
    settings = {**case.settings, "transfer_fraction": 1.0, "min_nonsink_ratio": 0.0, "min_visual_mass": 0.0}
    settings |= {"skip_last_layer": False, "first_layer": 1}
    run = case.lens.run(case.prompt, [VAR(**settings)])
    slow = SlowVAR(case.reference, case.inputs, **settings)
    with case.reference.editing(pattern=slow):
        close(run.logits, case.reference.run(case.inputs))
    check_report(run.reports[0], slow)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "idefics3", "qwen3_5", "mllama", "internvl"])
def test_a_static_cache_changes_nothing(name):
    case = planted(name)
    options = {"max_new_tokens": NEW, "logits": True, "cache_implementation": "static"}
    static = case.lens.generate(case.prompt, [VAR(**case.settings)], **options)
    tokens, logits, slow = slow_generation(case, case.inputs)
    assert torch.equal(static.tokens, tokens)
    close(static.logits, logits)
    check_report(static.reports[0], slow)


@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma2", "qwen3_5"])
def test_without_a_cache_generation_is_edited_alike(name):
    case = planted(name)
    options = {"max_new_tokens": NEW, "logits": True, "use_cache": False}
    given = case.lens.generate(case.prompt, [VAR(**case.settings)], **options)
    _, logits, _ = slow_generation(case, case.inputs)
    close(given.logits, logits)


@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma2", "qwen2_5_vl", "qwen3_5"])
def test_inside_apply_the_models_own_generation_is_edited_alike(name):
    case = planted(name)
    expected, _, _ = slow_generation(case, case.inputs)
    with case.lens.apply(VAR(**case.settings)), torch.no_grad():
        out = case.model.generate(**case.inputs, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(out[:, case.prompt.n_tokens :], expected)


def test_generated_tokens_can_be_sinks():
    """Sinks are found in what is generated too, and give of their attention to later rows."""
    case = planted("llava")
    rows = {name: case.settings[name] for name in ("sink_dims", "sink_threshold")}
    rows |= {"min_visual_mass": 0.0, "min_nonsink_ratio": 0.0}
    words = torch.tensor([[60, 62, 41]])  # two sinks, and a word that is none
    longer = {**case.inputs, "input_ids": torch.cat([case.inputs["input_ids"], words], 1)}
    expected = case.lens.run(case.lens.prompt(inputs=longer), [VAR(**rows)]).logits[:, -3:]
    n_prompt = case.prompt.n_tokens
    with case.lens.apply(VAR(**rows)), torch.no_grad():
        cache = case.model(**case.inputs, use_cache=True).past_key_values
        steps = [case.model(input_ids=words[:, [i]], past_key_values=cache, use_cache=True).logits for i in range(3)]
    close(torch.cat(steps, 1), expected)
    slow = SlowVAR(case.reference, case.inputs, **rows)  # of the shorter prompt: the rest counts as generated
    with case.reference.editing(pattern=slow):
        close(torch.cat(steps, 1), case.reference.run(longer)[:, -3:])
    assert {n_prompt, n_prompt + 1} <= slow.sinks[2][0]
    assert n_prompt + 2 not in slow.sinks[2][0]
    unedited = plain(case.model, longer)[:, -3:]
    assert (torch.cat(steps, 1) - unedited).abs().max() > EFFECT
