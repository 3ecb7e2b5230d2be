"""What Bi et al. (CVPR 2025, arXiv:2412.18108) say of visual heads, asked of one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..effects import HeadEffects
from ..statistics import mean_interval, paired_interval, sign_flip_test
from .claims import ALPHA, Claim, by_interval, by_test, nothing_lost
from .curves import Arm, of_arms
from .depth import Depth
from .ranks import Agreement

BI = "Bi et al. 2025"
OURS = "ours"
EARLY = "Visual heads lie in the early and middle layers"
LATE = "Late visual heads can be removed"
SAME = "The same heads are visual on every data set"
NEEDED = "Visual heads carry answers about the picture, more than other heads of their layers"
TEXT = "Visual heads can be removed where there is no picture"
PREDICTS = "How much a head looks at the picture says what the answer loses without it"


def of_depth(found: Mapping[str, Depth], n: Mapping[str, int]) -> Iterator[Claim]:
    """Where the top heads lie, a claim a data set."""
    for data, at in found.items():
        yield Claim(
            EARLY,
            BI,
            data,
            by_test(at.p, at.value < at.control, at.p_deeper < ALPHA),
            f"mean relative depth of the top {at.n} heads, 0 first layer, 1 last",
            at.value,
            at.low,
            at.high,
            "as many random heads of all layers",
            at.control,
            at.p,
            n[data],
            f"{at.thirds[0]}, {at.thirds[1]} and {at.thirds[2]} of them lie in the first, middle and last third",
        )


def of_data_sets(pairs: Mapping[str, Agreement], n: Mapping[str, int]) -> Iterator[Claim]:
    """Whether rankings agree between data sets, a claim a pair."""
    statistic = "Spearman's correlation of the head maps"
    if not pairs:
        yield Claim(SAME, BI, "-", "not tested", statistic, note="it takes two data sets about pictures")
    for name, found in pairs.items():
        verdict = by_interval(found.low, found.high, max(0.0, found.control))
        control = "the same with the heads of each layer shuffled"
        numbers = (found.value, found.low, found.high)
        yield Claim(SAME, BI, name, verdict, statistic, *numbers, control, found.control, found.p, n[name])


def of_effects(found: Mapping[str, Agreement], n: Mapping[str, int], rank_by: str) -> Iterator[Claim]:
    """Whether scores go with causal effects, a claim a data set."""
    for data, at in found.items():
        yield Claim(
            PREDICTS,
            OURS,
            data,
            by_interval(at.low, at.high, max(0.0, at.control)),
            f"Spearman's correlation of {rank_by} with the log probability lost without the head, last row",
            at.value,
            at.low,
            at.high,
            "the same with the heads of each layer shuffled",
            at.control,
            at.p,
            n[data],
        )


def of_removal(
    visual: Mapping[str, HeadEffects], text: Mapping[str, HeadEffects], chosen: Sequence[Arm], seed: int
) -> Iterator[Claim]:
    """What is lost with heads removed: of the largest top set, and of late against early heads."""
    for data, effects in visual.items():
        yield _needed(data, effects, chosen, seed)
    for data, effects in visual.items():
        yield _late(data, effects, chosen, seed)
    if not text:
        yield Claim(TEXT, BI, "-", "not tested", "accuracy lost", note="no questions without a picture were given")
    for data, effects in text.items():
        yield _spared(data, effects, chosen, seed)


def _largest(chosen: Sequence[Arm]) -> Arm:
    return max((arm for arm in chosen if arm.name == "top"), key=lambda arm: arm.k)


def _needed(data: str, effects: HeadEffects, chosen: Sequence[Arm], seed: int) -> Claim:
    largest = _largest(chosen)
    mine, controls = next((a, b) for arm, a, b in of_arms(effects, chosen) if arm is largest)
    gap = paired_interval(mine, controls, seed=seed)
    p = float(sign_flip_test(mine - controls, seed=seed).p)
    value, low, high = (float(x) for x in (gap.mean, gap.low, gap.high))
    note = f"a draw shares {largest.shared:g} heads with them" if largest.shared else ""
    statistic = f"log probability lost without the top {largest.k} heads, beyond their controls"
    verdict = by_test(p, value > 0, high < 0)
    control = "lost without random heads of the same layers"
    return Claim(
        NEEDED, BI, data, verdict, statistic, value, low, high, control, float(controls.mean()), p, len(mine), note
    )


def _late(data: str, effects: HeadEffects, chosen: Sequence[Arm], seed: int) -> Claim:
    accuracy = effects.of("accuracy")
    each = {arm.name: (arm, mine) for arm, mine, _ in of_arms(accuracy, chosen) if arm.name in ("early", "late")}
    if len(each) < 2:
        return Claim(LATE, BI, data, "not tested", "accuracy lost", note="the model has too few layers for thirds")
    (arm, late), (_, early) = each["late"], each["early"]
    lost, clean = mean_interval(late, seed=seed), float(accuracy.clean.mean())
    p = float(sign_flip_test(early - late, seed=seed).p)
    found = _loss(LATE, data, lost, clean, f"without {arm.k} heads of the last third", len(late))
    control = {"control": f"lost without the top {arm.k} heads before it", "control_value": float(early.mean())}
    return Claim(**{**found.as_dict(), **control, "p": p})


def _spared(data: str, effects: HeadEffects, chosen: Sequence[Arm], seed: int) -> Claim:
    accuracy, largest = effects.of("accuracy"), _largest(chosen)
    mine, controls = next((a, b) for arm, a, b in of_arms(accuracy, chosen) if arm is largest)
    lost, clean = mean_interval(mine, seed=seed), float(accuracy.clean.mean())
    p = float(sign_flip_test(mine - controls, seed=seed).p)
    found = _loss(TEXT, data, lost, clean, f"without the top {largest.k} heads", len(mine))
    control = {"control": "lost without random heads of the same layers", "control_value": float(controls.mean())}
    return Claim(**{**found.as_dict(), **control, "p": p})


def _loss(claim: str, data: str, lost: Any, clean: float, what: str, n: int) -> Claim:
    value, low, high = (float(x) for x in (lost.mean, lost.low, lost.high))
    verdict = nothing_lost(low, high, clean, n)
    note = f"of an accuracy of {clean:.3f}" + " there is nothing to lose" * (verdict == "not tested")
    return Claim(claim, BI, data, verdict, f"accuracy lost {what}", value, low, high, n=n, note=note)
