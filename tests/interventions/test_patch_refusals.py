"""Patching refuses what would be put in the wrong place, or was never read."""

import pytest
import torch

from lmm_lens import PatchHeads, PatchPattern, PatchResidual, Read
from lmm_lens.errors import HookError, InterventionError
from tests.support.models import another
from tests.support.pairs import EVERYTHING, Pair


@pytest.fixture(scope="module")
def llava():
    return Pair("llava")


def refused(llava, edit) -> str:
    with pytest.raises((InterventionError, HookError)) as caught:
        llava.lens.run(llava.prompt, [edit])
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


def test_a_prompt_of_another_size_is_refused(llava):
    other = llava.lens.run(llava.lens.prompt(inputs=another(llava.case.inputs)), read=EVERYTHING)
    for edit in (PatchHeads([(0, 0)], other), PatchPattern([(0, 0)], other), PatchResidual([0], other)):
        assert "differ in size: 1 rows x 25 tokens and 1 x 27\n  patching needs a pair" in refused(llava, edit)


def test_an_image_elsewhere_is_refused(llava):
    ids = llava.case.inputs["input_ids"].roll(1, 1)
    other = llava.lens.run(llava.lens.prompt(inputs={**llava.case.inputs, "input_ids": ids}), read=["z"])
    assert "differ in where their image tokens are, in batch rows [0]" in refused(llava, PatchHeads([(0, 0)], other))


def test_other_padding_is_refused(llava):
    left, right = (llava.lens.prompt(inputs=llava.case.pair(side)[1]) for side in ("left", "right"))
    other = llava.lens.run(left, read=["z"])
    with pytest.raises(InterventionError, match="differ in where their pad tokens are, in batch rows"):
        llava.lens.run(right, [PatchHeads([(0, 0)], other)])


def test_a_run_that_did_not_read_is_refused(llava):
    bare = llava.lens.run(llava.prompt, read=[Read("z", [1])])
    text = "the clean run holds no z of layer 0: make it with lens.run(prompt, read=['z'])"
    assert refused(llava, PatchHeads([(0, 0)], bare)) == text
    assert "holds no resid_pre of layer 2" in refused(llava, PatchResidual([2], bare))
    assert "holds no pattern of layer 1" in refused(llava, PatchPattern([(1, 0)], bare))


@pytest.mark.parametrize(
    ("site", "edit"),
    [
        ("z", lambda run: PatchHeads([(0, 1)], run, "all")),
        ("resid_pre", lambda run: PatchResidual([0], run, "image")),
        ("pattern", lambda run: PatchPattern([(0, 1)], run, "all")),
    ],
)
def test_rows_that_were_not_read_are_not_taken_for_zeros(llava, site, edit):
    part = llava.lens.run(llava.clean.prompt, read=[Read(site, rows="last")])
    assert "rows" in refused(llava, edit(part)) or "position" in refused(llava, edit(part))


@pytest.mark.parametrize(("site", "kind"), [("z", PatchHeads), ("pattern", PatchPattern)])
def test_heads_that_were_not_read_are_not_taken_for_others(llava, site, kind):
    part = llava.lens.run(llava.clean.prompt, read=[Read(site, heads=[1, 3])])
    assert "head" in refused(llava, kind([(0, 0)], part, "all"))


def test_rows_that_were_read_are_enough_for_themselves(llava):
    part = llava.lens.run(llava.clean.prompt, read=[Read("resid_pre", rows="last")])
    whole = llava.lens.run(llava.prompt, [PatchResidual([1], llava.clean, "last")])
    assert torch.equal(llava.lens.run(llava.prompt, [PatchResidual([1], part, "last")]).logits, whole.logits)


@pytest.mark.parametrize("site", ["z", "pattern"])
def test_a_site_of_heads_is_no_residual_stream(llava, site):
    with pytest.raises(InterventionError, match=f"PatchResidual patches no {site}: use PatchHeads or PatchPattern"):
        PatchResidual([0], llava.clean, site=site)


def test_what_is_not_there_is_refused(llava):
    with pytest.raises(HookError, match="unknown hook point 'resid_mid', did you mean 'resid_pre'"):
        PatchResidual([0], llava.clean, site="resid_mid")
    with pytest.raises(InterventionError, match="PatchResidual was given no layers"):
        PatchResidual([], llava.clean)
    with pytest.raises(InterventionError, match="PatchPattern was given no heads"):
        PatchPattern([], llava.clean)
    assert "layer 3 is out of range" in refused(llava, PatchResidual([3], llava.clean))
    assert "touches nothing: rows 'video'" in refused(llava, PatchHeads([(0, 0)], llava.clean, "video"))
    assert "touches nothing" in refused(llava, PatchHeads([(0, 0)], llava.clean, "answer"))
