"""Steering against plain hooks on the model, row by row and step by step, in fp64."""

import dataclasses

import pytest
import torch

from lmm_lens import Direction, Steer
from lmm_lens.errors import HookError, InterventionError
from tests.support.cases import case, close, double
from tests.support.oracle import spans
from tests.support.quick import quick
from tests.support.reference import first_of, stack_of

NAMES = ["llava", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma3", "paligemma2", "idefics3", "internvl", "mllama"]
FEW = ("llava", "qwen3_vl", "gemma3")
NEW = 3


def way(family, seed=0):
    """A direction of any kind, as long as a tenth of a token or so."""
    width = family.lens.shape.d_model
    values = torch.randn(family.n_layers, width, generator=torch.Generator().manual_seed(seed))
    return Direction(values, tuple(range(family.n_layers)))


def by_hand(family, given, layers, rows, strength, keep_norm, new=NEW):
    """Greedy tokens and logits of a model whose layers have plain hooks that add to single rows."""
    seen = dict.fromkeys(layers, 0)

    def hook(layer, vector):
        def add(module, args, output):
            x = first_of(output).clone()
            for i in range(x.shape[1]):
                if seen[layer] + i in rows:
                    h = x[0, i]
                    if keep_norm:
                        mixed = h / h.norm() + strength * vector / vector.norm()
                        x[0, i] = h.norm() * mixed / mixed.norm()
                    else:
                        x[0, i] = h + strength * vector
            seen[layer] += x.shape[1]
            return (x, *output[1:]) if isinstance(output, tuple) else x

        return add

    stack = stack_of(family.model)
    handles = [stack[x].register_forward_hook(hook(x, given.at(x).double())) for x in layers]
    try:
        options = {"max_new_tokens": new, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        with torch.no_grad():
            out = family.model.generate(**family.inputs, eos_token_id=[], **options)
    finally:
        for handle in handles:
            handle.remove()
    return out.sequences[:, -new:], torch.stack(out.logits, 1)


@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("name", quick(NAMES, FEW))
def test_rows_after_the_image_are_steered_at_prefill_and_in_every_step(name, keep_norm):
    family = double(name)
    given, layers, strength = way(family), [0, family.n_layers - 1], -0.7
    rows = spans(family.inputs, NEW)["after_image"][0]
    edit = Steer(given, layers, "after_image", strength, keep_norm)
    out = family.lens.generate(family.prompt, [edit], max_new_tokens=NEW, eos_token_id=[], logits=True)
    tokens, logits = by_hand(family, given, layers, rows, strength, keep_norm)
    assert torch.equal(out.tokens, tokens)
    close(out.logits, logits, 1e-7)
    assert out.reports[0].edits == dict.fromkeys(layers, len(rows) - 1)  # the last new token is not run
    plain = family.lens.generate(family.prompt, max_new_tokens=NEW, eos_token_id=[], logits=True)
    assert (out.logits - plain.logits).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3"])
def test_the_image_rows_alone(name):
    family = double(name)
    given, rows = way(family, 1), spans(family.inputs)["image"][0]
    out = family.lens.generate(
        family.prompt, [Steer(given, [1], "image", 3)], max_new_tokens=1, eos_token_id=[], logits=True
    )
    close(out.logits, by_hand(family, given, [1], rows, 3, False, new=1)[1], 1e-7)
    assert out.reports[0].edits == {1: len(rows)}


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight", "remote"])
@pytest.mark.parametrize("keep_norm", [False, True])
def test_every_backend_steers_alike(backend, keep_norm):
    family = case("llava")
    edit = [Steer(way(family), [0, 1], "after_image", 1.5, keep_norm)]
    native, given = (
        lens.generate(family.prompt, edit, max_new_tokens=NEW, eos_token_id=[], logits=True)
        for lens in family.lenses(backend)
    )
    assert torch.equal(native.tokens, given.tokens)
    close(given.logits, native.logits, 1e-4)
    assert native.reports == given.reports


def test_each_row_of_a_padded_batch_is_steered_as_it_is_alone():
    family = case("llava")
    alone, batch = family.pair()
    edit = [Steer(way(family), None, "question", 2.0)]
    given = family.lens.run(family.lens.prompt(inputs=batch), edit)
    for row, inputs in enumerate(alone):
        own = family.lens.run(family.lens.prompt(inputs=inputs), edit)
        close(given.logits[row, -own.logits.shape[1] :], own.logits[0])


def test_there_and_back_is_the_plain_model():
    family = double("llava")
    given = way(family)
    run = family.lens.run(family.prompt, [Steer(given, [1], "all", 2.0), Steer(given, [1], "all", -2.0)])
    close(run.logits, family.logits, 1e-10)


def test_a_turned_row_keeps_its_length():
    family = case("llava")
    plain = family.lens.run(family.prompt, read=["resid_post"]).reads["resid_post", 1]
    edit = Steer(way(family), [1], "question", 0.8, keep_norm=True)
    turned = family.lens.run(family.prompt, [edit], read=["resid_post"]).reads["resid_post", 1]
    assert not torch.allclose(turned, plain, atol=1e-2)
    torch.testing.assert_close(turned.norm(dim=-1), plain.norm(dim=-1))


def test_in_half_precision_what_is_added_is_rounded_once():
    family = case("llava")
    model = type(family.model)(family.model.config).to(torch.bfloat16).eval()
    from lmm_lens import Lens

    lens = Lens(model)
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in family.inputs.items()}
    prompt, given = lens.prompt(inputs=inputs), way(family)
    plain = lens.run(prompt, read=["resid_post"]).reads["resid_post", 1]
    steered = lens.run(prompt, [Steer(given, [1], "all", 0.01)], read=["resid_post"]).reads["resid_post", 1]
    assert torch.equal(steered, (plain.float() + 0.01 * given.at(1)).bfloat16())


def test_the_control_adds_as_much_in_the_same_rows():
    family = case("llava")
    edit = Steer(way(family), [0, 2], "question", 2.5, True)
    control = edit.control_of(4)
    assert (control.layers, control.rows, control.strength, control.keep_norm) == ((0, 2), "question", 2.5, True)
    torch.testing.assert_close(control.direction.norms, edit.direction.norms)
    assert family.lens.run(family.prompt, [control]).reports[0].edits == {
        layer: n for layer, n in family.lens.run(family.prompt, [edit]).reports[0].edits.items()
    }
    assert repr(control) == (
        "Steer(random direction (seed 4), layers=[0, 2], rows='question', strength=2.5, keep_norm=True)"
    )


def test_nobody_changes_one():
    edit = Steer(Direction(torch.ones(1, 4), (2,)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        edit.strength = 2.0
    assert repr(edit) == "Steer(layers=[2], rows='all', strength=1)"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda d: Steer(torch.ones(3, 4)), "Steer takes a Direction, given Tensor"),
        (lambda d: Steer(d, strength=0), "strength is a number other than 0, given 0"),
        (lambda d: Steer(d, strength=float("nan")), "strength is a number other than 0, given nan"),
        (lambda d: Steer(d, [1, 9]), "the direction has no vector for layer 9"),
        (lambda d: Steer(d, []), "Steer was given no layers"),
        (lambda d: Steer(d, rows="pictures"), "unknown row scope 'pictures'"),
        (lambda d: Steer(d, rows="video"), "touches nothing: rows 'video'"),
        (lambda d: Steer(Direction(torch.ones(1, 4), (0,))), "the direction was found in a model of"),
        (lambda d: Steer(Direction(torch.ones(1, d.values.shape[1]), (8,))), "layer 8 is out of range"),
    ],
)
def test_what_cannot_be_steered_is_refused(make, text):
    family = case("llava")
    with pytest.raises((InterventionError, HookError)) as caught:
        family.lens.run(family.prompt, [make(way(family))])
    assert text in str(caught.value)


@pytest.mark.parametrize("keep_norm", [False, True])
def test_layers_in_which_a_direction_is_0_are_no_steering(keep_norm):
    given = Direction(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), (2, 5))
    with pytest.raises(InterventionError, match=r"the direction is 0 in layers \[2\], so adding it changes nothing"):
        Steer(given, layers=[2], keep_norm=keep_norm)
    assert Steer(given, keep_norm=keep_norm).layers == (2, 5)
