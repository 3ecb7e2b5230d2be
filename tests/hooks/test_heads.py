"""Sets of heads: order, algebra, controls, and the heads that do not exist."""

import pytest

from lmm_lens import HeadSet, LensError


def heads(*pairs, n_layers=4, n_heads=8):
    return HeadSet(pairs, n_layers, n_heads)


def test_order_is_kept_and_doubles_are_dropped():
    given = heads((3, 1), (0, 2), (3, 1), (0, 0))
    assert list(given) == [(3, 1), (0, 2), (0, 0)]
    assert len(given) == 3
    assert str(given) == "L3H1 L0H2 L0H0"
    assert given.by_layer() == {0: (0, 2), 3: (1,)}
    assert list(given[:2]) == [(3, 1), (0, 2)]
    assert (0, 2) in given
    assert (2, 0) not in given


def test_sets_of_the_same_heads_are_equal_whatever_their_order():
    assert heads((0, 1), (2, 3)) == heads((2, 3), (0, 1))
    assert hash(heads((0, 1), (2, 3))) == hash(heads((2, 3), (0, 1)))
    assert heads((0, 1)) != heads((0, 2))
    assert heads((0, 1)) != HeadSet([(0, 1)], 4, 4)
    assert heads((0, 1)) != [(0, 1)]


def test_union_intersection_and_difference():
    one, other = heads((0, 1), (2, 3), (1, 1)), heads((1, 1), (3, 0))
    assert list(one | other) == [(0, 1), (2, 3), (1, 1), (3, 0)]
    assert list(one & other) == [(1, 1)]
    assert list(one - other) == [(0, 1), (2, 3)]
    with pytest.raises(LensError, match="different models: 4 layers x 8 heads and 4 x 4"):
        one | HeadSet([(0, 1)], 4, 4)


def test_all_heads_of_a_model_or_of_some_layers():
    assert len(HeadSet.all(4, 8)) == 32
    assert list(HeadSet.all(4, 2, layers=[1, 3])) == [(1, 0), (1, 1), (3, 0), (3, 1)]


def test_a_control_has_as_many_other_heads_in_each_layer():
    given = heads((0, 1), (0, 2), (0, 3), (2, 7))
    drawn = {given.random_like(seed) for seed in range(20)}
    assert len(drawn) > 5
    for control in drawn:
        assert {layer: len(chosen) for layer, chosen in control.by_layer().items()} == {0: 3, 2: 1}
        assert not set(control) & set(given)
    assert given.random_like(3) == given.random_like(3)


def test_a_control_may_overlap_where_asked_and_must_where_there_are_too_few_others():
    crowded = heads(*[(1, h) for h in range(5)])
    with pytest.raises(
        LensError, match=r"layer 1 has 5 of its 8 heads in the set, only 3 others\n.*most.*disjoint=False"
    ):
        crowded.random_like()
    assert len(crowded.random_like(disjoint=False)) == 5
    seen = {head for seed in range(30) for head in heads((0, 1)).random_like(seed, disjoint=False)}
    assert (0, 1) in seen


def test_a_control_overlaps_as_little_as_it_can_and_says_how_much():
    """5 of 8 heads leave 3 others: two must be shared in layer 1, none in layer 3."""
    crowded = heads(*[(1, h) for h in range(5)], (3, 2))
    for seed in range(20):
        control = crowded.random_like(seed, disjoint="most")
        assert {layer: len(chosen) for layer, chosen in control.by_layer().items()} == {1: 5, 3: 1}
        assert {5, 6, 7} <= set(control.by_layer()[1])
        assert crowded.shared(control) == control.shared(crowded) == {1: 2}
    shared = {head for seed in range(40) for head in crowded & crowded.random_like(seed, disjoint="most")}
    assert shared == {(1, h) for h in range(5)}


def test_where_a_disjoint_control_exists_the_least_overlap_is_that_very_draw():
    given = heads((0, 1), (0, 2), (2, 7))
    for seed in range(10):
        assert list(given.random_like(seed, disjoint="most")) == list(given.random_like(seed))
    assert given.shared(given.random_like(0)) == {}


def test_other_words_for_the_overlap_are_refused():
    with pytest.raises(LensError, match="disjoint is True, False or \"most\", given 'least'"):
        heads((0, 1)).random_like(disjoint="least")


def test_a_control_is_drawn_among_given_heads():
    among = heads((0, 1), (0, 2), (0, 3), (1, 5), (2, 0))
    for seed in range(20):
        control = heads((0, 1), (1, 5)).random_like(seed, "most", among)
        assert set(control) in ({(0, 2), (1, 5)}, {(0, 3), (1, 5)})
    with pytest.raises(LensError, match="layer 1 has 1 of its 1 heads in the set, only 0 others"):
        heads((1, 5)).random_like(among=among)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((4, 0), "layer 4 is out of range: the model has layers 0 to 3"),
        ((-1, 0), "layer -1 is out of range"),
        ((1, 8), "head 8 of layer 1 is out of range: the layer has heads 0 to 7"),
        ((1, -1), "head -1 of layer 1 is out of range"),
    ],
)
def test_heads_outside_the_model_are_refused(pair, message):
    with pytest.raises(LensError, match=message):
        heads(pair)


def test_a_head_set_prints_as_a_sentence():
    assert repr(heads((3, 1), (0, 2))) == "HeadSet of 2 heads in 4 layers x 8: L3H1 L0H2"
