"""What a view shows is what the model attends to: against eager attention of every kind of decoder."""

import numpy as np
import pytest
import torch

from lmm_lens import VAR, Lens, LensError, Read
from lmm_lens.bundled import shapes
from lmm_lens.errors import HookError, PromptError, ScoreError
from lmm_lens.sinks import SinkRule
from lmm_lens.viewer import reading, view
from tests.support.cases import case
from tests.support.eager import Eager, sinks_by_layer
from tests.viewer.pages import Shown

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def asked(lens):
    example = shapes.examples(1, kinds=("color",), seed=1)[0]
    return lens.prompt(example.question, images=example.image)


@pytest.fixture(scope="module")
def pair(lens):
    """Two questions of different lengths as a left-padded batch."""
    examples = shapes.examples(12, seed=5)
    texts, pictures = [e.question for e in examples], [e.image for e in examples]
    short, long = (f(range(12), key=lambda i: len(texts[i].split())) for f in (min, max))
    prompt = lens.prompt([texts[short], texts[long]], images=[pictures[short], pictures[long]])
    assert bool(prompt.mask("pad")[0].any())
    return prompt


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "paligemma", "llava_next"])
def test_the_weights_on_the_page_are_those_of_eager_attention(name):
    known = case(name)
    shown = Shown(view(known.prompt, known.lens, queries="all").html)
    seen = Eager(known.model).prefill(known.inputs)
    n = known.prompt.n_tokens
    assert (shown.about["queries"], shown.about["layers"]) == (list(range(n)), list(range(known.n_layers)))
    for layer in range(known.n_layers):
        np.testing.assert_allclose(shown.weights[:, layer].transpose(1, 0, 2), seen.weights[layer][0], atol=TOLERANCE)


def test_layers_without_attention_over_tokens_are_left_out_and_named():
    for name, left, kept in (("qwen3_5", "[0, 2]", [1, 3]), ("mllama", "[1]", [0, 2])):
        known = case(name)
        shown = Shown(view(known.prompt, known.lens).html)
        assert shown.about["layers"] == kept
        assert shown.about["omitted"] == f"Left out: layers {left}, which do not attend to tokens."
        with pytest.raises(HookError, match=r"have no attention over tokens to show\n  layers that have"):
            view(known.prompt, known.lens, layers=[int(left[1])])


def test_the_last_token_is_always_a_query_and_padding_is_never_shown(lens, pair):
    shown = Shown(view(pair, lens, queries="question").html)
    real = pair.mask("all")[0].nonzero().flatten().tolist()
    questions = pair.mask("question")[0].nonzero().flatten().tolist()
    assert shown.about["positions"] == real
    assert [real[key] for key in shown.about["queries"]] == [*questions, real[-1]]
    eager = Eager(lens.model).prefill(pair.inputs)
    for layer in range(6):
        expected = eager.weights[layer][0][:, [*questions, real[-1]]][..., real]
        np.testing.assert_allclose(shown.weights[:, layer].transpose(1, 0, 2), expected, atol=TOLERANCE)


def test_another_batch_row_can_be_shown(lens, pair):
    shown = Shown(view(pair, lens, row=1).html)
    eager = Eager(lens.model).prefill(pair.inputs)
    for layer in range(6):
        np.testing.assert_allclose(shown.weights[0, layer], eager.weights[layer][1, :, -1], atol=TOLERANCE)


def test_some_layers_and_heads_keep_their_numbers(lens, asked):
    shown, everything = (
        Shown(view(asked, lens, layers=layers, heads=heads).html) for layers, heads in (([4, 1], [6, 2]), (None, None))
    )
    assert (shown.about["layers"], shown.about["heads"]) == ([1, 4], [6, 2])
    picked = everything.weights[:, [1, 4]][:, :, [6, 2]]
    np.testing.assert_allclose(shown.weights, picked, atol=TOLERANCE)


def test_a_run_is_shown_as_it_was_edits_included(lens, asked):
    run = lens.run(
        asked, [VAR(min_nonsink_ratio=0.1, sink_dims=(5, 77), sink_threshold=7)], [Read("pattern", rows="last")]
    )
    shown = Shown(view(asked, run, lens=lens).html)
    for layer in range(6):
        np.testing.assert_allclose(shown.weights[0, layer], run.reads["pattern", layer][0, :, 0], atol=TOLERANCE)
    plain = Shown(view(asked, lens).html)
    assert np.abs(shown.weights - plain.weights).max() > 0.01
    assert shown.about["sinks"] is None
    assert shown.about["sinkRule"] == "not known: the run was edited, and edits move them"


