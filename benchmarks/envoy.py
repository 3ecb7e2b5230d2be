"""What the nnsight backend costs, in this process: `python -m benchmarks.envoy`.

nnsight users take attention from eager weights, so the rival is eager attention, with nothing asked of it and with the
weights read as nnsight's own documentation does. Our taps need no eager attention: they work beside the fused kernel,
whose plain forward is the base of the table.
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
def traced(lens: Lens) -> Lens:
    """The nnsight backend on the same weights."""
    return Lens(lens.model, backend="nnsight")


@cache
def eager(lens: Lens) -> Any:
    """An nnsight model without a lens, with eager attention."""
    from nnsight import TransformersModel

    model = twin(lens.model, "eager")
    return TransformersModel(model, task="image-text-to-text", processor=traced(lens).envoy.processor, device="cpu")


def plain_trace(setting: Setting) -> Any:
    """A trace that reads nothing but the logits."""
    model = eager(setting.lens)
    inputs = setting.prompt.inputs
    with torch.no_grad(), model.trace(**inputs, use_cache=False, logits_to_keep=1):
        logits = model.lm_head.output.save()
    return logits.detach()


def weights_of_the_last_row(setting: Setting) -> Any:
    """Visual mass of every head at the last query, from the eager weights of every layer."""
    model, inputs = eager(setting.lens), setting.prompt.inputs
    visual = setting.prompt.mask("visual")[0]
    with torch.no_grad(), model.trace(**inputs, use_cache=False, logits_to_keep=1):
        masses = []
        for layer in model.model.language_model.layers:
            weights = layer.self_attn.source.attention_interface_1.output[1]
            masses.append(weights[:, :, -1][..., visual].sum(-1))
        found = torch.stack(masses).save()  # type: ignore[attr-defined]  # nnsight gives it to tensors
        model.lm_head.output.save()
    return found


BESIDE: dict[str, Any] = {"lengths": LENGTHS}
CASES = (
    PLAIN,
    Case("eager attention", lambda s: s.forward(s.model("eager")), **BESIDE),
    Case("nnsight alone: a trace of the eager model", plain_trace, **BESIDE),
    Case("nnsight alone: visual mass from eager weights", weights_of_the_last_row, **BESIDE),
    Case("`lens.run` with nnsight", lambda s: traced(s.lens).run(s.prompt, logits="last"), **BESIDE),
    Case("`score_heads`, last row", lambda s: score_heads(traced(s.lens), s.prompt), **BESIDE),
    Case(
        "VAR in every head, rows after the image",
        lambda s: traced(s.lens).run(s.prompt, [var_everywhere()], logits="last"),
        **BESIDE,
    ),
)

if __name__ == "__main__":
    main("envoy", "What the nnsight backend costs", CASES)
