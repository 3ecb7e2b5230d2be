"""What interventions cost, and VAR beside other ways to write it: `python -m benchmarks.interventions`.

To add a row, add a `Case` to `CASES`; `benchmarks.harness` says how they are measured.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch

from lmm_lens import VAR, AblateHeads, BoostAttention, Intervention, Knockout
from lmm_lens.interventions.means import HeadMeans
from lmm_lens.prompts.prompt import ROLES

from .harness import N_HEADS_EDITED, N_NEW, PLAIN, Case, Results, Setting, main
from .model import SINK_DIMS, TEXT_AFTER_IMAGE
from .rivals import EagerVAR, all_heads_at_once, head_by_head

QUARTER = {700: 0.91, 3000: 0.98}  # min_visual_mass: patches are most of the prompt, so a random head is on them
AT_ONCE, HEAD_BY_HEAD = EagerVAR(all_heads_at_once), EagerVAR(head_by_head)
SHORT, TOLERANCE = (700,), 1e-4


def var_of(setting: Setting) -> VAR:
    """The paper's settings but for `min_visual_mass`, so that a quarter of the rows and heads is chosen."""
    return VAR(sink_dims=SINK_DIMS, min_visual_mass=QUARTER[setting.prompt.n_tokens])


def var_everywhere() -> VAR:
    """VAR in every head and row that sees a sink."""
    return VAR(sink_dims=SINK_DIMS, min_nonsink_ratio=0, min_visual_mass=0)


@cache
def means(n_layers: int, n_heads: int, d_head: int, device: torch.device) -> HeadMeans:
    """Some means: what they are does not matter to the time."""
    values = {layer: torch.randn(len(ROLES), n_heads, d_head, device=device) / 100 for layer in range(n_layers)}
    return HeadMeans(values, torch.ones(len(ROLES), dtype=torch.long))


def run(setting: Setting, edit: Intervention) -> Any:
    """A pass with an edit."""
    return setting.lens.run(setting.prompt, [edit], logits="last")


def generate(setting: Setting, edit: Intervention) -> Any:
    """New tokens under an edit."""
    return setting.lens.generate(setting.prompt, [edit], max_new_tokens=N_NEW)


def ablate(setting: Setting, mode: str = "zero") -> AblateHeads:
    """An ablation of the chosen heads in the rows after the image."""
    lens = setting.lens
    reference = means(lens.n_layers, lens.n_heads, lens.d_head, lens.device) if mode == "mean" else None
    return AblateHeads(setting.heads, mode, "after_image", reference)


def rival(setting: Setting, way: EagerVAR, generates: bool = False) -> Any:
    """A pass, or new tokens, under VAR written another way."""
    model = setting.model(way.name)
    with way.on(model, setting.prompt, var_of(setting)):
        return setting.generate(model) if generates else setting.forward(model)


AFTER, ZEROED = f"{TEXT_AFTER_IMAGE} rows after the image", f"{N_HEADS_EDITED} random heads"
KNOCKOUT = Knockout("image", "after_image")
REDISTRIBUTE = Case(f"VAR, {AFTER}, a quarter of the heads", lambda s: run(s, var_of(s)), 1.05)
EVERYWHERE = Case(f"VAR, {AFTER}, every head", lambda s: run(s, var_everywhere()), 1.05)
GENERATE = Case(f"generate {N_NEW} tokens (sdpa)", lambda s: s.generate(s.model()), lengths=SHORT)
short = partial(Case, lengths=SHORT)
steps = partial(Case, lengths=SHORT, base=GENERATE)
REDISTRIBUTE_STEPS = steps(f"generate {N_NEW}: VAR", lambda s: generate(s, var_of(s)), 1.15)
checked: dict[str, Any] = {"tolerance": TOLERANCE, "rival": True}
same, same_steps = ({"same_logits": x, **checked} for x in (REDISTRIBUTE, REDISTRIBUTE_STEPS))
FULL_PATTERNS = Case("VAR, eager, all heads at once", lambda s: rival(s, AT_ONCE), **same)

CASES = (
    PLAIN,
    REDISTRIBUTE,
    EVERYWHERE,
    Case(f"`Knockout` image -> {AFTER}", lambda s: run(s, KNOCKOUT)),
    short("`Knockout` image -> last row", lambda s: run(s, Knockout("image", "last"))),
    short(f"`AblateHeads` zero, {ZEROED}, {AFTER}", lambda s: run(s, ablate(s))),
    short(f"`AblateHeads` mean, {ZEROED}, {AFTER}", lambda s: run(s, ablate(s, "mean"))),
    short(f"`AblateHeads` uniform, {ZEROED}, {AFTER}", lambda s: run(s, ablate(s, "uniform"))),
    short("`BoostAttention`, image, last row", lambda s: run(s, BoostAttention())),
    Case("nothing edited, eager attention", lambda s: s.forward(s.model("eager")), rival=True),
    FULL_PATTERNS,
    short("VAR, eager, head by head", lambda s: rival(s, HEAD_BY_HEAD), **same),
    GENERATE,
    REDISTRIBUTE_STEPS,
    steps(f"generate {N_NEW}: `Knockout` image -> {AFTER} and new ones", lambda s: generate(s, KNOCKOUT)),
    steps(f"generate {N_NEW}: `AblateHeads` zero, {ZEROED}, same rows", lambda s: generate(s, ablate(s))),
    steps(f"generate {N_NEW}: nothing edited, eager attention", lambda s: s.generate(s.model("eager")), rival=True),
    steps(f"generate {N_NEW}: VAR, eager, all heads at once", lambda s: rival(s, AT_ONCE, True), **same_steps),
    steps(f"generate {N_NEW}: VAR, eager, head by head", lambda s: rival(s, HEAD_BY_HEAD, True), **same_steps),
)


def comment(results: Results) -> str:
    """How much VAR had to do, and what the rivals were checked for."""
    shares = (
        f"{rows[REDISTRIBUTE.name].edits / rows[EVERYWHERE.name].edits:.0%} at {n_tokens:,} tokens"
        for n_tokens, rows in results.items()
    )
    n_sinks = sorted({int(sinks.sum()) for sinks in AT_ONCE.sinks.values()})
    return (
        f"Generations are compared with the plain generation. VAR finds {' or '.join(map(str, n_sinks))} sinks in each "
        "layer; `min_visual_mass` is set so that it edits about a quarter of the rows and heads: "
        f"{' and '.join(shares)}. The rows with VAR on eager attention do the same work on full patterns: their "
        "logits, in every step of a generation, were checked to be those of `lmm_lens` within "
        f"{TOLERANCE:g} (in fp32). Head by head is written as released research code is: lists of indices, a loop over "
        "heads, deep copies of their rows."
    )


if __name__ == "__main__":
    main("interventions", "What interventions cost", CASES, comment)
