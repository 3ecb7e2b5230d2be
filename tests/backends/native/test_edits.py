"""Head ablation against two known answers: a model without the heads' output weights, and z zeroed row by row."""

import pytest
import torch

from lmm_lens import AblateHeads, Lens, Read
from lmm_lens.bundled import shapes
from tests.support.cases import Case, case, close, edits_of, plain
from tests.support.models import FAMILIES, joined
from tests.support.reference import without_heads, zeroing

SCOPES = ["all", "after_image", "last"]


def reference_logits(case: Case, inputs, heads, rows):
    """Logits with z zeroed in the rows that `rows(batch row, position)` accepts."""
    with case.reference.editing(z=zeroing(heads, rows)):
        return case.reference.run(inputs)


def test_zeroing_a_head_equals_deleting_its_output_weights(family):
    for heads in (family.heads, family.heads[:1], [(family.attending[-1], h) for h in range(4)]):
        ablated = family.lens.run(family.prompt, [AblateHeads(heads)])
        expected = plain(without_heads(family.model, heads), family.inputs)
        close(ablated.logits, expected)
        assert not torch.allclose(expected, family.logits, atol=1e-2), "the heads do nothing, so nothing was tested"


def test_zeroing_all_heads_one_after_the_other_equals_zeroing_them_together(family):
    one_by_one = [AblateHeads([head]) for head in family.heads]
    close(
        family.lens.run(family.prompt, one_by_one).logits,
        family.lens.run(family.prompt, [AblateHeads(family.heads)]).logits,
    )


@pytest.mark.parametrize("scope", SCOPES)
def test_a_row_scope_zeroes_its_rows_and_no_other(family, scope):
    rows = family.scopes[scope]
    ablated = family.lens.run(family.prompt, [AblateHeads(family.heads, rows=scope)])
    close(ablated.logits, reference_logits(family, family.inputs, family.heads, lambda row, i: i in rows))
    assert edits_of(ablated) == [len(rows) * len(family.heads)]


def test_positions_and_masks_name_the_same_rows(family):
    chosen = family.scopes["all"][3:9:2]
    mask = torch.zeros(1, family.prompt.n_tokens, dtype=torch.bool)
    mask[0, chosen] = True
    expected = reference_logits(family, family.inputs, family.heads, lambda row, i: i in chosen)
    for rows in (chosen, torch.tensor(chosen), mask):
        close(family.lens.run(family.prompt, [AblateHeads(family.heads, rows=rows)]).logits, expected)


def test_what_is_read_is_what_the_edit_left(family):
    scope = family.scopes["after_image"]
    layer, head = family.heads[0]
    run = family.lens.run(family.prompt, [AblateHeads([(layer, head)], rows="after_image")], read=[Read("z", [layer])])
    z = run.reads["z", layer][0]
    assert (z[scope, head] == 0).all()
    before = [i for i in family.scopes["all"] if i not in scope]
    assert (z[before, head] != 0).any()
    assert (z[scope][:, [h for h in range(4) if h != head]] != 0).any()


@pytest.mark.parametrize("scope", SCOPES)
def test_a_left_padded_batch_is_edited_as_its_prompts_alone(family, scope):
    prompts, batch = family.pair("left")
    edit = [AblateHeads(family.heads, rows=scope)]
    joint = family.lens.run(family.lens.prompt(inputs=batch), edit)
    counted = 0
    for row, inputs in enumerate(prompts):
        alone = family.lens.run(family.lens.prompt(inputs=inputs), edit)
        close(joint.logits[row, -inputs["input_ids"].shape[1] :], alone.logits[0])
        counted += sum(edits_of(alone))
    assert edits_of(joint) == [counted]


