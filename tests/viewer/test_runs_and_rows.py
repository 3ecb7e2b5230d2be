"""Several rows of a batch, two runs of a prompt and generated tokens on one page: what it holds, what it refuses."""

import numpy as np
import pytest
import torch

from lmm_lens import AblateHeads, LensError, Read
from lmm_lens.bundled import shapes
from lmm_lens.errors import HookError, PromptError, ScoreError
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
    return lens.prompt([texts[short], texts[long]], images=[pictures[short], pictures[long]])


@pytest.fixture(scope="module")
def runs(lens, asked):
    reads = [Read("pattern", rows="last")]
    return {"intact": lens.run(asked, read=reads), "cut": lens.run(asked, [AblateHeads([(1, 4)])], read=reads)}


def refused(error, text, *arguments, **options):
    with pytest.raises(error) as caught:
        view(*arguments, **options)
    assert str(caught.value) == text
    assert len(text.splitlines()) <= 3


# ---------------------------------------------------------------------- rows


def test_all_rows_of_a_batch_are_on_one_page_each_with_its_own_tokens(lens, pair):
    made = view(pair, lens, row="all", queries="question")
    eager = Eager(lens.model).prefill(pair.inputs)
    for row in (0, 1):
        shown, alone = Shown(made.html, row), Shown(view(pair, lens, row=row, queries="question").html)
        assert shown.about == alone.about
        assert shown.about["model"].endswith(f"batch row {row}")
        real, questions = (pair.mask(name)[row].nonzero().flatten().tolist() for name in ("all", "question"))
        for layer in range(6):
            expected = eager.weights[layer][row][:, [*questions, real[-1]]][..., real]
            np.testing.assert_allclose(shown.weights[:, layer].transpose(1, 0, 2), expected, atol=TOLERANCE)
        assert shown.about["sinks"] == [
            [key for key, position in enumerate(real) if position in sinks]
            for sinks in sinks_by_layer(eager, row, (5, 77), 7).values()
        ]


def test_all_rows_are_read_in_one_pass(lens, pair, monkeypatch):
    passes, run = [], lens.run
    monkeypatch.setattr(lens, "run", lambda *given, **options: passes.append(1) or run(*given, **options))
    view(pair, lens, row="all")
    assert len(passes) == 1


def test_rows_of_a_run_too(lens, pair):
    run = lens.run(pair, read=[Read("pattern", rows="question")])
    made = view(pair, run, row="all")
    for row in (0, 1):
        assert np.array_equal(Shown(made.html, row).weights, Shown(view(pair, run, row=row).html).weights)


def test_rows_are_numbers_or_all(lens, pair):
    refused(PromptError, "row is the number of a batch row or \"all\", given 'both'", pair, lens, row="both")
    refused(PromptError, "row 2 is out of range: the prompt has rows 0 to 1", pair, lens, row=2)


def test_the_rows_and_runs_of_a_page_count_together(lens, pair, monkeypatch):
    run = lens.run(pair, read=[Read("pattern", rows="last")])
    one = 6 * 8 * 46
    monkeypatch.setattr(reading, "MAX_VALUES", one)
    view(pair, run)
    refused(
        ScoreError,
        "these rows and runs are 0 million numbers, a page holds 0 million\n"
        "  show one row, fewer queries, layers or heads",
        pair,
        run,
        row="all",
    )


# ---------------------------------------------------------------------- two runs


def test_two_runs_are_on_one_page_each_with_its_own_numbers(lens, asked, runs):
    made = view(asked, runs, lens=lens)
    for side, (name, run) in enumerate(runs.items()):
        shown = Shown(made.html, side=side)
        assert shown.about["label"] == name
        for layer in range(6):
            np.testing.assert_allclose(shown.weights[0, layer], run.reads["pattern", layer][0, :, 0], atol=TOLERANCE)
        visual = asked.mask("visual")[0]
        expected = torch.stack([run.reads["pattern", x][0, :, 0][:, visual].sum(-1) for x in range(6)])
        assert shown.map("visual_mass")[0] == pytest.approx(expected.numpy(), abs=1e-6)
        chances, ids = run.logits[0, -1].softmax(-1).topk(3)
        words = [lens.processor.tokenizer.decode([token]) for token in ids.tolist()]
        assert [tuple(each) for each in shown.about["next"]] == [
            (word, pytest.approx(chance, abs=1e-6)) for word, chance in zip(words, chances.tolist(), strict=True)
        ]
    assert "not known: the run was edited" in Shown(made.html, side=1).about["sinkRule"]
    assert Shown(made.html).about["sinks"] == Shown(view(asked, lens).html).about["sinks"]


def test_maps_that_only_one_run_has_are_left_out(lens, asked, runs):
    names = [each["name"] for each in Shown(view(asked, runs, lens=lens).html).about["maps"]]
    assert names[0] == "visual_mass"
    assert "nonsink_mass" not in names  # sinks of an edited run are not known


