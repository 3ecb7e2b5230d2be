"""A model whose layers lie on several devices, or away between calls, answers inside nnsight as in one place."""

from dataclasses import replace

import pytest
import torch

from lmm_lens import VAR, AblateHeads, Knockout, Lens, score_heads
from lmm_lens.bundled import shapes
from lmm_lens.errors import ModelError
from tests.support.placements import PLACEMENTS, load, same


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shapes-llava")
    model, processor = shapes.load()
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


WHOLLY_AWAY = [name for name in PLACEMENTS if name.endswith("offload")]


@pytest.mark.parametrize("placement", WHOLLY_AWAY)
def test_a_wholly_offloaded_model_is_refused(placement, folder, tmp_path):
    with pytest.raises(ModelError, match=r"first weights are.*offloaded[\s\S]*use backend='native'"):
        Lens(PLACEMENTS[placement](folder, tmp_path), backend="nnsight")


@pytest.mark.parametrize("placement", [name for name in PLACEMENTS if name not in WHOLLY_AWAY])
def test_runs_edits_scores_and_generation_are_those_of_the_model_in_one_place(placement, folder, tmp_path):
    processor = shapes.load()[1]
    dispatched = PLACEMENTS[placement](folder, tmp_path)
    whole, given = Lens(load(folder), processor), Lens(dispatched, processor, backend="nnsight")
    asked = shapes.examples(2, ["color"])
    prompts = [lens.prompt([e.question for e in asked], images=[e.image for e in asked]) for lens in (whole, given)]
    assert given.identity == whole.identity
    var = replace(VAR.for_task("general", whole), min_nonsink_ratio=0.0, min_visual_mass=0.0)
    for edits in ([], [AblateHeads([(1, 0), (4, 7)])], [Knockout("image", "last")], [var]):
        expected = whole.run(prompts[0], edits, read=["z", "resid_pre"])
        found = given.run(prompts[1], edits, read=["z", "resid_pre"])
        same(found.logits, expected.logits, placement)
        assert all(report.n_edits for report in expected.reports)
        for site, value in expected.reads.items():
            same(found.reads[site], value, placement)
    expected, found = (
        lens.generate(prompt, [var], max_new_tokens=3, logits=True)
        for lens, prompt in zip((whole, given), prompts, strict=True)
    )
    assert torch.equal(found.tokens.cpu(), expected.tokens)
    same(score_heads(given, prompts[1]).values, score_heads(whole, prompts[0]).values, placement)
    with given.trace(prompts[1]):
        pattern = given.read(3, "pattern").save()
    same(pattern, whole.run(prompts[0], read=["pattern"]).reads["pattern", 3], placement)
    assert not hasattr(dispatched, "_nnsight")
