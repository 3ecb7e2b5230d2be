"""`head_effects`: what the answer loses, by prompt and unit, in every metric, whoever brings the prompts."""

import json
import os
import subprocess
import sys

import pytest
import torch

from lmm_lens import HeadEffects, HeadSet, Lens, data, head_attribution, head_effects, head_means
from lmm_lens.answers.items import Item
from lmm_lens.comparisons import blank_images
from lmm_lens.effects import random_subsets
from lmm_lens.effects.ablations import Ablation, units_of
from lmm_lens.effects.regression import regress
from lmm_lens.effects.work import EffectsWork
from lmm_lens.errors import HookError, InterventionError, ModelError, ScoreError
from lmm_lens.interventions import AblateHeads
from lmm_lens.replay.batches import Batches

SCOPES = ("last", "after_image", "all")


@pytest.fixture(scope="module")
def lens() -> Lens:
    return Lens.demo()


@pytest.fixture(scope="module")
def samples() -> data.DataSet:
    return data.shapes(n=6, seed=3)


@pytest.fixture(scope="module")
def effects(lens, samples) -> HeadEffects:
    return head_effects(lens, samples, rows="all", metric="logit_difference")


def word(lens, text):
    return lens.processor.tokenizer(text, add_special_tokens=False)["input_ids"][0]


def said_without(lens, sample, heads, rows="all", **options):
    edits = [AblateHeads(heads, rows=rows, **options)] if heads else []
    return lens.run(sample.prompt(lens), edits, logits="last").logits[0, 0].double()


# ---------------------------------------------------------------------- numbers


def test_every_metric_is_what_a_forward_without_the_head_says(lens, samples, effects):
    assert effects.per_prompt.shape == (6, 48)
    assert [next(iter(unit)) for unit in effects.units[:10]] == [(0, h) for h in range(8)] + [(1, 0), (1, 1)]
    for row, sample in enumerate(samples):
        right, wrong = word(lens, sample.answer), word(lens, sample.wrong)
        for unit in (0, 4, 12, 47):
            clean, ablated = (said_without(lens, sample, heads) for heads in ((), effects.units[unit]))
            for metric, of in (
                ("logit_difference", lambda x, r=right, w=wrong: x[r] - x[w]),
                ("log_prob", lambda x, r=right: x.log_softmax(0)[r]),
                ("probability", lambda x, r=right: x.softmax(0)[r]),
                ("accuracy", lambda x, r=right: (x.argmax() == r).double()),
            ):
                expected = of(clean) - of(ablated)
                torch.testing.assert_close(effects.of(metric).per_prompt[row, unit], expected, atol=1e-4, rtol=1e-4)
    assert float(effects.per_prompt.abs().max()) > 1


def test_a_head_that_helps_has_a_positive_effect(effects):
    best = effects.top(1)
    assert float(effects.values[next(iter(best))]) == float(effects.mean.max()) > 0.5
    assert effects.to_pandas().unit[0] == str(best)


def test_the_three_row_scopes_are_three_experiments(lens, samples, effects):
    last, after = (head_effects(lens, samples, rows=rows, metric="logit_difference") for rows in SCOPES[:2])
    assert "single rows, all in one batch" in last.how
    assert "the rows from the first changed one on" in after.how
    assert "resumed from the residual stream" in effects.how
    for one, other in ((last, after), (after, effects), (last, effects)):
        assert float((one.per_prompt - other.per_prompt).abs().max()) > 0.1


