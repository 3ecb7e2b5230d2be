"""Conversations give what the model's own processor makes of them, or are refused where something would be lost."""

import base64
import copy
import io
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from lmm_lens import Lens
from lmm_lens.comparisons import blank_images
from tests.support.evidence import picture
from tests.support.families import lens_of
from tests.support.picture_files import refused, saved

EACH = "{% for m in messages %}"
QWEN = (
    f"{EACH}{{% if loop.first and m['role'] != 'system' %}}<|im_start|>system\nYou help.<|im_end|>\n{{% endif %}}"
    "<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA = (  # pictures first, and no name for what the system says
    f"{EACH}{{% if m['role'] != 'system' %}}{{{{ m['role'].upper() + ': ' }}}}{{% endif %}}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
PIXTRAL = (  # what the system says goes into the last question
    "<s>{% set system = messages[0]['content'][0]['text'] if messages[0]['role'] == 'system' else '' %}"
    f"{EACH}{{% if m['role'] == 'user' %}}[INST]{{% if loop.last and system %}}{{{{ system }}}}\n\n{{% endif %}}"
    "{% for c in m['content'] %}{{ c['text'] if c['type'] == 'text' else '[IMG]' }}{% endfor %}[/INST]"
    "{% elif m['role'] == 'assistant' %}{{ m['content'][0]['text'] }}</s>{% elif not loop.first %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
)
TEMPLATES = {"qwen2_vl": QWEN, "llava": LLAVA, "llava_next": LLAVA, "pixtral": PIXTRAL}


@cache
def speaking(name: str, template: str | None = None) -> Lens:
    """The lens of a family whose processor has a chat template."""
    lens = lens_of(name)
    processor = copy.copy(lens.processor)
    processor.chat_template = template or TEMPLATES[name]
    return Lens(lens.model, processor)


def words(text):
    return {"type": "text", "text": text}


def image(index=0):
    return {"type": "image", "image": picture(*[(90, 60), (40, 70)][index])}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def said(text):
    return {"role": "assistant", "content": [words(text)]}


CHATS = {
    "a question": [user(image(), words("What?"))],
    "several turns": [user(image(), words("What?")), said("A dog."), user(words("Which?"))],
    "a picture in a later turn": [user(words("Hi")), said("Hello."), user(image(), words("What?"))],
    "two pictures in two turns": [user(image(), words("What?")), said("A dog."), user(image(1), words("And?"))],
    "an answer begun": [user(image(), words("What?")), said("It is a")],
    "an answer begun in a later turn": [
        user(image(), words("What?")),
        said("A dog."),
        user(words("Which?")),
        said("The  "),
    ],
    "no picture": [user(words("Hi"))],
}


def by_transformers(lens, messages):
    """What the processor makes of a conversation by itself."""
    begun = messages[-1]["role"] == "assistant"
    how = {"continue_final_message": begun, "add_generation_prompt": not begun}
    made = lens.processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt", **how)
    return dict(made)


def same(prompt, made):
    assert torch.equal(prompt.inputs["input_ids"], made["input_ids"])
    for name in set(made) - {"input_ids", "attention_mask"}:
        assert torch.equal(prompt.inputs[name], made[name]), name


def question(lens, prompt, row=0):
    return lens.processor.tokenizer.decode(prompt.inputs["input_ids"][row][prompt.mask("question")[row]])


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", CHATS)
def test_a_conversation_is_what_the_processor_makes_of_it(name, kind):
    lens = speaking(name)
    same(lens.prompt(CHATS[kind]), by_transformers(lens, CHATS[kind]))


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("qwen2_vl", "an answer begun", "What?"),
        ("llava", "an answer begun", "What?"),
        ("pixtral", "an answer begun", "What?"),
        (
            "qwen2_vl",
            "an answer begun in a later turn",
            "What?<|im_end|>\n<|im_start|>assistant\nA dog.<|im_end|>\n<|im_start|>user\nWhich?",
        ),
        ("llava", "two pictures in two turns", "And?"),
    ],
)
def test_the_question_ends_where_the_answer_begins(name, kind, expected):
    lens = speaking(name)
    assert question(lens, lens.prompt(CHATS[kind])) == expected


