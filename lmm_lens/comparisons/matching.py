"""Does the model still answer rightly? Exact match of generated answers, with and without an intervention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import PromptError
from ..interventions.base import Intervention
from ..prompts.prompt import Prompt

if TYPE_CHECKING:
    from ..lens import Lens


def exact_match(
    lens: Lens,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    interventions: Sequence[Intervention] = (),
    *,
    max_new_tokens: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Bool[Tensor, " prompt"]:
    """Whether each prompt is answered with exactly the expected text, up to case and spaces.

    Args:
        lens: the model, with a processor.
        prompts: prompts or batches of them.
        answers: one expected answer a prompt row, in order.
        interventions: edits under which the model answers.
        max_new_tokens: by default one more than the longest answer has tokens, so that a longer answer is wrong.
        on_batch: called with the number of rows done, for progress bars.

    Raises:
        PromptError: not one answer a prompt row.
    """
    n_rows = sum(prompt.n_rows for prompt in prompts)
    if n_rows != len(answers):
        raise PromptError(f"expected one answer a prompt row, given {len(answers)} answers for {n_rows} rows")
    if not n_rows:
        raise PromptError("no prompts were given: expected a non-empty list of them")
    if max_new_tokens is None:
        tokenizer = lens.adapter.tokenizer
        max_new_tokens = 1 + max(len(tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers)
    right: list[bool] = []
    for prompt in prompts:
        expected = answers[len(right) : len(right) + prompt.n_rows]
        given = lens.generate(prompt, interventions, max_new_tokens=max_new_tokens).text
        right += [_plain(a) == _plain(b) for a, b in zip(given, expected, strict=True)]
        if on_batch:
            on_batch(prompt.n_rows)
    return torch.tensor(right)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
