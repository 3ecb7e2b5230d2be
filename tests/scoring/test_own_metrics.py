"""Metrics of heads of one's own: as the library's where they are the same, and held against what they return."""

import functools

import pytest
import torch

from lmm_lens import HeadScores, score_heads
from lmm_lens.errors import InterventionError, ScoreError
from lmm_lens.scoring import HEAD_METRICS
from lmm_lens.scoring.metrics import HeadMetric
from tests.support.cases import case
from tests.support.oracle import spans
from tests.support.quick import quick
from tests.support.reference import Reference


def on_the_image(pattern, keys):
    """Attention on the picture, summed up by hand."""
    return (pattern * keys.visual[:, None, None]).sum(-1)


def on_the_question(pattern, keys):
    return (pattern * keys["question"][:, None, None]).sum(-1)


@pytest.mark.parametrize("query", ["last", "answer"])
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_5"])
def test_the_library_s_metric_written_again_gives_its_numbers(name, query):
    family = case(name)
    given, expected = (score_heads(family.lens, family.prompt, m, query) for m in (on_the_image, "visual_mass"))
    torch.testing.assert_close(given.per_prompt, expected.per_prompt, equal_nan=True)
    assert given.metric == "on_the_image"
    assert list(given.top(3)) == list(expected.top(3))


@pytest.mark.parametrize("name", ["llava", "mllama"])
def test_masks_of_the_prompt_are_there_by_name(name):
    family = case(name)
    reference = Reference(family.model)
    reference.run(family.inputs)
    question = sorted(spans(family.inputs)["question"][0])
    scores = score_heads(family.lens, family.prompt, on_the_question)
    for layer in range(family.n_layers):
        if layer in family.self_attending:
            expected = reference.read("pattern", layer)[0, :, -1][:, question].sum(-1)
            torch.testing.assert_close(scores.values[layer], expected, atol=1e-5, rtol=1e-5)
        else:
            assert scores.values[layer].isnan().all()  # keys of cross-attention are no tokens


def test_rows_of_a_padded_batch_are_scored_alone():
    family = case("llava")
    alone, batch = family.pair()
    together = score_heads(family.lens, family.lens.prompt(inputs=batch), on_the_question).per_prompt
    each = [score_heads(family.lens, family.lens.prompt(inputs=x), on_the_question).per_prompt for x in alone]
    torch.testing.assert_close(together, torch.cat(each), atol=1e-5, rtol=1e-5)


def test_boxes_and_sinks_that_are_given_are_there(lens):
    from lmm_lens import shapes

    example = shapes.examples(1, kinds=["color"], seed=3)[0]
    prompt = lens.prompt(example.question, images=example.image)

    def region(pattern, keys):
        return (pattern * keys.region[:, None, None]).sum(-1)

    def off_sinks(pattern, keys):
        return (pattern * keys.nonsink()[:, None, None]).sum(-1)

    for own, name, given in (
        (region, "region_mass", {"boxes": [(0, 0, 20, 20)]}),
        (region, "retrieval_mass", {"relevant": [[6, 7]]}),
        (off_sinks, "nonsink_mass", {"sink_dims": (5, 77), "sink_threshold": 7.0}),
    ):
        if name == "retrieval_mass":
            given = {"relevant": [prompt.mask("image")[0].nonzero().flatten()[:2].tolist()]}
        mine, theirs = (score_heads(lens, prompt, metric, **given) for metric in (own, name))
        torch.testing.assert_close(mine.per_prompt, theirs.per_prompt, equal_nan=True)
        assert {k: v for k, v in mine.settings.items() if k != "own_metric"} == theirs.settings


@pytest.mark.parametrize("backend", quick(["transformer_lens", "nnsight", "remote"], ["nnsight"]))
def test_every_backend_gives_the_same(backend):
    family = case("llava")

    def largest(pattern, keys):
        return pattern.masked_fill(~keys["text"][:, None, None], 0).amax(-1)

    native, given = (score_heads(lens, family.prompt, largest, "answer") for lens in family.lenses(backend))
    torch.testing.assert_close(given.per_prompt, native.per_prompt, atol=1e-4, rtol=1e-4)


