"""Batches are halved when memory runs out, and by nothing else."""

import pytest
import torch

from lmm_lens.errors import ModelError
from lmm_lens.replay.batches import Batches

CPU = torch.device("cpu")


def tried(batches, fits, least=1):
    """The sizes of the batches, up to the first that fits; what fits answers at once."""
    sizes = []
    for attempt in batches.attempts(least):
        with attempt:
            sizes.append(attempt.rows)
            if attempt.rows > fits:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
    return sizes


def test_batches_are_halved_until_they_fit_and_stay_so():
    noted = []
    batches = Batches(100, CPU, noted.append)
    assert tried(batches, fits=30) == [100, 50, 25]
    assert noted == [50, 25]
    assert tried(batches, fits=30) == [25]


def test_the_smallest_batch_is_tried_and_then_it_is_an_error():
    batches = Batches(100, CPU)
    with pytest.raises(
        ModelError, match=r"memory ran out on cpu even for a single forward of 40 rows: .*\n  give shorter"
    ):
        tried(batches, fits=30, least=40)
    assert batches.rows == 40


def test_another_error_is_not_tried_again():
    batches = Batches(100, CPU)
    attempt = next(batches.attempts())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), attempt:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert not attempt.ran_out
    assert batches.rows == 100