@pytest.mark.parametrize("rows", SCOPES)
@pytest.mark.parametrize("mode", ["mean", "resample", "uniform"])
def test_other_ablations_are_those_of_the_intervention(lens, samples, mode, rows):
    heads = HeadSet([(0, 4), (1, 4), (3, 2), (5, 1)], 6, 8)
    means = head_means(lens, [sample.prompt(lens) for sample in data.shapes(n=12, seed=9)])
    reference = {"mean": means, "resample": lambda prompt: blank_images(lens, prompt)}.get(mode)
    given = head_effects(lens, samples.take(2), mode, rows, heads=heads, reference=reference)
    assert "one forward each" not in given.how
    for row, sample in enumerate(samples.take(2)):
        run = lens.run(blank_images(lens, sample.prompt(lens)), read=["z"]) if mode == "resample" else None
        for unit, head in enumerate(heads):
            expected = said_without(lens, sample, [head], rows, mode=mode, reference=run or reference)
            expected = said_without(lens, sample, ()).log_softmax(0) - expected.log_softmax(0)
            torch.testing.assert_close(
                given.per_prompt[row, unit], expected[word(lens, sample.answer)], atol=1e-4, rtol=1e-4
            )


def test_even_attention_in_several_layers_is_computed_one_forward_each(lens, samples):
    pair = HeadSet([(0, 4), (3, 2)], 6, 8)
    given = head_effects(lens, samples.take(1), "uniform", "all", heads=[pair])
    assert given.how == "1 prompts: one forward each"
    (sample,) = samples.take(1)
    clean, ablated = said_without(lens, sample, ()), said_without(lens, sample, pair, mode="uniform")
    expected = (clean.log_softmax(0) - ablated.log_softmax(0))[word(lens, sample.answer)]
    torch.testing.assert_close(given.per_prompt[0, 0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_every_backend_gives_the_same_effects(lens, samples, effects, backend):
    heads = HeadSet([(0, 4), (1, 4), (4, 2)], 6, 8)
    given = head_effects(Lens.demo(backend=backend), samples.take(2), rows="all", heads=heads)
    assert given.how == "2 prompts: one forward each"
    chosen = [effects.units.index(HeadSet([head], 6, 8)) for head in heads]
    expected = effects.of("log_prob").per_prompt[:2, chosen]
    torch.testing.assert_close(given.per_prompt, expected, atol=1e-4, rtol=1e-4)


def test_prompts_batches_and_samples_give_the_same(lens, samples, effects):
    listed = list(samples)
    answers = [(word(lens, sample.answer), word(lens, sample.wrong)) for sample in listed]
    alone = [sample.prompt(lens) for sample in listed]
    batch = lens.prompt([s.question for s in listed], images=[list(s.images) for s in listed])
    for prompts in (alone, batch, iter([lens.prompt(s.question, images=list(s.images)) for s in listed])):
        given = head_effects(lens, prompts, rows="all", metric="logit_difference", answers=answers)
        torch.testing.assert_close(given.per_prompt, effects.per_prompt, atol=1e-4, rtol=1e-4)
    assert head_effects(lens, batch, answers=answers).ids[1] == "prompt 0 row 1"


def test_without_answers_it_is_the_models_own(lens, samples):
    (sample,) = samples.take(1)
    given = head_effects(lens, sample.prompt(lens), rows="all")
    clean = said_without(lens, sample, ())
    torch.testing.assert_close(given.clean[0], clean.log_softmax(0).max(), atol=1e-4, rtol=1e-4)
    assert given.of("accuracy").clean[0] == 1


# ---------------------------------------------------------------------- yes and no


def test_f1_and_yes_ratio_are_those_of_a_count_by_hand(lens):
    asked = data.shapes(n=12, seed=5, kinds=("exist",))
    effects = head_effects(lens, asked, rows="all", heads=HeadSet([(0, 4), (1, 4)], 6, 8))
    for column, heads in ((0, ()), (1, [(0, 4)]), (2, [(1, 4)])):
        says_yes = [int(said_without(lens, s, heads).argmax()) == word(lens, "yes") for s in asked]
        is_yes = [sample.answer == "yes" for sample in asked]
        hits = sum(a and b for a, b in zip(says_yes, is_yes, strict=True))
        f1 = 2 * hits / (sum(says_yes) + sum(is_yes))
        assert effects.total("f1").value[column] == pytest.approx(f1)
        assert effects.total("yes_ratio").value[column] == pytest.approx(sum(says_yes) / 12)
    table = effects.total("f1")
    assert table.unit[0] == "none"
    assert (table.low <= table.value).all()
    assert (table.value <= table.high).all()


def test_f1_of_other_questions_is_refused(effects):
    with pytest.raises(ScoreError, match=r"f1 is of yes/no questions, and the right answer of .* is neither"):
        effects.total("f1")


# ---------------------------------------------------------------------- attribution


def test_the_regression_finds_planted_coefficients(effects):
    heads = HeadSet([(layer, head) for layer in range(2) for head in range(4)], 6, 8)
    subsets = random_subsets(heads, 40, seed=2)
    planted = torch.linspace(-1, 2, 8, dtype=torch.float64)
    kept = torch.tensor([[head not in unit.heads for head in heads] for unit in subsets]).double()
    outcomes = effects.outcomes[:, :1]
    logits = outcomes.logits.expand(6, 40, 2).clone()
    logits[..., 0] = 3 + kept @ planted
    logits[..., 1] = 0
    made = HeadEffects(
        tuple(subsets),
        "logit_difference",
        effects.clean_outcomes,
        type(outcomes)(logits, *(x.expand(6, 40) for x in (outcomes.log_sum, outcomes.said, outcomes.marks))),
        effects.is_yes,
        effects.ways,
        effects.ids,
        effects.about,
    )
    scores = regress(made, heads)
    for (layer, head), value in zip(heads, planted, strict=True):
        assert float(scores.values[layer, head]) == pytest.approx(float(value), abs=1e-5)
    assert scores.settings["explained"] == pytest.approx(1)
    assert scores.values[2:].isnan().all()


def test_attribution_agrees_with_least_squares_on_real_forwards(lens, samples):
    heads = HeadSet([(0, 4), (1, 4), (2, 1), (3, 2)], 6, 8)
    given = head_attribution(lens, samples.take(1), rows="all", heads=heads, n_subsets=12, seed=4)
    (sample,), subsets = samples.take(1), random_subsets(heads, 12, seed=4)
    token = word(lens, sample.answer)
    values = torch.stack([said_without(lens, sample, unit).log_softmax(0)[token] for unit in subsets])
    design = torch.tensor([[1.0, *(float(head not in unit.heads) for head in heads)] for unit in subsets]).double()
    expected = torch.linalg.lstsq(design, values[:, None]).solution[1:, 0]
    found = torch.stack([given.per_prompt[0][head] for head in heads]).double()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_too_few_subsets_are_refused(lens, samples):
    with pytest.raises(ScoreError, match=r"5 subsets do not tell 48 heads apart\n  take more subsets"):
        head_attribution(lens, samples.take(1), n_subsets=5)


# ---------------------------------------------------------------------- files and folders


def test_effects_come_back_from_their_file(effects, lens, tmp_path):
    effects.save(tmp_path / "effects.safetensors")
    again = HeadEffects.load(tmp_path / "effects.safetensors", lens)
    assert torch.equal(again.per_prompt, effects.per_prompt)
    assert (again.units, again.ids, again.metric, again.how) == (
        effects.units,
        effects.ids,
        effects.metric,
        effects.how,
    )
    with pytest.raises(ScoreError, match="was made with another model"):
        HeadEffects.load(tmp_path / "effects.safetensors", Lens.demo("plain"))


def test_a_sweep_goes_on_where_it_was_interrupted_with_the_same_numbers(lens, samples, effects, tmp_path):
    class StopError(Exception):
        pass

    def until(n):
        for index, sample in enumerate(samples):
            if index == n:
                raise StopError
            yield sample

    for n in (1, 4):
        with pytest.raises(StopError):
            head_effects(lens, until(n), rows="all", folder=tmp_path / "run", seconds_per_part=0)
        so_far = HeadEffects.open(tmp_path / "run", "logit_difference")
        assert torch.equal(so_far.per_prompt, effects.per_prompt[:n])
    given = head_effects(lens, iter(samples), rows="all", metric="logit_difference", folder=tmp_path / "run")
    assert torch.equal(given.per_prompt, effects.per_prompt)
    assert given.ids == effects.ids
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert lens.identity["weights"] in json.dumps(manifest)


def test_a_folder_of_another_sweep_is_refused(lens, samples, tmp_path):
    head_effects(lens, samples.take(1), folder=tmp_path / "run")
    with pytest.raises(ScoreError, match=r"rows"):
        head_effects(lens, samples.take(1), rows="all", folder=tmp_path / "run")


# ---------------------------------------------------------------------- memory


OUT_OF_MEMORY = """
import json, resource
from pathlib import Path
from lmm_lens import HeadSet, Lens, data
from lmm_lens.answers.items import Item
from lmm_lens.effects import random_subsets
from lmm_lens.effects.ablations import Ablation
from lmm_lens.effects.work import EffectsWork
from lmm_lens.replay.batches import Batches
from lmm_lens.replay.ways import HALVED

lens, (sample,) = Lens.demo(), data.shapes(n=1, seed=3)
heads = HeadSet([(layer, head) for layer in range(6) for head in range(8)], 6, 8)
ablation = Ablation(tuple(random_subsets(heads, 400, seed=1)), "zero", "all")
item, smaller = Item("", sample), []
expected = EffectsWork(lens, ablation, Batches(16, lens.device))(item)["logits"]
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 20 * 2**20,) * 2)
found = EffectsWork(lens, ablation, Batches(10**7, lens.device, smaller.append))(item)
worst = float((found["logits"] - expected).abs().max())
print(json.dumps([smaller, worst, bool(found["way"] >= HALVED)]))
"""


@pytest.mark.long
def test_when_memory_runs_out_the_batch_is_halved_and_the_sweep_goes_on():
    """In a process of its own, whose address space is limited for real, and which has freed no memory before."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = [sys.executable, "-W", "ignore", "-c", OUT_OF_MEMORY]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    smaller, worst, is_said = json.loads(done.stdout.splitlines()[-1])
    assert smaller == [10**7 // 2 ** (i + 1) for i in range(len(smaller))]
    assert smaller
    assert is_said
    assert worst < 1e-4


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"metric": "acuracy"}, ScoreError, "unknown metric 'acuracy', did you mean 'accuracy'?"),
        ({"ablation": "zeros"}, InterventionError, "unknown ablation mode 'zeros', did you mean 'zero'?"),
        ({"rows": "after"}, HookError, "unknown row scope 'after'"),
        ({"ablation": "mean"}, InterventionError, "needs reference=head_means"),
        ({"ablation": "resample"}, InterventionError, "needs reference=f, a function that gives the prompt"),
        ({"answers": [("red", "blue")]}, ScoreError, "1 answers were given, but there are more prompt rows"),
        ({"answers": [("red", "blue")] * 7}, ScoreError, "7 answers were given for 6 prompt rows"),
        ({"answers": [("red", "red")] * 6}, ScoreError, "the right and the wrong answer are both 'red'"),
        ({"heads": []}, ScoreError, "expected heads=HeadSet"),
        ({"rows_per_pass": 0}, ScoreError, "rows_per_pass is at least 1, given 0"),
        ({"heads": HeadSet([(0, 0)], 2, 2)}, ScoreError, "made for a model of 2 layers x 2 heads"),
    ],
)
def test_bad_input_is_an_error_that_says_what_to_do(lens, samples, options, error, text):
    with pytest.raises(error) as raised:
        head_effects(lens, samples, **options)
    assert text in str(raised.value)


def test_no_heads_are_not_all_heads(lens, samples):
    none = HeadSet([], 6, 8)
    with pytest.raises(ScoreError, match=r"expected heads=HeadSet \(each head alone\)"):
        head_attribution(lens, samples, heads=none)
    with pytest.raises(ScoreError, match=r"given 0 heads, share=0\.25, n=3"):
        random_subsets(none, 3)
    with pytest.raises(ScoreError, match=r"given 48 heads, share=0\.25, n=0"):
        head_attribution(lens, samples, n_subsets=0)


def test_prompts_that_are_none_are_refused(lens):
    with pytest.raises(ScoreError, match="no prompts were given"):
        head_effects(lens, [])
    with pytest.raises(ScoreError, match=r"expected prompts made by lens.prompt\(...\) or samples, given str"):
        head_effects(lens, "what color is the circle?")


def test_rows_that_a_prompt_has_not_are_refused(lens):
    with pytest.raises(ScoreError, match=r"rows 'after_image' select no token of prompt row 0"):
        head_effects(lens, lens.prompt("what is two plus one?"), rows="after_image")


def test_a_logit_difference_without_a_wrong_answer_is_refused(lens, samples):
    (sample,) = samples.take(1)
    with pytest.raises(ScoreError, match="needs a wrong answer for every prompt, and prompt 0 has none"):
        head_effects(lens, sample.prompt(lens), metric="logit_difference")


def test_the_effect_of_a_set_is_no_heads_own(lens, samples):
    given = head_effects(lens, samples.take(1), heads=[HeadSet([(0, 1), (2, 3)], 6, 8)])
    with pytest.raises(ScoreError, match="1 units are sets of several heads, whose effect is no single head's"):
        _ = given.values
    assert given.to_pandas().unit[0] == "L0H1 L2H3"


def test_units_cover_every_head_of_every_layer(lens):
    assert len(units_of(lens, None)) == 48
    assert units_of(lens, HeadSet([(1, 2)], 6, 8)) == (HeadSet([(1, 2)], 6, 8),)


def test_an_ablation_that_makes_nan_is_an_error_not_a_number(lens, samples):
    first, second = (Item("", sample) for sample in samples.take(2))
    means, units = head_means(lens, second.source.prompt(lens)), units_of(lens, HeadSet([(3, 1)], 6, 8))
    broken = type(means)({layer: value * torch.nan for layer, value in means.values.items()}, means.counts)
    work = EffectsWork(lens, Ablation(units, "mean", "all", means), Batches(None, lens.device))
    work(first)  # this sweep has checked its replays against the model
    work.ablation = Ablation(units, "mean", "all", broken)
    with pytest.raises(ModelError, match="NaN"):
        work(second)


def test_a_folder_of_another_partner_is_refused(lens, samples, tmp_path):
    heads = HeadSet([(3, 1)], 6, 8)

    def sweep(partner):
        head_effects(lens, samples.take(1), "resample", heads=heads, reference=partner, folder=tmp_path / "run")

    sweep(lambda prompt: blank_images(lens, prompt))
    with pytest.raises(ScoreError, match="reference"):
        sweep(lambda prompt: prompt)


def test_what_is_true_of_one_prompt_is_not_held_against_the_next(lens, samples):
    """Else a sweep that was continued behind the odd prompt would compute the others in another way."""
    work = EffectsWork(
        lens, Ablation(units_of(lens, HeadSet([(3, 1)], 6, 8)), "zero", "all"), Batches(None, lens.device)
    )
    odd, *others = [Item("", sample) for sample in samples]
    decoder, layer = lens.model.model.language_model, lens.adapter.layers[1].module
    state = {"fresh": False}
    hooks = [
        decoder.register_forward_pre_hook(lambda *_: state.update(fresh=True)),
        layer.register_forward_hook(lambda m, a, out: out * (1.5 if state.pop("fresh", False) else 1)),
    ]
    try:
        assert int(work(odd)["way"]) == 0
    finally:
        for hook in hooks:
            hook.remove()
    assert [int(work(item)["way"]) for item in others] == [1] * len(others)
