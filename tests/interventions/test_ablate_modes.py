"""More modes of head ablation: another prompt's values, and even attention."""

import pytest
import torch

from lmm_lens import AblateHeads, Read
from lmm_lens.errors import HookError, InterventionError
from tests.support.cases import case, close
from tests.support.models import another
from tests.support.oracle import each_row, layer_heads, spans
from tests.support.planted import planted, real_tokens

NAMES = ["llava", "qwen2_5_vl", "gemma3", "paligemma2", "qwen3_5", "idefics3", "glm4v"]
NEW = 4


# ---------------------------------------------------------------------- resample


@pytest.mark.parametrize("name", NAMES)
def test_resampled_heads_hold_what_they_hold_on_another_prompt(name):
    family = case(name)
    ids = family.inputs["input_ids"]
    other = {**another(family.inputs), "input_ids": torch.where((ids > 19) & (ids < 30), ids + 11, ids)}
    for key in ("token_type_ids", "mm_token_type_ids"):
        if key in family.inputs:
            other[key] = family.inputs[key]
    stored = family.lens.run(family.lens.prompt(inputs=other), read=["z"])
    family.reference.run(other)
    values = {layer: family.reference.read("z", layer) for layer in family.attending}
    rows = family.scopes["after_image"]

    def edit(layer, z, first):
        for own, head in family.heads:
            for i in rows if own == layer else ():
                z[0, i, head] = values[layer][0, i, head]
        return z

    with family.reference.editing(z=edit):
        expected = family.reference.run(family.inputs)
    run = family.lens.run(family.prompt, [AblateHeads(family.heads, "resample", "after_image", stored)])
    close(run.logits, expected)
    assert (run.logits - family.logits).abs().max() > 1e-3


def test_resampling_a_prompt_with_itself_changes_nothing():
    llava = case("llava")
    own = llava.lens.run(llava.prompt, read=["z"])
    run = llava.lens.run(llava.prompt, [AblateHeads(llava.heads, "resample", "all", own)])
    assert torch.equal(run.logits, llava.lens.run(llava.prompt).logits)


def test_a_prompt_of_another_length_gives_no_values():
    llava = case("llava")
    other = llava.lens.run(llava.lens.prompt(inputs=another(llava.inputs)), read=["z"])
    with pytest.raises(InterventionError, match=r"differ in size: 1 rows x 25 tokens and 1 x 27\n.*same length"):
        llava.lens.run(llava.prompt, [AblateHeads(llava.heads, "resample", "all", other)])


def test_rows_that_were_not_read_are_not_taken_for_zeros():
    llava = case("llava")
    part = llava.lens.run(llava.prompt, read=[Read("z", rows="last")])
    with pytest.raises((InterventionError, HookError)):
        llava.lens.run(llava.prompt, [AblateHeads(llava.heads, "resample", "all", part)])


# ---------------------------------------------------------------------- even attention


def even(layers, rows, heads):
    """Scores of 0 wherever a row can see."""

    def change(row, b, oldest, own):
        row[~torch.isneginf(row)] = 0

    return each_row(layers, rows, heads, change)


def even_everywhere(inputs):
    """Scores of 0 at every real token, those to come among them."""
    real = real_tokens(inputs).tolist()

    def edit(layers, rows, heads):
        def change(row, b, oldest, own):
            for j in range(len(row)):
                padding = oldest + j < len(real[b]) and not real[b][oldest + j]
                row[j] = -torch.inf if padding else 0

        return each_row(layers, rows, heads, change)

    return edit


@pytest.mark.parametrize("scope", ["all", "after_image"])
@pytest.mark.parametrize("name", [*NAMES, "llava_next", "mllama"])
def test_even_attention_over_what_a_row_can_see(name, scope):
    family = planted(name)
    heads = [head for head in family.heads if head[0] in family.self_attending]
    rows = spans(family.inputs, NEW)[scope]
    edit = layer_heads(lambda layers, chosen: even(layers, rows, chosen), heads)
    given = family.lens.generate(family.prompt, [AblateHeads(heads, "uniform", scope)], max_new_tokens=NEW, logits=True)
    with family.reference.editing(scores=edit):
        tokens, logits = family.reference.generate(family.inputs, NEW)
        expected = family.reference.run(family.inputs)
    assert torch.equal(given.tokens, tokens)
    close(given.logits, logits)
    run = family.lens.run(family.prompt, [AblateHeads(heads, "uniform", scope)])
    close(run.logits, expected)
    assert (run.logits - family.logits).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "paligemma2", "qwen3_5"])
def test_even_attention_over_the_future_too_is_the_released_codes(name):
    family = planted(name)
    rows = spans(family.inputs)["all"]
    edit = layer_heads(lambda layers, chosen: even_everywhere(family.inputs)(layers, rows, chosen), family.heads)
    with family.reference.editing(scores=edit):
        expected = family.reference.run(family.inputs)
    run = family.lens.run(family.prompt, [AblateHeads(family.heads, "uniform_noncausal")])
    close(run.logits, expected)
    causal = family.lens.run(family.prompt, [AblateHeads(family.heads, "uniform")])
    assert name == "paligemma2" or (run.logits - causal.logits).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["uniform", "uniform_noncausal"])
def test_padding_gets_no_even_attention(mode):
    family = planted("llava")
    prompts, batch = family.batch()
    edit = [AblateHeads(family.heads, mode)]
    given = family.lens.run(family.lens.prompt(inputs=batch), edit)
    for row, inputs in enumerate(prompts):
        alone = family.lens.run(family.lens.prompt(inputs=inputs), edit)
        close(given.logits[row, -alone.logits.shape[1] :], alone.logits[0])


def test_a_window_bounds_even_attention():
    """gemma3's first layers see eight keys back."""
    family = planted("gemma3")
    read = Read("pattern", [0], rows="last")
    pattern = family.lens.run(family.prompt, [AblateHeads([(0, 2)], "uniform")], read=[read]).reads["pattern", 0]
    expected = torch.zeros(17)
    expected[-8:] = 1 / 8
    close(pattern[0, 2, 0], expected)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"mode": "zeros"}, "unknown ablation mode 'zeros', did you mean 'zero'?"),
        ({"mode": "mean"}, "mode 'mean': z is set to its mean over a data set at tokens of the same role"),
        ({"mode": "resample"}, "mode 'resample': z is set to its value on another prompt of the same layout"),
        ({"mode": "resample", "reference": "z"}, "given reference str"),
        ({"mode": "zero", "reference": 3}, "given reference int"),
    ],
)
def test_a_mode_that_does_not_exist_or_lacks_its_reference_is_refused(arguments, text):
    with pytest.raises(InterventionError) as caught:
        AblateHeads([(0, 0)], **arguments)
    assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_no_heads_are_refused():
    with pytest.raises(
        InterventionError, match=r"AblateHeads was given no heads: pass a HeadSet or \(layer, head\) pairs"
    ):
        AblateHeads([])


@pytest.mark.parametrize("mode", ["zero", "uniform"])
def test_heads_outside_the_model_are_refused(mode):
    llava = case("llava")
    with pytest.raises(HookError, match="head 4 of layer 1 is out of range: the layer has heads 0 to 3"):
        llava.lens.run(llava.prompt, [AblateHeads([(1, 4)], mode)])
    with pytest.raises(HookError, match="layer 3 is out of range: the model has layers 0 to 2"):
        llava.lens.run(llava.prompt, [AblateHeads([(3, 0)], mode)])
