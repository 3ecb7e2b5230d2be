"""A read put onto the prompt's positions is what each prompt gives alone, at its own tokens, and NaN elsewhere."""

import pytest
import torch

from lmm_lens import Read
from lmm_lens.errors import HookError
from tests.support.planted import planted

SITES = ("resid_pre", "z", "pattern")


@pytest.fixture(scope="module")
def padded():
    """Three prompts of different lengths alone, and padded into one batch."""
    given = planted("llava")
    singles, batch = given.batch()
    return given.lens, [given.lens.prompt(inputs=inputs) for inputs in singles], given.lens.prompt(inputs=batch)


@pytest.mark.parametrize("site", SITES)
def test_rows_of_a_padded_batch_lie_where_the_prompt_has_them(padded, site):
    lens, singles, batch = padded
    together = lens.run(batch, read=[site])
    assert (batch.mask("pad").sum(1) > 0).any(), "some row must be padded"
    placed = together.on_prompt(site, 1)
    for row, single in enumerate(singles):
        alone = lens.run(single, read=[site]).reads[site, 1][0]
        real = batch.mask("all")[row]
        if site == "pattern":
            assert placed.shape[2] == batch.n_tokens
            torch.testing.assert_close(placed[row][:, real][:, :, real], alone, atol=1e-5, rtol=1e-5)
            assert placed[row][:, ~real].isnan().all()
        else:
            assert placed.shape[1] == batch.n_tokens
            torch.testing.assert_close(placed[row, real], alone, atol=1e-5, rtol=1e-5)
            assert placed[row, ~real].isnan().all()


def test_a_mask_of_the_prompt_selects_the_visual_tokens(padded):
    lens, singles, batch = padded
    visual = lens.run(batch, read=["resid_pre"]).on_prompt("resid_pre", 0)[batch.mask("visual")]
    alone = [lens.run(each, read=["resid_pre"]).reads["resid_pre", 0][each.mask("visual")] for each in singles]
    torch.testing.assert_close(visual, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_rows_that_were_not_read_are_nan(padded):
    lens, _, batch = padded
    last = lens.run(batch, read=[Read("resid_pre", rows="last")])
    placed = last.on_prompt("resid_pre", 2)
    assert torch.equal(~placed.isnan().any(-1), batch.mask("last"))
    assert torch.equal(placed[batch.mask("last")], last.reads["resid_pre", 2][:, 0])


def test_generated_tokens_are_left_out(padded):
    lens, _, batch = padded
    made = lens.generate(batch, read=["resid_pre"], max_new_tokens=3, eos_token_id=[])
    assert made.reads["resid_pre", 1].shape[1] > batch.mask("all").sum(1).max()
    torch.testing.assert_close(
        made.on_prompt("resid_pre", 1), lens.run(batch, read=["resid_pre"]).on_prompt("resid_pre", 1), equal_nan=True
    )


def test_what_was_not_read_is_refused(padded):
    lens, _, batch = padded
    run = lens.run(batch, read=[Read("resid_pre", [1])])
    with pytest.raises(HookError) as caught:
        run.on_prompt("resid_pre", 2)
    assert str(caught.value) == "'resid_pre' of layer 2 was not read\n  reads of this run: 'resid_pre' of layer 1"


def test_whole_numbers_have_no_nan(padded):
    lens, singles, batch = padded
    signs = Read("resid_pre", reduce=lambda x, context: x > 0, name="signs")
    with pytest.raises(HookError, match="'signs' of layer 1 is bool, which has no NaN for tokens that were not read"):
        lens.run(batch, read=[signs]).on_prompt("signs", 1)
    alone = lens.run(singles[0], read=[signs])
    assert torch.equal(alone.on_prompt("signs", 1), alone.reads["signs", 1])
