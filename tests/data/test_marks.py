"""What a model said, as an answer."""

import pytest

from lmm_lens.data.grading import letter, yes_no
from lmm_lens.errors import ScoreError

# worked out by hand from the two published scripts
TABLE = [
    ("yes", "yes", "yes"),
    ("Yes", "yes", "yes"),
    ("NO", "no", "yes"),
    ("No, there is not.", "no", "no"),
    ("no", "no", "no"),
    (" Yes.\n", "yes", "yes"),
    ("There is no dog.", None, "no"),
    ("There is a dog. But no cat.", None, "yes"),
    ("It is not there", None, "no"),
    ("Nothing", "no", "yes"),
    ("Not sure", "no", "yes"),
    ("I do not know", None, "no"),
    ("not", "no", "no"),
    ("a, no, b", None, "no"),
    ("A: yes", None, "yes"),
    ("", None, "yes"),
    ("eyes", "yes", "yes"),
]


@pytest.mark.parametrize(("text", "mme", "pope"), TABLE)
def test_yes_and_no_are_marked_by_the_published_rules(text, mme, pope):
    assert (yes_no(text), yes_no(text, "mme"), yes_no(text, rule="pope")) == (mme, mme, pope)


def test_an_unknown_rule_or_no_text_is_refused():
    with pytest.raises(ScoreError, match="unknown rule of marking 'vqa'\n  valid: mme, pope"):
        yes_no("yes", "vqa")
    with pytest.raises(ScoreError, match="expected what a model said, given None"):
        yes_no(None)


QUESTION = "Are the wings open or closed? (a) Open (b) Open wide"


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("(a)", "a"),
        ("(A) Open", "a"),
        ("The answer is (b).", "b"),
        ("b", "b"),
        (" B\n", "b"),
        ("a) Open", "a"),
        ("A: open", "a"),
        ("(a) or (b)", None),
        ("a bit", None),
        ("Both", None),
        ("Open.", "a"),
        ("Open wide", None),
        ("Opened", None),
        ("Closed", None),
        ("", None),
    ],
)
def test_an_option_is_chosen_by_letter_or_by_words(text, chosen):
    assert letter(text, QUESTION) == chosen


def test_words_choose_nothing_without_the_question():
    assert letter("Open") is None
    assert letter("Closed wings", "Open or closed? (a) Open (b) Closed") == "b"
