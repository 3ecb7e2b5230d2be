"""McNemar's exact test against the binomial summed by hand."""

import math
import random

import pytest
import torch

from lmm_lens.errors import ScoreError
from lmm_lens.statistics import mcnemar_test


def by_hand(b: int, c: int) -> float:
    """Twice the smaller tail of Binomial(b + c, 1/2), at most 1."""
    n, k = b + c, min(b, c)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (0, 6), (3, 3), (2, 9), (15, 4)])
def test_p_is_twice_the_smaller_tail(only_a, only_b):
    a = [1] * only_a + [0] * only_b + [1, 1, 0]
    b = [0] * only_a + [1] * only_b + [1, 1, 0]
    order = random.Random(0).sample(range(len(a)), len(a))
    found = mcnemar_test([a[i] for i in order], [b[i] for i in order])
    assert (found.only_a, found.only_b, found.n) == (only_a, only_b, len(a))
    assert found.p == pytest.approx(by_hand(only_a, only_b), rel=1e-12)


def test_an_item_without_a_mark_counts_nowhere():
    nan = float("nan")
    found = mcnemar_test([1, 1, nan, 0], [0, nan, 1, 0])
    assert (found.only_a, found.only_b, found.n) == (1, 0, 2)
    assert repr(found) == "McNemar (exact): 1 right under a alone, 0 under b alone, p 1"


def test_what_is_no_mark_is_refused():
    with pytest.raises(ScoreError, match=r"right \(1\) or wrong \(0\)\n  of other numbers: sign_flip_test"):
        mcnemar_test([0.5, 1], [0, 1])
    with pytest.raises(ScoreError, match=r"marks of the same items, \[item\], given \(2,\) and \(3,\)"):
        mcnemar_test([0, 1], [0, 1, 1])
    with pytest.raises(ScoreError, match=r"given \(2, 1\) and \(2, 1\)"):
        mcnemar_test(torch.zeros(2, 1), torch.zeros(2, 1))
