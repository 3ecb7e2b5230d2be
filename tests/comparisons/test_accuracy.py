"""Exact match, against answers generated and compared without the library."""

import pytest
import torch

from lmm_lens import AblateHeads, HeadSet
from lmm_lens.bundled import shapes
from lmm_lens.comparisons import exact_match
from lmm_lens.errors import PromptError
from tests.support.eager import Eager


@pytest.fixture(scope="module")
def asked(lens):
    """Six prompts in two batches and one alone, and the whole answers of the model, up to eight tokens."""
    examples = shapes.examples(6, kinds=("list", "color", "at"), seed=11)
    groups = (examples[:2], examples[2:5], examples[5:])
    prompts = [lens.prompt([e.question for e in group], images=[e.image for e in group]) for group in groups]
    return examples, prompts


def answers(lens, examples, n_tokens, ablated=()) -> list[str]:
    model = Eager(lens.model, ablated).model
    given = []
    for example in examples:
        inputs = lens.prompt(example.question, images=example.image).inputs
        tokens = model.generate(**inputs, max_new_tokens=n_tokens, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        given.append(lens.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip())
    return given


def test_what_the_model_answers_is_right_and_anything_else_is_wrong(lens, asked):
    examples, prompts = asked
    said = answers(lens, examples, 4)
    right = exact_match(lens, prompts, said, max_new_tokens=4)
    assert right.dtype == torch.bool
    assert right.tolist() == [True] * 6
    wrong = [*said[:3], said[3] + " more", "", "nothing like it"]
    assert exact_match(lens, prompts, wrong, max_new_tokens=4).tolist() == [True, True, True, False, False, False]


def test_case_and_spaces_do_not_matter_and_words_do(lens, asked):
    examples, prompts = asked
    said = answers(lens, examples, 3)
    shouted = [f"  {text.upper()} ".replace(" ", "  ") for text in said]
    assert exact_match(lens, prompts, shouted, max_new_tokens=3).all()
    joined = [text.replace(" ", "") for text in said]
    expected = [a == b for a, b in zip(said, joined, strict=True)]
    assert exact_match(lens, prompts, joined, max_new_tokens=3).tolist() == expected


def test_the_beginning_of_a_longer_answer_is_not_the_answer(lens, asked):
    examples, prompts = asked
    first, whole = answers(lens, examples, 1), answers(lens, examples, 8)
    expected = [a == b for a, b in zip(first, whole, strict=True)]
    assert exact_match(lens, prompts, first).tolist() == expected
    assert not all(expected)


def test_answers_are_given_under_the_interventions(lens, asked):
    examples, prompts = asked
    heads = HeadSet.all(lens.n_layers, lens.n_heads, layers=range(1, 6))
    ablated, plain = answers(lens, examples, 3, heads), answers(lens, examples, 3)
    assert exact_match(lens, prompts, ablated, [AblateHeads(heads)], max_new_tokens=3).all()
    unlike = [a == b for a, b in zip(ablated, plain, strict=True)]
    assert exact_match(lens, prompts, ablated, max_new_tokens=3).tolist() == unlike
    assert not all(unlike)


def test_progress_is_told_batch_by_batch(lens, asked):
    examples, prompts = asked
    steps = []
    exact_match(lens, prompts, [e.answer for e in examples], on_batch=steps.append)
    assert steps == [2, 3, 1]


@pytest.mark.parametrize("n", [0, 5, 7])
def test_one_answer_a_row_is_needed(lens, asked, n):
    with pytest.raises(PromptError, match=f"one answer a prompt row, given {n} answers for 6 rows"):
        exact_match(lens, asked[1], ["yes"] * n)


def test_no_prompts_are_refused(lens):
    with pytest.raises(PromptError, match="no prompts were given"):
        exact_match(lens, [], [])
