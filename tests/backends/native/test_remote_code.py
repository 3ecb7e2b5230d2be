"""Classes of remote code with the adapters of the page on it, against plain forwards, attention and hooks by hand."""

import pytest
import torch
from torch import nn

from lmm_lens import VAR, AblateHeads, Knockout, Lens, Read, score_heads
from tests.support.remote_code import molmo
from tests.support.remote_code.adapters import adapters, sources
from tests.support.remote_code.by_hand import RedistributedByHand, Watched, blinding, visual_mass, zeroing
from tests.support.remote_code.cases import NAMES, case
from tests.support.remote_code.parts import Tokenizer, rotated

HEADS = [(0, 1), (1, 3), (2, 0), (3, 2)]
DIMS, TAU, P = (3, 11), 2.0, 0.7
NEW = 4
BOTH = pytest.mark.parametrize("n_rows", [1, 2])


@pytest.fixture(params=NAMES)
def each(request):
    return case(request.param)


def close(one, other, tolerance=2e-5):
    assert one.shape == other.shape
    assert float((one - other).abs().max()) < tolerance * float(other.abs().max())


def prompt_of(each, n_rows):
    return each.lens.prompt(inputs=each.inputs_of(n_rows))


def real_rows(each, n_rows, logits):
    """Those of real tokens: what padding computes is nobody's business."""
    keep = torch.ones(logits.shape[:2], dtype=torch.bool)
    for row, place in enumerate(each.places(n_rows)):
        keep[row, list(place.padding)] = False
    return logits[keep]


def var():
    settings = {"min_nonsink_ratio": 0.2, "min_visual_mass": 0.05, "first_layer": 1}
    return VAR(transfer_fraction=P, sink_dims=DIMS, sink_threshold=TAU, **settings)


def test_an_adapter_of_the_page_is_at_most_ten_lines_long():
    classes = [source for source in sources() if source.startswith("class ")]
    assert len(classes) == len(NAMES)
    for source in classes:
        assert len([line for line in source.splitlines() if line.strip()]) <= 10, source


@BOTH
def test_spans_are_where_the_tokens_stand_in_the_sequence_that_runs(each, n_rows):
    prompt = prompt_of(each, n_rows)
    for row, place in enumerate(each.places(n_rows)):
        assert prompt.n_tokens == place.length
        found = {name: prompt.mask(name)[row].nonzero().flatten().tolist() for name in ("visual", "marker", "pad")}
        assert found == {"visual": list(place.visual), "marker": sorted(place.markers), "pad": list(place.padding)}
        assert prompt.mask("after_image")[row].nonzero().flatten().tolist() == list(range(place.after, place.length))


@BOTH
def test_a_run_is_the_plain_forward_and_can_be_repeated(each, n_rows):
    with torch.no_grad():
        plain = each.plain(each.model, each.inputs_of(n_rows))
    prompt = prompt_of(each, n_rows)
    for reads in ([], ["z", "pattern"], ["resid_pre"]):
        close(real_rows(each, n_rows, each.lens.run(prompt, read=reads).logits), real_rows(each, n_rows, plain))


@BOTH
def test_reads_are_what_hooks_by_hand_see(each, n_rows):
    watched, prompt = Watched(each), prompt_of(each, n_rows)
    watched.run(each.inputs_of(n_rows))
    sites = [Read(site, rows="last") for site in ("pattern", "z", "resid_pre")]
    reads = each.lens.run(prompt, read=sites).reads
    for layer in range(4):
        close(reads["pattern", layer][:, :, 0], watched.patterns[layer][:, :, -1])
        close(reads["z", layer][:, 0], watched.z[layer][:, -1])
        close(reads["resid_pre", layer][:, 0], watched.resid[layer][:, -1])


