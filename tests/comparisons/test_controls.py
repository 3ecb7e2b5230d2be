"""Controls in a table of ablations, and in one of pictures."""

import pytest

from lmm_lens import HeadSet, ablation_table, image_table, swapped_images
from lmm_lens.bundled import shapes
from lmm_lens.errors import PromptError, ScoreError


def test_a_control_that_must_overlap_says_by_how_much(lens):
    """Six of eight heads of a layer leave two others, so four of each draw are of the set."""
    example = shapes.examples(1, seed=3)[0]
    prompt = lens.prompt(example.question, images=example.image)
    crowded = HeadSet([(3, head) for head in range(6)], lens.n_layers, lens.n_heads)
    settings = {"rows": ("last",), "n_controls": 2}
    table = ablation_table(lens, [prompt], [example.answer], crowded, **settings, disjoint="most")
    assert table["condition"].tolist()[1:] == ["these 6 heads", "random, same layers, 4 of these in a draw"]
    few = ablation_table(lens, [prompt], [example.answer], crowded[:2], **settings, disjoint="most")
    assert few["condition"].tolist()[1:] == ["these 2 heads", "random, same layers"]


def test_a_table_of_ablations_without_what_was_asked_for_is_refused(lens):
    example = shapes.examples(1, seed=3)[0]
    asked = lens, [lens.prompt(example.question, images=example.image)], [example.answer]
    heads = HeadSet([(3, 1)], lens.n_layers, lens.n_heads)
    with pytest.raises(ScoreError, match="controls is how many to draw, a whole number of at least 0, given -1"):
        ablation_table(*asked, heads, n_controls=-1)
    with pytest.raises(ScoreError, match="no scope of rows was given, so that nothing would be ablated"):
        ablation_table(*asked, heads, rows=())


def batch_of(lens, drawn):
    return lens.prompt([each.question for each in drawn], images=[each.image for each in drawn])


def of_whom(prompt, drawn):
    """Whose picture each row shows."""
    return [
        next(i for i, each in enumerate(drawn) if each.image.tobytes() == image.tobytes()) for (image,) in prompt.images
    ]


@pytest.mark.parametrize("seed", range(5))
def test_every_row_gets_anothers_picture_also_where_several_show_the_same(lens, seed):
    a, b, c = shapes.examples(3, seed=3)
    distinct = of_whom(swapped_images(lens, batch_of(lens, [a, b, c]), seed), [a, b, c])
    assert sorted(distinct) == [0, 1, 2]
    assert all(here != there for here, there in enumerate(distinct))
    rows = [a, b, a, b, c]
    swapped = of_whom(swapped_images(lens, batch_of(lens, rows), seed), [a, b, c])
    assert sorted(swapped) == [0, 0, 1, 1, 2]
    assert all(here != there for here, there in zip([0, 1, 0, 1, 2], swapped, strict=True))


def test_a_picture_that_most_rows_show_cannot_be_swapped(lens):
    a, b = shapes.examples(2, seed=3)
    with pytest.raises(PromptError, match="2 of 3 rows show the same, so that some of them have no other pictures"):
        swapped_images(lens, batch_of(lens, [a, a, b]))
    with pytest.raises(PromptError, match="has no pictures, so there are none to swap"):
        swapped_images(lens, lens.prompt(["1 + 1 ?", "2 + 1 ?"]))


def test_a_question_without_a_picture_is_in_no_table_of_pictures(lens):
    a, b = shapes.examples(2, seed=3)
    mixed = lens.prompt([a.question, b.question, "1 + 1 ?"], images=[a.image, b.image, None])
    with pytest.raises(PromptError, match="row 2 of a prompt has no picture, so that it would count as the same"):
        image_table(lens, [mixed], [a.answer, b.answer, "2"])
