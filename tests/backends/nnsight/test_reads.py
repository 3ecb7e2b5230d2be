"""Every hook point reads as it does natively: single prompts, batches padded on either side, and pictureless rows."""

import pytest
import torch

from lmm_lens import AblateHeads, Lens, Read
from lmm_lens.bundled import shapes
from tests.support.cases import SITES, case
from tests.support.models import BOS, FAMILIES, PAD, joined
from tests.support.nnsight_lenses import WIDE, edit_of, generating, same_runs


def every_site(family, rows="all"):
    return [Read(site, family.layers_of(site), rows=rows) for site in SITES]


def text_only(family, *lengths):
    """Prompts without pictures, as inputs of their own."""
    prompts = [{"input_ids": torch.tensor([[BOS, *range(20, 20 + length)]])} for length in lengths]
    if "token_type_ids" in family.inputs:
        return [{**prompt, "token_type_ids": torch.zeros_like(prompt["input_ids"])} for prompt in prompts]
    return prompts


class LeftPadding:
    """As much of a tokenizer as nnsight looks at before it adds positions to left-padded texts."""

    padding_side = "left"
    pad_token, eos_token, pad_token_id = "<pad>", "</s>", PAD


def test_without_interventions_it_is_the_plain_model_to_the_last_bit(family):
    assert torch.equal(family.on("nnsight").run(family.prompt).logits, family.logits)


def test_reading_everything_does_not_change_the_answer(family):
    assert torch.equal(family.on("nnsight").run(family.prompt, read=every_site(family)).logits, family.logits)


@pytest.mark.parametrize("rows", ["all", "last", "after_image"])
def test_every_hook_point_reads_as_natively(family, rows):
    reads = every_site(family, rows)
    same_runs(*(each.run(family.prompt, read=reads) for each in family.lenses("nnsight")), 1e-5)


def test_reads_equal_those_of_a_model_with_attention_of_its_own(family):
    """Not the native backend: the slow reference of the tests."""
    family.reference.run(family.inputs)
    reads = family.on("nnsight").run(family.prompt, read=every_site(family)).reads
    for (site, layer), value in reads.items():
        torch.testing.assert_close(value, family.reference.read(site, layer), atol=1e-5, rtol=1e-5)
    assert {site for site, _ in reads} == set(SITES)


