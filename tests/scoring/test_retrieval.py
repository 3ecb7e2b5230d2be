"""Retrieval mass: the attention on tokens that the user calls relevant, in every way of naming them."""

import pytest
import torch

from lmm_lens import Lens, LensError, score_heads
from lmm_lens.adapters import Generic
from lmm_lens.errors import ScoreError
from lmm_lens.scoring import HEAD_METRICS
from tests.support.eager import Eager
from tests.support.models import FAMILIES, patches

BOX = (8, 8, 24, 24)
IN_BOX = [9, 10, 15, 16]  # patches of 8 x 8 pixels, six a row, from position 2 on


def retrieved(lens, prompts, *, query="last", **named):
    return score_heads(lens, prompts, "retrieval_mass", query, **named).per_prompt


def mass_of(seen, positions, batch=0):
    """[layer, head], summed one weight after another; NaN in layers without heads."""
    n_heads = next(iter(seen.weights.values())).shape[1]
    table = torch.full((len(seen.resid), n_heads), torch.nan)
    for layer in seen.weights:
        for head in range(n_heads):
            table[layer, head] = sum(seen.row(layer, batch, head, -1)[j] for j in positions)
    return table


def close(given, expected, tolerance=1e-5):
    torch.testing.assert_close(given, expected, atol=tolerance, rtol=0, equal_nan=True)


def refused(lens, prompts, metric="retrieval_mass", **named) -> str:
    with pytest.raises(ScoreError) as caught:
        score_heads(lens, prompts, metric, **named)
    assert isinstance(caught.value, LensError)
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


@pytest.mark.parametrize("query", ["last", "answer"])
def test_retrieval_mass_is_the_attention_on_the_named_tokens(lens, asked, query):
    prompt = asked.singles[0]
    prefill, step = Eager(lens.model).decode(prompt.inputs)
    expected = mass_of(prefill if query == "last" else step, [3, 20, 36])
    close(retrieved(lens, prompt, query=query, relevant=[[3, 20, 36]])[0], expected)


def test_boxes_positions_and_masks_name_the_same_tokens(lens, asked):
    prompt = asked.singles[0]
    mask = torch.zeros(prompt.n_tokens, dtype=torch.bool)
    mask[IN_BOX] = True
    by_box = retrieved(lens, prompt, boxes=[BOX])
    close(by_box[0], mass_of(Eager(lens.model).prefill(prompt.inputs), IN_BOX))
    for relevant in ([IN_BOX], [tuple(IN_BOX)], [torch.tensor(IN_BOX)], [mask], mask[None], [mask.tolist()]):
        assert torch.equal(retrieved(lens, prompt, relevant=relevant), by_box)
    assert torch.equal(retrieved(lens, prompt, relevant=[[*IN_BOX, *IN_BOX]]), by_box)  # a token counts once


def test_with_boxes_it_is_region_mass(lens, asked):
    boxes = [BOX, [(0, 0, 8, 8), BOX], *[BOX] * 5]
    region = score_heads(lens, asked.batch, "region_mass", boxes=boxes).per_prompt
    assert torch.equal(retrieved(lens, asked.batch, boxes=boxes), region)


def test_all_visual_tokens_together_have_the_visual_mass(lens, asked):
    batch = asked.batch
    close(retrieved(lens, batch, relevant=batch.mask("visual")), score_heads(lens, batch).per_prompt, 1e-6)


def test_relevant_tokens_follow_the_rows_of_padded_batches_through_several_prompts(lens, asked):
    questions, pictures = [e.question for e in asked.examples], [e.image for e in asked.examples]
    grouped = [lens.prompt(questions[:3], images=pictures[:3]), *asked.singles[3:5]]
    patches = [[0], [1, 2], [7, 35], [4, 5, 6], [30]]  # counted in the picture
    apart = [
        retrieved(lens, prompt, relevant=[[2 + patch for patch in chosen]])[0]
        for prompt, chosen in zip(asked.singles, patches, strict=False)
    ]
    rows = [(prompt, row) for prompt in grouped for row in range(prompt.n_rows)]
    relevant = [
        [prompt.spans[row][0].positions[patch] for patch in chosen]
        for (prompt, row), chosen in zip(rows, patches, strict=True)
    ]
    assert relevant[1][0] != 2 + patches[1][0] or relevant[0][0] != 2 + patches[0][0]  # the batch is padded
    close(retrieved(lens, iter(grouped), relevant=relevant), torch.stack(apart))


