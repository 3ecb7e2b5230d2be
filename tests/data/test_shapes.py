"""The bundled world as a data set."""

import pytest

from lmm_lens.bundled import shapes as world
from lmm_lens.bundled.shapes.scenes import CELL, cell_box
from lmm_lens.bundled.worlds import place_name
from lmm_lens.data import shapes
from lmm_lens.errors import ScoreError

ALL = (*world.VISUAL_KINDS, *world.TEXT_KINDS)


def test_the_questions_are_those_of_the_bundled_world():
    samples, examples = list(shapes(22, seed=3, kinds=ALL)), world.examples(22, ALL, seed=3)
    assert [(s.question, s.answer, s.category) for s in samples] == [(e.question, e.answer, e.kind) for e in examples]
    for sample, example in zip(samples, examples, strict=True):
        assert [i.tobytes() for i in sample.images] == ([example.image.tobytes()] if example.image else [])
    assert len({s.id for s in samples}) == 22
    assert [s.key for s in shapes(22, seed=3, kinds=ALL)] == [s.key for s in samples]
    assert len(shapes()) == len(list(shapes())) == 64


def test_a_wrong_answer_begins_with_another_word_and_is_plausible():
    by_kind = {}
    for sample in shapes(550, kinds=ALL):
        assert sample.wrong.split()[0] != sample.answer.split()[0]
        by_kind.setdefault(sample.category, set()).add(sample.wrong)
    assert by_kind["exist"] == {"yes", "no"}
    assert by_kind["color"] == set(world.COLORS)
    assert by_kind["count"] <= set("012345")
    assert all(wrong in {place_name(cell) for cell in range(9)} for wrong in by_kind["where"])
    digits = [s for s in shapes(100, kinds=["arith"])]
    assert all(s.answer.isdigit() == s.wrong.isdigit() for s in digits)


def test_boxes_are_the_cells_of_what_is_asked_about():
    examples = world.examples(280, seed=5)
    for sample, example in zip(shapes(280, seed=5), examples, strict=True):
        things = {tuple(map(float, cell_box(thing.cell))): thing for thing in example.scene.things}
        found = [things.get(box) for box in sample.boxes]
        if sample.category == "color":
            assert [thing.color for thing in found] == [sample.answer]
        elif sample.category == "shape":
            assert [thing.shape for thing in found] == [sample.answer]
        elif sample.category == "where":
            assert [place_name(thing.cell) for thing in found] == [sample.answer]
        elif sample.category == "count":
            assert len(found) == int(sample.answer)
        elif sample.category == "exist":
            assert bool(found) == (sample.answer == "yes")
        elif sample.category == "at":
            assert [str(thing or "nothing") for thing in found] == [sample.answer]
        else:
            assert ", ".join(map(str, found)) == sample.answer
        assert all(x1 - x0 == y1 - y0 == CELL for x0, y0, x1, y1 in sample.boxes)


def test_the_bundled_model_answers_them(lens):
    samples = list(shapes(7, seed=1))
    said = [lens.generate(sample.prompt(lens), max_new_tokens=16).text[0].strip() for sample in samples]
    assert sum(a == s.answer for a, s in zip(said, samples, strict=True)) >= 6


def test_kinds_and_numbers_that_are_not_there_are_refused():
    with pytest.raises(ScoreError, match="unknown kind of question 'colour', did you mean 'color'"):
        shapes(4, kinds=["colour"])
    with pytest.raises(ScoreError, match="at least one question of at least one kind, given n=0"):
        shapes(0)
    assert {s.category for s in shapes(3, kinds="exist")} == {"exist"}
    assert sorted(s.id for s in shapes(9).shuffled(0)) == sorted(s.id for s in shapes(9))