def test_an_answer_begun_is_continued():
    lens = speaking("qwen2_vl")
    messages = CHATS["an answer begun"]
    out = lens.generate(lens.prompt(messages), max_new_tokens=3)
    made = by_transformers(lens, messages)
    expected = lens.model.generate(**made, max_new_tokens=3, do_sample=False)[:, made["input_ids"].shape[1] :]
    assert torch.equal(out.tokens, expected)


def test_a_batch_of_conversations_is_each_of_them():
    lens = speaking("qwen2_vl")
    kinds = ["several turns", "no picture", "an answer begun"]
    batch = lens.prompt([CHATS[kind] for kind in kinds])
    for row, kind in enumerate(kinds):
        alone = lens.prompt(CHATS[kind])
        assert torch.equal(batch.inputs["input_ids"][row][batch.mask("all")[row]], alone.inputs["input_ids"][0])
        assert question(lens, batch, row) == question(lens, alone)
        assert [len(images) for images in batch.images][row] == len(alone.images[0])


def test_what_the_system_says_comes_first():
    lens = speaking("qwen2_vl")
    messages = [{"role": "system", "content": "Be short."}, *CHATS["a question"]]
    same(lens.prompt(messages), by_transformers(lens, messages))
    assert "system\nBe short." in lens.processor.tokenizer.decode(lens.prompt(messages).inputs["input_ids"][0])


WAYS = {
    "image": lambda data, _: {"type": "image", "image": Image.open(io.BytesIO(data))},
    "path": lambda _, path: {"type": "image", "path": str(path)},
    "url of a file": lambda _, path: {"type": "image", "url": str(path)},
    "base64": lambda data, _: {"type": "image", "base64": base64.b64encode(data).decode()},
    "url that holds it": lambda data, _: {"type": "image", "url": data_url(data)},
    "OpenAI": lambda data, _: {"type": "image_url", "image_url": {"url": data_url(data), "detail": "auto"}},
    "OpenAI, flat": lambda data, _: {"type": "input_image", "image_url": data_url(data)},
    "array": lambda data, _: {"type": "image", "image": np.asarray(Image.open(io.BytesIO(data)))},
    "with what is None": lambda _, path: {"type": "image", "path": str(path), "text": None},
}


def data_url(data):
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize("way", WAYS)
def test_a_picture_may_stand_in_a_message_in_several_ways(way, tmp_path):
    lens, data = speaking("qwen2_vl"), saved(picture(90, 60))
    (tmp_path / "x.png").write_bytes(data)
    messages = [user(WAYS[way](data, tmp_path / "x.png"), words("What?"))]
    same(lens.prompt(messages), by_transformers(lens, CHATS["a question"]))


def test_places_without_a_picture_take_those_that_are_given():
    lens, place = speaking("qwen2_vl"), {"type": "image"}
    expected = by_transformers(lens, CHATS["two pictures in two turns"])
    one, two = image()["image"], image(1)["image"]
    for messages, images in (
        ([user(place, words("What?")), said("A dog."), user(place, words("And?"))], [one, two]),
        ([user(image(), words("What?")), said("A dog."), user(place, words("And?"))], two),
        ([user(place, words("What?")), said("A dog."), user(image(1), words("And?"))], [one]),
        ([{"role": "user", "content": "<|image_pad|>What?"}, said("A dog."), user("<|image_pad|>And?")], [one, two]),
    ):
        same(lens.prompt(messages, images=images), expected)
    batch = [[user(place, words("What?"))], [user(words("Hi"))]]
    assert [len(row) for row in lens.prompt(batch, images=[one, None]).images] == [1, 0]
    for images, n in ((None, 0), ([one, two], 2)):
        refused(
            f"the messages have 1 image parts without a source, but images={n} were given\n.*'type': 'image'",
            lambda images=images: lens.prompt(batch[0], images=images),
        )
    refused("have 0 image parts without a source, but images=1", lambda: lens.prompt(CHATS["a question"], images=one))