def test_tokens_of_the_second_picture_may_be_relevant(lens, asked):
    first, second = asked.examples[:2]
    prompt = lens.prompt("what color is the circle?", images=[first.image, second.image])
    inside = prompt.positions_in_box(BOX, image=1)
    assert min(inside) > prompt.spans[0][0].positions[-1]
    close(
        retrieved(lens, prompt, relevant=[inside])[0], mass_of(Eager(lens.model).prefill(prompt.inputs), list(inside))
    )


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mllama"])
def test_no_grid_is_needed_where_the_tokens_are_named(name):
    model, inputs = FAMILIES[name]()
    lens = Lens(model, adapter=Generic(model))
    visual = patches(inputs["input_ids"][0].tolist())
    prefill, step = Eager(model).decode(inputs)
    for query, seen in (("last", prefill), ("answer", step)):
        given = retrieved(lens, lens.prompt(inputs=inputs), query=query, relevant=[visual[::3]])
        close(given[0], mass_of(seen, visual[::3]), 1e-5)


def test_the_record_names_the_paper_and_says_that_only_its_abstract_was_read():
    assert "2606.05843" in HEAD_METRICS["retrieval_mass"].source
    assert "abstract" in HEAD_METRICS["retrieval_mass"].source


# ---------------------------------------------------------------------- refusals


def test_neither_or_both_ways_of_naming_are_refused(lens, asked):
    prompt = asked.singles[0]
    needs = "retrieval_mass needs boxes=... or relevant=..., one entry a prompt row, given "
    assert refused(lens, prompt) == needs + "neither"
    assert refused(lens, prompt, boxes=[BOX], relevant=[[2]]) == needs + "both"


@pytest.mark.parametrize("metric", ["visual_mass", "region_mass"])
def test_other_metrics_take_no_relevant_tokens(lens, asked, metric):
    boxes = {"boxes": [BOX]} if metric == "region_mass" else {}
    text = refused(lens, asked.singles[0], metric, relevant=[[2]], **boxes)
    assert text == f"{metric} takes no relevant tokens; retrieval_mass does"


@pytest.mark.parametrize("wrong", [[], None, 5, "all", [2.5], [None], [True, False], [[2, 3]], {"a": 1}])
def test_what_names_no_tokens_is_quoted_with_its_row(lens, asked, wrong):
    text = refused(lens, asked.singles[:2], relevant=[[2], wrong])
    assert text.startswith(f"prompt row 1 has no relevant tokens but {wrong!r}\n")
    assert "give one entry a row: positions, or a Bool[position] of its " in text


def test_a_mask_of_another_length_or_of_nothing_is_refused(lens, asked):
    prompt = asked.singles[0]
    for n in (prompt.n_tokens - 1, prompt.n_tokens):
        assert "prompt row 0 has no relevant tokens" in refused(lens, prompt, relevant=[torch.zeros(n).bool()])
    assert "prompt row 0 has no relevant tokens" in refused(lens, prompt, relevant=[2, 3])  # no entry a row


@pytest.mark.parametrize(("position", "shown"), [(0, "[0]"), (-1, "[-1]"), (999, "[999]")])
def test_text_and_positions_outside_the_prompt_are_refused(lens, asked, position, shown):
    text = refused(lens, asked.singles[0], relevant=[[2, position, 3]])
    assert text.startswith(f"the tokens at positions {shown} of prompt row 0 are not visual tokens\n")
    assert 'prompt.mask("visual") has all of them' in text


@pytest.mark.parametrize("n", [1, 6, 8])
def test_relevant_tokens_must_be_as_many_as_prompt_rows(lens, asked, n):
    text = refused(lens, asked.singles, relevant=[[2]] * n)
    # a prompt beyond the entries is scored before they are counted
    assert text == f"{n} entries of relevant were given for 7 prompt rows: give one entry a row"
