"""Chat templates of the field, and tokenizers that cut their words in every way."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

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
