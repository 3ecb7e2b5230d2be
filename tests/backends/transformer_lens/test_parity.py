"""On every family that can be bridged, the TransformerLens backend gives the native backend's answer."""

import pytest
import torch

from lmm_lens import VAR, AblateHeads, Knockout, PatchHeads, PatchResidual, score_heads
from tests.support.models import FAMILIES

TOLERANCE = 1e-4
NEW = 5


def same(family, edits, **options) -> None:
    """Step by step over a generation, on the family's own prompt."""
    options = {"max_new_tokens": NEW, "logits": True, "eos_token_id": [], **options}
    native, bridge = (each.generate(family.prompt, edits, **options) for each in family.lenses("transformer_lens"))
    assert torch.equal(native.tokens, bridge.tokens)
    scale = native.logits.abs().max().clamp_min(1)
    assert (native.logits - bridge.logits).abs().max() / scale < TOLERANCE
    if edits:
        plain = family.lens.generate(family.prompt, **options)
        assert (native.logits - plain.logits).abs().max() / scale > TOLERANCE, "the edit has no effect to compare"
        assert native.reports[0].edits == bridge.reports[0].edits


def test_without_hooks_the_bridge_is_the_model(family):
    same(family, [])
    native, bridge = (each.run(family.prompt).logits for each in family.lenses("transformer_lens"))
    assert torch.allclose(native, bridge, atol=1e-5 * float(native.abs().max()) + 1e-5)


@pytest.mark.parametrize("rows", ["all", "after_image"])
def test_head_ablation(family, rows):
    same(family, [AblateHeads(family.heads, rows=rows)])


def test_knockout(family):
    same(family, [Knockout("image", "after_image")])


def test_redistribution(family):
    dims = tuple(range(family.lens.shape.d_model))  # some dimension of every token is large: a few tokens are sinks
    settings = {"min_nonsink_ratio": 0.0, "min_visual_mass": 0.0, "first_layer": 0, "skip_last_layer": False}
    native = family.lens.run(family.prompt, read=["resid_pre"])
    first = native.reads["resid_pre", 0]
    phi = (first.abs() / first.square().mean(-1, keepdim=True).sqrt()).amax(-1)[0]
    same(family, [VAR(sink_dims=dims, sink_threshold=float(phi.sort().values[-3]) - 1e-3, **settings)])


# the gates of mllama's cross-attention are zero in a random model, so its picture changes nothing
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mllama"], indirect=True)
def test_patching(family):
    seeded = torch.Generator().manual_seed(5)
    pixels = {
        name: torch.randn(value.shape, generator=seeded) if value.is_floating_point() else value
        for name, value in family.inputs.items()
    }
    other = family.lens.prompt(inputs=pixels)
    clean = family.lens.run(other, read=["z", "resid_pre"])
    same(family, [PatchHeads(family.heads, clean)])
    same(family, [PatchResidual([1], clean, rows="image")])


def test_scores(family):
    for query in ("last", "answer"):
        native, bridge = (
            score_heads(each, family.prompt, query=query).per_prompt for each in family.lenses("transformer_lens")
        )
        assert torch.allclose(native, bridge, atol=1e-5, equal_nan=True)
