"""`head_effects` on the vision tower: each ablation against a forward of the model with that head ablated."""

import threading

import pytest
import torch

from lmm_lens import AblateHeads, HeadEffects, HeadSet, data, head_effects, shapes
from lmm_lens.errors import HookError, InterventionError, ScoreError
from lmm_lens.replay.tower import TowerReplay
from tests.support.families import EVERY, lens_of, prompt_of
from tests.support.quick import quick

WITHOUT = ("lfm3_vl", "gemma3n", "gemma4_unified", "emu3", "chameleon", "fast_vlm", "got_ocr2", "pp_chart2table")
"""Families whose pictures go through no sequence of tokens."""
QUICK = ("llava", "qwen2_vl", "qwen2_5_vl", "pixtral", "internvl", "qwen3_vl", "mllama")
MERGING = ("minicpmv4_6", "minicpmv4_7")
"""Towers that merge patches between their layers: those behind cannot be edited."""
INTO_LATER_LAYERS = ("qwen3_vl", "mllama")


@pytest.fixture(scope="module")
def samples():
    return list(data.shapes(n=2, seed=3))


def forwards(lens, prompt, units, **options):
    """The logits of one forward a unit."""
    with torch.no_grad():
        return torch.stack(
            [lens.run(prompt, [AblateHeads(unit, part="vision", **options)]).logits[0, -1] for unit in units]
        ).double()


