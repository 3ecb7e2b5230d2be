"""What Kang et al. (ICLR 2025, arXiv:2503.03321) say of sinks and of VAR, asked of one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..comparisons import Comparison
from ..sinks import SinkReport
from ..statistics import mean_interval
from .claims import Claim, by_interval, by_test
from .looks import Looks
from .sink_settings import MASKED, SinkSettings, condition_of

KANG = "Kang et al. 2025"
MASSIVE = "A few fixed dimensions are massive at sink tokens, visual ones included"
HOLDS = "Sinks take attention off the picture's other tokens"
EMPTY = "Masking visual sinks costs less than masking as many other patches"
GAIN = "VAR in the paper's setting improves answers"
OWN = "VAR does more than moving as much attention from random tokens"


def claims(
    report: SinkReport, looks: Mapping[str, Looks], compared: Mapping[str, Comparison], settings: SinkSettings
) -> Iterator[Claim]:
    """All of them, those of answers for each data set."""
    yield _massive(report)
    if not compared:
        for claim in (HOLDS, EMPTY, GAIN, OWN):
            yield Claim(claim, KANG, "-", "not tested", "-", note="the model has no sinks")
        return
    for key, looked in looks.items():
        yield _held(key, looked, report)
    for key, each in compared.items():
        yield _against(EMPTY, key, each, MASKED, f"{MASKED}, controls", "as many random patches masked")
    for key, each in compared.items():
        var = _paper(key, settings)
        yield _against(GAIN, key, each, var, each.baseline, "plain")
    for key, each in compared.items():
        var = _paper(key, settings)
        yield _against(OWN, key, each, var, f"{var}, controls", "the same from random tokens, as far as they hold it")


def _paper(key: str, settings: SinkSettings) -> str:
    return condition_of(*settings.paper(key))


def _massive(report: SinkReport) -> Claim:
    statistic = "how far sinks stand out: |x[d]| over the rms of the other dimensions, the weakest sink"
    numbers: dict[str, Any] = {"n": len(report.prompts), "note": repr(report)}
    if not report:
        return Claim(MASSIVE, KANG, "first samples", "contradicted", statistic, **numbers)
    counts = report.per_layer()
    verdict = "holds" if float(counts["visual"].max()) > 0 else "open"
    control = "the strongest token that is none"
    ordinary, weakest = report.prominence
    return Claim(
        MASSIVE, KANG, "first samples", verdict, statistic, weakest, control=control, control_value=ordinary, **numbers
    )


def _held(key: str, looks: Looks, report: SinkReport) -> Claim:
    """The share of the visual mass that lies on sinks, over heads with a visual mass of at least the paper's 0.2,
    against the share of the visual tokens that are sinks.
    """
    mass, ratio = looks.of("visual_mass", "last"), looks.of("nonsink_ratio", "last")
    on_sinks = (1 - ratio).masked_fill(~(mass >= 0.2), float("nan")).flatten(1).nanmean(1)
    found = mean_interval(on_sinks)
    statistic = "share of the visual mass that lies on sinks, heads with a visual mass of at least 0.2, last row"
    value, low, high = (float(x) for x in (found.mean, found.low, found.high))
    n_visual = sum(float(prompt.mask("visual").sum()) for prompt in report.prompts)
    n_rows = sum(prompt.n_rows for prompt in report.prompts)
    even = float(report.per_layer()["visual"].mean()) * n_rows / n_visual
    verdict, control = by_interval(low, high, even), "the share of the visual tokens that are sinks"
    return Claim(HOLDS, KANG, key, verdict, statistic, value, low, high, control, even, n=int(found.n))


def _against(claim: str, key: str, compared: Comparison, name: str, against: str, what: str) -> Claim:
    tests = compared.tests()
    row = tests[(tests["condition"] == name) & (tests["against"] == against)].iloc[0]
    value, low, high, p = (float(row[each]) for each in ("difference", "low", "high", "p"))
    n_edited = int((compared.edits[:, compared.column(name)] > 0).sum())
    every = [float(compared.of(each).mean()) for each in (name, against)]
    note = f"edited something on {n_edited} of {int(row['n'])} items"
    if every[0] == every[1] and every[0] in (0.0, 1.0):
        note += f"; all answers are {'right' if every[0] else 'wrong'} under both, which tells nothing apart"
    verdict = "not tested" if not n_edited else by_test(p, value > 0, high < 0)
    statistic = f"{compared.metric} of {name!r} minus that of the control; {row['test']}"
    return Claim(claim, KANG, key, verdict, statistic, value, low, high, what, every[1], p, int(row["n"]), note)
