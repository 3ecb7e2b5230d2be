"""The bundled model: planted sinks in one variant, none in the other."""

import pytest
import torch

from lmm_lens import VAR, KnockoutSinks, Lens, find_sinks
from lmm_lens.bundled import shapes
from lmm_lens.errors import InterventionError
from tests.support.cases import edits_of

AUTO = VAR(sink_dims="auto", sink_threshold="auto", min_nonsink_ratio=0.0)


def asked(lens, n=6, seed=3):
    examples = shapes.examples(n, seed=seed)
    return lens.prompt([e.question for e in examples], images=[e.image for e in examples]), examples


@pytest.fixture(scope="module")
def sinks():
    lens = Lens.demo("sinks")
    return lens, *asked(lens)


@pytest.fixture(scope="module")
def none():
    lens = Lens.demo("plain")
    return lens, *asked(lens)


def test_the_planted_dimensions_are_discovered(sinks):
    lens, prompt, _ = sinks
    report = find_sinks(lens, prompt)
    assert report
    assert set(report.dims) == {5, 77}
    assert set(report.dims) == set(lens.adapter.config.lmm_lens["sink_dims"])


def test_the_cards_threshold_lies_in_the_gap(sinks):
    lens, prompt, _ = sinks
    low, high = find_sinks(lens, prompt).margin
    assert low < lens.adapter.config.lmm_lens["sink_threshold"] < high


def test_the_sinks_are_the_first_token_and_the_patches_they_were_taught_to_be(sinks):
    lens, prompt, examples = sinks
    report = find_sinks(lens, prompt)
    hits = wanted = found = 0
    for row, example in enumerate(examples):
        image = prompt.mask("visual")[row].nonzero().flatten().tolist()
        expected = {image[patch] for patch in shapes.sink_patches(example.scene)}
        bos = int(prompt.mask("bos")[row].nonzero())
        for layer in range(1, lens.n_layers):
            given = set(report.positions(layer, row=row, visual=True))
            hits, wanted, found = hits + len(given & expected), wanted + len(expected), found + len(given)
            assert bos in report.positions(layer, row=row, visual=False)
    assert hits / wanted > 0.9
    assert hits / found > 0.9


def test_they_can_be_left_to_be_discovered(sinks):
    lens, prompt, _ = sinks
    given = lens.generate(prompt, [AUTO], max_new_tokens=3, logits=True)
    assert edits_of(given)[0] > 0
    assert "dims=[5, 77]" in given.reports[0].intervention
    by_card = VAR.for_task("hallucination", lens, min_nonsink_ratio=0.0)
    assert by_card.sink_dims == (5, 77)
    assert torch.equal(lens.generate(prompt, [by_card], max_new_tokens=3).tokens, given.tokens)


def test_hiding_the_sinks_changes_less_than_hiding_as_many_patches(sinks):
    """In kind, what the paper found: the control moves the answers more."""
    lens, prompt, _ = sinks
    dims = {"sink_dims": (5, 77), "sink_threshold": 7.0}
    base = lens.run(prompt, logits="last").logits
    moved = {
        control: (lens.run(prompt, [KnockoutSinks(**dims, control=control)], logits="last").logits - base).abs().mean()
        for control in (None, 0, 1, 2)
    }
    assert moved[None] > 0
    assert moved[None] < 3 * max(moved[seed] for seed in (0, 1, 2))


def test_the_plain_variant_has_none(none):
    lens, prompt, _ = none
    report = find_sinks(lens, prompt)
    assert not report
    assert "this model shows no massive activation" in repr(report)
    with pytest.raises(InterventionError, match='"auto" found no sinks, so VAR has nothing to do'):
        lens.run(prompt, [AUTO])
    with pytest.raises(InterventionError, match="no attention sinks"):
        VAR.for_task("general", lens)
