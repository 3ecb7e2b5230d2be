"""The same model behind the native backend, nnsight here, and nnsight as a server would run it."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import torch

from lmm_lens import (
    VAR,
    AblateHeads,
    AblateTokens,
    BoostAttention,
    Direction,
    Edit,
    EditPattern,
    Intervention,
    Knockout,
    KnockoutSinks,
    Lens,
    PatchHeads,
    PatchPattern,
    PatchResidual,
    Read,
    ScaleAttention,
    Steer,
    head_means,
)
from tests.support.cases import SITES, Case, case
from tests.support.models import another

TOLERANCE = 1e-4
NEW = 5
EDITS = (
    "zero",
    "zero_after_image",
    "uniform",
    "uniform_noncausal",
    "mean",
    "resample",
    "var",
    "var_control",
    "knockout",
    "knockout_all",
    "knockout_sinks",
    "boost",
    "tokens",
    "patch_heads",
    "patch_residual",
    "patch_mlp",
    "patch_pattern",
)
MORE = ("back_patch", "scale", "steer", "own_pattern", "own_rows")
CORE = ("zero_after_image", "var", "knockout", "patch_heads")
WIDE = ("llava", "qwen2_5_vl", "gemma3", "paligemma2", "qwen3_5", "mllama")  # one of each kind
TWELVE = (*WIDE, "qwen3_vl", "glm4v", "mistral3", "llava_next", "internvl", "idefics2")
FOUR = ("llava", "gemma3", "qwen3_5", "mllama")
WITHOUT_EFFECT = {
    # the one image token of mllama is its own mean and has no other token as a control
    ("mllama", "tokens"),
    ("mllama", "var_control"),
    # the resampler of idefics2 gives all tokens of all pictures nearly one feature
    ("idefics2", "tokens"),
    ("idefics2", "knockout_sinks"),
    ("idefics2", "patch_pattern"),
}


def pairs(names: Iterable[str], edits: Iterable[str]) -> list[tuple[str, str]]:
    """Families and the edits that change their answer."""
    return [(name, edit) for name in names for edit in edits if (name, edit) not in WITHOUT_EFFECT]


@cache
def sinks(name: str) -> dict[str, Any]:
    """Some dimension of every token is large, so that at this threshold exactly three tokens are sinks at layer 0."""
    family = case(name)
    first = family.lens.run(family.prompt, read=["resid_pre"]).reads["resid_pre", 0]
    phi = (first.abs() / first.square().mean(-1, keepdim=True).sqrt()).amax(-1)[0]
    threshold = float(phi.sort().values[-3]) - 1e-3
    return {"sink_dims": tuple(range(family.lens.shape.d_model)), "sink_threshold": threshold}


@cache
def clean(name: str) -> Any:
    """The same words with another picture."""
    family = case(name)
    other = {key: value for key, value in another(family.inputs, seed=5).items() if value.is_floating_point()}
    prompt = family.lens.prompt(inputs={**family.inputs, **other})
    return family.lens.run(prompt, read=[Read(site, family.layers_of(site)) for site in SITES])


@cache
def edit_of(name: str, edit: str) -> Intervention:
    """An edit that changes the family's answer; AblateTokens is refused where pictures enter again later."""
    family = case(name)
    heads = family.heads
    seen = {"min_nonsink_ratio": 0.0, "min_visual_mass": 0.0, "first_layer": 0, "skip_last_layer": False}
    words = "question" if family.lens.shape.reinjects else "image"
    own = [head for head in heads if head[0] in family.self_attending]
    return {
        "zero": lambda: AblateHeads(heads),
        "zero_after_image": lambda: AblateHeads(heads, rows="after_image"),
        "uniform": lambda: AblateHeads(heads, "uniform"),
        "uniform_noncausal": lambda: AblateHeads(own, "uniform_noncausal"),
        "mean": lambda: AblateHeads(heads, "mean", "question", head_means(family.lens, family.prompt)),
        "resample": lambda: AblateHeads(heads, "resample", reference=clean(name)),
        "var": lambda: VAR(**sinks(name), **seen),
        "var_control": lambda: VAR(**sinks(name), **seen, control=1),
        "knockout": lambda: Knockout("image", "after_image"),
        "knockout_all": lambda: Knockout("image", "question", heads=[0, 3]),
        "knockout_sinks": lambda: KnockoutSinks(**sinks(name)),
        "boost": lambda: BoostAttention(alpha=1.0),
        "tokens": lambda: AblateTokens(words),
        "patch_heads": lambda: PatchHeads(heads, clean(name)),
        "patch_residual": lambda: PatchResidual([2 if name == "mllama" else 1], clean(name), rows="all"),
        "patch_mlp": lambda: PatchResidual([2], clean(name), rows="last", site="mlp_out"),
        "patch_pattern": lambda: PatchPattern(heads, clean(name)),
        "back_patch": lambda: PatchResidual([1], clean(name), rows="all", source_layer=2),
        "scale": lambda: ScaleAttention("text", factor=2.0),
        "steer": lambda: Steer(way(name), [0, 1], "after_image"),
        "own_pattern": lambda: EditPattern(more_on_text()),
        "own_rows": lambda: Edit("z", lambda z, context: z * (1 + context.layer), "after_image", heads=heads),
    }[edit]()


