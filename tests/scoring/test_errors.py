"""What cannot be scored is refused, in words that say what to do."""

import pytest

from lmm_lens import LensError, score_heads
from lmm_lens.adapters import Generic
from lmm_lens.errors import InterventionError, PromptError, ScoreError

BOX = (0, 0, 8, 8)


def refused(lens, prompts, *args, kind=ScoreError, **options) -> str:
    with pytest.raises(kind) as caught:
        score_heads(lens, prompts, *args, **options)
    assert isinstance(caught.value, LensError)
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


def test_an_unknown_metric_is_told_the_nearest_and_all(lens, asked):
    text = refused(lens, asked.batch, "visual_mas")
    assert text.startswith("unknown metric 'visual_mas', did you mean 'visual_mass'?")
    assert "valid: visual_mass, nonsink_mass, concentration, visual_preference, region_mass" in text


def test_an_unknown_query_is_told_the_nearest_and_all(lens, asked):
    text = refused(lens, asked.batch, query="anser")
    assert text == "unknown query 'anser', did you mean 'answer'?\n  valid: last, answer"


def test_no_prompts_is_an_error_and_not_an_empty_table(lens):
    for nothing in ([], iter(())):
        assert refused(lens, nothing).startswith("no prompts were given: expected a Prompt or a non-empty list of them")


def test_a_text_only_prompt_is_named_by_its_row_among_all_prompts(lens, asked):
    text_only = lens.prompt("what is one plus two?")
    assert "prompt row 0 has no visual tokens, so its visual_mass means nothing" in refused(lens, text_only)
    assert "prompt row 8 has no visual tokens" in refused(lens, [asked.batch, asked.singles[0], text_only])
    half = lens.prompt(["what is one plus two?", "what color is the circle?"], images=[None, asked.examples[0].image])
    text = refused(lens, [asked.singles[0], half], "concentration")
    assert "prompt row 1 has no visual tokens, so its concentration means nothing" in text
    assert "leave text-only prompts out of the scoring" in text


@pytest.mark.parametrize("wrong", ["a question", [{"input_ids": 1}], [None]])
def test_what_is_no_prompt_is_named_by_its_type(lens, wrong):
    text = refused(lens, wrong)
    assert text.startswith("expected prompts made by lens.prompt(...), given ")
    assert text.split()[-1] == type(wrong[0]).__name__


def test_region_mass_without_boxes_asks_for_them(lens, asked):
    assert refused(lens, asked.batch, "region_mass") == "region_mass needs boxes=..., one entry a prompt row"


def test_boxes_for_another_metric_are_refused(lens, asked):
    assert refused(lens, asked.batch, "visual_mass", boxes=[BOX] * 7) == "visual_mass takes no boxes"


@pytest.mark.parametrize("n", [1, 6, 8])
def test_boxes_must_be_as_many_as_prompt_rows(lens, asked, n):
    text = refused(lens, asked.singles, "region_mass", boxes=[BOX] * n)
    assert f"{n} boxes were given for 7 prompt rows: give one entry a row" in text


@pytest.mark.parametrize("missing", [None, []])
def test_a_row_without_a_box_is_named_by_its_place_among_all_prompts(lens, asked, missing):
    text = refused(lens, asked.singles[:3], "region_mass", boxes=[BOX, missing, BOX])
    assert "prompt row 1 " in text
    assert "(x0, y0, x1, y1) in pixels" in text


@pytest.mark.parametrize("box", [(0, 0, 8), (8, 8, 0, 0), (0, 0, 0, 8), (0, 0, float("nan"), 8)])
def test_a_box_without_an_inside_is_refused(lens, asked, box):
    text = refused(lens, asked.singles[0], "region_mass", boxes=[box], kind=LensError)
    assert "a box is (x0, y0, x1, y1) in pixels with x0 < x1 and y0 < y1" in text


def test_one_box_where_a_list_of_them_is_due_is_refused(lens, asked):
    refused(lens, asked.singles[0], "region_mass", boxes=BOX, kind=LensError)


def test_a_box_that_covers_no_patch_is_refused(lens, asked):
    refused(lens, asked.singles[0], "region_mass", boxes=[(100, 100, 110, 110)], kind=LensError)


def test_regions_need_a_family_whose_layout_is_known(lens, asked):
    generic = type(lens)(lens.model, lens.processor, adapter=Generic(lens.model, lens.processor))
    prompt = generic.prompt(asked.examples[0].question, images=asked.examples[0].image)
    text = refused(generic, prompt, "region_mass", boxes=[BOX], kind=PromptError)
    assert "the layout of these 36 visual tokens is not known" in text


def test_what_is_no_intervention_is_refused(lens, asked):
    text = refused(lens, asked.singles[0], interventions=["zero"], kind=InterventionError)
    assert text.startswith("expected interventions such as AblateHeads(heads), given 'zero'")


def test_sink_settings_for_a_metric_without_sinks_are_refused(lens, asked):
    for options in ({"sink_dims": (1,)}, {"sink_threshold": 5.0}):
        refused(lens, asked.singles[0], "visual_mass", **options)


def test_a_prompt_padded_on_the_right_has_no_answer_row(lens, asked):
    tokenizer = lens.processor.tokenizer
    side, tokenizer.padding_side = tokenizer.padding_side, "right"
    try:
        batch = lens.prompt([e.question for e in asked.examples[:3]], images=[e.image for e in asked.examples[:3]])
    finally:
        tokenizer.padding_side = side
    assert "padded on the right" in refused(lens, batch, query="answer", kind=PromptError)
    score_heads(lens, batch)  # the last prompt token is where it is
