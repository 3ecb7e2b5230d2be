"""The processor: a word-level tokenizer, CLIP's image processor, and a chat template like LLaVA-1.5's.

A prompt is `<s> USER: <image> what color is the circle? ASSISTANT:`, the image first; without an image the
`<image>` is left out. Ordinary text is lower-cased and punctuation split off; special tokens stay as
they are.
"""

from typing import Any

from transformers import PreTrainedTokenizerFast

from lmm_lens.bundled.loading import llava_processor
from lmm_lens.bundled.shapes.scenes import PATCH, SIZE
from lmm_lens.bundled.shapes.vocabulary import ASSISTANT, BOS, EOS, IMAGE, PAD, SPECIAL, UNK, USER, VOCABULARY

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image> {% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'user' %} {% else %}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    # not normalized: matched before lower-casing, so "USER:" is a token and "user:" is not
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, VOCABULARY[BOS])]
    )
    tokenizer.decoder = decoders.WordPiece(cleanup=True)  # no space before punctuation
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        extra_special_tokens=[IMAGE, USER, ASSISTANT],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def build_processor() -> Any:
    """A LlavaProcessor with left padding; pictures come out as [image, 3, 48, 48] in -1..1."""
    return llava_processor(build_tokenizer(), SIZE, PATCH, IMAGE, CHAT_TEMPLATE)
