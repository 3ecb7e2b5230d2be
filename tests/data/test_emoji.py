"""The second bundled world as a data set."""

import pytest

from lmm_lens.bundled import emoji as world
from lmm_lens.bundled.emoji.scenes import GROUP_OF, cell_box, place_name
from lmm_lens.data import emoji, named
from lmm_lens.errors import ScoreError

ALL = (*world.VISUAL_KINDS, *world.SEMANTIC_KINDS)


def test_the_questions_are_those_of_the_bundled_world():
    samples, examples = list(named("emoji", n=20, seed=3, kinds=list(ALL))), world.examples(20, ALL, seed=3)
    assert [(s.question, s.answer, s.category) for s in samples] == [(e.question, e.answer, e.kind) for e in examples]
    assert [s.images[0].tobytes() for s in samples] == [e.image.tobytes() for e in examples]
    assert [s.key for s in emoji(20, seed=3, kinds=ALL)] == [s.key for s in samples]


def test_a_wrong_answer_begins_with_another_word_and_is_plausible():
    for sample in emoji(100, kinds=ALL):
        assert sample.wrong != sample.answer.replace(",", "").split()[0]
        if sample.category == "exist":
            assert {sample.wrong, sample.answer} == {"yes", "no"}
        if sample.category == "which_animal":
            assert GROUP_OF[sample.wrong] == "animal"


def test_boxes_are_the_cells_of_what_is_asked_about():
    for sample, example in zip(emoji(100, kinds=ALL), world.examples(100, ALL), strict=True):
        things = {tuple(map(float, cell_box(thing.cell))): thing for thing in example.scene.things}
        found = [things[box] for box in sample.boxes]
        if sample.category in ("name", "count", "list"):
            assert found == list(example.scene.things)
        elif sample.category == "at":
            assert [thing.name for thing in found] == [sample.answer] * (sample.answer != "nothing")
            assert all(place_name(thing.cell) in sample.question for thing in found)
        elif sample.category == "exist":
            assert len(found) == (sample.answer == "yes")
        elif sample.category == "background":
            assert not found
        else:
            assert [thing.name for thing in found] == [sample.answer]


def test_what_there_is_not_is_refused():
    with pytest.raises(ScoreError, match="unknown kind of question 'colour'"):
        emoji(kinds="colour")
    with pytest.raises(ScoreError, match="emoji needs at least one question of at least one kind, given n=0"):
        emoji(0)