@pytest.mark.parametrize("heads", [(2,), (3, 0)])
def test_heads_come_in_the_order_asked_for(family, heads):
    reads = [Read(site, family.attending, heads, "after_image") for site in ("pattern", "z")]
    same_runs(*(each.run(family.prompt, read=reads) for each in family.lenses("nnsight")), 1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_read_as_natively(family, side):
    prompt = family.lens.prompt(inputs=family.pair(side)[1])
    edits, reads = [AblateHeads(family.heads, rows="after_image")], every_site(family, "after_image")
    native, given = (each.run(prompt, edits, read=reads) for each in family.lenses("nnsight"))
    same_runs(native, given)
    assert torch.equal(given.logits[prompt.mask("all")], native.logits[prompt.mask("all")])


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_without_pictures_read_as_natively(family, side):
    prompt = family.lens.prompt(inputs=joined(text_only(family, 7, 4), side))
    layers = family.self_attending  # mllama skips its cross-attention without a picture
    heads = [head for head in family.heads if head[0] in layers]
    reads = [Read(site, layers) for site in SITES]
    same_runs(*(each.run(prompt, [AblateHeads(heads)], read=reads) for each in family.lenses("nnsight")))


def test_a_left_padded_batch_is_continued_as_natively(family):
    prompt = family.lens.prompt(inputs=family.pair("left")[1])
    edits = [AblateHeads(family.heads, rows="after_image")]
    lenses = family.lenses("nnsight")
    native, given = (each.generate(prompt, edits, **generating()) for each in lenses)
    assert torch.equal(native.tokens, given.tokens)
    assert (native.logits - given.logits).abs().max() < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_positions_that_nnsight_adds_to_left_padded_texts_change_nothing(name):
    """It adds them where there is a tokenizer that pads on the left, as every real model has."""
    family, lens = case(name), Lens(case(name).model, backend="nnsight")
    lens.envoy.tokenizer = LeftPadding()
    layers = family.self_attending
    heads = [head for head in family.heads if head[0] in layers]
    texts = family.lens.prompt(inputs=joined(text_only(family, 7, 4), "left"))
    pictures = family.lens.prompt(inputs=family.pair("left")[1])
    for prompt in (texts, pictures):
        for edits in ([], [AblateHeads(heads)]):
            same_runs(*(each.run(prompt, edits, read=[Read("pattern", layers)]) for each in (family.lens, lens)))
    native, given = (each.generate(texts, [AblateHeads(heads)], **generating()) for each in (family.lens, lens))
    assert torch.equal(native.tokens, given.tokens)
    assert (native.logits - given.logits).abs().max() < 1e-4


@pytest.mark.parametrize("name", WIDE)
def test_reads_of_all_steps_follow_each_other_as_natively(name):
    family = case(name)
    reads = [
        Read("z", family.attending, rows="after_image"),
        Read("pattern", family.attending, rows="generating"),
        Read("resid_pre", rows="answer"),
        Read("mlp_out", rows="generating"),
    ]
    edits = [edit_of(name, "var")]
    native, given = (each.generate(family.prompt, edits, reads, **generating()) for each in family.lenses("nnsight"))
    assert native.reads.keys() == given.reads.keys()
    for key, value in native.reads.items():
        torch.testing.assert_close(given.reads[key], value, atol=1e-4, rtol=1e-4, equal_nan=True)
    assert all(torch.equal(given.positions[site], value) for site, value in native.positions.items())


def test_what_taps_add_up_over_a_run_is_returned(family):
    def total(x, context):
        context.add("total", x.abs().sum())
        return x[..., :1]

    read = Read("resid_pre", rows="after_image", reduce=total)
    native, given = (each.run(family.prompt, read=[read]) for each in family.lenses("nnsight"))
    assert set(native.sums) == {("total", layer) for layer in range(family.n_layers)}
    same_runs(native, given)


# ---------------------------------------------------------------------- the bundled model, with its processor


@pytest.fixture(scope="module")
def bundled():
    return Lens.demo(backend="nnsight")


HEADS = [(1, 4), (2, 0), (2, 5), (4, 2)]


@pytest.mark.parametrize(
    "make",
    [
        lambda asked: (["What color is the circle?", "Two"], None),
        lambda asked: ([asked[0].question, "what is two plus two?"], [asked[0].image, None]),
        lambda asked: (
            [f"{asked[0].question} {asked[1].question}", asked[1].question],
            [[asked[0].image, asked[2].image], [asked[1].image]],
        ),
    ],
    ids=["texts alone", "a row without a picture", "two pictures in a row"],
)
def test_batches_of_every_make_up_answer_as_natively(lens, bundled, make):
    texts, images = make(shapes.examples(4, seed=3))
    prompt = lens.prompt(texts, images=images)
    same_prompt = bundled.prompt(texts, images=images)
    assert all(torch.equal(prompt.inputs[name], value) for name, value in same_prompt.inputs.items())
    native, given = (each.run(prompt, [AblateHeads(HEADS)], read=SITES) for each in (lens, bundled))
    same_runs(native, given)
    native, given = (each.generate(prompt, [AblateHeads(HEADS)], **generating()) for each in (lens, bundled))
    assert torch.equal(native.tokens, given.tokens)
    assert native.text == given.text


def test_a_right_padded_batch_of_the_bundled_model_reads_as_natively(lens, bundled):
    texts = ["What color is the circle?", "Two"]
    inputs = lens.prompt(texts).inputs
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    flipped = [
        torch.stack([row.roll(-int((m == 0).sum())) for row, m in zip(x, mask, strict=True)]) for x in (ids, mask)
    ]
    prompt = lens.prompt(inputs=dict(zip(("input_ids", "attention_mask"), flipped, strict=True)))
    assert bool(prompt.mask("last")[0, -1])
    assert not bool(prompt.mask("last")[1, -1])
    same_runs(*(each.run(prompt, [AblateHeads(HEADS)], read=SITES) for each in (lens, bundled)))