def test_a_right_padded_batch_is_edited_row_by_row(family):
    prompts, batch = family.pair("right")
    ablated = family.lens.run(family.lens.prompt(inputs=batch), [AblateHeads(family.heads, rows="last")])
    last = [inputs["input_ids"].shape[1] - 1 for inputs in prompts]
    expected = reference_logits(family, batch, family.heads, lambda row, i: i == last[row])
    for row, inputs in enumerate(prompts):
        n_tokens = inputs["input_ids"].shape[1]
        close(ablated.logits[row, :n_tokens], expected[row, :n_tokens])


def test_the_gradient_of_an_ablated_run_is_that_of_the_model_without_the_heads(family):
    def gradient(model, run):
        weight = model.get_input_embeddings().weight
        logits = run()
        (slope,) = torch.autograd.grad(logits[0, -1, 7], weight)
        return slope

    without = without_heads(family.model, family.heads)
    expected = gradient(without, lambda: without(**family.inputs).logits)
    edit = [AblateHeads(family.heads)]
    given = gradient(family.model, lambda: family.lens.run(family.prompt, edit, grad=True).logits)
    close(given, expected)
    assert expected.abs().max() > 1e-3


def test_the_gradient_reaches_what_was_read(family):
    layer = family.attending[0]
    run = family.lens.run(family.prompt, read=[Read("pattern", [layer], rows="last")], grad=True)
    (slope,) = torch.autograd.grad(
        run.reads["pattern", layer].square().sum(), family.model.get_input_embeddings().weight
    )
    assert slope.abs().max() > 0


def test_without_grad_no_graph_is_kept(family):
    run = family.lens.run(family.prompt, [AblateHeads(family.heads)], read=["resid_post"])
    assert not run.logits.requires_grad
    assert not any(value.requires_grad for value in run.reads.values())


@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma2", "qwen2_5_vl"])
def test_a_double_model_is_edited_in_double(name):
    model, inputs = FAMILIES[name]()
    model = model.double()
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    lens, heads = Lens(model), case(name).heads
    ablated = lens.run(lens.prompt(inputs=inputs), [AblateHeads(heads)]).logits
    close(ablated, plain(without_heads(model, heads), inputs), 1e-12)


def test_three_prompts_with_the_image_at_three_places():
    llava = case("llava")
    ids = llava.inputs["input_ids"]
    image = ids[ids == 150].tolist()
    texts = [[1, *image, 30, 31], [1, 9, 9, 9, 9, 9, *image, 40], [1, 5, *image, 50, 51, 52, 53]]
    prompts = [{"input_ids": torch.tensor([text]), "pixel_values": torch.randn(1, 3, 56, 56)} for text in texts]
    edit = [AblateHeads(llava.heads, rows="after_image")]
    joint = llava.lens.run(llava.lens.prompt(inputs=joined(prompts)), edit)
    assert edits_of(joint) == [(2 + 1 + 4) * len(llava.heads)]
    for row, inputs in enumerate(prompts):
        alone = llava.lens.run(llava.lens.prompt(inputs=inputs), edit)
        close(joint.logits[row, -inputs["input_ids"].shape[1] :], alone.logits[0])


def test_in_a_batch_a_prompt_without_an_image_is_left_alone_after_the_image(lens):
    image = shapes.examples(1, ["color"])[0].image
    texts, images = ["what color is the circle?", "what is two plus two?"], [image, None]
    edit = [AblateHeads([(layer, 0) for layer in range(lens.n_layers)], rows="after_image")]
    joint = lens.generate(lens.prompt(texts, images=images), edit, max_new_tokens=4, logits=True)
    seeing = lens.generate(lens.prompt(texts[0], images=image), edit, max_new_tokens=4, logits=True)
    blind = lens.generate(lens.prompt(texts[1]), max_new_tokens=4, logits=True)
    assert torch.equal(joint.tokens[0, : seeing.tokens.shape[1]], seeing.tokens[0])
    assert torch.equal(joint.tokens[1, : blind.tokens.shape[1]], blind.tokens[0])
    close(joint.logits[0, 0], seeing.logits[0, 0], 1e-4)
    close(joint.logits[1, 0], blind.logits[0, 0], 1e-4)
