"""The controls that a reviewer asks for, one call each.

- The picture: `blank_images` and `swapped_images` make the same prompts with nothing to see, or with another's picture;
  `image_table` measures all three.
- The heads: `ablation_table` sets heads against random ones with the same layer spread, in every row scope.
- The sinks: `KnockoutSinks(..., control=seed)` and `VAR(..., control=seed)` act on as many random tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..errors import PromptError, ScoreError
from ..hooks.heads import HeadSet
from ..interventions import AblateHeads
from ..interventions.base import Intervention
from ..prompts.prompt import Prompt
from ..statistics.resampling import bootstrap_interval
from .conditions import check_controls
from .matching import exact_match
from .pictures import blank_images, swapped_images

if TYPE_CHECKING:
    import pandas

    from ..lens import Lens


def image_table(
    lens: Lens,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    interventions: Sequence[Intervention] = (),
    seed: int = 0,
) -> pandas.DataFrame:
    """Exact match with the picture, with a blank one, and with another prompt's.

    What is right with a blank picture was not seen.

    Args:
        lens: whose model answers.
        prompts: batches of two rows or more, each with pictures, which are swapped within a batch.
        answers: the right ones, one for each batch row of the prompts in turn.
        interventions: to apply in all three conditions.
        seed: of the exchange of pictures.

    Returns:
        One row a condition: condition, accuracy, low and high of its 95% bootstrap interval, n.

    Raises:
        PromptError: a row without a picture, or without another's to be shown; see `swapped_images`.
    """
    import pandas

    for prompt in prompts:
        if prompt.texts is not None and not all(prompt.images):
            row = next(row for row, images in enumerate(prompt.images) if not images)
            raise PromptError(
                f"row {row} of a prompt has no picture, so that it would count as the same in all three conditions\n"
                "  leave questions without pictures out"
            )
    conditions = {
        "with its picture": list(prompts),
        "with a blank picture": [blank_images(lens, prompt) for prompt in prompts],
        "with another's picture": [swapped_images(lens, prompt, seed) for prompt in prompts],
    }
    rows = [
        {"condition": name, **_summary(exact_match(lens, shown, answers, interventions))}
        for name, shown in conditions.items()
    ]
    return pandas.DataFrame(rows)


def ablation_table(
    lens: Lens,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    heads: HeadSet,
    *,
    mode: str = "zero",
    rows: Iterable[str] = ("all", "after_image", "last"),
    n_controls: int = 5,
    seed: int = 0,
    disjoint: bool | Literal["most"] = True,
) -> pandas.DataFrame:
    """Exact match with heads ablated, against random heads with the same layer spread, in each row scope.

    Args:
        lens: the model.
        prompts: prompts or batches; text-only ones need rows=("all",).
        answers: one a prompt row.
        heads: the heads in question.
        mode: of `AblateHeads`, one that needs no reference.
        rows: the row scopes; they are different experiments.
        n_controls: random draws a scope; 0 for none.
        seed: of the first draw.
        disjoint: draw among the other heads only; "most" where a layer has too few of them, and the condition then says
            how many of these heads a draw has (`HeadSet.random_like`).

    Returns:
        One row a scope and condition: rows, condition, accuracy, low and high (95% bootstrap over prompts; for the
        control the mean over draws, and over prompts and draws), n.

    Raises:
        ScoreError: a number of controls that is none, or no scope of rows.
    """
    import pandas

    check_controls(n_controls)
    if not (rows := tuple(rows)):
        raise ScoreError('no scope of rows was given, so that nothing would be ablated\n  as in rows=("last",)')
    table = [{"rows": "-", "condition": "nothing ablated", **_summary(exact_match(lens, prompts, answers))}]
    controls = [heads.random_like(seed + draw, disjoint) for draw in range(n_controls)]
    shared = sum(len(heads & control) for control in controls) / max(1, n_controls)
    random_heads = "random, same layers" + (f", {shared:g} of these in a draw" if shared else "")
    for scope in rows:
        right = exact_match(lens, prompts, answers, [AblateHeads(heads, mode, scope)])
        table.append({"rows": scope, "condition": f"these {len(heads)} heads", **_summary(right)})
        drawn = [exact_match(lens, prompts, answers, [AblateHeads(control, mode, scope)]) for control in controls]
        if drawn:
            table.append({"rows": scope, "condition": random_heads, **_summary(torch.stack(drawn, 1))})
    return pandas.DataFrame(table)


def _summary(right: Tensor) -> dict[str, float]:
    """Mean and interval over prompts of what was right, Bool[prompt] or Bool[prompt, draw]."""
    per_prompt = right.float().reshape(len(right), -1).mean(1)
    low, high = bootstrap_interval(per_prompt)
    return {"accuracy": float(per_prompt.mean()), "low": float(low), "high": float(high), "n": len(right)}
