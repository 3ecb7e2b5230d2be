"""Where top heads lie, worked by hand, and the arms that are removed."""

import pytest
import torch

from lmm_lens import HeadSet
from lmm_lens.errors import ScoreError
from lmm_lens.studies.curves import arms, steps
from lmm_lens.studies.depth import by_layer, depth, third
from lmm_lens.studies.looks import check_queries

pytestmark = pytest.mark.long


def test_depth_by_hand():
    maps = torch.zeros(3, 5, 4, dtype=torch.float64)  # 20 heads, so the top 2
    maps[:, 1, 2], maps[:, 3, 0] = 0.9, 0.8
    found = depth(maps)
    assert (found.n, found.value, found.low, found.high) == (2, 0.5, 0.5, 0.5)
    assert found.thirds == (1, 1, 0)  # of five layers 0 and 1, 2 and 3, 4
    assert found.control == pytest.approx(0.5, abs=0.02)
    early = torch.zeros(3, 5, 4, dtype=torch.float64)
    early[:, 0, :2] = 1.0
    found = depth(early)
    assert found.value == 0
    assert found.p_deeper == 1
    assert found.p == pytest.approx((4 / 20) * (3 / 19), abs=0.02)  # both of two random heads in the first layer


def test_thirds_of_layers():
    assert [third(layer, 6) for layer in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [third(layer, 32) for layer in (10, 11, 21, 22)] == [0, 1, 1, 2]


def test_profiles_are_means_over_the_heads_of_a_layer():
    maps = torch.tensor([[[0.1, 0.3], [torch.nan, 0.5]], [[0.3, 0.5], [torch.nan, 0.7]]], dtype=torch.float64)
    assert by_layer(maps)["mean"] == pytest.approx([0.3, 0.6])


def test_arms_are_top_heads_and_late_against_early_ones():
    values = torch.arange(24.0).reshape(6, 4)
    found = {(arm.name, arm.k): arm for arm in arms(values, (1, 2), n_controls=2)}
    assert set(found) == {("top", 1), ("top", 2), ("early", 4), ("late", 4)}
    assert found["top", 2].heads == HeadSet([(5, 3), (5, 2)], 6, 4)
    assert {layer for layer, _ in found["late", 4].heads} == {5}
    assert {layer for layer, _ in found["early", 4].heads} == {3}
    for arm in found.values():
        for control in arm.controls:
            assert {k: len(v) for k, v in control.by_layer().items()} == {
                k: len(v) for k, v in arm.heads.by_layer().items()
            }
    assert found["top", 2].shared == 0
    assert found["late", 4].shared == 4  # all of layer 5 are taken, so draws must take them too


def test_steps_go_up_to_a_quarter_of_the_heads():
    assert steps(48) == (1, 2, 4, 8)
    assert steps(1024) == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    assert steps(2) == (1,)


def test_queries_that_are_none_are_refused():
    with pytest.raises(ScoreError, match="queries are some of last, answer, given first"):
        check_queries(("first",))
