"""What the TransformerLens backend costs beside eager attention: `python -m benchmarks.bridge`.

A TransformerBridge computes eager attention, so that is what its passes are compared with.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from lmm_lens import Lens, score_heads

from .harness import PLAIN, Case, Setting, main
from .interventions import var_everywhere
from .model import twin

LENGTHS = (700,)


@cache
def bridged(lens: Lens) -> Lens:
    """The TransformerLens backend on the same weights."""
    return Lens(lens.model, backend="transformer_lens")


@cache
def eager(lens: Lens) -> Any:
    """A model without a lens, with eager attention."""
    return twin(lens.model, "eager")


def with_cache(setting: Setting) -> Any:
    """A pass that keeps one filtered hook point of every layer, as TransformerLens users do."""
    bridge, inputs = bridged(setting.lens).bridge, dict(setting.prompt.inputs)
    ids = inputs.pop("input_ids")
    with torch.no_grad():
        return bridge.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_z"), use_cache=False, **inputs)


EAGER = Case("eager attention, no bridge", lambda s: s.forward(eager(s.lens)), lengths=LENGTHS)
BESIDE: dict[str, Any] = {
    "base": EAGER,
    "lengths": LENGTHS,
}  # the logits are compared in tests/backends/transformer_lens; here a bridge shows them twice
CASES = (
    PLAIN,
    EAGER,
    Case("`lens.run` on the bridge", lambda s: bridged(s.lens).run(s.prompt, logits="last"), **BESIDE),
    Case("`score_heads`, last row", lambda s: score_heads(bridged(s.lens), s.prompt), **BESIDE),
    Case("`bridge.run_with_cache`, z of every layer", with_cache, **BESIDE),
    Case(
        "VAR in every head, rows after the image",
        lambda s: bridged(s.lens).run(s.prompt, [var_everywhere()], logits="last"),
        **BESIDE,
    ),
)

if __name__ == "__main__":
    main("bridge", "What the TransformerLens backend costs", CASES)
