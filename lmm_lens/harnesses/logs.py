"""Two runs of lmms-eval on the same samples, as a paired comparison.

A run with `--log_samples` writes a line a sample: what was said, what the task found of it, and, by a lens, what its
interventions did. Conditions on the same samples are paired, which a table of two accuracies does not show.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from ..comparisons import Comparison
from ..errors import ScoreError, unknown
from ..runs.texts import bytes_of

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
COMMON = ("doc_id", "doc_hash", "input", "target", "resps", "filtered_resps", "token_counts", "input_media")
"""What every sample's line has beside the task's metrics."""


def compare_logs(logs: Mapping[str, Files], metric: str, baseline: str | None = None) -> Comparison:
    """The samples that lmms-eval logged under several conditions, paired.

        compare_logs({"plain": "plain_samples_mme.jsonl", "VAR": "var_samples_mme.jsonl"}, "mme_perception_score")

    Args:
        logs: by the condition's name, the `*_samples_TASK.jsonl` that `--log_samples` wrote, one or several.
        metric: as the task calls it: a number, or a dict with a "score", as those of POPE and MME are.
        baseline: the condition that others are tested against; by default the first.

    Returns:
        Comparison, Float[item, condition]; `edits` and `moved` are a share of what was done to the batch;
        seconds are 0 where a log does not say.

    Raises:
        ScoreError: no such file or metric, or the conditions were not asked the same of the same samples.
    """
    if not isinstance(logs, Mapping) or not logs:
        raise ScoreError(f'logs are named, as in {{"plain": "...jsonl", "VAR": "...jsonl"}}, given {logs!r}')
    baseline = next(iter(logs)) if baseline is None else baseline
    if baseline not in logs:
        raise ScoreError(unknown("condition to be the baseline", baseline, tuple(logs)))
    read = {name: _samples(files) for name, files in logs.items()}
    ids = list(read[baseline])
    for name, samples in read.items():
        _check_same(name, samples, baseline, read[baseline])
    columns = [[samples[each] for each in ids] for samples in read.values()]
    edits = [[_done(sample) for sample in column] for column in columns]
    done = ["edits", "moved"]
    told = [sorted({str(e["intervention"]) for sample in column for e in _edits(sample)}) for column in columns]
    numbers = {name: torch.tensor([[row[name] for row in column] for column in edits]).T for name in done}
    return Comparison(
        names=tuple(read),
        ids=tuple(ids),
        values=torch.tensor([[_value(s, metric) for s in column] for column in columns], dtype=torch.float64).T,
        edits=numbers["edits"].round().long(),
        moved=numbers["moved"].double(),
        short=torch.zeros(len(ids), len(read), dtype=torch.float64),
        seconds=torch.tensor([[_seconds(s) for s in column] for column in columns], dtype=torch.float64).T,
        bytes=torch.stack([torch.stack([_bytes(s) for s in column]) for column in columns], 1),
        about={
            "model": {},
            "conditions": [[name, *did, "own"] for name, did in zip(read, told, strict=True)],
            "control_of": {},
            "baseline": baseline,
            "metric": metric,
            "meaning": "as lmms-eval found it",
        },
    )


def _samples(files: Files) -> dict[str, dict[str, Any]]:
    """The samples of some files by task and number."""
    found: dict[str, dict[str, Any]] = {}
    for file in [files] if isinstance(files, (str, os.PathLike)) else files:
        path = Path(file)
        task = path.stem.partition("_samples_")[2] or path.stem
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            samples = [json.loads(line) for line in lines if line.strip()]
        except OSError as error:
            raise ScoreError(f"the log {path.name!r} cannot be read: {error.strerror}") from error
        except json.JSONDecodeError as error:
            raise ScoreError(f"the log {path.name!r} holds a line that is no JSON: {error}") from error
        if not samples or not all(isinstance(each, dict) and "doc_id" in each for each in samples):
            raise ScoreError(
                f"{path.name!r} is no log of lmms-eval's samples, which has a doc_id in each line\n"
                "  run lmms-eval with --log_samples, and give its *_samples_TASK.jsonl"
            )
        for sample in samples:
            name = f"{task}/{sample['doc_id']}"
            if name in found:
                raise ScoreError(
                    f"the log {path.name!r} has sample {sample['doc_id']} twice: a task with several filters\n"
                    "  keep the lines of one filter"
                )
            found[name] = sample
    return found


def _check_same(name: str, samples: Mapping[str, Any], other: str, others: Mapping[str, Any]) -> None:
    missing = sorted(set(others) ^ set(samples))
    if missing:
        raise ScoreError(
            f"{name!r} has {len(samples)} samples and {other!r} {len(others)}: {missing[0]} is in one alone\n"
            "  a paired test needs the same samples: run both with the same tasks and the same --limit"
        )
    for each, sample in samples.items():
        for key in ("doc_hash", "target", "input"):
            if sample.get(key) != others[each].get(key):
                raise ScoreError(f"{each} is not the same sample under {name!r} and {other!r}: their {key} differ")


def _value(sample: Mapping[str, Any], metric: str) -> float:
    if metric not in sample:
        raise ScoreError(unknown("metric of this log", metric, sorted(set(sample) - set(COMMON))))
    found = sample[metric]
    found = found.get("score") if isinstance(found, dict) else found
    if not isinstance(found, Real):
        raise ScoreError(
            f"{metric} of sample {sample['doc_id']} is {found!r:.60}, expected a number or a dict with a score"
        )
    return float(found)


def _edits(sample: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    counts = [each for each in sample.get("token_counts") or [] if isinstance(each, dict)]
    return [edit for each in counts for edit in each.get("interventions", [])]


def _seconds(sample: Mapping[str, Any]) -> float:
    counts = [each for each in sample.get("token_counts") or [] if isinstance(each, dict)]
    return float(sum(each.get("seconds", 0.0) for each in counts))


def _done(sample: Mapping[str, Any]) -> dict[str, float]:
    return {name: sum(e[name] / e["questions"] for e in _edits(sample)) for name in ("edits", "moved")}


def _bytes(sample: Mapping[str, Any]) -> torch.Tensor:
    said: Any = sample.get("filtered_resps", "")
    while isinstance(said, list) and said:
        said = said[0]
    return bytes_of(str(said))