def test_a_run_needs_no_lens_and_finds_its_sinks_with_one(lens, asked):
    run = lens.run(asked, read=[Read("pattern", rows=[5, 44])])
    alone, helped = Shown(view(asked, run).html), Shown(view(asked, run, lens=lens).html)
    assert np.array_equal(alone.weights, helped.weights)
    assert [alone.about["positions"][key] for key in alone.about["queries"]] == [5, 44]
    assert alone.about["sinks"] is None
    assert "view(prompt, run, lens=lens)" in alone.about["sinkRule"]
    assert helped.about["sinks"] == Shown(view(asked, lens).html).about["sinks"]


def test_a_row_of_a_run_that_has_fewer_queries_than_others_shows_its_own(lens, pair):
    run = lens.run(pair, read=[Read("pattern", rows="question")])
    eager = Eager(lens.model).prefill(pair.inputs)
    counts = []
    for row in (0, 1):
        shown = Shown(view(pair, run, row=row).html)
        real, questions = (pair.mask(name)[row].nonzero().flatten().tolist() for name in ("all", "question"))
        assert [real[key] for key in shown.about["queries"]] == questions
        expected = eager.weights[3][row][:, questions][..., real]
        np.testing.assert_allclose(shown.weights[:, 3].transpose(1, 0, 2), expected, atol=TOLERANCE)
        counts.append(len(questions))
    assert counts[0] < counts[1]


def test_an_enclosing_edit_is_shown(lens, asked):
    rule = VAR(min_nonsink_ratio=0.1, sink_dims=(5, 77), sink_threshold=7)
    with lens.apply(rule):
        inside = Shown(view(asked, lens).html)
    run = lens.run(asked, [rule], [Read("pattern", rows="last")])
    for layer in range(6):
        np.testing.assert_allclose(inside.weights[0, layer], run.reads["pattern", layer][0, :, 0], atol=TOLERANCE)


def test_sinks_are_those_of_each_layer(lens, asked):
    shown = Shown(view(asked, lens).html)
    expected = sinks_by_layer(Eager(lens.model).prefill(asked.inputs), 0, (5, 77), 7)
    assert shown.about["sinks"] == [expected[layer] for layer in range(6)]
    other = Shown(view(asked, lens, sinks=SinkRule((5,), 4.0)).html)
    expected = sinks_by_layer(Eager(lens.model).prefill(asked.inputs), 0, (5,), 4.0)
    assert other.about["sinks"] == [expected[layer] for layer in range(6)]


def test_why_no_sinks_are_drawn_is_said(lens, asked):
    assert Shown(view(asked, lens, sinks=False).html).about["sinkRule"] == "not asked for"
    known = case("llava")
    shown = Shown(view(known.prompt, known.lens).html)
    assert shown.about["sinks"] is None
    assert shown.about["sinkRule"].startswith("not known for this model: find_sinks(lens, prompts)")
    assert "nonsink_mass" not in [each["name"] for each in shown.about["maps"]]


def test_the_next_tokens_are_the_models_own(lens, asked):
    with torch.no_grad():
        chances, ids = lens.model(**asked.inputs).logits[0, -1].softmax(-1).topk(3)
    expected = [
        [lens.processor.tokenizer.decode([i]), pytest.approx(p, abs=1e-4)]
        for p, i in zip(chances.tolist(), ids.tolist(), strict=True)
    ]
    assert Shown(view(asked, lens).html).about["next"] == expected


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_other_backends_show_the_same(lens, asked, backend):
    other = Lens.demo(backend=backend)
    shown = Shown(view(asked, other, queries=[5, 44]).html)
    expected = Shown(view(asked, lens, queries=[5, 44]).html)
    np.testing.assert_allclose(shown.weights, expected.weights, atol=TOLERANCE)
    assert shown.about["sinks"] == expected.about["sinks"]


# ---------------------------------------------------------------------- refusals


