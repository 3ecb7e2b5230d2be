"""The world of emoji-llava: scenes, pictures and questions, without its model."""

import random
from itertools import combinations

import numpy as np
import pytest

from lmm_lens.bundled import emoji
from lmm_lens.bundled.emoji.questions import at, count, exist, which
from lmm_lens.bundled.emoji.render import render, sprite
from lmm_lens.bundled.emoji.scenes import BACKGROUNDS, EMOJI, GROUP_OF, Scene, Thing, held_out, place_name, random_scene

SCENE = Scene((Thing(0, "dog"), Thing(4, "apple"), Thing(8, "car")), "red")


def test_there_are_99_things_with_a_drawing_of_their_own_each():
    assert len(emoji.NAMES) == len(set(EMOJI.values())) == 99
    drawn = {name: sprite(name) for name in emoji.NAMES}
    for name, image in drawn.items():
        assert image.mode == "RGBA", name
        assert max(image.size) > 40, name
        assert (np.asarray(image)[..., 3] > 200).mean() > 0.15, name
    small = {name: np.asarray(image.resize((8, 8)).convert("RGB"), float) for name, image in drawn.items()}
    for one, other in combinations(emoji.NAMES, 2):
        assert np.abs(small[one] - small[other]).mean() > 2, (one, other)


def test_the_twelve_that_are_never_shown_are_apart_from_the_others():
    assert len(emoji.UNSEEN) == 12
    assert set(emoji.SEEN) | set(emoji.UNSEEN) == set(emoji.NAMES)
    assert not set(emoji.SEEN) & set(emoji.UNSEEN)
    rng = random.Random(0)
    assert {name for _ in range(800) for name in random_scene(rng, split="train").names} == set(emoji.SEEN)


def test_training_and_examples_share_no_arrangement():
    rng = random.Random(1)
    assert not any(held_out(random_scene(rng, split="train")) for _ in range(200))
    assert all(held_out(each.scene) for each in emoji.examples(60, seed=2))
    everything = [random_scene(rng, split=split) for split in ("train", "held out") for _ in range(50)]
    assert {scene.background for scene in everything} == set(BACKGROUNDS)


def test_a_thing_is_drawn_in_its_cell_and_the_rest_is_background():
    pixels = render(SCENE, 3).astype(float)
    plain = np.median(pixels.reshape(-1, 3), 0)
    for cell in range(9):
        row, column = divmod(cell, 3)
        part = pixels[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        far = (np.abs(part - plain).max(-1) > 60).mean()
        assert (far > 0.1) == (SCENE.at(cell) is not None), place_name(cell)


def test_the_same_seed_draws_the_same_and_an_exchanged_thing_changes_its_cell_alone():
    assert np.array_equal(render(SCENE, 5), render(SCENE, 5))
    assert not np.array_equal(render(SCENE, 5), render(SCENE, 6))
    changed = render(SCENE, 5) != render(SCENE.swapped(Thing(4, "apple"), "cat"), 5)
    ys, xs = changed.any(-1).nonzero()
    assert min(ys.min(), xs.min()) >= 32
    assert max(ys.max(), xs.max()) < 64


def test_the_boxes_and_patches_of_a_thing_are_those_of_its_cell():
    assert emoji.boxes(SCENE)[Thing(4, "apple")] == (32, 32, 64, 64)
    assert emoji.cell_patches(0) == (0, 1, 6, 7)
    assert emoji.cell_patches(8) == (28, 29, 34, 35)


def test_questions_and_answers_of_a_scene():
    asked = {at(SCENE, random.Random(seed)) for seed in range(60)}
    answers = {question.text: question.answer for question in asked}
    assert answers["What is at the top left?"] == "dog"
    assert answers["What is in the center?"] == "apple"
    assert answers["What is at the bottom right?"] == "car"
    assert "nothing" in answers.values()
    assert count(SCENE, random.Random(0)).answer == "three"
    for seed in range(40):
        question = exist(SCENE, random.Random(seed))
        name = question.text.removeprefix("Is there ").rstrip("?").partition(" ")[2]
        assert (question.answer == "yes") == (name in SCENE.names)
        assert question.text.split()[2] == ("an" if name[0] in "aeiou" else "a")
    assert which("food", "Which thing can you eat?")(SCENE, random.Random(0)).answer == "apple"
    assert which("tool", "Which tool?")(SCENE, random.Random(0)) is None
    assert GROUP_OF["car"] == "vehicle"


def test_examples_are_the_same_questions_under_every_condition():
    clean, blank, wrong = (emoji.examples(18, seed=4, condition=condition) for condition in emoji.CONDITIONS)
    for one, empty, other in zip(clean, blank, wrong, strict=True):
        assert (one.question, one.answer, one.scene) == (empty.question, empty.answer, empty.scene)
        assert (one.question, one.answer, one.scene) == (other.question, other.answer, other.scene)
        assert np.asarray(empty.image).std() < 12
        assert not np.array_equal(np.asarray(one.image), np.asarray(other.image))
    assert [each.kind for each in clean] == list(emoji.VISUAL_KINDS) * 3
    assert all(len(each.scene.things) == 1 for each in clean if each.kind == "name")


def test_examples_can_be_of_things_that_were_never_shown():
    for each in emoji.examples(12, seed=1, names=emoji.UNSEEN):
        assert set(each.scene.names) <= set(emoji.UNSEEN)
        if each.kind == "exist":
            assert each.question.rstrip("?").split()[-1] in emoji.UNSEEN


def test_pairs_differ_in_the_thing_alone():
    for clean, corrupt in emoji.name_pairs(6, seed=2):
        assert clean.question == corrupt.question
        assert clean.answer != corrupt.answer
        (thing,) = clean.scene.things
        x0, y0, x1, y1 = emoji.boxes(clean.scene)[thing]
        differs = (np.asarray(clean.image) != np.asarray(corrupt.image)).any(-1)
        assert differs[y0:y1, x0:x1].any()
        differs[y0:y1, x0:x1] = False
        assert not differs.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Scene((Thing(4, "dog"), Thing(4, "cat"))), "one thing a cell, in reading order"),
        (lambda: Scene((Thing(4, "unicorn"),)), "no emoji of this world is called unicorn"),
        (lambda: Scene((), "orange"), "backgrounds are white, .*; got 'orange'"),
        (lambda: random_scene(random.Random(0), (0, 3)), "1 <= fewest <= most <= 9"),
        (lambda: random_scene(random.Random(0), split="test"), "split is 'train' or 'held out'"),
        (lambda: random_scene(random.Random(0), names=["owl"]), "4 different things need as many names; got owl"),
        (
            lambda: random_scene(random.Random(0), (1, 1), names=["owl"]),
            "no arrangement of owl was found on the 'held out' side",
        ),
        (lambda: emoji.examples(1, ["color"]), r"kinds are name, .*; got \['color'\]"),
        (lambda: emoji.examples(1, condition="noisy"), "condition is one of clean, blank, wrong; got 'noisy'"),
        (lambda: emoji.checkpoint("melted"), "emoji-llava has the variants 'frozen', 'adapted'; got 'melted'"),
    ],
)
def test_what_the_world_does_not_have_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
