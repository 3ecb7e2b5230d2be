"""Text and pictures in, prompt out, with the bundled model's real processor."""

import numpy as np
import pytest
import torch
from PIL import Image

from lmm_lens import Lens
from lmm_lens.adapters.llava import Llava
from lmm_lens.bundled import shapes
from lmm_lens.errors import PromptError
from tests.support.cases import close

N = 36  # tokens a picture: 6 x 6 patches of 8 pixels


@pytest.fixture(scope="module")
def images():
    return [example.image for example in shapes.examples(4, ["color"], seed=5)]


def where(prompt, name, row=0):
    return prompt.mask(name)[row].nonzero().flatten().tolist()


def test_a_question_about_a_picture_has_every_token_in_its_role(lens, images):
    prompt = lens.prompt("what color is the circle?", images=images[0])
    words = ["<s>", "USER:", *["<image>"] * N, "what", "color", "is", "the", "circle", "?", "ASSISTANT:"]
    assert prompt.tokens == (tuple(words),)
    assert where(prompt, "bos") == [0]
    assert where(prompt, "image") == list(range(2, 38))
    assert where(prompt, "after_image") == list(range(38, 45))
    assert where(prompt, "question") == list(range(38, 44))  # without ASSISTANT:
    assert where(prompt, "last") == [44]
    assert where(prompt, "text") == [0, 1, *range(38, 45)]
    assert str(prompt) == (
        "row 0: <s> USER: [image 0: 36 tokens, 6 x 6, at 2 to 37] what color is the circle ? ASSISTANT:"
    )


def test_a_batch_takes_several_pictures_one_or_none_a_row(lens, images):
    a, b, c, _ = images
    texts = ["what color is the circle?", "what is two plus two?", "is there a star?"]
    prompt = lens.prompt(texts, images=[[a, b], None, c])
    assert prompt.n_tokens == 81
    starts = [[(span.image, span.positions[0], len(span)) for span in row] for row in prompt.spans]
    assert starts == [[(0, 2, N), (1, 38, N)], [], [(0, 39, N)]]
    assert [len(row) for row in prompt.images] == [2, 0, 1]
    assert prompt.inputs["pixel_values"].shape == (3, 3, 48, 48)
    # row 1 has 9 tokens of its own, row 2 has 44
    assert where(prompt, "pad", 1) == list(range(72))
    assert where(prompt, "bos", 1) == [72]
    assert where(prompt, "after_image", 1) == where(prompt, "question", 1) == []
    assert where(prompt, "after_image", 2) == [75, 76, 77, 78, 79, 80]
    assert where(prompt, "question", 2) == [75, 76, 77, 78, 79]
    assert [where(prompt, "last", row) for row in range(3)] == [[80]] * 3
    for row in range(3):
        ids = prompt.inputs["input_ids"][row].tolist()
        assert where(prompt, "image", row) == [i for i, id_ in enumerate(ids) if id_ == lens.adapter.image_token_id]


def test_each_row_of_a_batch_sees_its_own_pictures(lens, images):
    """The answer of a row is the answer to its prompt alone: pictures are in the right order."""
    a, b, c, _ = images
    texts = ["what color is the circle?", "what is two plus two?", "is there a star?"]
    joint = lens.run(lens.prompt(texts, images=[[a, b], None, c]), logits="last").logits
    for row, given in enumerate(([a, b], None, c)):
        close(joint[row], lens.run(lens.prompt(texts[row], images=given), logits="last").logits[0], 1e-4)
    swapped = lens.run(lens.prompt(texts, images=[[a, c], None, b]), logits="last").logits
    assert not torch.allclose(swapped[2], joint[2], atol=1e-3)


def test_an_adapter_is_told_each_pictures_place_in_its_row_and_in_the_batch(lens, images):
    told = []

    class Asks(Llava):
        def row_spans(self, row):
            told.append((row.first_picture, [(p.index, p.size) for p in row.pictures]))
            return super().row_spans(row)

    other = Lens(lens.model, lens.processor, adapter=Asks(lens.model, lens.processor))
    small = Image.new("RGB", (24, 30))
    other.prompt(["compare", "what color?", "what color?"], images=[images[:2], None, small])
    assert told == [(0, [(0, (48, 48)), (1, (48, 48))]), (2, []), (2, [(0, (24, 30))])]


