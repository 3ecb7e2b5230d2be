"""What cannot be patched is refused, in words that say what to do."""

import pytest
import torch

from lmm_lens import LensError
from lmm_lens.bundled import shapes
from lmm_lens.errors import HookError, InterventionError, ScoreError
from lmm_lens.patching import activation_patching, attribution_patching
from tests.support.by_hand import repainted
from tests.support.cases import case
from tests.support.color_pairs import batch, color_batch


@pytest.fixture(scope="module")
def asked(lens):
    return color_batch(lens)


def refused(lens, clean, corrupt, *args, kind=ScoreError, run=activation_patching, **options) -> str:
    with pytest.raises(kind) as caught:
        run(lens, clean, corrupt, *args, **options)
    assert isinstance(caught.value, LensError)
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


# ---------------------------------------------------------------------- answers


def test_answers_may_be_texts_or_token_ids(lens, asked):
    one = lens.processor.tokenizer.convert_tokens_to_ids
    texts = [(a.answer, b.answer) for a, b in asked.examples]
    ids = [(one(a), one(b)) for a, b in texts]
    given = [
        activation_patching(lens, asked.clean, asked.corrupt, layers=[1], answers=answers)
        for answers in (None, texts, ids, torch.tensor(ids))
    ]
    for other in given[1:]:
        assert torch.equal(other.per_pair, given[0].per_pair)
        assert other.answers == given[0].answers == tuple(texts)


def test_without_a_tokenizer_tokens_are_numbers():
    chosen = case("llava")
    prompts = [chosen.lens.prompt(inputs=x) for x in (chosen.inputs, repainted(chosen.inputs))]
    assert activation_patching(chosen.lens, *prompts, layers=[0], answers=[(11, 12)]).answers == (
        ("token 11", "token 12"),
    )
    text = refused(chosen.lens, *prompts, answers=[("red", "green")])
    assert text == "the answer 'red' is text, but this lens has no processor to read it: give token ids"


def test_an_answer_of_several_tokens_is_refused_with_its_pieces(lens, asked):
    text = refused(lens, asked.clean, asked.corrupt, answers=[("red circle", "blue")] * 8)
    assert text.startswith("'red circle' has 2 tokens: 'red' 'circle'\n")
    assert "an answer is one token" in text


def test_a_word_that_the_model_does_not_know_is_refused(lens, asked):
    text = refused(lens, asked.clean, asked.corrupt, answers=[("mauve", "blue")] * 8)
    assert text == "'mauve' is no token of this model: its tokenizer reads it as '<unk>'"


@pytest.mark.parametrize("token", [-1, 90, 10**9, True])
def test_token_ids_lie_in_the_vocabulary(lens, asked, token):
    text = refused(lens, asked.clean, asked.corrupt, answers=[(token, 1)] * 8)
    assert text == f"token id {token} is out of range: the model has tokens 0 to 89"


@pytest.mark.parametrize(
    "answers", [("red", "green"), [("red", "green")] * 7, [("red",)] * 8, "red", [], [1, 2, 3, 4, 5, 6, 7, 8]]
)
def test_answers_are_one_pair_a_row(lens, asked, answers):
    text = refused(lens, asked.clean, asked.corrupt, answers=answers)
    assert text.startswith("expected answers=[(correct, incorrect), ...], one for each of the 8 pairs, given ")


def test_the_same_answer_twice_is_refused(lens, asked):
    answers = [("red", "green")] * 8
    answers[5] = ("red", "red")
    text = refused(lens, asked.clean, asked.corrupt, answers=answers)
    assert text.startswith("pair 5: the correct and the incorrect answer are both 'red', so no logit difference")
    assert "(pairs [5])" in text


def test_a_pair_that_the_model_answers_alike_is_refused_by_default(lens, asked):
    half = batch(lens, [asked.examples[i][i % 2] for i in range(8)])  # every other row is the clean one
    text = refused(lens, asked.clean, half)
    assert text.startswith(f"pair 0: the model answers {asked.examples[0][0].answer!r} clean and corrupt, so no logit")
    assert "(pairs [0, 2, 4, 6])" in text
    assert "give answers=[(correct, incorrect), ...]" in text


def test_a_prompt_patched_with_itself_has_no_effect_and_is_refused(lens, asked):
    for run in (activation_patching, attribution_patching):
        text = refused(lens, asked.clean, asked.clean, "z", "head", answers=asked.answers, run=run)
        assert text.startswith("the clean and the corrupt run have the same logit difference in every pair")
        assert "the effect is undefined: 0 / 0" in text
        a, b = asked.answers[0]
        assert f"pair 0, {a!r} against {b!r}" in text


# ---------------------------------------------------------------------- sites, units, rows and groups


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "resid_post"])
def test_only_attention_has_heads(lens, asked, site):
    for run in (activation_patching, attribution_patching):
        text = refused(lens, asked.clean, asked.corrupt, site, "head", run=run)
        assert text.startswith(f"{site} cannot be patched by head: it has no heads\n")
        assert text.endswith(f"valid for {site}: span, patch; by head: pattern, z")


