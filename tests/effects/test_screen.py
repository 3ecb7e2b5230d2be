"""Screened sweeps: estimates against finite differences, the heads they choose against the full sweep."""

import copy

import pytest
import torch

from lmm_lens import AblateHeads, HeadEffects, HeadSet, Lens, data, head_effects, head_means
from lmm_lens.comparisons import blank_images
from lmm_lens.errors import LensError, RemoteError, ScoreError

STEP = 0.01  # of the way; norms round to fp32 whatever the model's precision, so that a smaller step measures that


@pytest.fixture(scope="module")
def exact(lens) -> Lens:
    """The bundled model in fp64."""
    return Lens(copy.deepcopy(lens.model).double(), lens.processor)


@pytest.fixture(scope="module")
def samples() -> data.DataSet:
    return data.shapes(n=4, seed=3)


def slope(lens, prompt, rows, head, new, metric):
    """How fast the metric falls as one head's z goes from its own value towards another, by central differences."""
    layer, number = head
    size = lens.shape.d_head[layer]
    own = slice(number * size, (number + 1) * size)
    chosen = prompt.mask(rows)

    def at(share):
        def before(module, args):
            z = args[0].clone()
            z[..., own][chosen] += share * (new - z[..., own])[chosen]
            return (z,)

        hook = lens.adapter.layers[layer].output_projection.register_forward_pre_hook(before)
        with torch.no_grad():
            logits = lens.model(**prompt.inputs).logits
        hook.remove()
        return metric(logits[torch.arange(prompt.n_rows), prompt.mask("last").int().argmax(1)])

    return (at(-STEP) - at(STEP)) / (2 * STEP)


