"""Does a server run blocks as nnsight does? Two runs that are one edit at two places, compared when they come back.

The residual stream as it leaves a layer is what enters the next one. So it is reversed (`core.witness`) where the last
layer but one ends, and in a second run where the last one begins, for the tokens whose output is the next token; in the
second, what the job wants of `resid_pre` is looked at too. Two numbers of every token, of the stream as it leaves the
last layer, must be the same. They are not where reading changes the model (NDIF writes back copies of what is read,
which among a layer's arguments is the cache), where an edit is not put in everywhere, or nowhere, or where a step is
left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...core.rows import Rows
from ...core.taps import Tap
from ...core.witness import look, numbers, reverse
from ...errors import RemoteError
from .job import JobResult, JobRun

CLOSE = 0.01  # of a number's size; in bf16 the two runs do the same arithmetic, too
NAME = "witness"
N_NEW = 2  # tokens: a cache shows in the second


def witnesses(run: JobRun, n_layers: int) -> list[JobRun]:
    """The two runs that go along with a run; none where the model has one layer.

    Args:
        run: one of the job's; its inputs are theirs, and they generate if it does.
        n_layers: of the model.
    """
    if n_layers < 2:
        return []
    every = torch.ones(run.n_rows, run.n_tokens, dtype=torch.bool)
    rows, ends = Rows("all", every, (0, None)), Rows("generating", _ends(run), (0, None))
    last = n_layers - 1
    seen = Tap("resid_post", last, rows, numbers, name=NAME)
    looks = [Tap("resid_pre", layer, rows, look) for layer in _layers_entered(run.taps) if layer != last]
    options = None
    if run.options is not None:
        kept = {name: run.options[name] for name in ("cache_implementation",) if name in run.options}
        options = {**kept, "min_new_tokens": N_NEW, "max_new_tokens": N_NEW, "do_sample": False, "pad_token_id": 0}
    plain = replace(run, options=options, ends=(), stopped=None)
    return [
        replace(plain, taps=[Tap("resid_post", last - 1, ends, reverse, edits=True), seen]),
        replace(plain, taps=[*looks, Tap("resid_pre", last, ends, reverse, edits=True), seen]),
    ]


def are_wanted(runs: Iterable[JobRun]) -> JobRun | None:
    """A run of a job that reads or edits the residual stream as it enters a layer: one that generates, if any does."""
    entering = [run for run in runs if _layers_entered(run.taps)]
    return next((run for run in entering if run.options is not None), entering[0] if entering else None)


def check_witnesses(results: Sequence[JobResult], server: str) -> None:
    """Hold the two results against each other.

    Raises:
        RemoteError: they differ.
    """
    left, entered = (_numbers(result) for result in results)
    if left.shape == entered.shape:
        near = (left - entered).abs() <= CLOSE * torch.maximum(left, entered)[..., 1:]  # the length
        far = ~(near | (left.isnan() & entered.isnan()))  # rows of padding alone
        if not bool(far.any()):
            return
        row, token, which = far.nonzero()[0].tolist()
        differ = f"{left[row, token, which]:.6g} and {entered[row, token, which]:.6g} at token {token}"
    else:
        differ = f"{left.shape[1]} and {entered.shape[1]} tokens"
    raise RemoteError(
        f"one edit gave two answers on {server}: where a layer ends, and where the next begins ({differ})\n"
        "  it does not run what is sent as nnsight does, and no answer of it was taken: tell whoever runs it, or use "
        "another server"
    )


def _ends(run: JobRun) -> Tensor:
    """The last token of each row, Bool[batch, position]; some models add pictures to others between their layers."""
    given, shape = run.inputs.get("attention_mask"), (run.n_rows, run.n_tokens)
    fits = isinstance(given, Tensor) and given.shape == shape
    real = given.cpu().bool() if isinstance(given, Tensor) and fits else torch.ones(shape, dtype=torch.bool)
    return real & (real.flip(1).cumsum(1).flip(1) == 1)


def _layers_entered(taps: Iterable[Tap]) -> list[int]:
    return sorted({tap.layer for tap in taps if tap.site == "resid_pre"})


def _numbers(result: JobResult) -> Tensor:
    """Float[batch, token, number]."""
    (passes,) = result.tapping.kept.values()
    return torch.cat([each.result.cpu() for each in passes], dim=1)
