"""Every intervention acts on a service as it does natively, in a run and at every step of a generation."""

from typing import Any

import pytest
import torch

from lmm_lens import (
    VAR,
    AblateHeads,
    AblateTokens,
    BoostAttention,
    Edit,
    EditPattern,
    HeadSet,
    Intervention,
    Knockout,
    KnockoutSinks,
    Lens,
    PatchHeads,
    PatchPattern,
    PatchResidual,
    ScaleAttention,
    Steer,
    direction,
    find_sinks,
    head_means,
)
from lmm_lens.errors import InterventionError, RemoteError
from tests.backends.remote.clients import same, same_generation, same_run
from tests.backends.remote.service import Service

HEADS = HeadSet([(1, 2), (1, 6), (3, 4)], n_layers=6, n_heads=8)
AUTO = {"sink_dims": "auto", "sink_threshold": "auto"}
NAMES = [
    "zero",
    "uniform",
    "uniform_noncausal",
    "mean",
    "resample",
    "patch_heads",
    "patch_residual",
    "patch_pattern",
    "back_patch",
    "scale",
    "steer",
    "steer_turning",
    "own_pattern",
    "own_rows",
    "knockout",
    "knockout_sinks",
    "knockout_control",
    "tokens",
    "tokens_zero",
    "var",
    "var_control",
    "var_auto",
]


@pytest.fixture(scope="module")
def edits(native: Lens, pair: Any) -> dict[str, Intervention]:
    """Interventions for the corrupt prompts, which take what they need from native runs of the clean ones."""
    clean, corrupt = pair
    run = native.run(clean, read=["z", "resid_pre", "mlp_out", "pattern"])
    sinks = find_sinks(native, clean)
    rule = {"sink_dims": sinks.dims, "sink_threshold": sinks.threshold}
    return {
        "zero": AblateHeads(HEADS, rows="after_image"),
        "uniform": AblateHeads(HEADS, "uniform"),
        "uniform_noncausal": AblateHeads(HEADS, "uniform_noncausal"),
        "mean": AblateHeads(HEADS, "mean", "question", head_means(native, clean)),
        "resample": AblateHeads(HEADS, "resample", reference=run),
        "patch_heads": PatchHeads(HEADS, run, rows="last"),
        "patch_residual": PatchResidual([2], run),
        "patch_pattern": PatchPattern(HEADS, run),
        "back_patch": PatchResidual([1], run, source_layer=3),
        "scale": ScaleAttention(factor=2.0, layers=range(1, 4)),
        "steer": Steer(direction(native, clean, corrupt, "last"), [2], "after_image"),
        "steer_turning": Steer(direction(native, clean, corrupt), [1, 2], "image", 0.5, keep_norm=True),
        "own_pattern": EditPattern(lambda pattern, keys: torch.where(keys["image"], 2 * pattern, pattern)),
        "own_rows": Edit("mlp_out", lambda x, context: x * (context.layer / 2), "last", layers=[1, 2]),
        "knockout": Knockout("image", "after_image", range(1, 4), heads=[0, 4]),
        "knockout_sinks": KnockoutSinks(sinks.dims, sinks.threshold),
        "knockout_control": KnockoutSinks(sinks.dims, sinks.threshold, control=3),
        "tokens": AblateTokens(corrupt.positions_in_box((0, 0, 20, 20))),
        "tokens_zero": AblateTokens("image", mode="zero"),
        "var": VAR(**rule, min_nonsink_ratio=0.1),
        "var_control": VAR(**rule, min_nonsink_ratio=0.1, control=1),
        "var_auto": VAR(**AUTO, min_nonsink_ratio=0.1),
    }


@pytest.mark.parametrize("name", NAMES)
def test_an_intervention_in_a_run_and_in_a_generation(
    served: Lens, native: Lens, pair: Any, edits: dict[str, Intervention], name: str
) -> None:
    corrupt, edit = pair[1], edits[name]
    plain = native.run(corrupt, logits="last")
    given, expected = (lens.run(corrupt, [edit], logits="last", read=["resid_post"]) for lens in (served, native))
    assert (expected.logits - plain.logits).abs().max() > 1e-3, "the edit has no effect to compare"
    same_run(given, expected)
    given, expected = (lens.generate(corrupt, [edit], max_new_tokens=3, logits=True) for lens in (served, native))
    same_generation(given, expected)


def test_the_list_of_edits_is_whole(edits: dict[str, Intervention]) -> None:
    """All that the package offers, but BoostAttention, which is refused."""
    own = {kind for kind in Intervention.kinds.values() if kind.__module__.startswith("lmm_lens.")}
    assert {type(edit) for edit in edits.values()} == own - {BoostAttention}
    assert list(edits) == NAMES


def test_auto_is_found_out_on_the_service(served: Lens, native: Lens, pair: Any, service: Service) -> None:
    n_before = len(service.log())
    run = served.run(pair[1], [VAR(**AUTO)])
    assert len(service.log()) == n_before + 3  # two passes of find_sinks
    assert f"dims={list(find_sinks(native, pair[1]).dims)}" in run.reports[0].intervention


def test_several_interventions_and_a_padded_batch(served: Lens, native: Lens, batch: Any) -> None:
    edits = [AblateHeads(HEADS), Knockout("image", "last", [2, 3]), VAR(**AUTO, min_nonsink_ratio=0.1)]
    for order in (edits, edits[::-1]):
        same_run(served.run(batch, order, read=["pattern"]), native.run(batch, order, read=["pattern"]))


def test_means_are_summed_up_on_the_service(served: Lens, native: Lens, pair: Any) -> None:
    given, expected = (head_means(lens, pair) for lens in (served, native))
    assert torch.equal(given.counts, expected.counts)
    same(given.values, expected.values)


def test_apply(served: Lens, native: Lens, pair: Any) -> None:
    edit = AblateHeads(HEADS)
    with served.apply(edit):
        given, generated = served.run(pair[0]), served.generate(pair[0], max_new_tokens=2, logits=True)
        with served.trace(pair[0]):
            z = served.read(1, "z").save()
    same_run(given, native.run(pair[0], [edit]))
    same_generation(generated, native.generate(pair[0], [edit], max_new_tokens=2, logits=True))
    assert z[:, :, 2].abs().max() == 0
    same_run(served.run(pair[0]), native.run(pair[0]))


def test_an_apply_in_which_nothing_runs_is_refused(served: Lens) -> None:
    text = r"did not run inside(.|\n)*call lens.run, lens.generate or lens.trace"
    with pytest.raises(InterventionError, match=text), served.apply(AblateHeads(HEADS)):
        pass


@pytest.mark.parametrize("where", ["url", "local"])
def test_what_needs_scores_before_the_softmax_is_refused(served: Lens, pair: Any, service: Service, where: str) -> None:
    remote = service.url if where == "url" else "local"
    message, n_before = r"scores before the softmax(.|\n)*BoostAttention(.|\n)*remote=False", len(service.log())
    for call in (served.run, served.generate):
        with pytest.raises(InterventionError, match=message):
            call(pair[0], [BoostAttention()], remote=remote)
    assert len(service.log()) == n_before, "nothing is sent"


def test_gradients_are_refused(served: Lens, pair: Any, service: Service) -> None:
    from lmm_lens import attribution_patching

    n_before = len(service.log())
    with pytest.raises(RemoteError, match="gradients do not travel: this needs a lens with remote=False"):
        served.run(pair[0], grad=True)
    assert len(service.log()) == n_before
    with pytest.raises(RemoteError, match="gradients do not travel"):
        attribution_patching(served, *pair)
