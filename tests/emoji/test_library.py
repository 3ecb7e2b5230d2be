"""The library on a real language model: 30 layers, 9 heads on 3 key-value heads, a sink that nobody planted."""

import random

import pytest
import torch

from lmm_lens import AblateHeads, HeadSet, Lens, Read, find_sinks, head_effects, score_heads
from lmm_lens.bundled import emoji
from lmm_lens.warnings import LensWarning

HEADS = [(22, 4), (23, 1), (29, 7)]


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_every_backend_gives_the_same_logits_and_the_same_edit(lens, prompt, backend):
    other = Lens.demo("emoji", backend)
    edit = AblateHeads(HEADS)
    for interventions in ([], [edit]):
        expected = lens.run(prompt, interventions, logits="last").logits
        given = other.run(prompt, interventions, logits="last").logits
        torch.testing.assert_close(given, expected, atol=2e-3, rtol=1e-3)
    assert (lens.run(prompt, [edit], logits="last").logits - lens.run(prompt, logits="last").logits).abs().max() > 0.1


def test_the_sink_that_nobody_planted_is_found(lens, prompt):
    """Dimension 507 at the first token in layers 12 to 28, whose entry in the residual stream is 25,000."""
    report = find_sinks(lens, prompt)
    assert report.dims == (507,)
    assert report.layers == tuple(range(12, 29))
    first = (prompt.mask("all").cumsum(1) == 1).nonzero()[:, 1].tolist()
    for row, position in enumerate(first):
        for layer in range(30):
            assert report.positions(layer, row=row) == ((position,) if 12 <= layer <= 28 else ())
    x = lens.run(prompt, read=[Read("resid_pre", [20])]).on_prompt("resid_pre", 20)[0, first[0]]
    assert float(x[507].abs()) > 20_000
    assert lens.model.config.lmm_lens["sink_threshold"] == pytest.approx(report.threshold, abs=0.1)
    assert report.prominence[1] > 1.25 * report.prominence[0]


def test_non_sink_mass_equals_visual_mass_where_no_patch_is_a_sink(lens, prompt):
    mass = score_heads(lens, prompt, "visual_mass")
    nonsink = score_heads(lens, prompt, "nonsink_mass", sink_dims="auto", sink_threshold="auto")
    torch.testing.assert_close(nonsink.per_prompt, mass.per_prompt)


def test_a_threshold_that_calls_most_patches_sinks_is_told(lens, prompt):
    with pytest.warns(LensWarning, match="of the visual tokens are sinks in .* of 30 layers"):
        score_heads(lens, prompt, "nonsink_mass", sink_dims=(507,), sink_threshold=12.0)


def test_a_control_for_crowded_layers_overlaps_as_little_as_it_can(lens):
    crowded = HeadSet([(0, head) for head in range(5)] + [(29, head) for head in range(6)], 30, 9)
    assert crowded.shared(crowded.random_like(0, disjoint="most")) == {0: 1, 29: 3}


def test_spans_lie_where_the_template_puts_the_picture(lens, asked):
    for example in asked[:3]:
        prompt = lens.prompt(example.question, images=example.image)
        assert prompt.mask("visual").sum() == 36
        tokens = prompt.tokens[0]
        first = int(prompt.mask("visual")[0].nonzero()[0])
        assert tokens[:first] == ("<|im_start|>", "user", "\\n")
        (thing,) = example.scene.things[:1]
        expected = tuple(first + patch for patch in emoji.cell_patches(thing.cell))
        assert prompt.positions_in_box(emoji.boxes(example.scene)[thing]) == expected


def test_a_sweep_by_replay_equals_forwards_of_their_own(lens, asked):
    """What each head carries is the difference that a forward without it loses."""
    examples = [each for each in asked if each.kind == "name"][:2]
    prompts = [lens.prompt(each.question, images=each.image) for each in examples]
    rng = random.Random(0)
    answers = [(each.answer, rng.choice([n for n in emoji.SEEN if n != each.answer])) for each in examples]
    heads = HeadSet(HEADS, 30, 9)
    pairs = [(f" {one}", f" {other}") for one, other in answers]
    effects = head_effects(lens, prompts, "zero", "last", "logit_difference", answers=pairs, heads=heads)
    for index, (prompt, (right, wrong)) in enumerate(zip(prompts, answers, strict=True)):
        encode = lens.processor.tokenizer.encode
        ids = [encode(" " + word, add_special_tokens=False)[0] for word in (right, wrong)]
        plain = lens.run(prompt, logits="last").logits[0, -1]
        for column, head in enumerate(HEADS):
            edited = lens.run(prompt, [AblateHeads([head], rows="last")], logits="last").logits[0, -1]
            lost = (plain[ids[0]] - plain[ids[1]]) - (edited[ids[0]] - edited[ids[1]])
            assert float(effects.per_prompt[index, column]) == pytest.approx(float(lost), abs=2e-3)


def test_a_hundred_and_fifty_tokens_are_the_models_own(lens, asked):
    prompt = lens.prompt("Tell me a long story about a fox.")
    settings = {"max_new_tokens": 150, "eos_token_id": []}
    with torch.no_grad():
        expected = lens.model.generate(**prompt.inputs, max_new_tokens=150, min_new_tokens=150, do_sample=False)
    given = lens.generate(prompt, read=[Read("resid_pre", [23], rows="last")], **settings)
    n = prompt.n_tokens
    same = given.tokens[0, :150] == expected[0, n : n + 150]
    assert bool(same.all())
