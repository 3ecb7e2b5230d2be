"""Head attribution (Kim et al., arXiv:2509.17588): what each head adds, with redundant heads counted.

1. Ablate many random subsets of heads, each at once.
2. On each prompt regress the metric on which heads were kept, 0 or 1 each; a head's coefficient is its attribution.

Ablating one head alone shows nothing where another does the same; in a random subset both may be gone.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from ..data import Sample
from ..errors import ScoreError
from ..hooks.heads import HeadSet
from ..prompts.prompt import Prompt
from ..scoring import HeadScores
from .ablations import heads_of
from .scores import HeadEffects
from .sweep import head_effects

if TYPE_CHECKING:
    from ..lens import Lens


def random_subsets(heads: HeadSet, n: int, share: float = 0.25, seed: int = 0) -> list[HeadSet]:
    """Random subsets of heads, each head in or out by itself; none is empty.

    Args:
        heads: among which.
        n: how many subsets.
        share: the probability with which a head is in a subset.
        seed: of the draw.

    Raises:
        ScoreError: a share that is no probability, no subsets, or no heads.
    """
    if not 0 < share < 1 or n < 1 or not heads:
        raise ScoreError(
            "expected heads, a share between 0 and 1 and at least one subset, "
            f"given {len(heads)} heads, share={share}, n={n}"
        )
    draw = random.Random(seed)
    found: list[HeadSet] = []
    while len(found) < n:
        chosen = [head for head in heads if draw.random() < share]
        if chosen:
            found.append(HeadSet(chosen, heads.n_layers, heads.n_heads, heads.part))
    return found


def head_attribution(
    lens: Lens,
    prompts: Prompt | Iterable[Prompt | Sample],
    ablation: str = "zero",
    rows: Any = "last",
    metric: str = "log_prob",
    *,
    n_subsets: int | None = None,
    share: float = 0.25,
    heads: HeadSet | None = None,
    ridge: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> HeadScores:
    """Attribute the metric to heads, by regression over random subsets that are ablated at once.

    Args:
        lens: the model.
        prompts, ablation, rows, metric: as in `head_effects`.
        n_subsets: how many; by default four for each head.
        share: of the heads in a subset.
        heads: among which; None for all.
        ridge: penalty on the squared coefficients, in units of the mean square of a centred column. Needed where there
            are fewer subsets than heads.
        seed: of the subsets.
        **options: of `head_effects`: answers, reference, folder, ray, ...

    Returns:
        HeadScores, Float[prompt, layer, head]: how much of the metric goes with the head; its settings hold the mean
        share of variance that the regression explains.

    Raises:
        ScoreError: too few subsets to tell the heads apart.
    """
    among = heads_of(lens, heads)
    subsets = random_subsets(among, 4 * len(among) if n_subsets is None else n_subsets, share, seed)
    effects = head_effects(lens, prompts, ablation, rows, metric, heads=subsets, **options)
    return regress(effects, among, ridge)


def regress(effects: HeadEffects, heads: HeadSet, ridge: float = 0.0) -> HeadScores:
    """The regression of a sweep over head sets on which heads were kept.

    Args:
        effects: of sets of these heads.
        heads: whose coefficients are wanted.
        ridge: as in `head_attribution`.

    Raises:
        ScoreError: the subsets do not tell the heads apart.
    """
    kept = torch.tensor([[head not in unit.heads for head in heads] for unit in effects.units], dtype=torch.float64)
    centred = kept - kept.mean(0)
    gram = centred.T @ centred
    if ridge < 0 or (ridge == 0 and int(torch.linalg.matrix_rank(gram)) < len(heads)):
        raise ScoreError(
            f"{len(effects.units)} subsets do not tell {len(heads)} heads apart\n"
            "  take more subsets, at least twice as many as heads, or a penalty such as ridge=0.1"
        )
    gram = gram + ridge * gram.diagonal().mean() * torch.eye(len(heads), dtype=torch.float64)
    values = effects.ablated - effects.ablated.mean(1, keepdim=True)  # prompt subset
    coefficients = torch.linalg.solve(gram, centred.T @ values.T).T  # prompt head
    left = values - coefficients @ centred.T
    explained = 1 - left.square().sum(1) / values.square().sum(1)
    per_prompt = torch.full((effects.n_prompts, heads.n_layers, heads.n_heads), torch.nan)
    for index, (layer, head) in enumerate(heads):
        per_prompt[:, layer, head] = coefficients[:, index].float()
    settings = {
        "ablation": effects.ablation,
        "rows": effects.rows,
        "subsets": len(effects.units),
        "ridge": ridge,
        "explained": float(explained.nanmean()),
    }
    return HeadScores(f"attribution of {effects.metric}", "last", per_prompt, dict(effects.about["model"]), settings)
