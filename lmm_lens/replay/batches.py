"""Batches that fit: halve them when memory runs out, and go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ..errors import ModelError

T = TypeVar("T")

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

    def run(self, compute: Callable[[int], T], least: int = 1) -> T:
        """Compute with so many rows a batch; after every failure for want of memory with half of them.

        Args:
            compute: given the number of rows; begins anew each time.
            least: a batch of so many rows is the smallest there is.

        Raises:
            ModelError: even the smallest batch does not fit.
        """
        while True:
            try:
                return compute(self.rows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.rows <= least:
                    raise ModelError(
                        f"memory ran out on {self.device} even for a single forward of {least} rows: {error}\n"
                        "  give shorter prompts, a smaller dtype, or a device with more memory"
                    ) from error
            # outside the handler, so that the failed batch's tensors are free
            self.rows = max(least, self.rows // 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.on_change(self.rows)
