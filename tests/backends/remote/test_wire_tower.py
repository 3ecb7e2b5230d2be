"""Runs and generations that read and edit the vision tower, over a real socket: the native answer, or a refusal."""

from typing import Any

import pytest
import torch

from lmm_lens import AblateHeads, Knockout, Lens, PatchHeads, PatchResidual, Read, score_heads
from lmm_lens.bundled import shapes
from lmm_lens.errors import HookError, LensError, RemoteError
from tests.backends.remote.clients import same, same_generation, same_run
from tests.backends.remote.service import Service

SITES = ("resid_pre", "pattern", "z", "attn_out", "mlp_out", "resid_post")
READS = [f"vision.{site}" for site in SITES]
EDITS = [AblateHeads([(0, 1), (2, 3)], part="vision"), AblateHeads([(1, 4)], rows="after_image")]


def test_a_run_reads_and_edits_it(served: Lens, native: Lens, batch: Any, service: Service) -> None:
    for edits in ([], EDITS):
        given, expected = (lens.run(batch, edits, [*READS, "z"]) for lens in (served, native))
        same_run(given, expected)
        assert (given.tower.n_rows, given.tower.n_tokens) == (3, 37)
    n_before = len(service.log())
    served.run(batch, EDITS, READS)
    assert len(service.log()) == n_before + 1  # pictures of this size were looked at before


def test_rows_and_reductions_of_it(served: Lens, native: Lens, batch: Any) -> None:
    read = [
        Read("vision.z", [2], heads=[3, 0], rows="image", name="patches"),
        Read("vision.resid_post", [0], rows="class"),
        Read("vision.resid_post", [1], reduce=lambda x, context: x.norm(dim=-1), name="norm"),
    ]
    same_run(*(lens.run(batch, EDITS, read) for lens in (served, native)))


def test_another_picture_is_put_in(served: Lens, native: Lens, pair: Any) -> None:
    clean = served.run(pair[1], read=["vision.resid_post", "vision.z"])
    patches = [
        PatchResidual([1], clean, rows="image", site="resid_post", part="vision"),
        PatchHeads([(0, 2), (2, 1)], clean, part="vision"),
    ]
    for patch in patches:
        same_run(*(lens.run(pair[0], [patch], ["vision.resid_post"]) for lens in (served, native)))
    whole = PatchResidual([2], clean, rows="all", site="resid_post", part="vision")
    same(served.run(pair[0], [whole]).logits, clean.logits)


def test_a_generation_is_edited_at_its_prefill(served: Lens, native: Lens, batch: Any) -> None:
    options = {"max_new_tokens": 4, "eos_token_id": [], "logits": True}
    given, expected = (lens.generate(batch, EDITS, ["vision.z", "z"], **options) for lens in (served, native))
    same_generation(given, expected)
    for at, value in expected.reads.items():
        same(given.reads[at], value)
    assert [report.edits for report in given.reports] == [report.edits for report in expected.reports]


def test_an_apply_block_holds_for_runs_in_it(served: Lens, native: Lens, batch: Any) -> None:
    real, expected = batch.mask("all"), native.run(batch, EDITS)
    with served.apply(*EDITS):
        same_run(served.run(batch), expected)
        with served.nothing_applied():
            same_run(served.run(batch), native.run(batch))
        with served.trace(batch):
            logits = served.envoy.output.logits.save()
    same(logits[real], expected.logits[real])


def test_interventions_in_a_trace(served: Lens, native: Lens, batch: Any) -> None:
    real, expected = batch.mask("all"), native.run(batch, EDITS, ["vision.z", "z"])
    with served.trace(batch, interventions=EDITS):
        z = served.read(2, "vision.z").save()
        decoder = served.read(3, "z").save()
        logits = served.envoy.output.logits.save()
    same(z, expected.reads["vision.z", 2])
    same(decoder[real], expected.reads["z", 3][real.sort(dim=1, descending=True, stable=True).values])
    same(logits[real], expected.logits[real])


def test_patterns_are_read_and_edited(served: Lens, native: Lens, batch: Any) -> None:
    edits = [
        AblateHeads([(0, 1), (2, 2)], "uniform", part="vision"),
        Knockout([1, 2], [0, 3], [1], part="vision"),
        AblateHeads([(1, 0)], part="vision"),
    ]
    read = ["vision.pattern", Read("vision.pattern", [1], heads=[2, 0], rows="class", name="class")]
    same_run(*(lens.run(batch, edits, read) for lens in (served, native)))
    given, expected = (lens.generate(batch, edits, read, max_new_tokens=3, logits=True) for lens in (served, native))
    same_generation(given, expected)
    with served.trace(batch, interventions=edits):
        pattern = served.read(1, "vision.pattern").save()
    same(pattern, expected.reads["vision.pattern", 1])


def test_what_the_tower_does_not_have_is_refused_before_anything_is_sent(
    served: Lens, batch: Any, service: Service
) -> None:
    served.run(batch, read=["vision.z"])
    n_before = len(service.log())
    for edits, read, message in (
        ([AblateHeads([(0, 9)], part="vision")], [], "head 9"),
        ([], [Read("vision.z", layers=[7])], "layer 7"),
        ([], [Read("vision.z", rows="after_image")], "unknown row scope of the vision tower"),
    ):
        with pytest.raises(LensError, match=message):
            served.run(batch, edits, read)
    assert len(service.log()) == n_before


def test_a_prompt_without_pictures_is_refused(served: Lens) -> None:
    with pytest.raises(HookError, match="the vision tower of LlavaForConditionalGeneration did not run"):
        served.run(served.prompt("What is this?"), read=["vision.z"])


def test_nan_in_the_tower_is_refused_as_it_is_here(served: Lens, native: Lens, pair: Any) -> None:
    clean = native.run(pair[1], read=["vision.resid_post"])
    clean.reads["vision.resid_post", 1] = torch.full_like(clean.reads["vision.resid_post", 1], float("nan"))
    patch = PatchResidual([1], clean, rows="all", site="resid_post", part="vision")
    for lens in (served, native):
        with pytest.raises(
            LensError, match=r"in the vision tower's activations, first at vision.resid_post of its lay"
        ):
            lens.run(pair[0], [patch])


def test_runs_of_one_job_leave_it_alone(served: Lens, batch: Any) -> None:
    from lmm_lens.lens.plan import PlannedRun

    with pytest.raises(LensError, match="runs of one job neither read nor edit the vision tower"):
        list(served.run_all([PlannedRun(batch, EDITS)]))


@pytest.mark.parametrize("shape", [[], [3], [0, 4, 8], [2, 3, 4, 5], [10**6, 10**6, 8], ["a", 2], (1, 37, 96), None])
def test_a_shape_that_cannot_be_is_no_answer(shape: Any) -> None:
    from lmm_lens.backends.nnsight.answers import check_shape

    with pytest.raises(RemoteError, match="expected the shape of what enters the vision tower, given"):
        check_shape(shape, 10**8)
    assert check_shape([1, 37, 96], 10**8) == (1, 37, 96)


@pytest.mark.parametrize("metric", ["entropy", "class_mass", "sink_mass"])
def test_heads_are_scored_as_here(served: Lens, native: Lens, metric: str) -> None:
    example = shapes.examples(1, seed=3)[0]
    prompt = native.prompt(example.question, images=example.image)
    given, expected = (score_heads(lens, prompt, metric, part="vision") for lens in (served, native))
    same(given.values, expected.values)
