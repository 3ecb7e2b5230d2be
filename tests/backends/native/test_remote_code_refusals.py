"""Remote code used wrongly, or by an adapter that is wrong about it: a sentence, never a wrong number."""

import pytest
import torch
from torch import nn

from lmm_lens import AblateHeads, Lens
from lmm_lens.adapters import Adapter, Layer
from lmm_lens.errors import HookError, InterventionError, ModelError, PromptError
from tests.support.remote_code import internvl, minicpm, molmo
from tests.support.remote_code.adapters import adapters
from tests.support.remote_code.cases import NAMES, case
from tests.support.remote_code.parts import Tokenizer

EDIT = [AblateHeads([(1, 1)], rows="after_image")]


def adapted(name, **members):
    """A lens on a class, with an adapter of the page in which something is otherwise."""
    kind = type("Wrong", (adapters()[name],), members)
    model = case(name).model
    return Lens(model, Tokenizer(), adapter=kind(model, Tokenizer()))


@pytest.mark.parametrize("name", NAMES)
def test_without_an_adapter_the_class_is_refused_with_the_way_out(name):
    with pytest.raises(ModelError, match=r"has no image token(.|\n)*for remote code give an adapter"):
        Lens(case(name).model, Tokenizer())


@pytest.mark.parametrize("name", ["OriginalLlava", "Vila"])
def test_an_adapter_that_is_silent_about_an_expanded_placeholder_is_found_out(name):
    token = {"OriginalLlava": -200, "Vila": 91}[name]
    silent = adapted(
        name, expanded=lambda self, inputs: inputs["input_ids"], image_token_id=token, images=Adapter.images
    )
    prompt = silent.prompt(inputs=case(name).inputs_of(1))
    for call in (silent.run, silent.generate):
        with pytest.raises(
            PromptError, match=r"expands its placeholders in its own forward(.|\n)*`expanded` gives them"
        ):
            call(prompt, EDIT)


def test_an_adapter_that_counts_wrongly_is_found_out():
    def expanded(self, inputs):
        ids, mask = adapters()["OriginalLlava"].expanded(self, inputs)
        return ids.repeat_interleave(2, 1)[:, :-16], mask.repeat_interleave(2, 1)[:, :-16]

    lens = adapted("OriginalLlava", expanded=expanded, images=Adapter.images)
    with pytest.raises(PromptError, match="was given 28 tokens and runs 22"):
        lens.run(lens.prompt(inputs=case("OriginalLlava").inputs_of(1)), read=["z"])


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda ids: ids.float(), r"given \(1, 7\) and a mask \(1, 7\)"),
        (lambda ids: ids[0], r"given \(7,\) and a mask \(1, 7\)"),
        (lambda ids: ids.repeat(1, 2), r"longer than input_ids \(1, 7\)\n  given \(1, 14\) and a mask \(1, 7\)"),
        (lambda ids: (ids, None), "and a mask NoneType"),
    ],
)
def test_what_is_no_sequence_is_refused(made, said):
    lens = adapted("OriginalLlava", expanded=lambda self, inputs: made(inputs["input_ids"]))
    with pytest.raises(ModelError, match=rf"Wrong\.expanded gives the ids of the sequence that runs(.|\n)*{said}"):
        lens.prompt(inputs=case("OriginalLlava").inputs_of(1))


@pytest.mark.parametrize(
    ("name", "lacking"), [("OriginalLlava", "images"), ("MiniCPMV", "image_bound"), ("Vila", "media")]
)
def test_inputs_that_lack_something_are_refused_by_name(name, lacking):
    inputs = {key: value for key, value in case(name).inputs_of(1).items() if key != lacking}
    with pytest.raises(PromptError, match=f"expanded cannot tell the sequence of these inputs: KeyError: '{lacking}'"):
        case(name).lens.prompt(inputs=inputs)


def test_more_placeholders_than_pictures_are_refused():
    inputs = case("Vila").inputs_of(1)
    with pytest.raises(PromptError, match="cannot tell the sequence of these inputs"):
        case("Vila").lens.prompt(inputs={**inputs, "media": {"image": inputs["media"]["image"][:1]}})
    two = {**case("OriginalLlava").inputs_of(1), "images": torch.randn(2, 3, 28, 28)}
    with pytest.raises(PromptError, match="images holds 2 images, but the text has the tokens of 1"):
        case("OriginalLlava").lens.prompt(inputs=two)


def test_ids_without_pixels_are_refused_where_pixels_come_in_lists():
    inputs = case("MiniCPMV").inputs_of(1)
    with pytest.raises(PromptError, match="no pixels were given"):
        case("MiniCPMV").lens.prompt(inputs={**inputs, "pixel_values": [[]]})


