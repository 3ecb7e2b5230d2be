"""Answers against a slow second opinion, which reads the scene as sentences and knows no generator."""

import numpy as np

from lmm_lens.bundled import shapes

ALL_KINDS = shapes.VISUAL_KINDS + shapes.TEXT_KINDS
GRID_WORDS = [f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "center", "right")]
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PAIRS = [
    *("left", "right", "top", "bottom", "yes", "no", "up", "down", "big", "small", "hot", "cold"),
    *("day", "night", "open", "closed"),
]


def _number(word: str) -> int:
    return int(word) if word.isdigit() else WORDS.index(word)


def _in_style_of(word: str, number: int) -> str:
    return str(number) if word.isdigit() else WORDS[number]


def read_answer(question: str, scene) -> set[str]:
    """Every answer a careful person could give; one, if the question is a fair one."""
    words = question.rstrip("?.").split()
    things = [(GRID_WORDS[thing.cell], thing.color, thing.shape) for thing in scene.things] if scene else []
    match words:
        case ["what", "color", "is", "the", shape]:
            return {color for _, color, its_shape in things if its_shape == shape}
        case ["what", "shape", "is", "the", color, "object"]:
            return {shape for _, its_color, shape in things if its_color == color}
        case ["where", "is", "the", color, shape]:
            return {place for place, its_color, its_shape in things if (its_color, its_shape) == (color, shape)}
        case ["where", "is", "the", shape]:
            return {place for place, _, its_shape in things if its_shape == shape}
        case ["how", "many", "objects", "are", "there"]:
            return {str(len(things))}
        case ["how", "many", color, "objects", "are", "there"]:
            return {str([its_color for _, its_color, _ in things].count(color))}
        case ["how", "many", shapes, "are", "there"]:
            singular = "cross" if shapes == "crosses" else shapes[:-1]
            return {str([shape for _, _, shape in things].count(singular))}
        case ["is", "there", "a", color, shape]:
            return {"yes" if any((c, s) == (color, shape) for _, c, s in things) else "no"}
        case ["what", "is", "at", "the", row, column]:
            return {f"{c} {s}" for place, c, s in things if place == f"{row} {column}"} or {"nothing"}
        case ["describe", "the", "image"]:
            in_order = [t for place in GRID_WORDS for t in things if t[0] == place]
            return {", ".join(f"{color} {shape}" for _, color, shape in in_order)}
        case ["what", "is", first, "plus", second]:
            return {_in_style_of(first, _number(first) + _number(second))}
        case ["what", "is", first, "minus", second]:
            return {_in_style_of(first, _number(first) - _number(second))}
        case ["what", "comes", "after", word]:
            return {_in_style_of(word, _number(word) + 1)}
        case ["what", "comes", "before", word]:
            return {_in_style_of(word, _number(word) - 1)}
        case ["what", "is", "the", "opposite", "of", word]:
            return {PAIRS[PAIRS.index(word) ^ 1]}
        case ["repeat", "the", "word", word]:
            return {word}
    raise AssertionError(f"a question of no known form: {question}")


def test_every_answer_is_the_one_a_careful_reader_of_the_scene_gives():
    for example in shapes.examples(2200, ALL_KINDS, seed=11):
        assert read_answer(example.question, example.scene) == {example.answer}, example


def test_questions_cover_every_answer_a_kind_can_have():
    seen = {kind: set() for kind in ALL_KINDS}
    for example in shapes.examples(6600, ALL_KINDS, seed=12):
        seen[example.kind].add(example.answer)
    sizes = {kind: len(seen[kind]) for kind in ("color", "shape", "where", "exist", "at")}
    assert sizes == {"color": 6, "shape": 5, "where": 9, "exist": 2, "at": 31}
    assert seen["count"] == set("012345")
    assert set("0123456789") <= seen["repeat"] & seen["arith"]


def test_existence_is_asked_evenly():
    answers = [e.answer for e in shapes.examples(1000, ["exist"], seed=13)]
    assert 0.45 < answers.count("yes") / 1000 < 0.55


def test_color_pairs_differ_inside_one_box_only_and_their_answers_differ():
    pairs = shapes.color_pairs(40, seed=2)
    assert len(pairs) == 40
    for clean, corrupt in pairs:
        assert clean.question == corrupt.question
        assert clean.answer != corrupt.answer
        for example in (clean, corrupt):
            assert read_answer(example.question, example.scene) == {example.answer}
        (changed,) = set(corrupt.scene.things) - set(clean.scene.things)
        x0, y0, x1, y1 = shapes.boxes(corrupt.scene)[changed]
        difference = np.asarray(clean.image, int) - np.asarray(corrupt.image, int)
        assert np.abs(difference[y0:y1, x0:x1]).max() > 40
        difference[y0:y1, x0:x1] = 0
        assert not difference.any()
