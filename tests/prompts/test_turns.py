"""Where the answer turn begins, for the templates of the field and tokenizers that cut the words in every way."""

from types import SimpleNamespace

import pytest

from lmm_lens.prompts.turns import Turns, decoder
from tests.prompts.templates import MISTRAL, TEMPLATES, TOKENIZERS, Processor


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


def split(template, tokenizer, text):
    """A text cut where its answer turn begins, without white space."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    decode = decoder(tokenizer)
    n = Turns.of(Processor(tokenizer, template), tokenizer).n_answer(ids, decode)
    return squeezed(decode(ids[: len(ids) - n])), squeezed(decode(ids[len(ids) - n :]))


def at_the_border(tokenizer, before, after):
    """Where a text should be cut, without white space; a token that lies across the border is of the answer."""
    ids = tokenizer(before + after, add_special_tokens=False)["input_ids"]
    for n in range(len(ids), -1, -1):
        question = squeezed(decoder(tokenizer)(ids[:n]))
        if squeezed(before).startswith(question):
            return question, squeezed(before + after).removeprefix(question)
    raise AssertionError


def squeezed(text):
    return "".join(text.split())


QUESTIONS = ["what color?", "is 🙂 a face?", "a\n\nb ", "which?  "]
ANSWERS = ["it is", "🙂 it", "\nred,\nI think ", ": or :"]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_prefilled_answer_is_no_question(name, tokenizer, question, answer):
    template, (closes, opens, ends, asks) = TEMPLATES[name]
    once = question + closes
    twice = once + opens + "it is a dog" + ends + asks + question + closes
    for before, after in ((once, opens + answer), (twice, opens + answer), (twice, opens + answer + ends)):
        assert split(template, tokenizer, before + after) == at_the_border(tokenizer, before, after)


def test_only_a_token_across_the_border_is_lost_to_the_question():
    lost = []
    for kind, tokenizer in TOKENIZERS.items():
        for name, (_, (closes, opens, *_)) in TEMPLATES.items():
            if at_the_border(tokenizer, "what color?" + closes, opens + "it is")[0] != squeezed("what color?" + closes):
                lost.append((kind, name))
    assert lost == [("merging", "vicuna")]  # of all these, " ? ASSISTANT: it is" is one token there


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_question_without_an_opened_answer_is_all_question(name, tokenizer):
    template, (closes, opens, ends, asks) = TEMPLATES[name]
    for text in ("what color?", f"what{closes}", f"what?{closes}{opens}it is{ends}{asks}what color?{closes}"):
        assert split(template, tokenizer, text) == (squeezed(text), "")


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_opened_answer_is_the_answer_turn(name, tokenizer):
    template, (closes, *_) = TEMPLATES[name]
    chat = [{"role": "user", "content": [{"type": "text", "text": "what color?"}]}]
    chat = (
        chat
        if "parts" not in name and "m['content'] +" not in template
        else [{"role": "user", "content": "what color?"}]
    )
    opened = Processor(tokenizer, template).apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    text = opened[opened.index("what color?") :]
    expected = text.removeprefix("what color?" + closes)
    assert split(template, tokenizer, text) == (squeezed("what color?" + closes), squeezed(expected))


def test_of_mistral_the_answer_begins_behind_the_end_of_the_question(tokenizer):
    for text, expected in {
        "what color? [/INST]": ("whatcolor?[/INST]", ""),
        "what color? [/INST] it is": ("whatcolor?[/INST]", "itis"),
        "what [/INST] it is</s>[INST] and? [/INST] it": ("what[/INST]itis</s>[INST]and?[/INST]", "it"),
        "what [/INST] it is</s>[INST] and?": ("what[/INST]itis</s>[INST]and?", ""),
        "what color?": ("whatcolor?", ""),
    }.items():
        assert split(MISTRAL, tokenizer, text) == expected


def test_white_space_that_opens_the_answer_is_of_the_answer_turn():
    tokenizer, (template, _) = TOKENIZERS["bytes"], TEMPLATES["deepseek"]
    turns = Turns.of(Processor(tokenizer, template), tokenizer)
    for text in ("?\n\nAssistant:", "?\n\nAssistant: it is"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids[: -turns.n_answer(ids, decoder(tokenizer))]) == "?"
    ids = tokenizer("?\n\n\n\nAssistant: it is")["input_ids"]
    assert tokenizer.decode(ids[: -turns.n_answer(ids, decoder(tokenizer))]) == "?\n\n"


def test_without_a_template_there_is_no_answer_turn():
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer("what? ASSISTANT: it is")["input_ids"]
    assert Turns.of(SimpleNamespace(chat_template=None), tokenizer).n_answer(ids, decoder(tokenizer)) == 0
    assert Turns.of(None, None) == Turns()


def test_a_template_that_refuses_several_turns_is_understood_as_far_as_it_goes():
    once = "{% if messages|length > 1 %}{{ raise_exception('one question only') }}{% endif %}"
    tokenizer = TOKENIZERS["bytes"]
    template = once + TEMPLATES["chatml"][0]
    assert split(template, tokenizer, "q<|im_end|>\n<|im_start|>assistant\nit") == (
        "q<|im_end|>",
        "<|im_start|>assistantit",
    )
