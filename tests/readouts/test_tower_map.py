"""Maps of the vision tower's heads: against torch's own eager attention, put where the patches lie."""

import pytest
import torch

from lmm_lens import AblateHeads, AttentionMap, HeadSet, attention_map, find_sinks, score_heads, shapes
from lmm_lens.errors import HookError, PromptError
from tests.support.eager_tower import eager_tower
from tests.support.families import lens_of, prompt_of


@pytest.fixture(scope="module")
def prompt(lens):
    example = shapes.examples(1, ["color"], seed=0)[0]
    return lens.prompt(example.question, images=example.image)


@pytest.fixture(scope="module")
def eager(prompt):
    return eager_tower(prompt)


PATCHES = slice(2, 38)  # in the prompt; in the tower they stand behind a class token


def test_a_map_is_the_towers_own_attention(lens, prompt, eager):
    heads = [(0, 1), (2, 3), (1, 0)]
    expected = {
        "class": [eager[layer][head, 0, 1:] for layer, head in heads],
        "image": [eager[layer][head, 1:, 1:].mean(0) for layer, head in heads],
        "all": [eager[layer][head, :, 1:].mean(0) for layer, head in heads],
    }
    for rows, weights in expected.items():
        found = attention_map(lens, prompt, rows=rows, heads=heads, reduce=None, part="vision")
        assert found.queries == (rows,)
        assert found.panels == ("L0H1", "L2H3", "L1H0")
        torch.testing.assert_close(found.weights[0][:, PATCHES], torch.stack(weights), atol=1e-5, rtol=0)
        assert float(found.weights.sum()) == pytest.approx(float(torch.stack(weights).sum()), abs=1e-4)
    mean = attention_map(lens, prompt, heads=heads, part="vision")
    torch.testing.assert_close(mean.weights[0, 0, PATCHES], torch.stack(expected["image"]).mean(0), atol=1e-5, rtol=0)


def test_queries_are_the_patches_of_visual_tokens(lens, prompt, eager):
    position = prompt.patch_at(20, 28)
    found = attention_map(lens, prompt, rows=[position], heads=1, reduce="max", part="vision")
    expected = eager[1][:, position - 1, 1:].amax(0)  # behind one class token, where two tokens are before the picture
    torch.testing.assert_close(found.weights[0, 0, PATCHES], expected, atol=1e-5, rtol=0)
    assert found.queries == (f"patches of token {position}",)
    two = attention_map(lens, prompt, rows=[2, 3], heads=[(1, 2)], part="vision")
    torch.testing.assert_close(two.weights[0, 0, PATCHES], eager[1][2, 1:3, 1:].mean(0), atol=1e-5, rtol=0)
    assert two.queries == ("patches of 2 visual tokens",)


def test_a_set_of_the_tower_says_so_itself(lens, prompt, tmp_path):
    heads = score_heads(lens, prompt, "entropy", part="vision").top(3)
    found = attention_map(lens, prompt, heads=heads, reduce=None)
    assert found.heads == heads
    assert "AttentionMap by 3 heads of the vision tower\n  'image': " in repr(found)
    found.save(tmp_path / "map.safetensors")
    back = AttentionMap.load(tmp_path / "map.safetensors", lens)
    assert back.heads == heads
    assert torch.equal(back.weights, found.weights)
    assert len(found.plot().axes) >= 3


def test_merged_patches_add_up_in_their_token():
    """Qwen's patches stand in blocks of four, a visual token each; pictures are packed into one sequence."""
    lens, image = lens_of("qwen2_vl"), prompt_of("qwen2_vl").images[0][0]
    prompt = lens.prompt("Compare.", images=[image, image.rotate(180)])
    visual = prompt.mask("visual")[0].nonzero().flatten().tolist()
    pattern = lens.run(prompt, read=["vision.pattern"]).reads["vision.pattern", 1][0, 1]
    found = attention_map(lens, prompt, rows=[visual[1]], heads=[(1, 1)], part="vision")
    expected = pattern[4:8].mean(0).unflatten(0, (-1, 4)).sum(-1)
    torch.testing.assert_close(found.weights[0, 0, visual], expected, atol=1e-6, rtol=0)
    second = [position for position in found.canvases[1].positions]
    assert float(found.weights[0, 0, second].abs().max()) == 0
    assert float(found.on_pictures) == pytest.approx(1, abs=1e-5)


def test_crops_share_the_mean_over_queries():
    lens, prompt = lens_of("internvl"), prompt_of("internvl")
    run = lens.run(prompt, read=["vision.pattern"])
    pattern = run.reads["vision.pattern", 0]  # tile, head, query, key
    found = attention_map(lens, prompt, rows="class", heads=[(0, 1)], part="vision")
    assert float(found.weights.sum()) == pytest.approx(float(pattern[:, 1, 0, 1:].sum() / len(pattern)), abs=1e-5)


def test_it_is_read_under_edits_and_on_every_backend(lens, prompt):
    even = AblateHeads([(1, 2)], "uniform", part="vision")
    found = attention_map(lens, prompt, heads=[(1, 2)], part="vision", interventions=[even])
    torch.testing.assert_close(found.weights[0, 0, PATCHES], torch.full((36,), 1 / 37), atol=1e-6, rtol=0)
    expected = attention_map(lens_of("llava"), prompt_of("llava"), rows="class", heads=0, part="vision").weights
    for backend in ("transformer_lens", "nnsight"):
        given = attention_map(lens_of("llava", backend), prompt_of("llava"), rows="class", heads=0, part="vision")
        torch.testing.assert_close(given.weights, expected, atol=1e-5, rtol=0)