def check(effects, row, logits, ids, tolerance=1e-4):
    found = effects.outcomes.logits[row]
    torch.testing.assert_close(found, logits[:, list(ids)], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(effects.outcomes.log_sum[row], logits.logsumexp(-1), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", quick([each for each in EVERY if each not in WITHOUT], QUICK))
def test_every_head_is_a_forward_without_it_on_every_family(name):
    lens, prompt = lens_of(name), prompt_of(name)
    n_used, n = lens.vision.n_used, (lens.vision.n_layers, lens.vision.n_heads)
    options = {"answers": [(5, 7)], "metric": "logit_difference", "part": "vision"}
    if name in MERGING:
        with pytest.raises(HookError, match="this tower merges patches on its way"):
            head_effects(lens, prompt, **options)
        options["heads"], n_used = HeadSet.all(*n, [0], "vision"), 1
    effects = head_effects(lens, prompt, **options)
    assert {layer for unit in effects.units for layer, _ in unit} == set(range(n_used))
    check(effects, 0, forwards(lens, prompt, effects.units), (5, 7))
    if name in INTO_LATER_LAYERS:
        assert "one forward each" in effects.how
    if name in ("llava", "qwen2_vl", "pixtral", "internvl"):
        assert "one forward each" not in effects.how
        assert float(effects.per_prompt.abs().max()) > 1e-3


@pytest.mark.parametrize(("mode", "rows"), [("zero", "image"), ("zero", "class"), ("uniform", "all")])
def test_modes_and_rows_are_those_of_the_tower(lens, samples, mode, rows):
    effects = head_effects(lens, samples, mode, rows, "logit_difference", part="vision")
    for number, sample in enumerate(samples):
        logits = forwards(lens, sample.prompt(lens), effects.units, mode=mode, rows=rows)
        torch.testing.assert_close(effects.outcomes.log_sum[number], logits.logsumexp(-1), atol=1e-4, rtol=1e-4)
    assert (effects.ablation, effects.rows) == (mode, rows)
    assert float(effects.per_prompt.abs().max()) > 1e-3


def test_sets_are_ablated_at_once_and_said_to_be_of_the_tower(lens, samples, tmp_path):
    n = lens.vision.n_layers, lens.vision.n_heads
    units = [HeadSet([(2, 1), (0, 3)], *n, "vision"), HeadSet([(1, 2)], *n, "vision")]
    effects = head_effects(lens, samples[:1], heads=units)
    logits = forwards(lens, samples[0].prompt(lens), units)
    torch.testing.assert_close(effects.outcomes.log_sum[0], logits.logsumexp(-1), atol=1e-4, rtol=1e-4)
    assert "zero ablation of 2 head sets of the vision tower in rows 'all'" in repr(effects)
    effects.save(tmp_path / "effects.safetensors")
    back = HeadEffects.load(tmp_path / "effects.safetensors", lens)
    assert back.units == effects.units
    best = head_effects(lens, samples[:1], heads=units[0]).top(1)
    assert best.part == "vision"
    assert lens.run(samples[0].prompt(lens), [AblateHeads(best)]).reports[0].n_edits == 37


def test_a_run_folder_goes_on_with_the_same_numbers(lens, samples, tmp_path):
    whole = head_effects(lens, samples, part="vision")
    head_effects(lens, samples, part="vision", folder=tmp_path / "run")
    again = head_effects(lens, samples, part="vision", folder=tmp_path / "run")
    assert torch.equal(again.per_prompt, whole.per_prompt)
    opened = HeadEffects.open(tmp_path / "run")
    assert opened.units == whole.units
    with pytest.raises(ScoreError, match=r"another run|was made"):
        head_effects(lens, samples, rows="all", folder=tmp_path / "run")


def test_small_batches_and_other_backends_give_the_same(samples):
    lens, prompt = lens_of("qwen2_vl"), prompt_of("qwen2_vl")
    options = {"part": "vision", "answers": [(5, 7)], "metric": "logit_difference"}
    expected = head_effects(lens, prompt, **options).per_prompt
    one = head_effects(lens, prompt, rows_per_pass=1, **options)
    torch.testing.assert_close(one.per_prompt, expected, atol=1e-5, rtol=0)
    for backend in ("transformer_lens", "nnsight"):
        other = head_effects(lens_of("qwen2_vl", backend), prompt, **options)
        assert "one forward each" in other.how
        torch.testing.assert_close(other.per_prompt, expected, atol=1e-4, rtol=0)


def test_within_a_block_every_forward_is_edited(lens, samples):
    prompt, other = samples[0].prompt(lens), AblateHeads([(2, 0)])
    with lens.apply(other):
        effects = head_effects(lens, prompt, part="vision", heads=HeadSet([(1, 2)], 3, 4, "vision"))
    logits = lens.run(prompt, [other, AblateHeads([(1, 2)], part="vision")]).logits[0, -1].double()
    assert float(effects.outcomes.log_sum[0, 0]) == pytest.approx(float(logits.logsumexp(-1)), abs=1e-4)


def test_what_enters_the_decoder_is_the_forwards_own_to_the_last_bit(lens, samples):
    """And layers before the first change run nothing, in this thread alone; afterwards the model is as before."""
    prompt = samples[0].prompt(lens)
    replay = TowerReplay(lens, prompt)
    edit = AblateHeads([(2, 1)], part="vision")
    expected = lens.run(prompt, [edit], ["resid_pre"]).reads["resid_pre", 0][0]
    ran = []
    layers = [layer.module for layer in lens.adapter.tower.layers]
    hooks = [layer.self_attn.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, layer in enumerate(layers)]
    try:
        (found,) = replay.entering([edit], 2, 8)
        assert torch.equal(found, expected)
        assert ran == [2]
        ran.clear()
        with replay.skipping(2):
            thread = threading.Thread(target=lambda: lens.model(**prompt.inputs))
            thread.start()
            thread.join()
        assert ran == [0, 1, 2]
    finally:
        for hook in hooks:
            hook.remove()
    assert not any("forward" in layer.__dict__ for layer in layers)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rows": "last"}, HookError, "unknown row scope of the vision tower 'last'"),
        ({"ablation": "mean"}, InterventionError, "by zero or uniform, given 'mean'"),
        ({"reference": lambda prompt: prompt}, InterventionError, "ablated by zero or uniform, without a reference"),
        ({"screen": "attribution"}, ScoreError, "a screen is of heads of the decoder"),
        ({"heads": HeadSet([(0, 1)], 6, 8)}, HookError, "this experiment takes heads of the vision tower, given heads"),
        ({"heads": HeadSet([(0, 1)], 6, 8, "vision")}, ScoreError, "a tower of 6 layers x 8 heads, this one has 3 x 4"),
        ({"heads": []}, ScoreError, "expected heads=HeadSet or a list of HeadSets of the vision tower"),
        ({"part": "tower"}, InterventionError, "unknown part of the model 'tower'"),
    ],
)
def test_what_does_not_go_together_is_refused(lens, samples, options, error, message):
    with pytest.raises(error, match=message):
        head_effects(lens, samples, **{"part": "vision", **options})


def test_batches_and_layers_that_reach_no_answer_are_refused(lens):
    examples = shapes.examples(2, seed=3)
    batch = lens.prompt([each.question for each in examples], images=[each.image for each in examples])
    with pytest.raises(ScoreError, match="ablated on prompts of one row, given 2 rows"):
        head_effects(lens, batch, part="vision")
    unused = HeadSet([(1, 0)], lens_of("llava").vision.n_layers, lens_of("llava").vision.n_heads, "vision")
    with pytest.raises(ScoreError, match="layer 1 of the tower reaches no answer: 1 layers are used"):
        head_effects(lens_of("llava"), prompt_of("llava"), heads=unused)
