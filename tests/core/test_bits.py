"""Telling apart what depends on what: against the matrix itself."""

import torch

from lmm_lens.core.bits import told_apart


def test_entries_are_told_apart_as_the_matrix_says():
    leaf = torch.ones(7, requires_grad=True)
    other = torch.ones(2, 1, requires_grad=True)
    parts = torch.zeros(5, 7)
    parts[0, 3] = parts[1, 0] = parts[2, 4] = parts[4, 6] = parts[3, 6] = 2.0
    numbers = parts @ leaf + torch.tensor([0.0, 0, 0, 1, 0]) * other[1, 0]
    (found, several), (of_other, mixed) = told_apart(numbers, [leaf, other])
    assert several.tolist() == [False] * 6 + [True]
    assert found[:6].tolist() == [1, -1, -1, 0, 2, -1]
    assert of_other.tolist() == [[-1], [3]]
    assert not bool(mixed.any())


def test_numbers_that_hang_on_nothing_have_no_entries():
    leaf = torch.ones(2, requires_grad=True)
    ((found, several),) = told_apart(torch.ones(3), [leaf])
    assert found.tolist() == [-1, -1]
    assert several.tolist() == [False, False]
    ((alone, _),) = told_apart(leaf[:1] * 3, [leaf])
    assert alone.tolist() == [0, -1]
