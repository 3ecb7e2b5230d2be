"""Token ids that know whose they are: a handle on prompts for tools that take token ids alone.

The functions of `transformer_lens.tools.analysis` and `transformer_lens.patching` are given token ids, cut rows out of
them, repeat them, and call the model. Two prompts that differ in their pictures have the same ids, so ids cannot say
which picture is meant. `BoundTokens` are ids that can: a tensor whose rows remember their prompts through everything
that leaves whole rows as they are.

Which rows an operation kept is found by doing it twice: on the ids, and on numbers that say row and column. Where
whole rows come out, with the ids that their prompts have, the result is bound again; anything else is a plain tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils._pytree import tree_map

from ..errors import PromptError
from ..prompts.joining import joined, row_of
from ..prompts.prompt import Prompt

STRIDE = 2**20
"""Above the length of any prompt."""

Row = tuple[Prompt, int]


class BoundTokens(Tensor):
    """Token ids [batch, position] with their prompts. Made by `Lens.bound_tokens`.

    Attributes:
        rows: of each row, its prompt and which batch row of that it is.
    """

    rows: tuple[Row, ...]
    _prompt: Prompt | None

    @classmethod
    def of(cls, ids: Int[Tensor, "batch position"], rows: Sequence[Row]) -> BoundTokens:
        """Ids with their prompts."""
        bound = ids.as_subclass(cls)
        bound.rows, bound._prompt = tuple(rows), None
        return bound

    @property
    def prompt(self) -> Prompt:
        """The rows as one prompt.

        Raises:
            PromptError: the ids were changed, or the rows do not fit into one batch.
        """
        if not _have_their_ids(self.as_subclass(Tensor), self.rows):
            raise PromptError(
                "these token ids are no longer those of their prompts: they were changed in place\n"
                "  make a prompt of what is to be run, and lens.bound_tokens of it"
            )
        if self._prompt is None:
            self._prompt = _one_prompt(self.rows)
        return self._prompt

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do it with the ids, and bind what comes out as whole rows."""
        kwargs = dict(kwargs or {})
        rows: list[Row] = []

        def numbered(x: Any) -> Any:
            if not isinstance(x, BoundTokens):
                return x
            first = len(rows)
            rows.extend(x.rows)
            with torch._C.DisableTorchFunctionSubclass():
                columns = torch.arange(x.shape[1], device=x.device)
                return torch.arange(first, len(rows), device=x.device)[:, None] * STRIDE + columns

        with torch._C.DisableTorchFunctionSubclass():
            found = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
            if not any(_can_be_ids(x) for x in _listed(found)):
                return found
            origins = func(*tree_map(numbered, args), **tree_map(numbered, kwargs))
            bound = [_bound(x, origin, rows) for x, origin in zip(_listed(found), _listed(origins), strict=True)]
        return type(found)(bound) if isinstance(found, (tuple, list)) else bound[0]

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # torch's has no types
        return f"BoundTokens of {len(self.rows)} rows x {self.shape[-1]} tokens, with their pictures"

    def __deepcopy__(self, memo: dict[int, Any]) -> BoundTokens:
        return BoundTokens.of(self.as_subclass(Tensor).clone(), self.rows)


def _plain(x: Any) -> Any:
    return x.as_subclass(Tensor) if isinstance(x, BoundTokens) else x


def _listed(found: Any) -> Sequence[Any]:
    return found if isinstance(found, (tuple, list)) else [found]


def _can_be_ids(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim == 2 and x.dtype in (torch.int32, torch.int64) and len(x) > 0


def _bound(x: Any, origin: Any, rows: Sequence[Row]) -> Any:
    """What came of ids, bound to the prompts of its rows if these are whole."""
    if not _can_be_ids(x):
        return x
    starts = origin[:, :1]
    if bool((origin != starts + torch.arange(x.shape[1], device=x.device)).any()) or bool((starts % STRIDE).any()):
        return x
    chosen = [rows[number] for number in (starts[:, 0] // STRIDE).tolist()]
    return BoundTokens.of(x, chosen) if _have_their_ids(x, chosen) else x


def _have_their_ids(ids: Tensor, rows: Sequence[Row]) -> bool:
    return len(ids) == len(rows) and all(
        torch.equal(own.to(torch.int64), prompt.inputs["input_ids"][row].to(own.device, torch.int64))
        for own, (prompt, row) in zip(ids, rows, strict=True)
    )


def _one_prompt(rows: Sequence[Row]) -> Prompt:
    """The rows as one prompt; whole batches as they are."""
    parts: list[Prompt] = []
    at = 0
    while at < len(rows):
        prompt, row = rows[at]
        whole = [(prompt, row) for row in range(prompt.n_rows)]
        is_whole = [(id(p), r) for p, r in rows[at : at + prompt.n_rows]] == [(id(p), r) for p, r in whole]
        parts.append(prompt if is_whole else row_of(prompt, row))
        at += prompt.n_rows if is_whole else 1
    return joined(parts)
