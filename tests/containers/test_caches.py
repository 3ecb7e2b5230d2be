"""Kinds of key-value caches, as options of a generation: tokens and edits as with hooks by hand on that generation.

An offloaded cache needs a GPU, in transformers itself, and is not tried.
"""

from typing import Any

import pytest
import torch

from lmm_lens import AblateHeads, Lens
from lmm_lens.bundled import shapes
from tests.containers.by_hand import ByHand
from tests.containers.held import BACKENDS, plain

pytestmark = pytest.mark.filterwarnings("ignore")  # of these packages about themselves and torch
HEADS = [(1, 4), (3, 4), (2, 5)]
CACHES: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "none": {"use_cache": False},
    "static": {"cache_implementation": "static"},
    "quantised": {"cache_implementation": "quantized", "cache_config": {"backend": "quanto", "nbits": 4}},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", CACHES.values(), ids=CACHES)
def test_a_generation_with_edits_goes_as_by_hand(options: dict[str, Any], backend: str):
    model = plain()
    lens = Lens(model, shapes.load()[1], backend)
    example = shapes.examples(1, ["color"])[0]
    prompt = lens.prompt(example.question, images=example.image)
    hand = ByHand(model, prompt.inputs, model.config.image_token_id)
    after = int(hand.visual.nonzero().max()) + 1
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": [], "pad_token_id": 0, **options}

    def edit(layer: int, head: int, z: torch.Tensor) -> torch.Tensor:
        z[:, after if z.shape[1] > 1 else 0 :] = 0
        return z

    with torch.no_grad(), hand.editing_z(HEADS, edit):
        made = model.generate(**prompt.inputs, **settings, return_dict_in_generate=True, output_logits=True)
    found = lens.generate(prompt, [AblateHeads(HEADS, rows="after_image")], logits=True, **settings)
    assert found.tokens[0].tolist() == made.sequences[0, prompt.n_tokens :].tolist()
    torch.testing.assert_close(found.logits[0], torch.stack(made.logits, 1)[0].float(), atol=2e-3, rtol=0)
    with torch.no_grad():
        plainly = model.generate(**prompt.inputs, **settings, return_dict_in_generate=True, output_logits=True)
    assert (plainly.logits[0] - made.logits[0]).abs().max() > 0.1
