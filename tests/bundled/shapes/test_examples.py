import random
from collections import Counter

import pytest

from lmm_lens.bundled import shapes
from lmm_lens.bundled.shapes.scenes import held_out, random_scene

ALL_KINDS = shapes.VISUAL_KINDS + shapes.TEXT_KINDS


def pixels(example):
    return None if example.image is None else example.image.tobytes()


def test_the_same_seed_gives_the_same_examples_and_another_seed_others():
    first, again, other = (shapes.examples(55, ALL_KINDS, seed) for seed in (3, 3, 4))
    assert [(e.question, e.answer, e.scene, pixels(e)) for e in first] == [
        (e.question, e.answer, e.scene, pixels(e)) for e in again
    ]
    assert [e.scene for e in first] != [e.scene for e in other]


def test_more_examples_begin_with_the_same_ones():
    few, many = shapes.examples(7, seed=5), shapes.examples(21, seed=5)
    assert [(e.question, pixels(e)) for e in few] == [(e.question, pixels(e)) for e in many[:7]]


def test_kinds_take_turns():
    assert Counter(e.kind for e in shapes.examples(33, ALL_KINDS)) == dict.fromkeys(ALL_KINDS, 3)


def test_text_only_examples_have_no_picture_and_no_scene():
    assert all(e.image is None and e.scene is None for e in shapes.examples(8, shapes.TEXT_KINDS))


def test_conditions_ask_the_same_questions_of_other_pictures():
    clean = shapes.examples(35, seed=6)
    for condition in shapes.CONDITIONS[1:]:
        changed = shapes.examples(35, seed=6, condition=condition)
        assert [(e.question, e.answer, e.scene) for e in changed] == [(e.question, e.answer, e.scene) for e in clean]
        assert all(pixels(a) != pixels(b) for a, b in zip(changed, clean, strict=True)), condition


def test_examples_come_from_the_scenes_that_training_never_draws():
    rng = random.Random(0)
    drawn = [random_scene(rng, split="train") for _ in range(2000)]
    assert not any(held_out(scene) for scene in drawn)
    assert all(held_out(e.scene) for e in shapes.examples(70))
    everything = [random_scene(rng, split=split) for split in ("train", "held out") for _ in range(200)]
    assert len({scene for scene in everything}) > 350


def test_things_bounds_the_number_of_things():
    assert {len(e.scene.things) for e in shapes.examples(60, ["count"], things=(2, 3))} == {2, 3}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kinds": ["colour"]}, "kinds are color, shape.*got \\['colour'\\]"),
        ({"kinds": []}, "kinds are color"),
        ({"condition": "blurred"}, "condition is one of clean, blank.*got 'blurred'"),
        ({"things": (0, 3)}, "things is .*got \\(0, 3\\)"),
    ],
)
def test_a_wrong_argument_is_answered_with_the_right_ones(wrong, message):
    with pytest.raises(ValueError, match=message):
        shapes.examples(3, **wrong)


def test_color_pairs_are_the_same_for_the_same_seed():
    first, again = shapes.color_pairs(5, seed=1), shapes.color_pairs(5, seed=1)
    assert [[(e.question, pixels(e)) for e in pair] for pair in first] == [
        [(e.question, pixels(e)) for e in pair] for pair in again
    ]
