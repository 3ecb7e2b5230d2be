"""Containers x backends x operations: the answer that hooks by hand give, or a refusal that helps."""

from typing import Any

import pytest
import torch

from lmm_lens import VAR, AblateHeads, Lens, PatchHeads, score_heads
from lmm_lens.bundled import shapes
from lmm_lens.errors import LensError
from tests.containers.by_hand import ByHand
from tests.containers.held import BACKENDS, HELD, Held

pytestmark = pytest.mark.filterwarnings("ignore")  # of these packages about themselves and torch
HEADS = [(1, 4), (3, 4), (2, 5)]
DIM, TAU = 7, 1.5  # a dimension like any other, which some tokens exceed


def prompts_of(lens: Lens) -> tuple[Any, Any]:
    """Two of the same length."""
    one, other = shapes.color_pairs(1)[0]
    return lens.prompt(one.question, images=one.image), lens.prompt(other.question, images=other.image)


def run(given: Any, processor: Any, backend: str) -> None:
    lens = Lens(given, processor, backend)
    lens.run(prompts_of(lens)[0])


def agree(found: torch.Tensor, expected: torch.Tensor, held: Held) -> None:
    torch.testing.assert_close(found.float(), expected.float(), atol=held.tolerance, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("held", HELD, ids=lambda held: held.name)
def test_the_answer_by_hand_or_a_refusal(held: Held, backend: str):
    given, model = held.make()
    processor = shapes.load()[1]
    if backend in held.refused:
        with pytest.raises(LensError, match=held.refused[backend]) as refusal:
            run(given, processor, backend)
        assert len(str(refusal.value).splitlines()) > 1, "a refusal says what to do"
        return
    lens = Lens(given, processor, backend)
    if "half" in held.name:
        model.half()
    prompt, clean = prompts_of(lens)
    hand = ByHand(model, prompt.inputs, model.config.image_token_id)

    before = hand.logits()
    agree(lens.run(prompt, logits="last").logits[0, -1], before, held)

    ablated = hand.ablated(HEADS)
    assert (ablated - before).abs().max() > 5 * held.tolerance
    agree(lens.run(prompt, [AblateHeads(HEADS)]).logits[0, -1], ablated, held)

    mass = hand.visual_mass()
    assert mass.max() > 0.3
    torch.testing.assert_close(
        score_heads(lens, [prompt]).values.float(), mass, atol=max(2e-3, held.tolerance / 5), rtol=0
    )

    moved = hand.redistributed(DIM, TAU, 1.0, range(6))
    assert (moved - before).abs().max() > 5 * held.tolerance
    var = VAR(1.0, 0.0, 0.01, TAU, (DIM,), first_layer=0, skip_last_layer=False, rows="last")
    agree(lens.run(prompt, [var]).logits[0, -1], moved, held)

    tokens = hand.generated(HEADS, 4)
    found = lens.generate(prompt, [AblateHeads(HEADS, rows="after_image")], max_new_tokens=4, eos_token_id=[])
    assert found.tokens[0].tolist() == tokens

    patched = hand.patched(HEADS, clean.inputs)
    assert (patched - before).abs().max() > 5 * held.tolerance
    agree(lens.run(prompt, [PatchHeads(HEADS, lens.run(clean, read=["z"]))]).logits[0, -1], patched, held)

    agree(hand.logits(), before, held)  # and the user's model is what it was