@pytest.mark.parametrize(
    ("ablation", "rows"), [("zero", "last"), ("zero", "all"), ("mean", "all"), ("resample", "after_image")]
)
def test_estimates_are_the_slope_of_the_metric_on_the_way_to_the_ablation(exact, ablation, rows):
    questions = ["what color is the star?", "what what color is the cross?"]
    shown = [sample.images[0] for sample in data.shapes(n=2, seed=5)]
    prompt = exact.prompt(questions, images=shown)
    means = head_means(exact, [sample.prompt(exact) for sample in data.shapes(n=6, seed=9)])
    reference = {"mean": means, "resample": lambda given: blank_images(exact, given)}.get(ablation)
    heads = HeadSet([(0, 4), (1, 4), (5, 1)], 6, 8)
    ids = torch.tensor([[20, 30], [25, 31]])
    found = head_effects(
        exact,
        prompt,
        ablation,
        rows,
        "logit_difference",
        answers=ids.tolist(),
        reference=reference,
        heads=heads,
        screen="attribution",
        verify=3,
    ).screen
    assert found.n_screened == 48
    other = exact.run(reference(prompt), read=["z"]) if ablation == "resample" else None
    for layer, head in heads:
        new = torch.zeros(1, dtype=torch.float64)
        if ablation == "mean":
            new = means.values[layer][prompt.roles][:, :, head].double()
        if other is not None:
            new = other.on_prompt("z", layer)[:, :, head].nan_to_num()
        slopes = slope(exact, prompt, rows, (layer, head), new, lambda x: x.gather(1, ids).diff().neg().flatten())
        assert float(found.estimates[layer, head]) == pytest.approx(float(slopes.mean()), rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("metric", ["log_prob", "probability"])
def test_other_metrics_have_estimates_of_their_own(exact, samples, metric):
    (sample,) = samples.take(1)
    prompt = sample.prompt(exact)
    right = exact.processor.tokenizer(sample.answer, add_special_tokens=False)["input_ids"][0]
    found = head_effects(exact, [sample], rows="all", metric=metric, screen="attribution", verify=1).screen

    def of(logits):
        log = logits.log_softmax(1)[:, right]
        return log if metric == "log_prob" else log.exp()

    expected = slope(exact, prompt, "all", (1, 4), torch.zeros(1, dtype=torch.float64), of)
    assert float(found.estimates[1, 4]) == pytest.approx(float(expected), rel=5e-3)


def test_a_prompt_that_comes_twice_counts_twice_and_no_more(exact, samples):
    once, other = (sample.prompt(exact) for sample in samples.take(2))
    heads = HeadSet([(1, 4)], 6, 8)

    def estimate(*prompts):
        found = head_effects(exact, list(prompts), heads=heads, screen="attribution", verify=1, sample=0)
        return float(found.screen.estimates[1, 4])

    assert estimate(once, once) == pytest.approx(estimate(once))
    expected = (2 * estimate(once) + estimate(other)) / 3
    assert estimate(once, once, other) == pytest.approx(expected)


def test_within_apply_the_edited_model_is_screened(exact, samples):
    (sample,) = samples.take(1)
    prompt = sample.prompt(exact)
    ids = torch.tensor([[20, 30]])
    options = {"rows": "all", "metric": "logit_difference", "answers": ids.tolist()}
    with exact.apply(AblateHeads([(0, 4)], rows="all")):
        found = head_effects(exact, prompt, screen="attribution", verify=1, **options).screen
    size = exact.shape.d_head[0]

    def without(module, args):
        z = args[0].clone()
        z[..., 4 * size : 5 * size] = 0
        return (z,)

    hook = exact.adapter.layers[0].output_projection.register_forward_pre_hook(without)
    of = (exact, prompt, "all", (1, 4), torch.zeros(1, dtype=torch.float64))
    expected = slope(*of, lambda x: x.gather(1, ids).diff().neg().flatten())
    hook.remove()
    plain = slope(*of, lambda x: x.gather(1, ids).diff().neg().flatten())
    assert float(found.estimates[1, 4]) == pytest.approx(float(expected), rel=2e-3, abs=2e-4)
    assert abs(float(expected - plain)) > 0.01


def test_the_best_heads_are_those_of_the_full_sweep_with_the_same_effects(lens, samples):
    options = {"rows": "all", "metric": "logit_difference"}
    full = head_effects(lens, samples, **options)
    few = head_effects(lens, samples, screen="attribution", verify=8, sample=6, **options)
    assert len(few.units) == 14
    assert list(few.top(2)) == list(full.top(2))
    for unit, effects in zip(few.units, few.per_prompt.T, strict=True):
        torch.testing.assert_close(effects, full.per_prompt[:, full.units.index(unit)], atol=1e-4, rtol=1e-4)
    screen = few.screen
    assert len(screen.best) == 8
    assert len(screen.sample) == 6
    assert not set(screen.best) & set(screen.sample)
    worst = min(float(screen.estimates[head]) for head in screen.best)
    assert all(float(screen.estimates[head]) <= worst for head in screen.sample)
    exact_worst = min(float(full.values[head]) for head in screen.best)
    assert screen.n_above == sum(float(full.values[head]) > exact_worst for head in screen.sample)
    assert full.screen is None


def test_its_error_bar_is_the_rank_correlation_on_the_random_sample(lens, samples):
    few = head_effects(lens, samples, rows="all", metric="logit_difference", screen="attribution", verify=2, sample=12)
    screen = few.screen
    estimates = torch.tensor([float(screen.estimates[head]) for head in screen.sample])
    effects = torch.tensor([float(few.values[head]) for head in screen.sample])
    ranks = [x.argsort().argsort().double() for x in (estimates, effects)]
    assert screen.rank_correlation == pytest.approx(float(torch.corrcoef(torch.stack(ranks))[0, 1]))
    told = (
        f"2 of 48 heads chosen by attribution and ablated exactly; on 12 random others .* {screen.rank_correlation:.2f}"
    )
    with pytest.raises(AssertionError, match=told.replace("(", r"\(")):
        raise AssertionError(repr(few))
    other = head_effects(lens, samples.take(1), screen="attribution", verify=2, sample=12, seed=1).screen
    assert set(other.sample) != set(screen.sample)


def test_a_screened_sweep_is_saved_and_goes_on_in_its_folder(lens, samples, tmp_path):
    options = {"rows": "all", "screen": "attribution", "verify": 3, "sample": 4}
    given = head_effects(lens, samples, folder=tmp_path / "run", **options)
    again = head_effects(lens, samples, folder=tmp_path / "run", **options)
    assert torch.equal(given.per_prompt, again.per_prompt)
    given.save(tmp_path / "effects.safetensors")
    loaded = HeadEffects.load(tmp_path / "effects.safetensors", lens)
    assert repr(loaded) == repr(given)
    assert torch.equal(loaded.screen.estimates, given.screen.estimates.float())
    assert loaded.of("accuracy").screen.metric == "log_prob"


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_every_backend_gives_the_same_estimates(lens, samples, backend):
    few = samples.take(1)
    mine, theirs = (
        head_effects(each, few, heads=HeadSet([(0, 4), (1, 4)], 6, 8), screen="attribution", verify=1, sample=0).screen
        for each in (lens, Lens.demo(backend=backend))
    )
    torch.testing.assert_close(theirs.estimates, mine.estimates, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"screen": "atribution"}, "unknown screen 'atribution', did you mean 'attribution'"),
        ({"metric": "accuracy"}, r"accuracy has no gradient to screen by\n  screen by metric='log_prob'"),
        ({"ablation": "uniform"}, "ablation 'uniform' has no estimate"),
        ({"verify": 0}, "verify is 1 to 48 heads and sample 0 or more, given verify=0"),
        ({"heads": [HeadSet([(0, 1)], 6, 8)]}, "screen= chooses among single heads"),
    ],
)
def test_what_cannot_be_screened_is_refused(lens, samples, given, message):
    with pytest.raises(ScoreError, match=message):
        head_effects(lens, samples, **{"screen": "attribution", **given})


def test_an_iterator_that_can_be_read_once_is_refused(lens, samples):
    with pytest.raises(ScoreError, match="goes over the prompts twice: give a list or a data set, not an iterator"):
        head_effects(lens, iter(samples), screen="attribution")


def test_a_server_is_refused(lens, samples):
    far = Lens(lens.model, lens.processor, backend="nnsight", remote="local")
    with pytest.raises(RemoteError, match="gradients do not travel: screen= needs a lens with remote=False"):
        head_effects(far, samples, screen="attribution")
    assert issubclass(RemoteError, LensError)
