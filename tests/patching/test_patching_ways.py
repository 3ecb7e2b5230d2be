"""A grid is replayed where that is exact, and says so; one forward each gives the same."""

import pytest
import torch

from lmm_lens import AblateHeads, Lens, activation_patching
from lmm_lens.patching.by_forwards import by_forwards
from lmm_lens.patching.by_replay import by_replay
from lmm_lens.patching.task import PatchingTask
from lmm_lens.patching.units import Units
from lmm_lens.replay import UnfitError
from lmm_lens.runs.checkpoint import Checkpoint
from tests.support.by_hand import repainted
from tests.support.cases import double
from tests.support.models import another, joined
from tests.support.naive import tolerance

NAMES = ("qwen2_vl", "qwen3_vl", "gemma3", "paligemma", "idefics3", "qwen3_5", "internvl")
GRIDS = (
    ("resid_pre", "span", "all"),
    ("resid_post", "patch", "all"),
    ("attn_out", "span", "all"),
    ("mlp_out", "span", "all"),
    ("z", "span", "all"),
    ("z", "head", "last"),
    ("z", "head", "after_image"),
    ("pattern", "head", "all"),
    ("pattern", "head", "last"),
)


def pair_of(name, padded=""):
    inputs = double(name).inputs
    both = [inputs, repainted(inputs)]
    if padded:
        both = [joined([x, another(x, seed)], padded) for seed, x in enumerate(both, 5)]
        both[1]["input_ids"] = both[0]["input_ids"]
    return [double(name).lens.prompt(inputs=x) for x in both]


def grids_of(name, site, by, rows, padded=""):
    lens, (clean, corrupt) = double(name).lens, pair_of(name, padded)
    units = Units.of(by, corrupt, lens.n_heads, rows)
    layers = tuple(i for i in range(lens.n_layers) if lens.shape.n_heads[i] or site not in ("z", "pattern", "attn_out"))
    grid = PatchingTask(lens, clean, corrupt, site, units, layers, torch.tensor([[11, 12]] * corrupt.n_rows))
    about = {"of": f"{site} {by} {rows} {padded}"}
    return [way(grid, Checkpoint(lens, way.__name__, about, None), False) for way in (by_replay, by_forwards)]


CASES = [("llava", *grid) for grid in GRIDS] + [
    (name, *grid) for name in NAMES for grid in (GRIDS[0], GRIDS[6]) + ((GRIDS[7],) if name != "qwen3_5" else ())
]


@pytest.mark.parametrize(("name", "site", "by", "rows"), CASES)
def test_replayed_grids_equal_one_forward_each(name, site, by, rows):
    replayed, forwards = grids_of(name, site, by, rows)
    torch.testing.assert_close(replayed, forwards, atol=tolerance(name), rtol=tolerance(name), equal_nan=True)
    assert float((forwards - forwards.nanmean()).nan_to_num().abs().max()) > 1e-3, "a patch has to show"


def test_a_gate_behind_attention_is_noticed_before_a_number_is_given():
    with pytest.raises(UnfitError, match="a replayed change differs from the model's own forward"):
        grids_of("qwen3_5", "pattern", "head", "all")


@pytest.mark.parametrize("padded", ["left", "right"])
def test_the_pairs_of_a_padded_batch_do_not_mix(padded):
    for site, by, rows in (("resid_pre", "span", "all"), ("z", "head", "after_image"), ("pattern", "head", "all")):
        replayed, forwards = grids_of("llava", site, by, rows, padded)
        torch.testing.assert_close(replayed, forwards, atol=1e-11, rtol=1e-11, equal_nan=True)


def test_scores_say_how_they_were_computed():
    lens, (clean, corrupt) = double("llava").lens, pair_of("llava")
    assert activation_patching(lens, clean, corrupt, answers=[(11, 12)]).how == "replayed"
    with lens.apply(AblateHeads([(0, 0)])):
        edited = activation_patching(lens, clean, corrupt, answers=[(11, 12)])
    assert edited.how.startswith("one forward for each layer and unit: an enclosing lens.apply")
    other = Lens(double("llava").model, backend="nnsight")
    prompts = [other.prompt(inputs=prompt.inputs) for prompt in (clean, corrupt)]
    assert "goes through its own hook points" in activation_patching(other, *prompts, answers=[(11, 12)]).how
