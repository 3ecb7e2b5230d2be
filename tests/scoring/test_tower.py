"""Heads of the vision tower, scored: against the pattern that torch's eager attention gives."""

import pytest
import torch

from lmm_lens import AblateHeads, HeadScores, score_heads
from lmm_lens.bundled import shapes
from lmm_lens.errors import ScoreError
from lmm_lens.scoring.tower import score_tower
from tests.support.families import lens_of, prompt_of


@pytest.fixture(scope="module")
def prompts(lens):
    return [lens.prompt(each.question, images=each.image) for each in shapes.examples(2, seed=3)]


def patterns(lens, prompt):
    run = lens.run(prompt, read=["vision.pattern", "vision.resid_pre"])
    layers = range(lens.vision.n_layers)
    return [(run.reads["vision.pattern", n][0], run.reads["vision.resid_pre", n][0]) for n in layers]


@pytest.mark.parametrize("metric", ["entropy", "class_mass", "sink_mass"])
def test_a_score_is_the_mean_over_patches(lens, prompts, metric):
    options = {} if metric != "sink_mass" else {"sink_norm": 8.0}
    scores = score_tower(lens, prompts, metric, **options)
    assert scores.per_prompt.shape == (2, 3, 4)
    for number, prompt in enumerate(prompts):
        for layer, (pattern, entering) in enumerate(patterns(lens, prompt)):
            patches = pattern[:, 1:].double()
            expected = {
                "entropy": -torch.xlogy(patches, patches).sum(-1),
                "class_mass": patches[..., 0],
                "sink_mass": patches[..., entering.norm(dim=-1) >= 8.0].sum(-1),
            }[metric].mean(-1)
            torch.testing.assert_close(scores.per_prompt[number, layer].double(), expected, atol=1e-6, rtol=0)
    assert float(scores.per_prompt.std()) > 0


def test_it_is_reached_through_score_heads_and_saved(lens, prompts, tmp_path):
    scores = score_heads(lens, prompts, "entropy", part="vision")
    assert (scores.unit, scores.query, scores.settings["part"]) == ("entropy in nats", "patches", "vision")
    heads = scores.top(2)
    assert (heads.n_layers, heads.n_heads, heads.part) == (3, 4, "vision")
    for edit in (AblateHeads(heads), AblateHeads(heads, part="vision")):
        assert lens.run(prompts[0], [edit]).reports[0].n_edits == 74
    scores.save(tmp_path / "scores.safetensors")
    back = HeadScores.load(tmp_path / "scores.safetensors", lens)
    assert torch.equal(back.per_prompt, scores.per_prompt)
    assert not back.higher_is_better


def test_several_tiles_count_together():
    scores = score_heads(lens_of("llava_next"), prompt_of("llava_next"), "class_mass", part="vision")
    first = lens_of("llava_next").run(prompt_of("llava_next"), read=["vision.pattern"]).reads["vision.pattern", 0]
    torch.testing.assert_close(scores.per_prompt[0, 0], first[:, :, 1:, 0].mean((0, 2)), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        ("visual_mass", {}, "unknown metric of the vision tower 'visual_mass'"),
        ("register_mass", {}, "this vision tower has no register tokens"),
        ("entropy", {"query": "answer"}, "scored without query"),
        ("entropy", {"boxes": [(0, 0, 8, 8)]}, "scored without boxes"),
        ("entropy", {"sink_threshold": 20.0}, "scored without sink_threshold"),
        (lambda pattern, keys: pattern, {}, "scored without a metric of your own"),
    ],
)
def test_what_does_not_go_together_is_refused(lens, prompts, metric, options, message):
    with pytest.raises(ScoreError, match=message):
        score_heads(lens, prompts[0], metric, part="vision", **options)


def test_batches_and_unknown_places_are_refused(lens):
    examples = shapes.examples(2, seed=3)
    batch = lens.prompt([each.question for each in examples], images=[each.image for each in examples])
    with pytest.raises(ScoreError, match="prompt 0 has 2 rows: give prompts of one row each"):
        score_heads(lens, batch, "entropy", part="vision")
    with pytest.raises(ScoreError, match="not known which tokens of this vision tower are patches"):
        score_heads(lens_of("mllama"), prompt_of("mllama"), "entropy", part="vision")