def more_on_text() -> Any:
    def more(pattern: Any, keys: Any) -> Any:
        return torch.where(keys["text"], 2 * pattern, pattern)

    return more


@cache
def way(name: str) -> Direction:
    """A direction of any kind."""
    shape = case(name).lens.shape
    values = torch.randn(shape.n_layers, shape.d_model, generator=torch.Generator().manual_seed(0))
    return Direction(values, tuple(range(shape.n_layers)))


@cache
def native_generation(name: str, *edits: str) -> Any:
    family = case(name)
    return family.lens.generate(family.prompt, [edit_of(name, edit) for edit in edits], **generating())


def generating() -> dict[str, Any]:
    return {"max_new_tokens": NEW, "logits": True, "eos_token_id": []}


def same_generation(family: Case, lens: Lens, *edits: str, tolerance: float = TOLERANCE) -> None:
    """Step by step, on the family's own prompt, and the edits show."""
    expected = native_generation(family.name, *edits)
    given = lens.generate(family.prompt, [edit_of(family.name, edit) for edit in edits], **generating())
    assert torch.equal(given.tokens, expected.tokens)
    assert (given.logits - expected.logits).abs().max() < tolerance
    assert [report.edits for report in given.reports] == [report.edits for report in expected.reports]
    assert [report.n_edits > 0 for report in given.reports] == [True] * len(edits)
    for mine, theirs in zip(given.reports, expected.reports, strict=True):
        assert mine.moved == pytest.approx(theirs.moved, abs=1e-3)
    if edits:
        gap = (expected.logits - native_generation(family.name).logits).abs().max()
        assert gap > 10 * tolerance, "the edits have no effect to compare"


def same_runs(native: Any, given: Any, tolerance: float = TOLERANCE) -> None:
    """Logits at real rows, reads, positions, reports and sums of two runs of one prompt."""
    real = native.prompt.mask("all")
    if native.logits.shape[1] == real.shape[1]:
        assert (native.logits - given.logits)[real].abs().max() < tolerance
    else:
        assert (native.logits - given.logits).abs().max() < tolerance
    assert native.reads.keys() == given.reads.keys()
    for key, value in native.reads.items():
        torch.testing.assert_close(
            given.reads[key], value, atol=tolerance, rtol=tolerance, equal_nan=True, msg=str(key)
        )
    assert native.positions.keys() == given.positions.keys()
    assert all(torch.equal(given.positions[name], value) for name, value in native.positions.items())
    assert [report.edits for report in native.reports] == [report.edits for report in given.reports]
    assert native.sums.keys() == given.sums.keys()
    for key, value in native.sums.items():
        torch.testing.assert_close(given.sums[key], value, atol=tolerance, rtol=tolerance)