def test_right_padding_is_understood_too(images):
    lens = Lens.demo()
    lens.processor.tokenizer.padding_side = "right"
    prompt = lens.prompt(["what color is the circle?", "is there a star?"], images=images[:2])
    assert where(prompt, "pad", 1) == [44]
    assert [where(prompt, "last", row) for row in range(2)] == [[44], [43]]
    assert where(prompt, "question", 1) == [38, 39, 40, 41, 42]


def test_a_slot_in_the_text_takes_the_picture(lens, images):
    with_slot = lens.prompt("<image> what color?", images=images[0])
    assert with_slot.tokens == lens.prompt("what color?", images=images[0]).tokens
    raw = lens.prompt("USER: what <image> color? ASSISTANT:", images=images[0], template=False)
    assert raw.tokens[0][:4] == ("<s>", "USER:", "what", "<image>")
    assert where(raw, "image") == list(range(3, 39))
    assert where(raw, "question") == [39, 40]


@pytest.mark.parametrize("text", ["what <image> color?", "what color? <image>"])
def test_a_template_that_would_move_a_picture_past_words_is_refused(lens, images, text):
    with pytest.raises(
        PromptError
    ) as raised:  # shapes-llava's, as LLaVA's own, puts pictures first and glues the words
        lens.prompt(text, images=images[0])
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("the chat template of LlavaProcessor moves pictures past words: 0 stand before 'what")
    assert lines[1] == (
        "  give template=False and the chat format in the text, or leave the slots out: pictures come first"
    )


def test_without_the_template_the_text_is_taken_as_it_is(lens, images):
    prompt = lens.prompt("what color?", images=images[0], template=False)
    assert prompt.tokens == (("<s>", *["<image>"] * N, "what", "color", "?"),)
    assert where(prompt, "question") == where(prompt, "after_image") == [37, 38, 39]  # no answer turn
    assert lens.prompt("what color?", template=False).tokens == (("<s>", "what", "color", "?"),)


def test_a_text_with_its_own_beginning_token_gets_no_second(lens, images):
    prompt = lens.prompt("<s> USER: <image> what color? ASSISTANT:", images=images[0], template=False)
    assert prompt.tokens[0].count("<s>") == 1
    prompt = lens.prompt("<s> USER: what color? ASSISTANT:", images=images[0], template=False)
    assert prompt.tokens[0].count("<s>") == 1
    assert prompt.tokens[0][0] == "<s>"
    assert where(prompt, "bos") == [0]


def test_each_row_has_one_beginning_token_whether_it_was_written_or_not(lens):
    prompt = lens.prompt(["<s> what color?", "what is the color?"], template=False)
    assert [row.count("<s>") for row in prompt.tokens] == [1, 1]


def test_a_picture_may_be_given_in_several_ways(lens, images, tmp_path):
    image = images[0]
    file = tmp_path / "picture.png"
    image.save(file)
    array = np.array(image)
    ways = [image, file, str(file), array, torch.from_numpy(array).permute(2, 0, 1), [image], image.convert("RGBA")]
    pixels = [lens.prompt("what color?", images=way).inputs["pixel_values"] for way in ways]
    for other in pixels[1:]:
        assert torch.equal(other, pixels[0])


def test_a_palette_or_grey_picture_is_seen_in_colour(lens, images):
    grey = images[0].convert("L")
    given = lens.prompt("what color?", images=grey).inputs["pixel_values"]
    assert torch.equal(given, lens.prompt("what color?", images=grey.convert("RGB")).inputs["pixel_values"])


def test_pixels_map_to_tokens_in_the_pictures_own_size(lens, images):
    prompt = lens.prompt("what color?", images=images[0])  # 48 x 48: patches of 8 pixels
    assert prompt.patch_at(10, 20) == 2 + 2 * 6 + 1
    assert prompt.box(2) == (0, 0, 8, 8)
    assert prompt.box(37) == (40, 40, 48, 48)
    assert prompt.positions_in_box((0, 40, 48, 48)) == tuple(range(32, 38))
    # 96 x 64 is scaled to 72 x 48 and cropped to the middle 48: columns 16 to 80 of the picture
    wide = lens.prompt("what color?", images=Image.new("RGB", (96, 64)))
    assert wide.spans[0][0].region == (16, 0, 80, 64)
    assert wide.patch_at(16, 0) == 2
    assert wide.patch_at(79, 63) == 37
    assert wide.box(3) == pytest.approx((16 + 64 / 6, 0, 16 + 128 / 6, 64 / 6))


