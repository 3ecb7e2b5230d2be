"""Batches that fit: halve them when memory runs out, and go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ..errors import ModelError

ROWS_ON_CPU, ROWS_ON_GPU = 2048, 16384
"""Rows of all copies together in one batch. A CPU gains nothing beyond; a GPU is filled well before."""

SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate", "alloc_failed")
"""How allocators say that there is none left; CUDA's has an exception of its own, the CPU's has only words."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


class Batches:
    """How many rows one batch may have: as many as fit.

    Args:
        rows: to begin with; None for what suits the device.
        device: where batches are computed.
        on_change: called with the new number after memory ran out.
    """

    def __init__(
        self, rows: int | None, device: torch.device, on_change: Callable[[int], None] = lambda rows: None
    ) -> None:
        self.rows = rows or (ROWS_ON_CPU if device.type == "cpu" else ROWS_ON_GPU)
        self.device, self.on_change = device, on_change

    def attempts(self, least: int = 1) -> Iterator[Attempt]:
        """Attempts to compute something, each a context: the first, and after each that ran out of memory another.

            for attempt in batches.attempts(least=n):
                with attempt:
                    found = compute(attempt.rows)

        Args:
            least: a batch of so many rows is the smallest there is.
        """
        while True:
            attempt = Attempt(self.rows, least, self.device)
            yield attempt
            if not attempt.ran_out:
                return
            # outside the handler, so that the failed batch's tensors are free
            self.rows = max(least, self.rows // 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.on_change(self.rows)


class Attempt:
    """One attempt, which may end for want of memory.

    Attributes:
        rows: how many one batch may have.
        ran_out: whether memory ran out.

    Raises:
        ModelError: when left, if even the smallest batch does not fit.
    """

    def __init__(self, rows: int, least: int, device: torch.device) -> None:
        self.rows, self.ran_out = rows, False
        self._least, self._device = least, device

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.ran_out = error is not None and is_out_of_memory(error)
        if self.ran_out and self.rows <= self._least:
            raise ModelError(
                f"memory ran out on {self._device} even for a single forward of {self._least} rows: {error}\n"
                "  give shorter prompts, a smaller dtype, or a device with more memory"
            ) from error
        return self.ran_out
