"""Whether what came back from a server can be the answer to the runs of a job: parts, shapes, dtypes and numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import RemoteError

if TYPE_CHECKING:
    from .job import JobRun, TowerTaps

WORDS = {4: "four", 5: "five"}
ROWS_DIM = {"pattern": 2}  # which dimension of a read is its rows; 1 elsewhere


class _WrongError(Exception):
    """What is wrong with it."""


def check_answers(answers: Any, runs: list[JobRun] | tuple[JobRun, ...], n_vocab: int | None) -> None:
    """Hold what came back against what was asked for.

    What a read's own function makes of its rows is free, NaN included; that there is one result for each row is not.

    Args:
        answers: as they came.
        runs: what was asked for.
        n_vocab: of the output embedding; None where it is not known.

    Raises:
        RemoteError: they cannot be the answers to these runs.
    """
    try:
        _expect(type(answers) is list and len(answers) == len(runs), "one result for each run")
        for run, answer in zip(runs, answers, strict=True):
            _check(run, answer, n_vocab)
    except _WrongError as error:
        raise RemoteError(
            f"what the server sent is no answer to this job: it should have {error}\n"
            "  compare versions with nnsight.compare(); if they agree, do not trust this server"
        ) from None


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise _WrongError(what)


def _check(run: JobRun, answer: Any, n_vocab: int | None) -> None:
    n_parts = 4 if run.tower is None else 5
    _expect(type(answer) in (tuple, list) and len(answer) == n_parts, f"{WORDS[n_parts]} parts for each run")
    steps, n_steps, tokens, found = answer[:4]
    _expect(type(steps) is list and type(n_steps) is int, "a list of logits and a number of steps")
    if run.options is None:
        _expect(len(steps) == 1 and tokens is None, "the logits of one pass")
        n = run.n_tokens if run.last is None else 1
        _check_logits(steps[0], (run.n_rows, n, n_vocab if run.tokens is None else run.tokens.shape[1]))
        longest = run.n_tokens
    else:
        longest = _check_generated(run, steps, n_steps, tokens, n_vocab)
    _check_found(run, found, longest)
    if run.tower is not None:
        _check_found(run.tower, answer[4], run.tower.n_tokens)


def _check_logits(x: Any, shape: tuple[int | None, ...]) -> None:
    wanted = ", ".join("vocabulary" if n is None else str(n) for n in shape)
    fits = isinstance(x, Tensor) and x.ndim == len(shape)
    fits = fits and all(n is None or n == given for n, given in zip(shape, x.shape, strict=True))
    _expect(fits, f"logits of shape [{wanted}], not {_named(x)}")
    _expect(x.dtype.is_floating_point and not x.requires_grad, f"logits that are floats, not {_named(x)}")
    _expect(
        not bool((x == math.inf).any()), "finite logits"
    )  # NaN is looked for in the real rows, hidden words are -inf


def _check_generated(run: JobRun, steps: list[Any], n_steps: int, tokens: Any, n_vocab: int | None) -> int:
    """The longest that the sequences can be."""
    assert run.options is not None
    given = run.inputs["input_ids"].shape[1]
    n_most = run.options.get("max_new_tokens")
    fits = isinstance(tokens, Tensor) and tokens.ndim == 2 and len(tokens) > 0 and len(tokens) % run.n_rows == 0
    _expect(fits and tokens.dtype in (torch.int64, torch.int32), f"tokens [row, position], not {_named(tokens)}")
    if n_most is not None:
        _expect(tokens.shape[1] <= given + int(n_most), f"at most {n_most} new tokens")
    made = tokens[:, given:] if tokens.shape[1] > given else tokens
    words = n_vocab or int(torch.iinfo(tokens.dtype).max)
    _expect(not bool(((made < -100) | (made >= words)).any()), f"tokens of a vocabulary of {words}")
    _expect(0 <= n_steps <= tokens.shape[1] and len(steps) <= n_steps, "no more steps than tokens")
    for step in steps:
        _check_logits(step, (len(tokens), n_vocab))
    return int(max(run.n_tokens, given) + tokens.shape[1])


def _check_found(run: JobRun | TowerTaps, found: Any, longest: int) -> None:
    """What the taps read and did."""
    _expect(type(found) in (tuple, list) and len(found) == 5, "five parts for what was read and done")
    _expect(all(isinstance(part, dict) for part in found), "what was read and done by layer")
    kept, edited, moved, short, sums = found
    reads = {(tap.name, tap.layer): tap.site for tap in run.taps if tap.name and not tap.edits}
    owners = {(tap.owner, tap.layer) for tap in run.taps}
    layers = {tap.layer for tap in run.taps}
    _only(kept, reads)
    for (name, layer), passes in kept.items():
        _expect(type(passes) is list, "a list of passes for each read")
        for each in passes:
            _check_read(run, f"{name} of layer {layer}", each, ROWS_DIM.get(reads[name, layer], 1), longest)
    for noted in (edited, moved, short):
        _only(noted, owners)
        good = all(type(n) in (int, float) and math.isfinite(n) for n in noted.values())
        _expect(good, "finite counts of what was edited")
    for at, value in sums.items():
        fits = type(at) is tuple and len(at) == 2 and isinstance(at[0], str) and at[1] in layers
        _expect(fits and isinstance(value, Tensor), "sums by name and layer")
        _expect(bool(value.isfinite().all()), f"a finite sum {at[0]!r} of layer {at[1]}")


def _only(given: dict[Any, Any], asked: Iterable[Any]) -> None:
    others = sorted(map(repr, given.keys() - set(asked)))
    _expect(not others, f"what was asked for alone, not {', '.join(others)[:200]}")


def _check_read(run: JobRun | TowerTaps, name: str, read: Any, dim: int, longest: int) -> None:
    _expect(type(read) in (tuple, list) and len(read) == 4, f"four parts in each pass of {name}")
    positions, valid, result, given_dim = read
    tensors = all(isinstance(x, Tensor) and not x.requires_grad for x in (positions, valid, result))
    _expect(tensors and given_dim == dim, f"tensors for {name}")
    fits = positions.dtype == torch.int64 and valid.dtype == torch.bool and positions.ndim == 2
    _expect(fits and positions.shape == valid.shape, f"positions of the rows of {name}")
    _expect(not bool(((positions < 0) | (positions > longest)).any()), f"positions of {name} within the sequence")
    n_rows, n = positions.shape
    shaped = result.ndim > dim and result.shape[0] == n_rows == run.n_rows and result.shape[dim] == n
    _expect(shaped, f"{name} of {run.n_rows} x {n} rows, not {_named(result)}")


def _named(x: Any) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


def check_shape(shape: Any, most: int) -> tuple[int, ...]:
    """The shape of what enters a vision tower, [row, token, width] or [token, width], as a server told it.

    Raises:
        RemoteError: it is none, or of more than so many tokens.
    """
    good = type(shape) is list and len(shape) in (2, 3) and all(type(n) is int and n > 0 for n in shape)
    if not good or math.prod(shape[:-1]) > most:
        raise RemoteError(
            f"what the server sent is no answer: expected the shape of what enters the vision tower, given "
            f"{shape!r:.80}\n  compare versions with nnsight.compare(); if they agree, do not trust this server"
        )
    return (*shape,)