def norms_entering(lens, prompt):
    """Of each layer and token, by torch's own hooks on the layers."""
    found, layers = [], lens.model.model.vision_tower.encoder.layers
    hooks = [
        layer.register_forward_pre_hook(lambda module, args: found.append(args[0][0].norm(dim=-1))) for layer in layers
    ]
    lens.run(prompt)
    for hook in hooks:
        hook.remove()
    return torch.stack(found)


def test_sinks_are_left_out_where_they_are_when_a_layer_reads(lens, prompt, eager):
    norms = norms_entering(lens, prompt)
    norm = float(norms[1:].median())
    sinks = norms >= norm
    assert all(0 < int(row.sum()) < 37 for row in sinks[1:])
    heads = [(0, 1), (1, 2), (2, 3)]
    found = attention_map(
        lens, prompt, rows="all", heads=heads, reduce=None, part="vision", drop_sinks=True, sink_norm=norm
    )
    for panel, (layer, head) in enumerate(heads):
        mean = eager[layer][head].mean(0)
        assert float(found.on_sinks[0, panel]) == pytest.approx(float(mean[sinks[layer]].sum()), abs=1e-5)
        left = mean.masked_fill(sinks[layer], 0)[1:]
        torch.testing.assert_close(found.weights[0, panel, PATCHES], left, atol=1e-5, rtol=0)
    assert "on sinks left out" in repr(found)
    reported = find_sinks(lens, prompt, part="vision", norm=norm)  # of what leaves a layer, and enters the next
    assert reported.positions(0) == tuple(sinks[1].nonzero().flatten().tolist())
    assert reported.positions(1) == tuple(sinks[2].nonzero().flatten().tolist())
    whole = attention_map(lens, prompt, heads=heads, part="vision", drop_sinks=True)  # CLIP's norm, which none reaches
    plain = attention_map(lens, prompt, heads=heads, part="vision")
    assert torch.equal(whole.weights, plain.weights)
    assert float(whole.on_sinks.abs().max()) == 0


@pytest.mark.parametrize("backend", ["native", "transformer_lens", "nnsight"])
def test_sinks_of_packed_pictures_are_left_out_on_every_backend(backend):
    lens, prompt = lens_of("qwen2_vl", backend), prompt_of("qwen2_vl")
    run = lens.run(prompt, read=["vision.pattern", "vision.resid_pre"])
    norms = run.reads["vision.resid_pre", 1][0].norm(dim=-1)
    norm = float(norms.median())
    pattern = run.reads["vision.pattern", 1][0, 1].mean(0)
    sinks = norms >= norm
    found = attention_map(lens, prompt, heads=[(1, 1)], part="vision", drop_sinks=True, sink_norm=norm)
    assert float(found.on_sinks) == pytest.approx(float(pattern[sinks].sum()), abs=1e-5)
    visual = prompt.mask("visual")[0]
    expected = pattern.masked_fill(sinks, 0).unflatten(0, (-1, 4)).sum(-1)
    torch.testing.assert_close(found.weights[0, 0, visual], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": "color"}, "a map of the vision tower is made without words"),
        ({"generated": 2}, "a map of the vision tower is made without generated"),
        ({"drop_sinks": True, "sink_dims": (3,)}, "a map of the vision tower is made without sink_dims"),
        ({"drop_sinks": True, "sink_threshold": 20.0}, "a map of the vision tower is made without sink_threshold"),
        ({"drop_sinks": True, "sink_norm": 0}, "sink_norm is the norm from which on .*, above 0, given 0"),
        ({"sink_norm": 8.0}, "sink_norm says which sinks to leave out: give drop_sinks=True with it"),
        ({"drop_sinks": True, "sink_norm": 8.0, "part": "decoder"}, 'sink_norm is .* give part="vision" with it'),
        ({"rows": "register"}, "this vision tower has no register tokens"),
        ({"rows": "last"}, "unknown row scope of the vision tower 'last'"),
        ({"rows": [0, 2]}, r"positions \[0, 2\] are not all visual tokens, which alone are made of patches"),
        ({"heads": HeadSet([(0, 1)], 6, 8)}, "an attention map of the tower takes heads of the vision tower, given"),
        ({"heads": [(3, 0)]}, "layer 3 is out of range"),
        ({"part": "tower"}, "unknown part of the model 'tower'"),
    ],
)
def test_what_does_not_go_together_is_refused(lens, prompt, options, message):
    with pytest.raises(HookError, match=message):
        attention_map(lens, prompt, **{"part": "vision", **options})


def test_what_lies_nowhere_is_refused(lens):
    example = shapes.examples(1, seed=3)[0]
    batch = lens.prompt([example.question] * 2, images=[example.image] * 2)
    with pytest.raises(PromptError, match="of one prompt, given a batch of 2 rows"):
        attention_map(lens, batch, part="vision")
    with pytest.raises(PromptError, match="layout of these visual tokens is not known"):
        attention_map(lens_of("blip-2"), prompt_of("blip-2"), part="vision")
