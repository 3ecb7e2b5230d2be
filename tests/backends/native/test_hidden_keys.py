"""A step whose only edit is a knockout hides the keys from the kernel: the same as the pattern edited row by row."""

from __future__ import annotations

import pytest
import torch

from lmm_lens import AblateHeads, Knockout, Lens, Read
from lmm_lens.bundled import shapes
from lmm_lens.core.attention import AttentionCall
from tests.support.cases import case, close, edits_of
from tests.support.models import FAMILIES

STEPS = 5
ENDLESS = {"max_new_tokens": STEPS, "eos_token_id": [], "logits": True}


@pytest.fixture
def computed(monkeypatch):
    """How many rows of patterns were computed, call by call."""
    seen: list[int] = []
    own = AttentionCall.probabilities

    def probabilities(self, rows, *more):
        seen.append(rows.width)
        return own(self, rows, *more)

    monkeypatch.setattr(AttentionCall, "probabilities", probabilities)
    return seen


def by_pattern(lens, source, target, **where):
    """The same knockout of heads that are named, whose pattern is edited."""
    return Knockout(source, target, heads=range(lens.n_heads), **where)


def in_both_ways(lens, prompt, source, target, computed, **options):
    """A generation with keys hidden and one with the pattern edited, and how many more patterns the second computed."""
    counts, found = [], []
    for edit in (Knockout(source, target), by_pattern(lens, source, target)):
        computed.clear()
        found.append(lens.generate(prompt, [edit], **{**ENDLESS, **options}))
        counts.append(computed.count(1))
    return found, counts[1] - counts[0]


def check_alike(found):
    hidden, edited = found
    assert torch.equal(hidden.tokens, edited.tokens)
    close(hidden.logits, edited.logits)
    assert edits_of(hidden) == edits_of(edited)
    assert hidden.reports[0].n_edits > 0


@pytest.fixture
def demo():
    lens, example = Lens.demo(), shapes.examples(1, ["color"], seed=0)[0]
    return lens, lens.prompt(example.question, images=example.image)


LATE = STEPS - 2  # the first pass is the prompt's, and in the first step attention is still looked at


@pytest.mark.parametrize("source", ["image", "question", [0, 3]])
def test_keys_are_hidden_from_the_kernel_and_no_pattern_is_computed(demo, source, computed):
    lens, prompt = demo
    found, more = in_both_ways(lens, prompt, source, "all", computed)
    check_alike(found)
    assert more == LATE * lens.n_layers


@pytest.mark.parametrize("target", ["last", "answer"])
def test_steps_that_are_no_target_are_left_alone(demo, target, computed):
    found, more = in_both_ways(*demo, "image", target, computed)
    check_alike(found)
    assert more == 0


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_is_edited_alike(name, computed):
    own = case(name)
    check_alike(in_both_ways(own.lens, own.prompt, "image", "after_image", computed)[0])


@pytest.mark.parametrize("name", ["llava", "gemma3"])
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["growing", "static"])
def test_padding_and_room_for_more_stay_hidden(name, options, computed):
    own = case(name)
    prompt = own.lens.prompt(inputs=own.pair("left")[1])
    check_alike(in_both_ways(own.lens, prompt, "image", "all", computed, **options)[0])


def test_a_row_that_is_hidden_from_itself_is_edited_as_before(demo, computed):
    lens, prompt = demo
    found, more = in_both_ways(lens, prompt, "generating", "generating", computed)
    check_alike(found)
    assert more == 0


def test_where_more_is_done_the_pattern_is_computed(demo, computed):
    lens, prompt = demo
    image = prompt.mask("image")[0].nonzero().flatten().tolist()
    read = Read("pattern", rows="generating")
    run = lens.generate(prompt, [Knockout("image", "generating")], [read], **ENDLESS)
    assert all(run.reads["pattern", layer][0][..., image].eq(0).all() for layer in range(lens.n_layers))
    both = Knockout("image", "all"), AblateHeads([(0, 0)], "uniform", rows="all")
    alike = by_pattern(lens, "image", "all"), both[1]
    close(lens.generate(prompt, both, **ENDLESS).logits, lens.generate(prompt, alike, **ENDLESS).logits)


def test_capped_scores_of_grouped_queries_stay_capped():
    """Whatever kernel hides the keys: torch's own knows no cap."""
    found = []
    for implementation in ("eager", "sdpa"):
        model, inputs = FAMILIES["paligemma2"]()
        model.get_decoder().config._attn_implementation_internal = implementation
        lens = Lens(model)
        found.append(lens.generate(lens.prompt(inputs=inputs), [Knockout("image", "all")], **ENDLESS).logits)
    close(*found)
