"""Answers of several tokens: the words they begin with in a model, and a prompt with a part of one behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..answers.outcomes import forms_of
from ..errors import ScoreError
from ..prompts.prompt import Prompt

if TYPE_CHECKING:
    from ..lens import Lens

Answer = str | int | Sequence[int]
"""As text, as the id of its only token, or as the ids of all."""

COUNTED = ("position_ids", "cache_position")


def answer_tokens(lens: Lens, clean: Float[Tensor, " vocab"], answer: Answer | None) -> tuple[int, ...]:
    """All tokens of an answer, in the form whose first token the plain forward finds likeliest.

    Args:
        lens: the model.
        clean: logits at the last prompt token.
        answer: None for the model's own next token.

    Raises:
        ScoreError: the text has no token of its own, or there is no such token.
    """
    if answer is None:
        return (int(clean.argmax()),)
    if not isinstance(answer, str):
        ids = (answer,) if isinstance(answer, int) else tuple(int(token) for token in answer)
        if not ids or not all(0 <= token < len(clean) for token in ids):
            raise ScoreError(f"an answer is text or tokens of 0 to {len(clean) - 1}, given {answer!r}")
        return ids
    first = max(forms_of(lens, answer), key=lambda token: float(clean[token]))
    tokenizer = lens.adapter.tokenizer
    for form in (answer, answer.capitalize(), f" {answer}", f" {answer.capitalize()}"):
        ids = tuple(int(token) for token in tokenizer(form, add_special_tokens=False)["input_ids"])
        while ids and not tokenizer.decode([ids[0]]).strip():  # a lone space or word boundary
            ids = ids[1:]
        if ids and ids[0] == first:
            return ids
    raise ScoreError(f"{answer!r} is no text of this model's tokenizer")  # pragma: no cover


def forced(lens: Lens, prompt: Prompt, tokens: Sequence[int]) -> Prompt:
    """The prompt, of one row, with these tokens behind it, as if the model had said them.

    Raises:
        ScoreError: it has several rows, or is padded on the right.
    """
    if prompt.n_rows > 1:
        raise ScoreError(
            f"an answer of several tokens was given for a batch of {prompt.n_rows} rows\n"
            "  give prompts of one row each, samples, or count='first'"
        )
    n_tokens = prompt.n_tokens
    if not bool(prompt.mask("last")[0, -1]):
        raise ScoreError("the prompt is padded on the right, so no answer can follow it")
    inputs = {}
    for name, value in prompt.inputs.items():
        if not isinstance(value, Tensor) or value.is_floating_point():
            inputs[name] = value
        elif name == "input_ids":
            inputs[name] = torch.cat([value, value.new_tensor([list(tokens)])], 1)
        elif name in COUNTED:
            steps = torch.arange(1, len(tokens) + 1, device=value.device, dtype=value.dtype)
            inputs[name] = torch.cat([value, value[..., -1:] + steps], -1)
        elif value.shape[:2] == (1, n_tokens):  # masks and kinds of tokens: what they say of the last one goes on
            inputs[name] = torch.cat([value, value[:, -1:].expand(-1, len(tokens), *value.shape[2:])], 1)
        else:
            inputs[name] = value
    return lens.prompt(inputs=inputs)