def test_runs_that_hold_other_things_are_refused(lens, asked, runs):
    other = lens.run(asked, read=[Read("pattern", [1, 2], rows="last")])
    refused(
        HookError,
        "the two runs hold other layers: intact [0, 1, 2, 3, 4, 5], other [1, 2]\n"
        '  read the same of both: lens.run(prompt, edits, read=[Read("pattern", layers, rows=...)])',
        asked,
        {"intact": runs["intact"], "other": other},
        lens=lens,
    )
    refused(
        LensError,
        "two runs go side by side, given {'a': Run}\n"
        '  name both: view(prompt, {"before": run, "after": edited}, lens=lens)',
        asked,
        {"a": other},
    )
    refused(
        LensError,
        "two runs go side by side, given {'a': Run, 'b': str}\n"
        '  name both: view(prompt, {"before": run, "after": edited}, lens=lens)',
        asked,
        {"a": other, "b": "run"},
    )
    made = lens.generate(asked, read=[Read("pattern", rows="last")], max_new_tokens=2)
    refused(
        LensError,
        "a run and a generation do not go side by side\n  give two runs, or two generations",
        asked,
        {"a": other, "b": made},
    )


def test_generations_that_went_other_ways_are_refused_and_equal_ones_shown(lens):
    example = shapes.examples(12, kinds=["color"], seed=3)[5]
    asked = lens.prompt(example.question, images=example.image)
    reads = [Read("pattern", rows="generating")]
    plain = lens.generate(asked, read=reads, max_new_tokens=2)
    cut = lens.generate(asked, [AblateHeads([(1, 4)])], reads, max_new_tokens=2)
    assert plain.text != cut.text
    with pytest.raises(HookError, match=f"generated other tokens: '{plain.text[0]}' and '{cut.text[0]}'\n  show them"):
        view(asked, {"plain": plain, "cut": cut}, lens=lens)
    mild = lens.generate(asked, [AblateHeads([(0, 1)])], reads, max_new_tokens=2)
    assert plain.text == mild.text
    shown = Shown(view(asked, {"plain": plain, "mild": mild}, lens=lens).html, side=1)
    np.testing.assert_allclose(shown.weights[-1, 2], mild.reads["pattern", 2][0, :, -1], atol=TOLERANCE)


# ---------------------------------------------------------------------- generated tokens


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
def test_generated_tokens_attend_as_in_one_pass_over_the_whole_text(name):
    """The reference: eager attention over the prompt with the generated tokens as its own."""
    known = case(name)
    made = known.lens.generate(known.prompt, read=[Read("pattern", rows="generating")], max_new_tokens=4)
    shown = Shown(view(known.prompt, made, lens=known.lens).html)
    n, new = known.prompt.n_tokens, made.tokens.shape[1]
    assert new > 1
    assert shown.about["positions"] == list(range(n + new - 1))
    assert shown.about["queries"] == list(range(n - 1, n + new - 1))
    assert shown.about["roles"][n:] == ["generated"] * (new - 1)
    layers = shown.about["layers"]
    assert layers == list(range(known.n_layers))
    whole = {
        key: torch.cat([value, made.tokens[:, :-1].to(value.dtype) if key == "input_ids" else fill(key, new - 1)], 1)
        if key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
        else value
        for key, value in known.prompt.inputs.items()
    }
    seen = Eager(known.model).prefill(whole)
    for index, layer in enumerate(layers):
        np.testing.assert_allclose(
            shown.weights[:, index].transpose(1, 0, 2), seen.weights[layer][0][:, n - 1 :], atol=TOLERANCE
        )


def fill(key, new):
    """What the inputs say of text after the prompt."""
    return torch.full((1, new), int(key == "attention_mask"))


def test_a_row_that_ended_early_has_its_own_tokens_alone(lens, pair):
    made = lens.generate(pair, read=[Read("pattern", rows="generating")], max_new_tokens=4)
    page = view(pair, made, lens=lens, row="all").html
    n, decode = pair.n_tokens, lens.processor.tokenizer.decode
    counts = []
    for row in (0, 1):
        shown = Shown(page, row)
        ids = made.tokens[row].tolist()
        own = ids[: ids.index(lens.processor.tokenizer.eos_token_id)]
        assert [shown.about["texts"][key] for key, role in enumerate(shown.about["roles"]) if role == "generated"] == [
            decode([token]) for token in own
        ]
        assert shown.about["answer"] == made.text[row]
        assert [shown.about["positions"][key] for key in shown.about["queries"]] == list(range(n - 1, n + len(own)))
        np.testing.assert_allclose(shown.weights.sum(-1), 1, atol=1e-4)
        counts.append(len(own))
    assert counts[0] != counts[1]


def test_the_parts_of_a_generated_tokens_attention_add_up_to_one(lens, asked):
    made = lens.generate(asked, read=[Read("pattern", rows="generating")], max_new_tokens=3)
    shown = Shown(view(asked, made, lens=lens).html)
    parts = [shown.map(name) for name in ("visual_mass", "text_mass", "bos_mass", "marker_mass")]
    assert sum(parts) == pytest.approx(np.ones(parts[0].shape), abs=1e-5)


def test_a_generation_without_a_lens_has_numbers_for_words(lens, asked):
    made = lens.generate(asked, read=[Read("pattern", rows="generating")], max_new_tokens=3)
    shown = Shown(view(asked, made).html)
    assert shown.about["texts"][asked.n_tokens] == f"token {int(made.tokens[0, 0])}"


def test_a_generation_that_was_not_read_is_refused(lens, asked):
    made = lens.generate(asked, max_new_tokens=2)
    refused(
        HookError,
        "this generation holds no attention to show: its reads are none\n"
        '  run with read=[Read("pattern", rows="generating")], or give the lens: view(prompt, lens)',
        asked,
        made,
    )
    other = lens.prompt("what comes after three?")
    refused(
        PromptError,
        "this generation is of another prompt\n  give the prompt that was run: view(generation.prompt, generation)",
        other,
        made,
    )
