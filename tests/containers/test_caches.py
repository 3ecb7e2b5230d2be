"""Kinds of key-value caches, as options of a generation: tokens and edits as with hooks by hand on that generation.

An offloaded cache needs a GPU, in transformers itself, and is not tried.
"""

from typing import Any

import pytest
import torch

from lmm_lens import AblateHeads, Lens, LensError
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


@pytest.fixture
def compiling():
    """A model that `generate` compiles for a static cache, as transformers does on a GPU; counts compiled frames."""
    from torch._dynamo.utils import counters
    from transformers import CompileConfig

    model = plain()
    config = CompileConfig(fullgraph=False, backend="eager", mode=None)
    config._compile_all_devices = True
    model.generation_config.compile_config = config
    counters.clear()
    yield model, lambda: sum(counters["frames"].values())
    torch._dynamo.reset()


SHORT = {"max_new_tokens": 3, "eos_token_id": [], "cache_implementation": "static"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_generation_is_not_compiled_where_transformers_would(compiling, backend: str):
    model, frames = compiling
    lens = Lens(model, shapes.load()[1], backend)
    example = shapes.examples(1, ["color"])[0]
    prompt = lens.prompt(example.question, images=example.image)
    edit = AblateHeads(HEADS, rows="after_image")
    static = lens.generate(prompt, [edit], logits=True, **SHORT)
    dynamic = lens.generate(prompt, [edit], logits=True, max_new_tokens=3, eos_token_id=[])
    assert frames() == 0
    torch.testing.assert_close(static.logits, dynamic.logits, atol=1e-4, rtol=0)


def test_nor_is_one_of_the_model_itself_under_edits_and_outside_it_is(compiling):
    model, frames = compiling
    lens = Lens(model, shapes.load()[1])
    example = shapes.examples(1, ["color"])[0]
    prompt = lens.prompt(example.question, images=example.image)
    options = {**prompt.inputs, **SHORT, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    edit = AblateHeads(HEADS, rows="after_image")
    with lens.apply(edit):
        edited = model.generate(**options)
    assert frames() == 0
    expected = lens.generate(prompt, [edit], logits=True, **SHORT)
    torch.testing.assert_close(torch.stack(edited.logits, 1)[0], expected.logits[0], atol=1e-4, rtol=0)
    model.generate(**options)
    assert frames() > 0


@pytest.mark.parametrize("option", [{"compile_config": {}}, {"disable_compile": False}])
def test_a_compiled_generation_is_refused(option: dict[str, Any]):
    lens = Lens(plain(), shapes.load()[1])
    with pytest.raises(LensError, match="compiled code does not call the hooks of its modules, and would lose edits"):
        lens.generate(lens.prompt("Hello"), **option)