@pytest.mark.parametrize("name", ["InternVLChat", "OriginalLlava", "MiniCPMV", "Phi35Vision", "Molmo"])
@pytest.mark.parametrize("backend", ["nnsight", "transformer_lens"])
def test_other_frameworks_refuse_what_only_the_adapter_knows(name, backend):
    given = case(name)
    with pytest.raises(ModelError, match=rf"is called as {name} says it \(.*\), which {backend} does not do"):
        Lens(given.model, Tokenizer(), backend=backend, adapter=given.lens.adapter)


def test_inside_apply_a_class_that_generates_from_embeddings_is_refused():
    lens, inputs = case("InternVLChat").lens, internvl.inputs()
    with pytest.raises(PromptError, match="must be called with input_ids"), lens.apply(*EDIT):
        lens.model.generate(**inputs, max_new_tokens=2)
    data = {**minicpm.inputs(), "position_ids": torch.arange(20)[None]}
    with pytest.raises(PromptError, match="must be called with input_ids"), case("MiniCPMV").lens.apply(*EDIT):
        case("MiniCPMV").model(data)


@pytest.mark.parametrize("name", ["OriginalLlava", "Vila", "Molmo"])
def test_inside_apply_a_forward_with_ids_is_edited(name):
    each = case(name)
    expected = each.lens.run(each.lens.prompt(inputs=each.inputs_of(1)), EDIT).logits
    with torch.no_grad(), each.lens.apply(*EDIT):
        given = each.model(**each.inputs_of(1)).logits
    assert torch.equal(given, expected)


@torch.no_grad()
def test_inside_apply_a_cache_of_plain_lists_is_refused():
    each = case("Molmo")
    with pytest.raises(InterventionError, match="a cache of 15 tokens that were not seen here"), each.lens.apply(*EDIT):
        _go_on(each.model)


def _go_on(model):
    cache = model(**molmo.inputs(), use_cache=True).past_key_values
    model(torch.tensor([[5]]), torch.ones(1, 16), past_key_values=cache)


class Twice(molmo.MolmoSequentialBlock):
    """Attends twice in its forward."""

    def attention(self, *args, **kwargs):
        super().attention(*args, **kwargs)
        return super().attention(*args, **kwargs)


def test_a_layer_that_attends_twice_in_its_forward_is_refused():
    model = molmo.model()
    for block in model.model.transformer["blocks"]:
        block.__class__ = Twice
    lens = Lens(model, Tokenizer(), adapter=adapters()["Molmo"](model, Tokenizer()))
    prompt = lens.prompt(inputs=molmo.inputs())
    assert lens.run(prompt, EDIT).reports[0].n_edits
    with pytest.raises(HookError, match=r"layer 0 \(Twice\) attends twice in its forward"):
        lens.run(prompt, read=["pattern"])


@pytest.mark.parametrize("name", ["Phi35Vision", "Molmo"])
def test_attention_of_its_own_that_the_adapter_does_not_mention_did_not_fire(name):
    def find_layers(self):
        found = adapters()[name].find_layers(self)
        return tuple(Layer(x.module, x.attention, x.output_projection, x.mlp, x.n_heads, x.d_head) for x in found)

    lens = adapted(name, find_layers=find_layers)
    prompt = lens.prompt(inputs=case(name).inputs_of(1))
    with pytest.raises(HookError, match="pattern of layer 0 did not fire"):
        lens.run(prompt, read=["pattern"])


def test_nothing_is_overheard_after_a_run_and_outside_the_layers():
    each = case("Molmo")
    each.lens.run(each.lens.prompt(inputs=molmo.inputs()), read=["pattern"])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in each.model.modules())
    x = torch.randn(1, 4, 3, 8)
    assert torch.equal(nn.functional.softmax(x, -1), x.softmax(-1))


def test_rows_that_end_at_a_terminator_of_the_class_are_left_alone():
    """A row that has met one is only padded while the other goes on."""
    each = case("MiniCPMV")
    second = int(each.lens.generate(each.lens.prompt(inputs=minicpm.inputs(2)), EDIT, max_new_tokens=2).tokens[0, 1])
    model = minicpm.model()
    model.terminators = ["the end"]
    tokenizer = Tokenizer()
    tokenizer.convert_tokens_to_ids = lambda tokens: [second] if isinstance(tokens, list) else second
    lens = Lens(model, tokenizer, adapter=adapters()["MiniCPMV"](model, tokenizer))
    both = lens.generate(lens.prompt(inputs=minicpm.inputs(2)), EDIT, max_new_tokens=6)
    made = [row.index(second) + 1 if second in row else len(row) for row in both.tokens.tolist()]
    assert made[0] == 2 < made[1]
    n_prompt = sum(place.length - place.after for place in each.places(2))
    assert both.reports[0].n_edits == n_prompt + sum(n - 1 for n in made)
