import re

import pytest
import torch

from lmm_lens.bundled import shapes
from lmm_lens.bundled.shapes.processor import build_processor
from lmm_lens.bundled.shapes.vocabulary import VOCABULARY
from training.shapes_llava.evaluate import LONGEST_ANSWER, prompt
from training.shapes_llava.packing import encode

ALL_KINDS = shapes.VISUAL_KINDS + shapes.TEXT_KINDS


@pytest.fixture(scope="module")
def processor():
    return build_processor()


def test_every_question_and_answer_survives_the_tokenizer(processor):
    tokenizer = processor.tokenizer
    for example in shapes.examples(2200, ALL_KINDS, seed=21):
        for text in (example.question, example.answer):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert tokenizer.unk_token_id not in ids, text
            assert tokenizer.decode(ids) == text
            assert ids == [VOCABULARY[word] for word in re.findall(r"\w+|[^\w\s]", text)]


def test_text_is_lower_cased_and_special_tokens_are_not(processor):
    tokens = processor.tokenizer.tokenize("USER: What COLOR is the circle? ASSISTANT:")
    assert tokens == ["USER:", "what", "color", "is", "the", "circle", "?", "ASSISTANT:"]


def test_an_unknown_word_is_one_unknown_token(processor):
    assert processor.tokenizer.tokenize("a red elephant.") == ["a", "red", "<unk>", "."]


def test_the_vocabulary_has_all_digits_and_number_words():
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    wanted = {*"0123456789", *words}
    assert wanted <= set(VOCABULARY)
    assert sorted(VOCABULARY.values()) == list(range(len(VOCABULARY)))
    assert len(VOCABULARY) <= 100


def test_the_longest_answer_fits_what_evaluation_generates():
    answers = (e.answer for e in shapes.examples(300, ["list"], things=(5, 5)))
    assert max(len(encode(answer)) for answer in answers) + 1 <= LONGEST_ANSWER


def test_the_chat_template_puts_the_image_first_and_leaves_it_out_for_text(processor):
    visual, textual = shapes.examples(1, ["color"])[0], shapes.examples(1, ["arith"])[0]
    assert prompt(processor, visual) == f"USER: <image> {visual.question} ASSISTANT:"
    assert prompt(processor, textual) == f"USER: {textual.question} ASSISTANT:"
    with_picture = [{"type": "text", "text": "describe the image."}, {"type": "image"}]
    turns = [{"role": "user", "content": with_picture}, {"role": "assistant", "content": "red star"}]
    assert processor.apply_chat_template(turns) == "USER: <image> describe the image. ASSISTANT: red star</s>"


def test_a_prompt_is_bos_user_36_patches_question_assistant(processor):
    example = shapes.examples(1, ["color"])[0]
    inputs = processor(images=example.image, text=prompt(processor, example), return_tensors="pt")
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert tokens[:2] == ["<s>", "USER:"]
    assert tokens[2:38] == ["<image>"] * 36
    assert tokens[38:] == [*example.question.removesuffix("?").split(), "?", "ASSISTANT:"]
    assert inputs["pixel_values"].shape == (1, 3, 48, 48)


def test_batches_are_padded_on_the_left(processor):
    inputs = processor(text=["USER: repeat", "USER: repeat the word red"], return_tensors="pt", padding=True)
    assert inputs["attention_mask"].tolist() == [[0, 0, 0, 1, 1, 1], [1] * 6]


def test_training_pixels_are_the_image_processors(processor):
    import numpy as np

    from training.shapes_llava.train import to_pixels

    image = shapes.examples(1)[0].image
    processed = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(to_pixels(np.array(image)[None]), processed, atol=1e-6, rtol=0)
