"""A step whose only edit lets weights grow raises the kernel's scores: the same as a change added to what it gives."""

from __future__ import annotations

import warnings

import pytest
import torch

from lmm_lens import VAR, Knockout, KnockoutSinks, Lens, Read, ScaleAttention
from lmm_lens.core.attention import AttentionCall
from tests.support.cases import case, close, edits_of
from tests.support.models import FAMILIES

STEPS = 5
LATE = STEPS - 2  # the first pass is the prompt's, and in the first step attention is still looked at
ENDLESS = {"max_new_tokens": STEPS, "eos_token_id": [], "logits": True}
SINKS = {"sink_dims": (3, 11), "sink_threshold": 1.5}
LOOSE = VAR(**SINKS, min_nonsink_ratio=0.0, min_visual_mass=0.0, first_layer=0, skip_last_layer=False, rows="all")
EDITS = {
    "var": LOOSE,
    "var, all of it": VAR(1.0, 0.0, 0.0, 1.5, (3, 11), first_layer=0, skip_last_layer=False, rows="all"),
    "control": LOOSE.control_of(3),
    "sinks": KnockoutSinks(**SINKS, rows="all"),
    "scaled": ScaleAttention("image", "all", 2.5),
    "knocked out": Knockout("generating", "generating"),
}
pytestmark = pytest.mark.filterwarnings("ignore:.* of the visual tokens are sinks")
KINDS = ["llava", "qwen2_5_vl", "gemma3"]  # as many keys as heads; groups of heads; windows
OTHERS = [name for name in FAMILIES if name not in KINDS]


@pytest.fixture
def both_ways(monkeypatch):
    """A generation by its usual ways, one that adds changes to outputs, and how often the second did so more."""
    added: list[int] = []
    own = AttentionCall.read_values, AttentionCall.add_in_step
    for name, function in zip(("read_values", "add_in_step"), own, strict=True):

        def counted(self, *given, function=function):
            added.append(self.query.shape[2])
            return function(self, *given)

        monkeypatch.setattr(AttentionCall, name, counted)

    def both(lens, prompt, edit, **options):
        counts, made = [], []
        for linear in (False, True):
            with monkeypatch.context() as patched:
                if linear:
                    patched.setattr(AttentionCall, "takes_a_bias", False)
                    patched.setattr(AttentionCall, "takes_a_mask", False)
                added.clear()
                made.append(lens.generate(prompt, [edit], **{**ENDLESS, **options}))
                counts.append(added.count(1))
        return made, counts[1] - counts[0]

    return both


def check_alike(made, tolerance=1e-5):
    raised, linear = made
    assert torch.equal(raised.tokens, linear.tokens)
    close(raised.logits, linear.logits, tolerance)
    assert edits_of(raised) == edits_of(linear)
    assert raised.reports[0].n_edits > 0
    for one, other in zip(raised.reports, linear.reports, strict=True):
        assert one.moved == pytest.approx(other.moved, rel=1e-4)


@pytest.mark.parametrize("name", KINDS + [pytest.param(name, marks=pytest.mark.long) for name in OTHERS])
def test_var_is_the_same_in_every_family(name, both_ways):
    check_alike(both_ways(case(name).lens, case(name).prompt, LOOSE)[0])


@pytest.mark.parametrize("edit", list(EDITS))
@pytest.mark.parametrize("name", KINDS)
def test_each_edit_is_the_same_and_nothing_is_added(name, edit, both_ways):
    own = case(name)
    made, more = both_ways(own.lens, own.prompt, EDITS[edit])
    check_alike(made)
    assert more >= LATE * own.n_layers


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["growing", "static"])
@pytest.mark.parametrize("name", KINDS)
def test_padding_and_room_for_more_stay_hidden(name, options, both_ways):
    own = case(name)
    check_alike(both_ways(own.lens, own.lens.prompt(inputs=own.pair("left")[1]), LOOSE, **options)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", KINDS)
def test_other_precisions(name, dtype, both_ways):
    model, inputs = FAMILIES[name]()
    lens = Lens(model.to(dtype))
    given = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    made, more = both_ways(lens, lens.prompt(inputs=given), LOOSE)
    assert more >= LATE * lens.n_layers
    if dtype == torch.float64:
        check_alike(made, 1e-10)
    else:  # each rounds once, at other places
        raised, linear = (each.logits[:, 0] for each in made)
        close(raised.float(), linear.float(), 0.02)
        assert made[0].reports[0].n_edits > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", KINDS + [pytest.param(name, marks=pytest.mark.long) for name in OTHERS])
def test_heads_that_are_not_chosen_keep_every_bit(name, dtype):
    own = case(name)
    lens, inputs = own.lens, own.inputs
    if dtype != torch.float32:
        lens = Lens(FAMILIES[name]()[0].to(dtype))
        inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    prompt = lens.prompt(inputs=inputs)
    nobody = VAR(**SINKS, min_visual_mass=1.0, min_nonsink_ratio=1.0, first_layer=0, skip_last_layer=False, rows="all")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that nothing was changed
        made = lens.generate(prompt, [nobody], **ENDLESS)
    assert not made.reports[0].n_edits
    assert torch.equal(made.logits, lens.generate(prompt, **ENDLESS).logits)


def test_beside_another_edit_or_a_read_it_is_added(both_ways):
    own = case("llava")
    read = Read("pattern", rows="generating", reduce=lambda rows, context: rows.sum(-1))
    made, more = both_ways(own.lens, own.prompt, LOOSE, read=[read])
    check_alike(made)
    assert not more
