"""Rows of a batch that end for another reason than a token."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria
from transformers.generation.stopping_criteria import StopStringCriteria

from ..adapters import Adapter
from ..errors import LensError


class Ends(StoppingCriteria):
    """The user's stopping criteria and stop strings, overheard, so that rows that have ended are known.

    Args:
        config: of the generation; its stop strings are taken over from it.
        criteria: the user's.
        adapter: its tokenizer reads the stop strings.
        note: is told which rows of several have ended, Bool[batch], on the CPU.

    Raises:
        LensError: there are stop strings, and no tokenizer or one in which they cannot be looked for.
    """

    def __init__(
        self, config: GenerationConfig, criteria: Iterable[Any], adapter: Adapter, note: Callable[[Tensor], None]
    ) -> None:
        self.criteria, self.note = list(criteria), note
        if config.stop_strings is not None:
            if adapter.tokenizer is None:
                raise LensError("stop_strings need a tokenizer, and this lens has no processor: give eos_token_id")
            try:
                self.criteria.append(StopStringCriteria(adapter.tokenizer, config.stop_strings))
            except ValueError as error:  # transformers looks for the pieces of words in a way that not all follow
                raise LensError(
                    f"transformers cannot look for stop_strings in the words of {type(adapter.tokenizer).__name__}\n"
                    "  end rows with eos_token_id, or give stopping_criteria=..."
                ) from error
            config.stop_strings = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for each in self.criteria:
            done = done | torch.as_tensor(each(input_ids, scores, **kwargs), device=done.device)
        if self.criteria and len(done) > 1:
            self.note(done.cpu())
        return done