@pytest.mark.parametrize("by", ["span", "patch"])
def test_patterns_are_patched_by_head_alone(lens, asked, by):
    text = refused(lens, asked.clean, asked.corrupt, "pattern", by)
    assert text.startswith(f"pattern cannot be patched by {by}: its queries or its keys could be meant\n")
    assert f"valid for pattern: head; by {by}: resid_pre, z, attn_out, mlp_out, resid_post" in text


def test_an_unknown_unit_is_told_the_valid_ones(lens, asked):
    text = refused(lens, asked.clean, asked.corrupt, "z", "spans")
    assert text == "unknown unit to patch by 'spans', did you mean 'span'?\n  valid: span, patch, head"


def test_layers_without_heads_have_no_z():
    chosen = case("qwen3_5")
    prompts = [chosen.lens.prompt(inputs=x) for x in (chosen.inputs, repainted(chosen.inputs))]
    text = refused(chosen.lens, *prompts, "z", "head", layers=[0, 1], answers=[(11, 12)])
    assert text == "layers [0] have no attention heads, so they have no z\n  layers that have: [1, 3]"


def test_an_unknown_site_or_layer_is_told_the_valid_ones(lens, asked):
    text = refused(lens, asked.clean, asked.corrupt, "resid", kind=HookError)
    assert text.startswith("unknown hook point 'resid'")
    text = refused(lens, asked.clean, asked.corrupt, layers=[6], kind=HookError)
    assert text == "layer 6 is out of range: the model has layers 0 to 5"
    assert refused(lens, asked.clean, asked.corrupt, layers=[]) == "no layers were given"


def test_rows_belong_to_heads_and_groups_to_spans(lens, asked):
    text = refused(lens, asked.clean, asked.corrupt, rows="last")
    assert text == "rows='last' is for by='head': by span, the span itself is the rows"
    text = refused(lens, asked.clean, asked.corrupt, "z", "head", groups={"object": asked.objects})
    assert text == "groups=['object'] is for by='span', given by='head'"
    text = refused(lens, asked.clean, asked.corrupt, "z", "head", rows="lst", kind=HookError)
    assert text.startswith("unknown row scope 'lst', did you mean 'last'?")
    text = refused(lens, asked.clean, asked.corrupt, "z", "head", rows="video")
    assert text == "rows 'video' select no token of this prompt, so no head can be patched there"


@pytest.mark.parametrize(
    ("group", "text"),
    [
        ([(2, 3)] * 7, "group 'mine': expected the positions of each of the 8 rows, given "),
        ([2, 3, 4, 5, 6, 7, 8, 9], "group 'mine': expected the positions of each of the 8 rows, given "),
        ([(2, 300)] * 8, "group 'mine': positions [300] of row 0 lie outside the prompt, which has positions 0 to 44"),
        ([(2, -1)] * 8, "group 'mine': positions [-1] of row 0 lie outside the prompt"),
        ([()] * 8, "group 'mine' holds no token"),
        (torch.ones(8, 3, dtype=torch.bool), "group 'mine': a mask is Bool[batch, position] = (8, 45), given (8, 3)"),
    ],
)
def test_groups_that_are_no_tokens_of_the_prompt_are_refused(lens, asked, group, text):
    assert refused(lens, asked.clean, asked.corrupt, groups={"mine": group}, kind=LensError).startswith(text)


def test_a_group_cannot_take_a_spans_name_or_hold_padding(lens, asked):
    text = refused(lens, asked.clean, asked.corrupt, groups={"image": asked.objects})
    assert text.startswith("a span is called 'image' already: bos, before_image, image, question, last")
    pairs = [
        lens.prompt([q, "describe the image."], images=[e.image, e.image])
        for e in asked.examples[0]
        for q in [e.question]
    ]
    text = refused(lens, *pairs, groups={"mine": torch.ones_like(pairs[0].mask("all"))})
    assert text.startswith("group 'mine' holds padding")


def test_prompts_of_another_layout_are_refused(lens, asked):
    one, two = asked.examples[0]
    short = lens.prompt(two.question, images=two.image)
    text = refused(lens, asked.clean, short, kind=InterventionError)
    assert text.startswith("the two prompts differ in size: 8 rows x 45 tokens and 1 x 45")
    text = refused(lens, lens.prompt("describe the image.", images=one.image), short, kind=InterventionError)
    assert "patching needs a pair that differs in one thing and has the same length" in text
    assert refused(lens, "a question", short).startswith(
        "expected a clean and a corrupt prompt made by lens.prompt(...)"
    )


def test_by_patch_all_rows_need_patches(lens):
    prompts = [lens.prompt(f"what comes after {number}?") for number in ("two", "five")]
    assert "row 0 has no visual tokens" in refused(lens, *prompts, by="patch")


def test_by_patch_all_rows_need_the_same_number_of_patches(lens):
    a, b = shapes.color_pairs(1, seed=3)[0]
    prompts = [lens.prompt([a.question] * 2, images=[x.image, [x.image, x.image]]) for x in (a, b)]
    text = refused(lens, *prompts, by="patch", answers=[(a.answer, b.answer)] * 2)
    assert "the same layout: row 0 has 6 x 6, row 1 has 6 x 6 + 6 x 6" in text
    assert "run pairs of one layout at a time, or by span" in text
