""" "auto" is taken wherever sink dimensions and a threshold are, and is what find_sinks finds."""

import pytest
import torch

from lmm_lens import VAR, KnockoutSinks, Lens, find_sinks, localization_heads, score_heads
from lmm_lens.errors import InterventionError, ScoreError
from tests.support.cases import case
from tests.support.planted import DIMS, planted

LOOSE = {"min_nonsink_ratio": 0.0, "min_visual_mass": 0.0}
WAYS = [
    {"sink_dims": "auto", "sink_threshold": "auto"},
    {"sink_dims": DIMS, "sink_threshold": "auto"},
    {"sink_dims": "auto", "sink_threshold": 4.0},
]


@pytest.mark.parametrize("given", WAYS, ids=str)
def test_scores_are_those_by_what_is_found(given):
    family = planted("llava")
    report = find_sinks(family.lens, family.prompt)
    expected = score_heads(family.lens, family.prompt, "nonsink_mass", sink_dims=DIMS, sink_threshold=4.0)
    scores = score_heads(family.lens, family.prompt, "nonsink_mass", **given)
    assert torch.equal(scores.per_prompt, expected.per_prompt)
    tau = 4.0 if given["sink_threshold"] == 4.0 else report.threshold
    assert scores.settings == {"sink_dims": list(DIMS), "sink_threshold": tau, "sinks": "find_sinks"}


def test_a_stream_of_prompts_is_scored_whole_by_one_rule():
    family = planted("llava")
    singles, _ = family.batch()
    prompts = [family.lens.prompt(inputs=inputs) for inputs in singles * 4]
    listed = score_heads(family.lens, prompts, "nonsink_mass", sink_dims="auto", sink_threshold="auto")
    streamed = score_heads(family.lens, iter(prompts), "nonsink_mass", sink_dims="auto", sink_threshold="auto")
    assert listed.n_prompts == streamed.n_prompts == 12
    assert torch.equal(listed.per_prompt, streamed.per_prompt)
    assert listed.settings["sink_threshold"] == find_sinks(family.lens, prompts[:8]).threshold


def test_the_rule_is_found_on_the_model_as_it_is():
    family = planted("llava")
    expected = score_heads(family.lens, family.prompt, "nonsink_mass", sink_dims="auto", sink_threshold="auto").settings
    with family.lens.apply(KnockoutSinks(DIMS, 4.0)):
        inside = score_heads(
            family.lens, family.prompt, "nonsink_mass", sink_dims="auto", sink_threshold="auto"
        ).settings
    assert inside == expected


@pytest.mark.parametrize("given", WAYS, ids=str)
def test_localization_takes_it(given):
    family = planted("llava")
    expected = localization_heads(family.lens, family.prompt, 1, drop_sinks=True, sink_dims=DIMS, sink_threshold=4.0)
    assert localization_heads(family.lens, family.prompt, 1, drop_sinks=True, **given) == expected


@pytest.mark.parametrize("given", WAYS, ids=str)
def test_sinks_are_knocked_out_by_it(given):
    family = planted("llava")
    expected = family.lens.run(family.prompt, [KnockoutSinks(DIMS, 4.0)])
    run = family.lens.run(family.prompt, [KnockoutSinks(**given)])
    assert torch.equal(run.logits, expected.logits)
    assert KnockoutSinks(**given) != KnockoutSinks(DIMS, 4.0)


def test_a_threshold_for_dimensions_that_are_given_is_found_on_these():
    """Dimension 40 alone is found a threshold of its own, not that of both."""
    family = planted("llava")
    report = find_sinks(family.lens, family.prompt, dims=(40,))
    assert report.dims == (40,)
    assert report.threshold != find_sinks(family.lens, family.prompt).threshold
    ran = family.lens.run(family.prompt, [VAR(sink_dims=(40,), sink_threshold="auto", **LOOSE)])
    assert "dims=[40]" in ran.reports[0].intervention
    assert f"tau={report.threshold:g}" in ran.reports[0].intervention


def test_where_there_are_no_sinks_it_is_said():
    plain = case("llava")
    lens = Lens(plain.model)
    prompt = lens.prompt(inputs=plain.inputs)
    with pytest.raises(
        ScoreError, match=r'^"auto" found no sinks, so none can be left out\n  SinkReport: this model shows no'
    ):
        score_heads(lens, prompt, "nonsink_mass", sink_dims="auto", sink_threshold="auto")
    with pytest.raises(
        InterventionError, match=r'^"auto" found no sinks, so there are none to knock out\n  SinkReport'
    ):
        lens.run(prompt, [KnockoutSinks("auto", "auto")])


def test_other_words_are_refused():
    family = planted("llava")
    with pytest.raises(ScoreError, match="sink_dims is a value or \"auto\", given 'all'"):
        score_heads(family.lens, family.prompt, "nonsink_mass", sink_dims="all")
    with pytest.raises(ScoreError, match="sink_threshold is a value or \"auto\", given 'high'"):
        score_heads(family.lens, family.prompt, "nonsink_mass", sink_dims=DIMS, sink_threshold="high")
    with pytest.raises(InterventionError, match="sink_threshold is a value or \"auto\", given 'high'"):
        KnockoutSinks(DIMS, "high")
    with pytest.raises(InterventionError, match="sink_dims is a value or \"auto\", given 'all'"):
        KnockoutSinks("all")


def test_dimensions_outside_the_model_are_refused():
    family = planted("llava")
    with pytest.raises(ScoreError, match="sink dimensions \\[64\\] lie outside the model"):
        find_sinks(family.lens, family.prompt, dims=(64,))
