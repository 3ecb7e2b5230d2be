"""A rule by which most visual tokens are sinks is obeyed, and told."""

import warnings

import pytest
import torch

from lmm_lens import VAR, KnockoutSinks, find_sinks, score_heads
from lmm_lens.warnings import LensWarning
from tests.support.planted import DIMS, planted

LOW = 0.05  # phi of nearly every token
MANY = (
    r"\d+% of the visual tokens are sinks in 5 of 5 layers, by sink_dims=\[9, 40\], sink_threshold=0.05: there it does"
)


def test_a_threshold_that_is_too_low_is_told_by_scores():
    given = planted("llava")
    with pytest.warns(LensWarning, match=MANY) as caught:
        scores = score_heads(given.lens, given.prompt, "nonsink_mass", sink_dims=DIMS, sink_threshold=LOW)
    assert len(caught) == 1
    assert str(caught[0].message).splitlines()[1] == (
        '  give a higher threshold, or sink_threshold="auto"; find_sinks(lens, prompts) shows the gap'
    )
    assert caught[0].filename == __file__
    assert float(scores.values.max()) < 1


@pytest.mark.parametrize(
    "edit",
    [KnockoutSinks(DIMS, LOW), VAR(sink_dims=DIMS, sink_threshold=0.3, min_visual_mass=0.0, min_nonsink_ratio=0.0)],
)
def test_and_by_interventions_in_runs_and_while_generating(edit):
    given = planted("llava")
    with pytest.warns(LensWarning, match="% of the visual tokens are sinks in"):
        given.lens.run(given.prompt, [edit])
    with pytest.warns(LensWarning, match="% of the visual tokens are sinks in"):
        given.lens.generate(given.prompt, [edit], max_new_tokens=3)


def test_the_share_is_that_of_a_count():
    given = planted("llava")
    visual = given.prompt.mask("visual")[0]
    shares = []
    for layer in range(5):
        x = given.lens.run(given.prompt, read=["resid_pre"]).reads["resid_pre", layer][0].double()
        phi = x[:, list(DIMS)].abs().amax(1) / (x.square().mean(1) + 1e-6).sqrt()
        shares.append(float((phi[visual] >= LOW).double().mean()))
    assert min(shares) > 0.5
    with pytest.warns(LensWarning, match=f"^{sum(shares) / 5:.0%} of the visual tokens"):
        score_heads(given.lens, given.prompt, "nonsink_mass", sink_dims=DIMS, sink_threshold=LOW)


def test_where_sinks_are_few_nothing_is_said_and_no_sum_is_left():
    given = planted("llava")
    threshold = find_sinks(given.lens, given.prompt).threshold
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_heads(given.lens, given.prompt, "nonsink_mass", sink_dims=DIMS, sink_threshold=threshold)
        run = given.lens.run(given.prompt, [KnockoutSinks(DIMS, threshold)])
    assert run.sums == {}
    assert torch.isfinite(run.logits).all()
