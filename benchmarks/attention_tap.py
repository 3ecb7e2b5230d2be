"""What the attention tap costs beside a plain forward pass, in time and memory: `python -m benchmarks.attention_tap`.

To add a row, add a `Case` to `CASES`; `benchmarks.harness` says how they are measured.
"""

from __future__ import annotations

from typing import Any

from lmm_lens import AblateHeads, Read, score_heads
from lmm_lens.core import kernels

from .harness import N_HEADS_EDITED, PLAIN, Case, Setting, main


def zero_heads(setting: Setting, rows: str) -> Any:
    """A pass with the chosen heads zeroed in some rows."""
    return setting.lens.run(setting.prompt, [AblateHeads(setting.heads, rows=rows)], logits="last")


def visual_mass(setting: Setting, rows: str) -> Any:
    """A pass that reads how much each of some queries looks at the pictures, in every head of every layer."""
    visual = setting.prompt.mask("visual")
    mass = Read("pattern", rows=rows, reduce=lambda a, at: kernels.mass(a, at.columns(visual, a.shape[-1])))
    return setting.lens.run(setting.prompt, read=[mass], logits="last")


CASES = (
    PLAIN,
    Case("a lens made, none open", lambda s: s.forward(s.lens.model), 1.05, same_logits=PLAIN),
    Case("`lens.run`, nothing asked", lambda s: s.lens.run(s.prompt, logits="last"), 1.05, same_logits=PLAIN),
    Case("`score_heads`, all heads, last row", lambda s: score_heads(s.lens, s.prompt), 1.05, same_logits=PLAIN),
    Case(
        "visual mass, all heads, 90 rows after the image",
        lambda s: visual_mass(s, "after_image"),
        1.1,
        same_logits=PLAIN,
    ),
    Case(f"zero {N_HEADS_EDITED} random heads, 90 rows after the image", lambda s: zero_heads(s, "after_image"), 1.1),
    Case(f"zero {N_HEADS_EDITED} random heads, all rows", lambda s: zero_heads(s, "all")),
    Case("eager attention", lambda s: s.forward(s.model("eager")), rival=True),
    Case("eager, all patterns kept", lambda s: s.forward(s.model("eager"), output_attentions=True), rival=True),
)

if __name__ == "__main__":
    main("attention_tap", "What the attention tap costs", CASES)
