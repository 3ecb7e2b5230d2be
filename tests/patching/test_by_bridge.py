"""transformer_lens.patching on prompts gives what our own activation patching gives, since the image is there."""

import pandas
import pytest
import torch
from transformer_lens import patching

from lmm_lens import Lens, activation_patching
from lmm_lens.answers.contrast import logit_difference
from lmm_lens.bundled import shapes
from lmm_lens.errors import PromptError
from lmm_lens.lens.bridge_calls import run_with_cache, run_with_hooks
from lmm_lens.lens.bridge_patching import PatchingModel
from lmm_lens.patching.by_bridge import get_act_patch_by_span

SITES = (
    "hook_in",
    "hook_resid_pre",
    "hook_z",
    "hook_pattern",
    "hook_mlp_out",
    "hook_attn_out",
    "hook_q",
    "hook_k",
    "hook_v",
)


class Experiment:
    """A clean and a corrupt prompt that differ in the colour of one shape, and the normalized logit difference."""

    def __init__(self, lens: Lens) -> None:
        pairs = shapes.color_pairs(2, seed=1)
        self.lens = lens
        self.clean, self.corrupt = (
            lens.prompt([pair[i].question for pair in pairs], images=[pair[i].image for pair in pairs]) for i in (0, 1)
        )
        logits, self.cache = run_with_cache(lens, self.clean, names_filter=lambda name: name.endswith(SITES))
        corrupt_logits = run_with_hooks(lens, self.corrupt)
        self.ids = torch.stack([self.last(logits).argmax(-1), self.last(corrupt_logits).argmax(-1)], -1)
        self.ends = self.difference(corrupt_logits), self.difference(logits)
        self.model = PatchingModel(lens, self.corrupt)

    def last(self, logits):
        return logits[torch.arange(len(logits)), self.clean.mask("last").int().argmax(1)]

    def difference(self, logits):
        return logit_difference(self.last(logits), self.ids)

    def metric(self, logits):
        """Float[pair], 0 = as corrupt, 1 = as clean."""
        corrupt, clean = self.ends
        return (self.difference(logits) - corrupt) / (clean - corrupt)

    def sweep(self, function, **options):
        with torch.no_grad():
            result = function(self.model, self.model.tokens, self.cache, self.metric, reduce="none", **options)
        return result.values

    def ours(self, site, by, **options):
        return activation_patching(self.lens, self.clean, self.corrupt, site, by, **options).per_pair.float()


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    with torch.no_grad():
        return Experiment(Lens.demo(backend="transformer_lens"))


@pytest.fixture(autouse=True)
def no_bars(monkeypatch):
    monkeypatch.setattr(patching, "tqdm", lambda items: items)


@pytest.mark.parametrize(
    ("function", "site"),
    [
        (patching.get_act_patch_attn_head_out_all_pos, "z"),
        (patching.get_act_patch_attn_head_pattern_all_pos, "pattern"),
    ],
)
def test_heads_are_those_of_our_own_patching(experiment, function, site):
    theirs = experiment.sweep(function)  # layer head pair
    ours = experiment.ours(site, "head")  # pair layer head
    assert ours.abs().max() > 0.05
    assert torch.allclose(theirs.movedim(-1, 0), ours, atol=1e-3)


def test_residual_positions_are_those_of_our_own_patching(experiment):
    ours = experiment.ours("resid_pre", "patch", layers=[1, 3])  # pair layer visual
    assert ours.abs().max() > 0.05
    positions = experiment.corrupt.mask("visual").nonzero()[::9]  # a few of each pair
    cells = [(layer, int(position)) for layer in (1, 3) for _, position in positions]
    frame = pandas.DataFrame(cells, columns=["layer", "pos"])
    theirs = experiment.sweep(patching.get_act_patch_resid_pre, index_axis_names=None, index_df=frame)  # cell pair
    theirs = theirs.unflatten(0, (2, -1))
    for index, (pair, position) in enumerate(positions.tolist()):
        visual = experiment.corrupt.mask("visual")[pair].nonzero()[:, 0].tolist().index(position)
        assert torch.allclose(theirs[:, index, pair], ours[pair, :, visual], atol=1e-3)


@pytest.mark.parametrize("site", ["resid_pre", "mlp_out", "z"])
def test_spans_are_those_of_our_own_patching(experiment, site):
    with torch.no_grad():
        theirs, names = get_act_patch_by_span(
            experiment.model, experiment.cache, experiment.metric, site, reduce="none"
        )
        mean, _ = get_act_patch_by_span(experiment.model, experiment.cache, lambda x: experiment.metric(x).mean(), site)
    ours = activation_patching(experiment.lens, experiment.clean, experiment.corrupt, site, "span")
    assert names == ours.units
    assert torch.allclose(theirs.movedim(-1, 0), ours.per_pair.float(), atol=1e-3, equal_nan=True)
    assert torch.allclose(mean, theirs.mean(-1), atol=1e-5)


@pytest.mark.parametrize("letter", ["q", "k", "v"])
def test_queries_keys_and_values_run_too(experiment, letter):
    function = getattr(patching, f"get_act_patch_attn_head_{letter}_all_pos")
    cells = pandas.DataFrame([(layer, head) for layer in (0, 2) for head in (1, 7)], columns=["layer", "head"])
    assert experiment.sweep(function, index_axis_names=None, index_df=cells).isfinite().all()


def test_without_the_image_the_answer_would_be_another(experiment):
    bridge, inputs = experiment.lens.bridge, experiment.corrupt.inputs
    bare = bridge.original_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    assert (experiment.last(bare) - experiment.last(experiment.model(experiment.model.tokens))).abs().max() > 0.1
    with pytest.raises(PromptError, match="visual tokens, and no pictures came with them"):
        bridge(experiment.model.tokens, attention_mask=inputs["attention_mask"])


def test_it_stands_in_for_the_bridge(experiment):
    model, lens = experiment.model, experiment.lens
    expected = lens.run(experiment.corrupt).logits
    logits, cache = model.run_with_cache(model.tokens, names_filter="blocks.0.hook_in")
    for found in (model(model.tokens), model.run_with_hooks(model.tokens, fwd_hooks=[]), logits):
        assert torch.allclose(experiment.last(found), experiment.last(expected), atol=1e-5)
    assert torch.equal(cache["blocks.0.hook_in"], run_with_cache(lens, experiment.corrupt)[1]["resid_pre", 0])
    assert model.cfg is lens.bridge.cfg
    assert model.blocks is lens.bridge.blocks
    assert repr(model) == f"PatchingModel of a prompt of 2 rows x {experiment.corrupt.n_tokens} tokens"
    with pytest.raises(AttributeError):
        _ = model.no_such_thing


def test_tokens_of_another_prompt_are_refused(experiment):
    other = experiment.model.tokens.clone()
    other[0, -1] += 1
    for call in (experiment.model, experiment.model.run_with_hooks, experiment.model.run_with_cache):
        for given in (other, other[:1], "what color is the circle ?"):
            with pytest.raises(PromptError, match=r"this model runs one prompt of 2 rows .*\n.*model.tokens"):
                call(given)
