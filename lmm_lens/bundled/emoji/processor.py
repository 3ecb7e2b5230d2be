"""The processor: SmolLM2's tokenizer, CLIP's image processor, and its chat template with a picture before the question.

    <|im_start|>user
    PICTURE SOFT PROMPT
    What is in the picture?<|im_end|>
    <|im_start|>assistant
    Answer:

The picture's placeholder and the soft prompt are special tokens that the tokenizer has and text never uses, so the
vocabulary is the language model's own. A prompt without a picture has neither.
"""

from pathlib import Path
from typing import Any

from lmm_lens.bundled.emoji.scenes import PATCH, SIZE
from lmm_lens.bundled.loading import llava_processor

IMAGE = "<reponame>"
SOFT = (
    "<repo_name>",
    "<file_sep>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}" + IMAGE + "".join(SOFT) + "\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nAnswer:{% endif %}"
)


def build_tokenizer(language_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(language_model, padding_side="left")


def build_processor(language_model: Path) -> Any:
    """A LlavaProcessor with left padding; pictures come out as [image, 3, 96, 96] in -1..1."""
    return llava_processor(build_tokenizer(language_model), SIZE, PATCH, IMAGE, CHAT_TEMPLATE)
