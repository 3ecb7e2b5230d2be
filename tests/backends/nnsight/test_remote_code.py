"""Classes of remote code whose own way of being called is forward's and generate's: nnsight gives what native gives."""

from functools import cache

import pytest
import torch

from lmm_lens import VAR, AblateHeads, Lens, score_heads
from lmm_lens.adapters import Adapter
from lmm_lens.errors import HookError
from tests.support.remote_code import internvl
from tests.support.remote_code.cases import case
from tests.support.remote_code.parts import Tokenizer

EDIT = [AblateHeads([(1, 1), (2, 3)], rows="after_image")]
REDISTRIBUTE = VAR(sink_dims=(3, 11), sink_threshold=2.0, min_nonsink_ratio=0.2, min_visual_mass=0.05, first_layer=1)


class Plain(Adapter):
    """InternVL's, for inputs that hold `image_flags` where forward needs them."""

    family = "plain"
    image_token_id = internvl.IMAGE


@cache
def lenses(name):
    model = internvl.model() if name == "internvl" else case(name).model
    adapter = Plain(model, Tokenizer()) if name == "internvl" else case(name).lens.adapter
    return [Lens(model, Tokenizer(), backend=backend, adapter=adapter) for backend in ("native", "nnsight")]


def inputs_of(name, n_rows, generates=False):
    if name != "internvl":
        return case(name).inputs_of(n_rows)
    return internvl.inputs(n_rows) | ({} if generates else {"image_flags": torch.ones(n_rows, 1, dtype=torch.long)})


@pytest.mark.parametrize("n_rows", [1, 2])
@pytest.mark.parametrize("name", ["internvl", "Vila"])
def test_runs_scores_and_edits_are_the_native_ones(name, n_rows):
    native, nnsight = lenses(name)
    prompt = native.prompt(inputs=inputs_of(name, n_rows))
    for edits in ([], EDIT, [REDISTRIBUTE]):
        one, other = (lens.run(prompt, edits) for lens in (native, nnsight))
        assert [r.n_edits for r in one.reports] == [r.n_edits for r in other.reports]
        assert torch.allclose(one.logits, other.logits, atol=1e-4)
    one, other = (score_heads(lens, prompt).per_prompt for lens in (native, nnsight))
    assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(("name", "n_rows"), [("internvl", 1), ("internvl", 2), ("Vila", 1)])
def test_generations_are_the_native_ones(name, n_rows):
    native, nnsight = lenses(name)
    prompt = native.prompt(inputs=inputs_of(name, n_rows, generates=True))
    for edits in ([], EDIT, [REDISTRIBUTE]):
        one, other = (lens.generate(prompt, edits, max_new_tokens=4, logits=True) for lens in (native, nnsight))
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.tokens.shape == (n_rows, 4)
        assert [r.n_edits for r in one.reports] == [r.n_edits for r in other.reports]
        assert torch.allclose(one.logits, other.logits, atol=1e-4)


def test_a_batch_of_a_class_that_embeds_more_than_once_a_step_is_refused_where_it_would_be_edited():
    native, nnsight = lenses("Vila")
    prompt = native.prompt(inputs=inputs_of("Vila", 2))
    plain = nnsight.generate(prompt, max_new_tokens=4)
    assert plain.tokens.tolist() == native.generate(prompt, max_new_tokens=4).tokens.tolist()
    with pytest.raises(HookError, match=r"did not fire in step 1 of 4(.|\n)*give one row at a time, or use backend"):
        nnsight.generate(prompt, EDIT, max_new_tokens=4)
