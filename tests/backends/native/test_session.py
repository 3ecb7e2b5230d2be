"""What a run puts into a model it takes out again, and what it cannot do it refuses."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lmm_lens import AblateHeads, Lens, LensError, Read
from tests.support.cases import SITES, case, close, hooks_of_ours, plain
from tests.support.failing import Fails
from tests.support.models import FAMILIES
from tests.support.programs import PROGRAMS, interventions

ONE = PROGRAMS["one edit"]


def implementations(model):
    """Where transformers keeps which attention is used, for every config in the model."""
    return {
        name: module.config._attn_implementation for name, module in model.named_modules() if hasattr(module, "config")
    }


def run_everything(family):
    edits = [*interventions(ONE, family.self_attending), AblateHeads(family.heads, rows="last")]
    family.lens.run(family.prompt, edits, read=[Read(site, family.layers_of(site)) for site in SITES])
    family.lens.generate(family.prompt, edits, max_new_tokens=3)
    with family.lens.apply(*edits):
        plain(family.model, family.inputs)
    return edits


def test_nothing_of_the_users_model_changes(family):
    model = family.model
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config, attention = copy.deepcopy(model.config.to_dict()), implementations(model)
    inputs = {name: tensor.clone() for name, tensor in family.inputs.items()}
    run_everything(family)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert model.config.to_dict() == config
    assert implementations(model) == attention
    assert hooks_of_ours(model) == []
    assert all(torch.equal(tensor, inputs[name]) for name, tensor in family.inputs.items())
    assert torch.equal(plain(model, family.inputs), family.logits)


def test_while_it_runs_only_the_decoder_is_switched(family):
    """The vision tower keeps its own attention: the tap would mistake its patches for text."""
    seen = {}

    def look(pattern, context):
        seen.update(implementations(family.model))
        return pattern

    before = implementations(family.model)
    family.lens.run(family.prompt, read=[Read("pattern", family.attending[:1], reduce=look)])
    changed = {name for name in seen if seen[name] != before[name]}
    decoder = next(name for name, module in family.model.named_modules() if module is family.model.get_decoder())
    assert changed
    assert all(name.startswith(decoder) for name in changed), changed


@pytest.mark.parametrize("site", SITES)
def test_after_an_exception_in_an_edit_everything_is_as_before(site):
    llava = case("llava")
    attention = implementations(llava.model)
    both = [*interventions(ONE, llava.self_attending), Fails(site)]
    for attempt in (
        lambda: llava.lens.run(llava.prompt, both, read=SITES),
        lambda: llava.lens.generate(llava.prompt, both, max_new_tokens=2),
    ):
        with pytest.raises(RuntimeError, match="the user's own mistake"):
            attempt()
        assert implementations(llava.model) == attention
        assert hooks_of_ours(llava.model) == []
    with pytest.raises(RuntimeError, match="the user's own mistake"), llava.lens.apply(*both):
        plain(llava.model, llava.inputs)
    assert implementations(llava.model) == attention
    assert hooks_of_ours(llava.model) == []
    assert torch.equal(llava.lens.run(llava.prompt).logits, llava.logits)


def test_after_an_exception_in_the_model_everything_is_as_before():
    llava = case("llava")
    broken = {**llava.inputs, "pixel_values": llava.inputs["pixel_values"][:, :2]}
    with pytest.raises(RuntimeError):
        llava.lens.run(llava.lens.prompt(inputs=broken), interventions(ONE, [0]), read=SITES)
    assert hooks_of_ours(llava.model) == []
    assert torch.equal(llava.lens.run(llava.prompt).logits, llava.logits)


def test_no_state_reaches_the_next_run(family):
    """The order of runs does not matter, on prompts with the image at different places."""
    edits = [*interventions(ONE, family.self_attending), AblateHeads(family.heads, rows="after_image")]
    prompts = [family.lens.prompt(inputs=inputs) for inputs in family.pair()[0]]
    forward = [family.lens.run(prompt, edits).logits for prompt in prompts]
    backward = [family.lens.run(prompt, edits).logits for prompt in reversed(prompts)][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert torch.equal(one, other)


def test_a_model_in_training_mode_is_refused():
    model, inputs = FAMILIES["llava"]()
    lens = Lens(model)
    prompt = lens.prompt(inputs=inputs)
    model.train()
    with pytest.raises(LensError, match=r"training mode.*\n.*call model.eval\(\)"):
        lens.run(prompt)
    with pytest.raises(LensError, match="training mode"), lens.apply(AblateHeads([(0, 0)])):
        pass
    assert hooks_of_ours(model) == []


def test_a_hook_that_does_not_fire_is_an_error():
    """A decoder layer with attention of its own, past the interface of transformers."""
    model, inputs = FAMILIES["llava"]()
    attention = model.get_decoder().layers[1].self_attn
    attention.forward = lambda hidden_states, **others: (attention.o_proj(hidden_states), None)
    lens = Lens(model)
    prompt = lens.prompt(inputs=inputs)
    message = (
        "pattern of layer 1 did not fire, so nothing was read or edited there\n.*attention interface of transformers"
    )
    with pytest.raises(LensError, match=message):
        lens.run(prompt, read=["pattern"])
    with pytest.raises(LensError, match=message):
        lens.run(prompt, interventions(ONE, [1]))
    assert lens.run(prompt, read=["z"]).reads["z", 1].shape == (1, 27, 4, 16)


def test_layers_without_heads_have_no_pattern_to_be_asked_for():
    family = case("qwen3_5")
    with pytest.raises(
        LensError, match=r"layer 0 \(Qwen3_5DecoderLayer\) has no attention heads, so it has no pattern"
    ):
        family.lens.run(family.prompt, read=[Read("pattern", [0])])
    with pytest.raises(LensError, match="layer 0"):
        family.lens.run(family.prompt, [AblateHeads([(0, 0)])])
    assert hooks_of_ours(family.model) == []


def test_a_batch_of_another_size_than_the_prompts_is_refused():
    llava = case("llava")
    batch = llava.pair()[1]
    prompt = llava.lens.prompt(inputs=llava.inputs)
    swapped = type(prompt)(batch, prompt.spans, prompt.images, prompt.tokens, prompt.masks)
    with pytest.raises(LensError, match="ran with a batch of 2, but the prompt has 1 rows"):
        llava.lens.run(swapped, read=["z"])


def test_two_threads_on_one_model_do_not_disturb_each_other():
    llava = case("llava")
    sets = [llava.heads[:1], llava.heads[1:], [(0, 3)]]
    programs = [[AblateHeads(heads), *interventions(ONE, [layer])] for layer, heads in enumerate(sets)]
    expected = [llava.lens.run(llava.prompt, program).logits for program in programs]

    def work(program):
        return [llava.lens.run(llava.prompt, program).logits for _ in range(40)]

    patience = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # let them interrupt each other anywhere
    try:
        with ThreadPoolExecutor() as pool:
            given = list(pool.map(work, programs))
    finally:
        sys.setswitchinterval(patience)
    for runs, right in zip(given, expected, strict=True):
        for logits in runs:
            close(logits, right)


def test_a_run_inside_inference_mode_gives_the_same():
    llava = case("llava")
    edits = [*interventions(ONE, llava.self_attending), AblateHeads(llava.heads)]
    with torch.inference_mode():
        given = llava.lens.run(llava.prompt, edits, read=["pattern"]).logits
    close(given, llava.lens.run(llava.prompt, edits).logits, 1e-6)


def test_two_reads_of_one_name_are_refused():
    llava = case("llava")
    with pytest.raises(LensError, match=r"two reads share the name 'z'\n.*Read\(\.\.\., name=\.\.\.\)"):
        llava.lens.run(llava.prompt, read=["z", Read("z", rows="last")])
