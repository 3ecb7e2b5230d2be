"""Changes of whole hook points, as a trace writes them, and the native edit to compare them with."""

from dataclasses import dataclass
from typing import Any

import torch

from lmm_lens import Intervention
from lmm_lens.core.taps import Tap
from lmm_lens.prompts.rows import bind_rows


def shifted(x):
    """Not a multiple of it, which the norm behind the last layer would undo."""
    return x.roll(1, -1)


def even(x):
    """Attention that is the same on every key; future ones too, so that nothing can be taken from the old pattern."""
    return torch.ones_like(x) / x.shape[-1]


CHANGES = {"pattern": even}


@dataclass(frozen=True)
class Change(Intervention):
    """The native edit that a written hook point is compared with."""

    site: str
    layer: int
    function: Any

    def taps(self, prompt, shape):
        def run(x, context):
            return self.function(x)

        return [Tap(self.site, self.layer, bind_rows("all", prompt), run, edits=True)]
