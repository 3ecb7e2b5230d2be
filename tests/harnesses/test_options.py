"""What tasks ask of a generation: translated, contradictions refused, nothing dropped."""

import pytest

from lmm_lens import LensError
from lmm_lens.harnesses.options import Asked


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, {"max_new_tokens": 9, "do_sample": False}),
        (
            {"max_new_tokens": 128, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False},
            {"max_new_tokens": 128, "num_beams": 1, "do_sample": False},
        ),
        ({"max_gen_toks": 5, "top_p": None}, {"max_new_tokens": 5, "do_sample": False}),
        ({"temperature": 0.2}, {"max_new_tokens": 9, "temperature": 0.2, "do_sample": True}),
        (
            {"temperature": 1, "do_sample": True, "top_p": 0.9, "repetition_penalty": 1.1},
            {"max_new_tokens": 9, "temperature": 1, "do_sample": True, "top_p": 0.9, "repetition_penalty": 1.1},
        ),
        ({"image_aspect_ratio": "pad"}, {"max_new_tokens": 9, "do_sample": False, "image_aspect_ratio": "pad"}),
    ],
)
def test_the_words_of_tasks(given, options):
    assert Asked.of(given, 9) == Asked(options, ())


def test_what_the_user_says_this_model_need_not_know_is_left_out():
    asked = Asked.of({"image_aspect_ratio": "pad", "temperature": 0}, 9, {"image_aspect_ratio"})
    assert "image_aspect_ratio" not in asked.options


@pytest.mark.parametrize(("do_sample", "temperature"), [(True, 0), (False, 0.2), (False, 1.0)])
def test_options_that_contradict_each_other_are_refused(do_sample, temperature):
    with pytest.raises(LensError, match=r"contradict each other.*\n  say which is meant, with --gen_kwargs"):
        Asked.of({"do_sample": do_sample, "temperature": temperature}, 9)


def test_an_answer_ends_before_the_first_text_that_ends_it():
    asked = Asked.of({"until": ["\n\n", "Q:", ""]}, 9)
    assert asked.stops == ("\n\n", "Q:")
    assert [asked.cut(text) for text in ("red\n\nQ: blue", "red Q:\n\n", "red", "Q:")] == ["red", "red ", "red", ""]
    assert Asked.of({"until": "."}, 9).stops == (".",)
    assert Asked.of({"until": []}, 9).stops == ()
    with pytest.raises(LensError, match="until must be a text or a list of texts, given 3"):
        Asked.of({"until": 3}, 9)
