"""Patching scores made by hand, with gaps, and what refuses them."""

import dataclasses

import pytest
import torch

from lmm_lens import LensError
from lmm_lens.errors import ScoreError
from lmm_lens.patching import PatchScores

NAN = float("nan")
# pair, layer, head; pair 1 has no effect, head 2 of layer 5 is not there, pair 2 lacks head 0 of layer 3
PER_PAIR = torch.tensor(
    [
        [[0.25, 0.5, -0.5], [1.0, 0.0, NAN]],
        [[NAN, NAN, NAN], [NAN, NAN, NAN]],
        [[NAN, 0.75, 0.25], [0.5, 0.0, NAN]],
    ]
)
MODEL = {"model": "Some", "n_layers": 7, "n_heads": 3, "weights": "00"}


def made(per_pair=PER_PAIR, **changes) -> PatchScores:
    n = len(per_pair)
    clean, corrupt = torch.full((n,), 4.0), torch.full((n,), -3.0)
    answers = (("red", "green"),) * n
    scores = PatchScores(
        "z", "head", "last", "patching", (3, 5), ("0", "1", "2"), per_pair, clean, corrupt, answers, MODEL
    )
    return dataclasses.replace(scores, **changes)


def refused(call, *args, kind=ScoreError, **options) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **options)
    assert isinstance(caught.value, LensError)
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)