def test_two_pictures_of_a_row_keep_their_own_sizes(lens):
    prompt = lens.prompt("compare", images=[Image.new("RGB", (96, 64)), Image.new("RGB", (24, 24))])
    assert prompt.patch_at(40, 32, image=0) == 2 + 3 * 6 + 2
    assert prompt.patch_at(23, 0, image=1) == 38 + 5
    assert prompt.box(38) == (0, 0, 4, 4)


def test_processed_tensors_need_no_processor(lens, images):
    made = lens.prompt(["what color is the circle?", "is there a star?"], images=images[:2])
    bare = Lens(lens.model)
    prompt = bare.prompt(inputs=dict(made.inputs))
    assert [where(prompt, "image", row) for row in range(2)] == [where(made, "image", row) for row in range(2)]
    assert prompt.tokens[0][:3] == ("#1", f"#{made.inputs['input_ids'][0, 1]}", f"#{lens.adapter.image_token_id}")
    assert prompt.images == ((), ())
    assert prompt.patch_at(10, 20) == 15  # pixels of the processed picture
    assert torch.equal(bare.run(prompt).logits, lens.run(made).logits)
    assert bare.generate(prompt, max_new_tokens=2).text == ("", "")


def test_processed_tensors_of_the_users_processor_know_the_answer_turn(lens, images):
    inputs = lens.processor(text="USER: <image> what color? ASSISTANT:", images=images[0], return_tensors="pt")
    prompt = lens.prompt(inputs=inputs)
    assert where(prompt, "question") == [38, 39, 40]
    unopened = lens.processor(text="USER: <image> what color?", images=images[0], return_tensors="pt")
    assert where(lens.prompt(inputs=unopened), "question") == [38, 39, 40]


def test_generated_text_has_no_special_tokens(lens, images):
    out = lens.generate(lens.prompt(["what color is the circle?"] * 2, images=images[:2]), max_new_tokens=3)
    assert len(out.text) == 2
    assert all("<" not in text and text == text.strip() for text in out.text)


def test_a_notebook_shows_the_picture_with_its_patch_grid(lens, images):
    html = lens.prompt("is 1 < 2?", images=images[0])._repr_html_()
    assert "data:image/png;base64," in html
    assert "[image 0: 36 tokens, 6 x 6, at 2 to 37]" in html
    assert "position 38" in html
    assert "<unk>" not in html  # escaped


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("USER: <image> what color is the circle? ASSISTANT: red is", "what color is the circle ?"),
        ("USER: <image> what color is the circle? ASSISTANT: red </s>", "what color is the circle ?"),
        (
            "USER: <image> what color? ASSISTANT: red </s> USER: is the star? ASSISTANT: red is",
            "what color ? red is the star ?",
        ),
        ("USER: <image> what color? ASSISTANT: red </s> USER: what?", "what color ? red what ?"),
        ("USER: <image> what color?", "what color ?"),
    ],
)
def test_an_answer_begun_is_no_question(lens, images, text, expected):
    prompt = lens.prompt(text, images=images[0], template=False)
    assert " ".join(prompt.tokens[0][i] for i in where(prompt, "question")) == expected
    tensors = lens.prompt(inputs=prompt.inputs)
    assert where(tensors, "question") == where(prompt, "question")


def test_rows_of_a_batch_may_have_begun_their_answers_or_not(lens, images):
    texts = ["USER: <image> what color? ASSISTANT: red", "USER: <image> what color is the circle? ASSISTANT:"]
    prompt = lens.prompt(texts, images=images[:2], template=False)
    shown = [" ".join(prompt.tokens[row][i] for i in where(prompt, "question", row)) for row in (0, 1)]
    assert shown == ["what color ?", "what color is the circle ?"]


def test_a_template_set_later_is_the_template(images):
    lens = Lens.demo()
    prompt = lens.prompt("USER: <image> what color? ASSISTANT: red", images=images[0], template=False)
    assert len(where(prompt, "question")) == 3
    lens.processor.chat_template = lens.processor.chat_template.replace("ASSISTANT:", "star:")
    again = lens.prompt("USER: <image> what color? ASSISTANT: red", images=images[0], template=False)
    assert len(where(again, "question")) == 4  # and red
    assert [again.tokens[0][i] for i in where(again, "template")] == ["ASSISTANT:"]
