"""What a chat template wrote around a question, on tokens that are words, and on templates of the field."""

import pytest

from lmm_lens.prompts.framing import framing, special_ids
from lmm_lens.prompts.turns import Turns, decoder
from tests.prompts.templates import TEMPLATES, TOKENIZERS, Processor

VOCABULARY = ["<s1>", "<s2>", "<end>", "\n", " ", "What", " is", " it", "?", " [/IN", "ST]", "it [/IN"]


def template_of(words: list[str], closes: str = "") -> list[str]:
    """Which of these words are the template's."""
    ids = [VOCABULARY.index(word) for word in words]
    found = framing(ids, frozenset({0, 1, 2}), lambda ids: "".join(VOCABULARY[i] for i in ids), closes)
    return [words[i] for i in found]


def test_special_tokens_and_white_space_around_the_words_are_the_templates():
    asked = ["<s1>", "<s2>", "\n", "What", " is", " it", "?", "<end>", "\n"]
    assert template_of(asked) == ["<s1>", "<s2>", "\n", "<end>", "\n"]
    assert template_of(asked, "<end>") == ["<s1>", "<s2>", "\n", "<end>", "\n"]


def test_white_space_within_the_question_is_the_users():
    assert template_of(["What", "\n", " ", " it", "?"]) == []
    assert template_of(["What", "<s1>", " it", "?"]) == ["<s1>"]


def test_what_closes_a_question_in_plain_words_is_the_templates():
    assert template_of(["What", " is", " it", " [/IN", "ST]"], "[/INST]") == [" [/IN", "ST]"]
    closed = [" [/IN", "ST]", "<end>", "\n"]
    assert template_of(["What", " is", " it", *closed], "[/INST]<end>") == closed
    assert template_of(["What", " is", " it"], "[/INST]") == []


def test_a_token_that_holds_both_stays_the_users():
    assert template_of(["What", " is", "it [/IN", "ST]"], "[/INST]") == []


def test_a_question_of_nothing_is_all_the_templates():
    assert template_of(["<s1>", "\n", "<end>"]) == ["<s1>", "\n", "<end>"]
    assert template_of([]) == []


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_the_field_leave_the_question_alone(name):
    """Behind a picture stand a line break, the words, and what closes the turn, byte by byte."""
    template, (closes, *_) = TEMPLATES[name]
    tokenizer = TOKENIZERS["bytes"]
    turns, decode = Turns.of(Processor(tokenizer, template), tokenizer), decoder(tokenizer)
    words = "What is it, then?"
    ids = tokenizer("\n" + words + closes, add_special_tokens=False)["input_ids"]
    found = framing(ids, special_ids(tokenizer), decode, turns.closes)
    assert decode([token for i, token in enumerate(ids) if i not in found]) == words