def refused(error, text, *arguments, **options):
    with pytest.raises(error) as caught:
        view(*arguments, **options)
    assert str(caught.value) == text
    assert len(text.splitlines()) <= 3


def test_queries_that_select_nothing_are_refused(lens, asked):
    for queries in ("answer", "pad"):
        refused(
            HookError,
            f"queries {queries!r} select no token of prompt row 0\n"
            '  a view shows the prompt: take "last", "question", "text", or positions of it',
            asked,
            lens,
            queries=queries,
        )
    with pytest.raises(HookError, match=r"unknown row scope 'lats', did you mean 'last'"):
        view(asked, lens, queries="lats")
    with pytest.raises(HookError, match="layer 6 is out of range"):
        view(asked, lens, layers=[6])


def test_a_row_that_is_not_there_is_refused(lens, asked):
    refused(PromptError, "row 1 is out of range: the prompt has rows 0 to 0", asked, lens, row=1)
    run = lens.run(asked, read=[Read("pattern", rows="last")])
    refused(PromptError, "row 2 is out of range: the prompt has rows 0 to 0", asked, run, row=2)


def test_more_numbers_than_a_page_should_hold_are_refused_before_the_model_runs(lens, asked, monkeypatch):
    monkeypatch.setattr(reading, "MAX_VALUES", 9000)
    monkeypatch.setattr(lens, "run", None)
    refused(
        ScoreError,
        "9 queries x 6 layers x 8 heads x 45 tokens are 0 million numbers, a page holds 0 million\n"
        '  show fewer queries (queries="last"), layers or heads',
        asked,
        lens,
        queries="text",
    )


def test_a_run_without_whole_patterns_is_refused(lens, asked, pair):
    run = lens.run(asked, read=[Read("z", rows="last")])
    refused(
        HookError,
        "this run holds no attention to show: its reads are ['z']\n"
        '  run with read=[Read("pattern", rows="last")], or give the lens: view(prompt, lens)',
        asked,
        run,
    )
    run = lens.run(asked, read=[Read("pattern", [2, 3], rows="last", reduce=lambda x, context: x.sum(-1))])
    refused(
        HookError,
        "the patterns of layers [2, 3] are (1, 8, 1), not [batch, head, query, 45 keys]\n"
        '  read them whole, without reduce: Read("pattern", rows="last")',
        asked,
        run,
    )
    run = lens.run(asked, read=[Read("pattern", rows="last", reduce=lambda x, context: -x)])
    refused(
        HookError,
        "the reads at 'pattern' are no probabilities of prompt row 0\n"
        '  read them whole, without reduce: Read("pattern", rows="last")',
        asked,
        run,
    )
    refused(
        PromptError,
        "this run is of another prompt\n  give the prompt that was run: view(run.prompt, run)",
        pair,
        run,
    )


def test_heads_of_a_run_that_were_read_in_part_are_named_or_refused(lens, asked):
    run = lens.run(asked, read=[Read("pattern", heads=[2, 5], rows="last")])
    refused(
        HookError,
        "the reads of layer 0 hold 2 of its 8 heads\n  say which: view(prompt, run, lens=lens, heads=[...])",
        asked,
        run,
        lens=lens,
    )
    refused(
        HookError,
        "heads=[2] names 1 heads, but the reads of layer 0 hold 2\n"
        "  name the heads that were read, or leave heads out where all were",
        asked,
        run,
        heads=[2],
    )
    assert Shown(view(asked, run, heads=[2, 5]).html).about["heads"] == [2, 5]


def test_a_run_of_a_model_with_cross_attention_needs_its_lens():
    known = case("mllama")
    run = known.lens.run(known.prompt, read=[Read("pattern", rows="last")])
    with pytest.raises(HookError, match=r"attend to pictures, not to tokens, .*\n  give the model too"):
        view(known.prompt, run)
    assert Shown(view(known.prompt, run, lens=known.lens).html).about["layers"] == known.lens.shape.self_attention


def test_a_run_takes_no_queries_and_no_layers(lens, asked):
    run = lens.run(asked, read=[Read("pattern", rows="last")])
    for options in ({"queries": "text"}, {"layers": [1]}):
        with pytest.raises(LensError, match="view\\(prompt, run\\) takes no queries and no layers"):
            view(asked, run, **options)
