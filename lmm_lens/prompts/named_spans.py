"""A prompt cut into named spans: what is asked of `by="span"`, and where attention comes from."""

from __future__ import annotations

import torch
from torch import Tensor

from .prompt import ROLES, Prompt


def named_spans(prompt: Prompt) -> dict[str, Tensor]:
    """The roles that occur, each picture for itself, a partition of the real tokens: Bool[batch, position] by name."""
    roles, last = prompt.roles, prompt.mask("last")
    found: dict[str, Tensor] = {}
    for role in ("bos", "before_image", "visual", "marker", "question", "template", "answer_turn"):
        if role == "visual":
            found |= _pictures(prompt)
        else:
            found[role] = (roles == ROLES.index(role)) & ~last
    found["last"] = last
    return {name: mask for name, mask in found.items() if bool(mask.any())}


def _pictures(prompt: Prompt) -> dict[str, Tensor]:
    """Each picture's tokens, all its crops together; one span where a row has only one, or where it is not known."""
    visual = [(row, span) for row in range(prompt.n_rows) for span in prompt.spans[row] if span.kind != "marker"]
    single = {kind: len({s.source for _, s in visual if s.kind == kind}) < 2 for kind in ("image", "video")}
    found: dict[str, Tensor] = {}
    for row, span in sorted(visual, key=lambda entry: (entry[1].kind, entry[1].source or 0)):
        name = span.kind if single[span.kind] or span.source is None else f"{span.kind} {span.source}"
        found.setdefault(name, torch.zeros_like(prompt.mask("all")))[row, list(span.positions)] = True
    return found
