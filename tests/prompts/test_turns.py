"""Where the answer turn begins, for the templates of the field and tokenizers that cut the words in every way."""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lmm_lens.prompts.turns import Turns, decoder
from tests.support.tokenizer import byte_tokenizer

SPECIALS = [
    "<|im_start|>",
    "<|im_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|start_header_id|>",
    "<|end_header_id|>",
]
SPECIALS += ["<|eot_id|>", "[INST]", "[/INST]", "<end_of_utterance>", "<|user|>", "<|assistant|>", "<|end|>", "<think>"]

IN_PARTS = "{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
EACH = "{% for m in messages %}"
TEMPLATES = {
    # name: the template; what closes the question; what opens the answer; what closes the answer; the next question
    "vicuna": (
        f"{EACH}{{{{ m['role'].upper() }}}}: {IN_PARTS} {{% endfor %}}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        (" ", "ASSISTANT: ", " ", "USER: "),
    ),
    "chatml": (
        f"{EACH}<|im_start|>{{{{ m['role'] }}}}\n{IN_PARTS}<|im_end|>\n{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ("<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>\n", "<|im_start|>user\n"),
    ),
    "chatml that thinks": (
        f"{EACH}<|im_start|>{{{{ m['role'] }}}}\n{IN_PARTS}<|im_end|>\n{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
        ("<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>\n", "<|im_start|>user\n"),
    ),
    "llama 3": (
        f"{{{{ bos_token }}}}{EACH}<|start_header_id|>{{{{ m['role'] }}}}<|end_header_id|>\n\n"
        f"{IN_PARTS}<|eot_id|>{{% endfor %}}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        (
            "<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|eot_id|>",
            "<|start_header_id|>user<|end_header_id|>\n\n",
        ),
    ),
    "gemma": (
        f"{{{{ bos_token }}}}{EACH}<start_of_turn>{{{{ 'model' if m['role'] == 'assistant' else m['role'] }}}}\n"
        f"{IN_PARTS}<end_of_turn>\n{{% endfor %}}{{% if add_generation_prompt %}}<start_of_turn>model\n{{% endif %}}",
        ("<end_of_turn>\n", "<start_of_turn>model\n", "<end_of_turn>\n", "<start_of_turn>user\n"),
    ),
    "idefics": (
        f"{EACH}{{{{ m['role'].capitalize() }}}}: {IN_PARTS}<end_of_utterance>\n{{% endfor %}}"
        "{% if add_generation_prompt %}Assistant:{% endif %}",
        ("<end_of_utterance>\n", "Assistant: ", "<end_of_utterance>\n", "User: "),
    ),
    "deepseek": (
        f"{EACH}{{% if m['role'] == 'user' %}}{{{{ '\n\nUser: ' }}}}{IN_PARTS}"
        f"{{% else %}}{{{{ '\n\nAssistant: ' }}}}{IN_PARTS}</s>{{% endif %}}{{% endfor %}}"
        "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}",
        ("", "\n\nAssistant: ", "</s>", "\n\nUser: "),
    ),
    "phi, in plain words": (  # a template that knows no parts
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ("<|end|>\n", "<|assistant|>\n", "<|end|>\n", "<|user|>\n"),
    ),
    "alpaca, which opens no answer by itself": (
        f"{EACH}{{{{ '### Instruction:\n' if m['role'] == 'user' else '### Response:\n' }}}}"
        f"{IN_PARTS}{{{{ '\n\n' }}}}{{% endfor %}}",
        ("\n\n", "### Response:\n", "\n\n", "### Instruction:\n"),
    ),
}
MISTRAL = (
    f"<s>{EACH}{{% if m['role'] == 'user' %}}[INST] {IN_PARTS} [/INST]{{% else %}} {IN_PARTS}</s>{{% endif %}}"
    "{% endfor %}"
)


def merging() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with merges across all borders, spaces and signs too."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    texts = [
        "what color? ASSISTANT: it is",
        "?\n\nAssistant: it is\n\nUser: what color?",
        " ASSISTANT: it is red USER: ",
    ] * 50
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(texts, trainer)
    core.add_special_tokens(["<s>", "</s>", "<pad>", *SPECIALS])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def pieces() -> PreTrainedTokenizerFast:
    """A tokenizer of word pieces that carry the space before them, and fall back to bytes (LLaMA's)."""
    words = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{i:02X}>" for i in range(256))]
    words += [chr(i) for i in range(33, 127)] + [f"▁{chr(i)}" for i in range(33, 127)] + ["▁"]
    pairs = [("▁A", "S"), ("▁AS", "S"), ("▁i", "t"), (":", "▁it"), ("?", "▁ASS"), ("▁w", "h")]
    words += ["".join(pair) for pair in pairs] + ["\n"]
    merges = [("▁", chr(i)) for i in range(33, 127)] + pairs
    core = Tokenizer(
        models.BPE(
            vocab={word: i for i, word in enumerate(words)}, merges=merges, unk_token="<unk>", byte_fallback=True
        )
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens(["<s>", "</s>", "<pad>", *SPECIALS])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


TOKENIZERS = {"bytes": byte_tokenizer(*SPECIALS), "merging": merging(), "pieces": pieces()}


class Processor:
    """What of a processor is asked here."""

    def __init__(self, tokenizer, chat_template):
        self.tokenizer, self.chat_template = tokenizer, chat_template

    def apply_chat_template(self, chat, **options):
        return self.tokenizer.apply_chat_template(chat, chat_template=self.chat_template, **options)


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