def test_a_metric_that_says_more_of_itself_is_ranked_and_saved_so(lens, tmp_path):
    from lmm_lens import shapes

    example = shapes.examples(1, kinds=["color"], seed=3)[0]
    prompt = lens.prompt(example.question, images=example.image)
    low = HeadMetric("off_the_image", "attention elsewhere", "ours", lambda p, k: 1 - on_the_image(p, k), unit="share")
    low = HeadMetric(low.name, low.meaning, low.source, low.of, unit="share", higher_is_better=False)
    scores = score_heads(lens, prompt, low)
    assert list(scores.top(3)) == list(score_heads(lens, prompt, "visual_mass").top(3))
    scores.save(tmp_path / "own.safetensors")
    again = HeadScores.load(tmp_path / "own.safetensors", lens)
    assert torch.equal(again.per_prompt, scores.per_prompt)
    assert again.settings["own_metric"] == {
        "meaning": "attention elsewhere",
        "unit": "share",
        "higher_is_better": False,
    }
    assert (again.unit, again.higher_is_better, repr(again)) == ("share", False, repr(scores))
    assert scores.plot().figure.axes[1].get_ylabel() == "share"
    assert score_heads(lens, prompt, on_the_image).settings["own_metric"]["meaning"] == (
        "Attention on the picture, summed up by hand."
    )


def test_an_interrupted_scoring_goes_on_with_the_same_function_alone(tmp_path):
    family = case("llava")
    path, calls = tmp_path / "scores", []

    def counted(pattern, keys):
        calls.append(1)
        return pattern.amax(-1)

    first = score_heads(family.lens, family.prompt, on_the_image, checkpoint=path)
    assert torch.equal(
        score_heads(family.lens, family.prompt, on_the_image, checkpoint=path).per_prompt, first.per_prompt
    )

    def on_the_image_too(pattern, keys):
        return pattern.amin(-1)

    on_the_image_too.__name__ = "on_the_image"
    with pytest.raises(ScoreError, match="belongs to another experiment: it differs in metric"):
        score_heads(family.lens, family.prompt, on_the_image_too, checkpoint=path)


def test_a_metric_of_the_library_given_as_itself_is_itself():
    family = case("llava")
    given = score_heads(family.lens, family.prompt, HEAD_METRICS["concentration"])
    assert (given.metric, given.settings) == ("concentration", {})


def named(function, name):
    function.__name__ = name
    return function


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("visual_mas", "unknown metric 'visual_mas', did you mean"),
        (3, "metric is a name, a function (pattern, keys) -> score, or a HeadMetric, given 3"),
        (lambda p, k: p.sum(-1), "a metric of your own is a function with a name"),
        (functools.partial(on_the_image), "write it with def, or give HeadMetric(name, meaning, source, function)"),
        (named(lambda p, k: p.sum(-1), "hit"), "'hit' is a metric of this library: give your own another name"),
        (named(lambda p, k: p, "all_of_it"), "all_of_it returned [1, 4, 1,"),
        (
            named(lambda p, k: 3, "three"),
            "three returned int\n  expected one number a row, [batch, head, query] = [",
        ),
        (named(lambda p, k: p.sum(-1) / 0, "endless"), "endless gave inf for head 0 of layer 0 of prompt row 0"),
        (named(lambda p, k: p.sum(-1) * torch.nan, "none"), "none gave nan for head 0 of layer 0 of prompt row 0"),
        (named(lambda p, k: k.region.sum(-1), "boxed"), "no attribute 'region'"),
        (named(lambda p, k: k["picture"], "picture"), "there are no keys 'picture'"),
    ],
)
def test_what_is_no_metric_is_refused(metric, text):
    family = case("llava")
    with pytest.raises((ScoreError, InterventionError, AttributeError)) as caught:
        score_heads(family.lens, family.prompt, metric)
    assert text in str(caught.value)