def test_a_video_may_stand_in_a_message(tmp_path):
    lens = speaking("qwen2_vl")
    frames = [picture(56, 56)] * 4
    data = saved(frames[0], "GIF", save_all=True, append_images=[picture(56, 56, (i, i, 20, 20)) for i in (1, 2, 3)])
    (tmp_path / "x.gif").write_bytes(data)
    expected = lens.prompt("<|video_pad|>What?", videos=data)
    for part in (
        {"type": "video", "video": str(tmp_path / "x.gif")},
        {"type": "video", "path": tmp_path / "x.gif"},
        {"type": "video_url", "video_url": {"url": "data:image/gif;base64," + base64.b64encode(data).decode()}},
        {"type": "video", "video": list(expected.videos[0][0])},
    ):
        prompt = lens.prompt([user(part, words("What?"))])
        assert torch.equal(prompt.inputs["input_ids"], expected.inputs["input_ids"])
        assert torch.equal(prompt.inputs["pixel_values_videos"], expected.inputs["pixel_values_videos"])
    refused("LlavaProcessor of family llava takes none", lambda: speaking("llava").prompt([user(part, words("What?"))]))


def test_a_conversation_can_be_asked_again_with_other_pictures():
    lens = speaking("qwen2_vl")
    seen = {"type": "image", "image": picture(90, 60, (10, 10, 40, 40))}
    prompt = lens.prompt([user(seen, words("What?")), said("A dog."), user(words("Which?"))])
    blank = blank_images(lens, prompt)
    assert torch.equal(blank.inputs["input_ids"], prompt.inputs["input_ids"])
    assert not torch.equal(blank.inputs["pixel_values"], prompt.inputs["pixel_values"])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user"}], "message 0 .user. says nothing: its content is None"),
        (
            [user(image()), {"role": "assistant", "content": ""}],
            "message 1 .assistant. says nothing: its content is ''",
        ),
        ([{"content": "hm"}], "expected messages like {'role': 'user', 'content': .*}, message 0 is {'content'"),
        ([user(words("a")), "b"], "expected messages like .*, message 1 is 'b'"),
        (
            [{"role": "user", "content": "a", "tool_calls": [1], "name": "x"}],
            "message 0 .user. has name, tool_calls, which would be left out\n  expected role and content alone",
        ),
        ([user({"type": "audio", "audio": "x"})], "message 0 has a part of the unknown type 'audio'\n  valid: text, "),
        ([user({"text": "x"})], "unknown type None"),
        ([user(7)], "unknown type 'int'"),
        ([user(words(" "))], "a part of message 0 has no words: its text is ' '"),
        ([user({"type": "text"})], "a part of message 0 has no words: its text is None"),
        (
            [user({**image(), "max_pixels": 9, "url": "x"})],
            "a part of message 0, 'image', has max_pixels, url, which would be left out\n.*Lens.from_pretrained",
        ),
        (
            [user({"type": "image_url", "image_url": {"url": "x", "detail": "low"}})],
            "a part of message 0, 'image_url', has detail, which would be left out",
        ),
        (
            [user({"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}, words("What?"))],
            "'https://x.org/a.png' is an address, and nothing is downloaded",
        ),
    ],
)
def test_what_a_message_says_in_other_words_is_not_left_out_without_a_word(messages, message):
    refused(message, lambda: speaking("qwen2_vl").prompt(messages))


def test_messages_need_a_chat_template():
    refused(
        "LlavaProcessor has no chat template, so it cannot put messages into the model's chat format\n  set processor",
        lambda: lens_of("llava").prompt(CHATS["a question"]),
    )
    refused(
        "messages are put into the model's chat format, so template=False cannot be kept",
        lambda: speaking("llava").prompt(CHATS["a question"], template=False),
    )


# ---------------------------------------------------------------------- what templates do without a word

SYSTEM = {"role": "system", "content": [words("Be short.")]}


@pytest.mark.parametrize(
    ("name", "messages", "message"),
    [
        (  # LLaVA's own puts all pictures of a message first
            "llava",
            [user(words("What"), image(), words("is it?"))],
            "of LlavaProcessor moves pictures past words: 0 stand before 'What' in the text, 1 in the",
        ),
        (  # the last question is told what the system said before all
            "pixtral",
            [SYSTEM, user(image(), words("What?")), said("A dog."), user(words("Which?"))],
            "the chat template of PixtralProcessor moves or repeats what '.*' says: '.*'\n  put it into the message",
        ),
        ("pixtral", [user(words("a")), SYSTEM], "refuses this conversation: Conversation roles must alternate"),
    ],
)
def test_a_template_of_the_field_that_moves_something_is_refused(name, messages, message):
    refused(message, lambda: speaking(name).prompt(messages))


def test_what_the_system_says_may_join_the_question_that_follows():
    lens = speaking("pixtral")
    messages = [SYSTEM, user(image(), words("What?"))]
    same(lens.prompt(messages), by_transformers(lens, messages))


PLAIN = (
    "{{ m['role'] }}: {% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}\n"
)


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (
            f"{EACH}{{% if m['role'] != 'system' %}}{PLAIN}{{% endif %}}{{% endfor %}}",
            [SYSTEM, user(image(), words("What?"))],
            "leaves out what 'system' says: 'Be short.'\n  put it into a user's message, or give template=False",
        ),
        (
            "{% for m in messages[-1:] %}" + PLAIN + "{% endfor %}",
            [user(image(), words("What?")), said("A dog."), user(words("Which?"))],
            "leaves out what 'user' says: 'What[?]'",
        ),
        (
            "{% for m in messages | reverse %}" + PLAIN + "{% endfor %}",
            [user(words("What?")), said("A dog."), user(words("Which?"))],
            "moves or repeats what 'assistant' says: 'A dog.'",
        ),
        (
            EACH + PLAIN.replace("m['role']", "'USER' if m['role'] == 'user' else 'ASSISTANT'") + "{% endfor %}",
            [SYSTEM, user(image(), words("What?"))],
            "writes messages of 'system' as if 'assistant' had said them",
        ),
        (
            EACH + PLAIN.removeprefix("{{ m['role'] }}: ") + "{% endfor %}",
            [user(image(), words("What?")), said("A dog."), user(words("Which?"))],
            "writes messages of 'assistant' as if 'user' had said them",
        ),
        (
            EACH + PLAIN.replace("'<image>'", "''") + "{% endfor %}",
            [user(words("What?"), image())],
            "writes 0 of 1 pictures and videos",
        ),
        (
            EACH + PLAIN + PLAIN + "{% endfor %}",
            [user(words("What?"))],
            "moves or repeats what 'user' says: 'What[?]'",
        ),
        (
            EACH + "{{ m['role'] }}: {{ m['content'][-1]['text'].split('</think>')[-1] }}\n{% endfor %}",
            [user(words("What?")), said("Hm.</think>A dog."), user(words("Which?"))],
            "changes what 'assistant' says: 'Hm.</think>A dog.'",
        ),
        (EACH + "{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", [user(image(), words("What?"))], "knows no parts"),
    ],
)
def test_a_template_that_loses_something_is_refused(template, messages, message):
    refused(f"^the chat template of LlavaProcessor {message}", lambda: speaking("llava", template).prompt(messages))


def test_a_template_that_knows_plain_words_alone_gets_plain_words():
    template = (
        EACH + "{{ m['role'] + ': ' + m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    lens = speaking("llava", template)
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What?"}]
    same(lens.prompt(messages), by_transformers(lens, messages))
    text = lens.processor.tokenizer.decode(lens.prompt("What?").inputs["input_ids"][0], skip_special_tokens=True)
    assert text == "user: What?\nassistant:"
