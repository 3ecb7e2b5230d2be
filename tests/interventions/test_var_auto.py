"""VAR that finds its sinks itself."""

import pytest
import torch

from lmm_lens import VAR, AblateHeads, Lens
from lmm_lens.errors import InterventionError
from tests.support.cases import case, edits_of, plain
from tests.support.planted import DIMS, planted

LOOSE = {"min_nonsink_ratio": 0.0, "min_visual_mass": 0.0}
AUTO = VAR(sink_dims="auto", sink_threshold="auto", **LOOSE)
FOUND = VAR(sink_dims=DIMS, sink_threshold=4.0, **LOOSE)


def fresh(name="llava"):
    """A lens that has looked for nothing yet, and a prompt."""
    lens = Lens(planted(name).model)
    return lens, lens.prompt(inputs=planted(name).inputs)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl", "qwen3_vl"])
def test_what_is_discovered_is_what_was_planted(name):
    lens, prompt = fresh(name)
    given, expected = lens.run(prompt, [AUTO]), lens.run(prompt, [FOUND])
    assert torch.equal(given.logits, expected.logits)
    assert edits_of(given) == edits_of(expected)
    assert f"dims={sorted(DIMS)}" in given.reports[0].intervention


def test_generation_discovers_them_too():
    lens, prompt = fresh()
    given = lens.generate(prompt, [AUTO], max_new_tokens=4, logits=True)
    assert torch.equal(given.logits, lens.generate(prompt, [FOUND], max_new_tokens=4, logits=True).logits)


def test_each_of_both_can_be_left_to_be_discovered():
    lens, prompt = fresh()
    expected = lens.run(prompt, [FOUND]).logits
    for changes in ({"sink_dims": DIMS, "sink_threshold": "auto"}, {"sink_dims": "auto", "sink_threshold": 4.0}):
        assert torch.equal(lens.run(prompt, [VAR(**changes, **LOOSE)]).logits, expected)


def test_they_are_looked_for_on_each_prompt_whatever_ran_before():
    lens, prompt = fresh()
    alone = lens.run(prompt, [AUTO])
    passes = []
    hook = lens.model.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    try:
        other = lens.prompt(
            inputs={**planted("llava").inputs, "pixel_values": planted("llava").inputs["pixel_values"] * 0.1}
        )
        lens.run(other, [AUTO])
        assert len(passes) == 3  # two to find them, one to run
        again = lens.run(prompt, [AUTO])
        assert len(passes) == 6
    finally:
        hook.remove()
    assert torch.equal(alone.logits, again.logits)
    assert alone.reports == again.reports


def test_a_model_without_massive_activations_is_refused():
    plain_llava = case("llava")
    lens = Lens(plain_llava.model)
    with pytest.raises(InterventionError) as caught:
        lens.run(lens.prompt(inputs=plain_llava.inputs), [AUTO])
    first, second = str(caught.value).splitlines()
    assert first == '"auto" found no sinks, so VAR has nothing to do'
    assert "SinkReport: this model shows no massive activation" in second
    assert torch.equal(plain(lens.model, plain_llava.inputs), plain_llava.logits)


def test_inside_apply_they_are_discovered_on_the_unedited_model():
    lens, prompt = fresh()
    expected = lens.run(prompt, [FOUND]).logits
    lens = Lens(lens.model)
    with lens.apply(AUTO):
        inside = lens.run(prompt).logits
    assert torch.equal(inside, expected)


def test_a_direct_call_inside_apply_discovers_them_too():
    lens, prompt = fresh()
    expected = lens.run(prompt, [FOUND]).logits
    lens = Lens(lens.model)
    with lens.apply(AUTO):
        inside = plain(lens.model, planted("llava").inputs)
    torch.testing.assert_close(inside, expected, atol=1e-6, rtol=0)


def test_other_interventions_do_not_take_part_in_the_discovery():
    lens, prompt = fresh()
    everything = AblateHeads([(layer, head) for layer in range(5) for head in range(4)])
    with lens.apply(everything):
        given = lens.run(prompt, [AUTO])
    assert given.reports[1].intervention == lens.run(prompt, [AUTO]).reports[0].intervention


def test_the_report_names_what_was_used():
    lens, prompt = fresh()
    text = lens.run(prompt, [AUTO]).reports[0].intervention
    assert "dims=[9, 40]" in text
    assert "auto" not in text
