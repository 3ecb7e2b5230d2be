"""A lens of another framework stands on a copy of the user's model, whatever another lens does to that model."""

import pytest
import torch
from torch import nn

from lmm_lens import AblateHeads, Lens
from lmm_lens.backends.twins import structure_of, twin_of
from tests.support.cases import case, hooks_of_ours
from tests.support.models import FAMILIES


def _model_of(lens, backend):
    return lens._backend.envoy._module if backend == "nnsight" else lens._backend.model


@pytest.mark.parametrize("backend", ["nnsight", "transformer_lens"])
@pytest.mark.parametrize("loaded", ["sdpa", "eager"])
def test_a_lens_can_be_made_while_another_edits_the_model(backend, loaded):
    """Its copy has neither the hooks of the edit nor the attention function that stands in for the user's."""
    model, inputs = FAMILIES["llava"]()
    model.set_attn_implementation(loaded)
    native = Lens(model)
    prompt = native.prompt(inputs=inputs)
    plainly = native.run(prompt).logits
    of_its_own = hooks_of_ours(_model_of(Lens(model, backend=backend), backend))  # a bridge's tower has some
    with native.apply(AblateHeads([(1, 2)]), AblateHeads([(0, 1)], "uniform")):
        edited = model(**inputs).logits
        lens = Lens(model, backend=backend)
        assert hooks_of_ours(_model_of(lens, backend)) == of_its_own
        assert (lens.run(prompt).logits - plainly).abs().max() < 1e-5
    assert (edited - plainly).abs().max() > 1e-3
    assert (lens.run(prompt).logits - plainly).abs().max() < 1e-5


def test_a_copy_made_while_the_attention_is_tapped_has_the_users_own():
    model, inputs = FAMILIES["llava"]()
    native = Lens(model)
    with native.apply(AblateHeads([(0, 1)], "uniform")):
        model(**inputs)
        assert model.model.language_model.config._attn_implementation.startswith("lmm_lens")
        twin = twin_of(model, keeps_hooks=True)
    assert twin.model.language_model.config._attn_implementation == "sdpa"


def test_a_bridge_is_not_stale_because_another_lens_runs():
    llava = case("llava")
    lens, before = Lens(llava.model, backend="transformer_lens"), structure_of(llava.model)
    bridge = lens.bridge
    with llava.lens.apply(AblateHeads([(0, 1)], "uniform")):
        llava.lens.run(llava.prompt)
        llava.model(**llava.inputs)
        assert structure_of(llava.model) == before
        assert lens.bridge is bridge


class Counting:
    """A hook with a state, as users write them."""

    def __init__(self):
        self.n = 0

    def __call__(self, module, args, output):
        self.n += 1


@pytest.mark.parametrize("keeps_hooks", [True, False])
def test_hooks_of_the_user_stand_on_the_copy_where_they_should(keeps_hooks):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    counting, shared = Counting(), []
    model[0].register_forward_hook(counting)
    model[1].register_forward_pre_hook(lambda module, args, kwargs: shared.append(module), with_kwargs=True)
    twin = twin_of(model, keeps_hooks)
    twin(torch.zeros(1, 2))
    assert counting.n == 0, "its copy counts"
    assert shared == ([twin[1]] if keeps_hooks else [])
    assert [type(hook) for hook in twin[0]._forward_hooks.values()] == ([Counting] if keeps_hooks else [])
    assert twin[0].weight is model[0].weight
