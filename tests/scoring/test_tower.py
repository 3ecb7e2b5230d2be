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
    options = {} if metric != "sink_mass" else {"sink_norm": 20.0}
    scores = score_tower(lens, prompts, metric, **options)
    assert scores.per_prompt.shape == (2, 3, 4)
    for number, prompt in enumerate(prompts):
        for layer, (pattern, entering) in enumerate(patterns(lens, prompt)):
            patches = pattern[:, 1:].double()
            expected = {
                "entropy": -torch.xlogy(patches, patches).sum(-1),
                "class_mass": patches[..., 0],
                "sink_mass": patches[..., entering.norm(dim=-1) >= 20.0].sum(-1),
            }[metric].mean(-1)
            torch.testing.assert_close(scores.per_prompt[number, layer].double(), expected, atol=1e-6, rtol=0)
    assert float(scores.per_prompt.std()) > 0


def middles(lens, prompt):
    """Of the visual tokens, in the order of their positions."""
    boxes = [prompt.box(int(at)) for at in prompt.mask("visual")[0].nonzero()]
    return torch.tensor([((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) for box in boxes]).double()


def test_distances_are_those_of_the_patches_boxes(lens, prompts):
    scores = score_heads(lens, prompts, "distance", part="vision")
    assert scores.unit == "diagonals of the picture"
    for number, prompt in enumerate(prompts):
        at = middles(lens, prompt)
        far = torch.cdist(at, at) / (48**2 + 48**2) ** 0.5
        for layer, (pattern, _) in enumerate(patterns(lens, prompt)):
            patches = pattern[:, 1:, 1:].double()
            expected = ((patches * far).sum(-1) / patches.sum(-1)).mean(-1)
            torch.testing.assert_close(scores.per_prompt[number, layer].double(), expected, atol=1e-5, rtol=0)


def test_heads_that_look_at_themselves_or_everywhere_are_told_apart(lens, prompts):
    """Even attention over a square grid: the mean distance of two of its patches, by hand."""
    even = AblateHeads([(0, 1)], "uniform", part="vision")
    scores = score_heads(lens, prompts[0], "distance", part="vision", interventions=[even])
    at = middles(lens, prompts[0])
    mean = torch.cdist(at, at).mean() / (48**2 + 48**2) ** 0.5
    assert float(scores.values[0, 1]) == pytest.approx(float(mean), abs=1e-5)


def test_the_mass_under_boxes_is_that_of_their_patches(lens, prompts):
    boxes = [(0, 0, 16, 8), [(8, 8, 9, 9), (40, 40, 48, 48)]]
    scores = score_heads(lens, prompts, "region_mass", boxes=boxes, part="vision")
    under = [[0, 1], [7, 35]]  # patches of 8 pixels, six in a row, counted from the upper left
    for number, prompt in enumerate(prompts):
        for layer, (pattern, _) in enumerate(patterns(lens, prompt)):
            expected = pattern[:, 1:, [1 + patch for patch in under[number]]].double().sum(-1).mean(-1)
            torch.testing.assert_close(scores.per_prompt[number, layer].double(), expected, atol=1e-6, rtol=0)


def test_merged_and_packed_patches_lie_with_their_token():
    """Blocks of four patches in Qwen's order; attention between pictures is none, so their distance is none."""
    lens, image = lens_of("qwen2_vl"), prompt_of("qwen2_vl").images[0][0]
    prompt = lens.prompt("Compare.", images=[image, image])
    at = middles(lens, prompt)
    n = len(at) // 2
    at = at[:n].repeat_interleave(4, 0)
    far = torch.cdist(at, at) / (image.width**2 + image.height**2) ** 0.5
    pattern = lens.run(prompt, read=["vision.pattern"]).reads["vision.pattern", 1][0].double()
    own = [pattern[:, part, part] for part in (slice(0, 4 * n), slice(4 * n, 8 * n))]
    expected = torch.stack([(each * far).sum(-1) for each in own]).mean((0, 2))
    scores = score_heads(lens, prompt, "distance", part="vision")
    torch.testing.assert_close(scores.values[1].double(), expected, atol=1e-5, rtol=0)


def test_places_that_are_not_known_are_refused():
    with pytest.raises(ScoreError, match=r"not known where the patches of Blip2\w+ lie in its pictures"):
        score_heads(lens_of("blip-2"), prompt_of("blip-2"), "distance", part="vision")


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
        ("entropy", {"boxes": [(0, 0, 8, 8)]}, "region_mass takes boxes, and no other metric of the vision tower does"),
        ("region_mass", {}, "region_mass takes boxes, and no other"),
        ("region_mass", {"boxes": [(0, 0, 8, 8)] * 2}, "2 boxes were given for 1 prompts"),
        ("region_mass", {"boxes": [(90, 90, 99, 99)]}, "covers no patch"),
        ("distance", {"relevant": [[3]]}, "scored without relevant"),
        ("entropy", {"sink_threshold": 20.0}, "scored without sink_threshold"),
        ("entropy", {"sink_norm": 8.0}, "sink_mass takes sink_norm, and no other metric of the vision tower"),
        (lambda pattern, keys: pattern, {}, "scored without a metric of your own"),
    ],
)
def test_what_does_not_go_together_is_refused(lens, prompts, metric, options, message):
    with pytest.raises(ScoreError, match=message):
        score_heads(lens, prompts[0], metric, part="vision", **options)


def test_the_norm_of_sinks_is_given_and_written_down(lens, prompts, tmp_path):
    scores = score_heads(lens, prompts, "sink_mass", part="vision", sink_norm=8.0)
    assert torch.equal(scores.per_prompt, score_tower(lens, prompts, "sink_mass", sink_norm=8.0).per_prompt)
    scores.save(tmp_path / "scores.safetensors")
    assert HeadScores.load(tmp_path / "scores.safetensors", lens).settings["sink_norm"] == 8.0
    assert score_heads(lens, prompts, "sink_mass", part="vision").settings["sink_norm"] == 100.0
    with pytest.raises(ScoreError, match='sink_norm is of tokens of the vision tower: give part="vision" with it'):
        score_heads(lens, prompts, sink_norm=8.0)


def test_batches_and_unknown_places_are_refused(lens):
    examples = shapes.examples(2, seed=3)
    batch = lens.prompt([each.question for each in examples], images=[each.image for each in examples])
    with pytest.raises(ScoreError, match="prompt 0 has 2 rows: give prompts of one row each"):
        score_heads(lens, batch, "entropy", part="vision")
    with pytest.raises(ScoreError, match="not known which tokens of this vision tower are patches"):
        score_heads(lens_of("mllama"), prompt_of("mllama"), "entropy", part="vision")
