"""nnsight's other ways to run: several traces and models in one session work, vLLM is refused."""

import pytest
import torch

from lmm_lens import AblateHeads, Lens
from lmm_lens.errors import ModelError
from tests.support.cases import case

HEADS = [(1, 1)]


def test_traces_of_one_session_are_those_of_two():
    llava = case("llava")
    lens, z = llava.on("nnsight"), llava.lens.run(llava.prompt, read=["z"]).reads["z", 1]
    with lens.envoy.session(), torch.no_grad():
        with lens.trace(llava.prompt):
            first = lens.read(1, "z").save()
        with lens.trace(llava.prompt, [AblateHeads(HEADS)]):
            second = lens.read(1, "z").save()
            logits = lens.envoy.output.logits.save()
    assert torch.allclose(first, z, atol=1e-5)
    assert torch.equal(second[:, :, 1], torch.zeros_like(second[:, :, 1]))
    assert torch.allclose(logits, llava.lens.run(llava.prompt, [AblateHeads(HEADS)]).logits, atol=1e-5)


def test_two_models_of_one_session_each_answer_for_themselves():
    llava, gemma = case("llava"), case("gemma3")
    here, there = llava.on("nnsight"), gemma.on("nnsight")
    with here.envoy.session(), torch.no_grad():
        with here.trace(llava.prompt):
            one = here.read(1, "resid_pre").save()
        with there.trace(gemma.prompt):
            other = there.read(1, "resid_pre").save()
    assert torch.allclose(one, llava.lens.run(llava.prompt, read=["resid_pre"]).reads["resid_pre", 1], atol=1e-5)
    assert torch.allclose(other, gemma.lens.run(gemma.prompt, read=["resid_pre"]).reads["resid_pre", 1], atol=1e-5)


def test_a_model_in_vllm_is_refused():
    """As nnsight wraps one; vLLM itself is not needed to be refused."""
    from nnsight.modeling.vllm import VLLM

    for backend in (None, "nnsight", "native"):
        with pytest.raises(
            ModelError, match=r"runs in vLLM cannot be read or edited here: .*\n  open it with transformers"
        ):
            Lens(VLLM.__new__(VLLM), backend=backend)