@BOTH
def test_scores_are_the_mass_of_eager_weights(each, n_rows):
    watched = Watched(each)
    watched.run(each.inputs_of(n_rows))
    visual = [place.visual for place in each.places(n_rows)]
    by_hand = torch.stack([visual_mass(watched.patterns[layer], visual) for layer in range(4)], 1)
    close(score_heads(each.lens, prompt_of(each, n_rows)).per_prompt.float(), by_hand)


@BOTH
def test_ablated_heads_are_those_of_hooks_on_the_output_projection(each, n_rows):
    after = [place.after for place in each.places(n_rows)]
    expected = Watched(each).run(each.inputs_of(n_rows), z=zeroing(HEADS, after))
    run = each.lens.run(prompt_of(each, n_rows), [AblateHeads(HEADS, rows="after_image")])
    close(real_rows(each, n_rows, run.logits), real_rows(each, n_rows, expected))


@BOTH
def test_var_is_redistribution_by_hand(each, n_rows):
    watched = Watched(each)
    edit = RedistributedByHand(watched, each, n_rows, DIMS, TAU, P)
    expected = watched.run(each.inputs_of(n_rows), pattern=edit)
    run = each.lens.run(prompt_of(each, n_rows), [var()])
    assert run.reports[0].n_edits == edit.n_edited > 0
    close(real_rows(each, n_rows, run.logits), real_rows(each, n_rows, expected))


@BOTH
@pytest.mark.parametrize("kind", ["plain", "ablated", "knocked out", "redistributed"])
def test_a_generation_is_the_loop_by_hand(each, n_rows, kind):
    places, layers = each.places(n_rows), [1, 2]
    watched, after = Watched(each), [place.after for place in places]
    blinded = blinding(layers, [place.visual for place in places], after)
    edits = {
        "plain": ({}, []),
        "ablated": ({"z": zeroing(HEADS, after)}, [AblateHeads(HEADS, rows="after_image")]),
        "knocked out": ({"pattern": blinded}, [Knockout("visual", "after_image", layers=layers)]),
        "redistributed": ({"pattern": RedistributedByHand(watched, each, n_rows, DIMS, TAU, P)}, [var()]),
    }
    by_hand, ours = edits[kind]
    tokens, logits = watched.greedy(each.inputs_of(n_rows), NEW, **by_hand)
    made = each.lens.generate(prompt_of(each, n_rows), ours, max_new_tokens=NEW, logits=True)
    assert made.tokens.tolist() == tokens.tolist()
    close(made.logits, logits, 3e-4)  # Phi's positions begin after the padding where it generates: other angles


class Unmasked(molmo.MolmoSequentialBlock):
    """Molmo's block in the style of older code: a flag for what a pass sees, and no mask in a step."""

    def attention(self, q, k, v, attention_bias, position_ids, layer_past):
        q, k, v = (x.unflatten(-1, (-1, self.size)).transpose(1, 2) for x in (q, k, v))
        q, k = rotated(q, position_ids), rotated(k, position_ids)
        if layer_past is not None:
            k, v = torch.cat([layer_past[0], k], 2), torch.cat([layer_past[1], v], 2)
        full = [x.repeat_interleave(self.n_heads // self.n_kv, 1) for x in (k, v)]
        out = nn.functional.scaled_dot_product_attention(q, *full, is_causal=q.shape[2] > 1)
        return self.attn_out(out.transpose(1, 2).flatten(2)), (k, v)


def test_a_step_without_a_mask_is_knocked_out_as_one_with():
    each, other = case("Molmo"), molmo.model()
    for block in other.model.transformer["blocks"]:
        block.__class__ = Unmasked
    lenses = each.lens, Lens(other, Tokenizer(), adapter=adapters()["Molmo"](other, Tokenizer()))
    edits = [Knockout("visual", "after_image", layers=[1, 2])]
    with_mask, without = (
        lens.generate(lens.prompt(inputs=each.inputs_of(1)), edits, max_new_tokens=6, logits=True) for lens in lenses
    )
    close(without.logits, with_mask.logits, 1e-5)
