"""Run the decoder layers of a recorded prompt again for many variants in one batch.

1. Variants whose first change is in row r need the rows from r on alone; the keys and values before are recorded ones.
2. Those that differ from layer l on join the batch there, from the recorded residual stream.
3. In the last layer only the last row is computed; the other rows give keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from .copies import CopiesPass
from .patterns import Pattern, z_under
from .recording import Recording
from .variants import Edit, Variant
from .window import ReusablePrefix, Window

BUCKET = 1.25  # variants share a batch if their numbers of rows differ by less than this factor


class Replay:
    """Changed forwards of one row of a recorded prompt.

    Args:
        recording: of the prompt.
        row: which row of its batch.
    """

    def __init__(self, recording: Recording, row: int = 0) -> None:
        self.recording, self.row = recording, row
        real = recording.prompt.mask("all")[row].nonzero().flatten()
        crossing = [layer.is_cross_attention for layer in recording.modules]
        self.last = int(recording.prompt.mask("last")[row].int().argmax())
        self.reusable = ReusablePrefix(recording.calls, row, int(real[0]), self.last + 1, crossing)
        self.n_layers = len(recording.modules)
        self._z: dict[tuple[Pattern, int], Tensor] = {}

    def window(self, variant: Variant) -> Window:
        """The rows that have to be computed for a variant."""
        return self.reusable.before(variant.first_row(self.n_layers, self.last))

    def logits(self, variants: Sequence[Variant], rows_per_pass: int) -> Float[Tensor, "variant vocab"]:
        """The logits of the last prompt token for each variant.

        Args:
            variants: what is changed.
            rows_per_pass: how many rows, of all copies together, one batch may have.

        Raises:
            UnfitError: a variant has a pattern in a layer whose own is not over the tokens of the sequence.
        """
        variants = [replace(each, edits=tuple(self._as_values(edit) for edit in each.edits)) for each in variants]
        found: list[Tensor | None] = [None] * len(variants)
        for window, members in self._batches(variants, rows_per_pass):
            logits = CopiesPass(self.recording, window, [variants[i] for i in members]).run()
            for index, row in zip(members, logits, strict=True):
                found[index] = row
        return torch.stack([row for row in found if row is not None])

    def _as_values(self, edit: Edit) -> Edit:
        """The edit itself, or with what the heads give under its pattern; one tensor a layer, whoever asks."""
        if edit.source is None or isinstance(edit.source, Tensor):
            return edit
        key = edit.source, edit.layer
        if key not in self._z:
            self._z[key] = z_under(edit.source, self.recording, edit.layer, self.row)
        return replace(edit, source=self._z[key])

    def _batches(self, variants: Sequence[Variant], rows_per_pass: int) -> Iterator[tuple[Window, list[int]]]:
        windows = [self.window(variant) for variant in variants]

        def bucket(index: int) -> int:
            return math.floor(math.log(windows[index].stop - windows[index].start) / math.log(BUCKET))

        order = sorted(range(len(variants)), key=lambda i: (bucket(i), variants[i].first_layer, windows[i].start))
        batch: list[int] = []
        for index in order:
            n_queries = windows[index].stop - min(windows[i].start for i in (*batch, index))
            if batch and (bucket(index) != bucket(batch[0]) or (len(batch) + 1) * n_queries > rows_per_pass):
                yield min((windows[i] for i in batch), key=lambda window: window.start), batch
                batch = []
            batch.append(index)
        if batch:
            yield min((windows[i] for i in batch), key=lambda window: window.start), batch
