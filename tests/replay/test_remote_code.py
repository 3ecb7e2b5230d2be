"""Experiments on classes of remote code, by replays where their layers run by themselves, against hooks by hand."""

import pytest
import torch

from lmm_lens import activation_patching, head_effects
from tests.support.remote_code.by_hand import Watched
from tests.support.remote_code.cases import NAMES, case


@pytest.fixture(params=NAMES)
def each(request):
    return case(request.param)


def repainted(value, generator):
    """Pixels, wherever they are, as other ones."""
    if isinstance(value, torch.Tensor):
        is_picture = value.is_floating_point() and value.ndim > 2 and value.std() > 0
        return torch.randn(value.shape, generator=generator) if is_picture else value
    if isinstance(value, dict):
        return {name: repainted(part, generator) for name, part in value.items()}
    return [repainted(part, generator) for part in value] if isinstance(value, list) else value


def test_the_effect_of_a_head_is_that_of_a_hook(each):
    layer, head = 1, 2

    def zero(at, z):
        if at == layer:
            z[:, -1, head] = 0
        return z

    watched, inputs = Watched(each), each.inputs_of(1)
    clean, without = (watched.run(inputs, **edits).log_softmax(-1)[0, -1] for edits in ({}, {"z": zero}))
    word = int(clean.argmax())
    effects = head_effects(each.lens, each.lens.prompt(inputs=inputs), answers=[(word, (word + 1) % 100)])
    assert float(effects.values[layer, head]) == pytest.approx(float(clean[word] - without[word]), abs=1e-4)
    assert ("one forward each" in repr(effects)) == (each.name in ("Phi35Vision", "Molmo"))


def test_a_patched_head_is_that_of_a_hook(each):
    inputs = each.inputs_of(1)
    others = repainted(inputs, torch.Generator().manual_seed(9))
    watched, layer, head = Watched(each), 2, 1
    clean = watched.run(inputs)[0, -1]
    source = watched.z[layer].clone()

    def patch(at, z):
        if at == layer:
            z[:, :, head] = source[:, :, head]
        return z

    corrupt, patched = (watched.run(others, **edits)[0, -1] for edits in ({}, {"z": patch}))
    right, wrong = int((clean - corrupt).argmax()), int((corrupt - clean).argmax())
    difference = [float(logits[right] - logits[wrong]) for logits in (clean, corrupt, patched)]
    prompts = [each.lens.prompt(inputs=given) for given in (inputs, others)]
    scores = activation_patching(each.lens, *prompts, "z", "head", answers=[(right, wrong)])
    expected = (difference[2] - difference[1]) / (difference[0] - difference[1])
    assert float(scores.values[layer, head]) == pytest.approx(expected, abs=1e-3)
