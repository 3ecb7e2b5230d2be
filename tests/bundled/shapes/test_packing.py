import random
from itertools import islice

import numpy as np
import pytest
import torch

from lmm_lens.bundled import shapes
from lmm_lens.bundled.shapes.questions import TEXT, VISUAL
from lmm_lens.bundled.shapes.render import render
from lmm_lens.bundled.shapes.scenes import random_scene
from lmm_lens.bundled.shapes.vocabulary import ASSISTANT, BOS, EOS, IMAGE, USER, VOCABULARY
from lmm_lens.bundled.worlds import Question
from training.shapes_llava.packing import IGNORED, encode, pack, turn
from training.shapes_llava.train import question_stream, to_pixels

LENGTH = 120


@pytest.fixture(scope="module")
def packed():
    """(questions by row, the packed batch, pixels)"""
    rng = random.Random(5)
    scenes = [random_scene(rng) for _ in range(3)]
    asked = [list(islice(question_stream(scene, rng), 20)) for scene in scenes]
    batch = pack([iter(questions) for questions in asked], LENGTH, with_image=True)
    return asked, batch, to_pixels(render(scenes, np.random.default_rng(5)))


def test_a_packed_question_has_the_logits_of_a_prompt_of_its_own(loaded, packed):
    model, _ = loaded["sinks"]
    asked, batch, pixels = packed
    compared = 0
    with torch.no_grad():
        together = model.model(
            input_ids=batch.ids,
            pixel_values=pixels,
            attention_mask=batch.mask,
            position_ids=batch.positions,
        )[0]
        together = model.lm_head(together)
        for row, questions in enumerate(asked):
            end = 38
            for question in questions:
                answer_ids = encode(question.answer)
                ids = [VOCABULARY[BOS], VOCABULARY[USER]] + [VOCABULARY[IMAGE]] * 36
                ids += [*encode(question.text), VOCABULARY[ASSISTANT], *answer_ids]
                start, end = end, end + len(ids) - 38
                if end > LENGTH:
                    break
                alone = model(input_ids=torch.tensor([ids]), pixel_values=pixels[row : row + 1]).logits[0, 38:]
                torch.testing.assert_close(together[row, start:end], alone, atol=1e-5, rtol=1e-5)
                labels = batch.labels[row, start:end]
                assert labels[labels != IGNORED].tolist() == [*answer_ids, VOCABULARY[EOS]]
                assert (labels[-len(answer_ids) - 1 :] != IGNORED).all()
                compared += 1
    assert compared >= 15


def test_a_question_does_not_see_its_neighbours(packed):
    _, batch, _ = packed
    starts = (batch.positions[0] == 38).nonzero().flatten()
    second = int(starts[1])
    assert batch.mask[0, 0, second, :38].all()
    assert not batch.mask[0, 0, second, 38:second].any()
    assert not batch.mask[0, 0, second, second + 1 :].any()


def test_a_question_that_does_not_fit_is_left_out_whole():
    question = Question("repeat", "repeat the word red", "red")
    asked, answered = turn(question)
    one = len(asked) + len(answered) - 1
    batch = pack([iter([question, question])], 2 + 2 * one - 1, with_image=False)
    assert (batch.labels != IGNORED).sum() == len(answered)


def test_training_asks_every_kind_of_question():
    rng = random.Random(0)
    stream = question_stream(shapes.Scene((shapes.Thing(0, "red", "star"),)), rng)
    assert {question.kind for question in islice(stream, 500)} == {*VISUAL, *TEXT}
    assert {question.kind for question in islice(question_stream(None, rng), 200)} == set(TEXT)
