"""What is kept of a forward, by hand, and the forms in which an answer may be said."""

from types import SimpleNamespace

import pytest
import torch

from lmm_lens.answers.contrast import answer_token
from lmm_lens.answers.outcomes import (
    ANSWER_METRICS,
    Goal,
    Outcomes,
    forms_of,
    goal_of_texts,
    yes_no_counts,
    yes_no_scores,
)
from lmm_lens.errors import ScoreError
from tests.support.tokenizer import byte_tokenizer

LOGITS = torch.tensor([[0.0, 2.0, 1.0, -1.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 5.0]])


@pytest.fixture(scope="module")
def byte_lens():
    return SimpleNamespace(adapter=SimpleNamespace(tokenizer=byte_tokenizer()))


def test_four_numbers_give_every_metric():
    # right is token 2, which may also be said as token 1; wrong is token 3
    outcomes = Outcomes.of(LOGITS, Goal((2, 1), (3,)))
    assert outcomes.said.tolist() == [1, 0, 3]
    assert outcomes.marks.tolist() == [1, 0, -1]
    assert ANSWER_METRICS["logit_difference"].of(outcomes).tolist() == [2.0, 0.0, -5.0]
    assert ANSWER_METRICS["accuracy"].of(outcomes).tolist() == [1.0, 0.0, 0.0]
    expected = LOGITS.double().softmax(1)[:, 2]
    torch.testing.assert_close(ANSWER_METRICS["probability"].of(outcomes), expected)
    torch.testing.assert_close(ANSWER_METRICS["log_prob"].of(outcomes), expected.log())


def test_an_answer_counts_in_every_form_by_its_first_token(byte_lens):
    ids = byte_lens.adapter.tokenizer.convert_tokens_to_ids
    assert set(forms_of(byte_lens, "yes")) == {ids("y"), ids("Y")}
    clean = torch.zeros(300)
    clean[ids("N")] = clean[ids("y")] = 1
    goal = goal_of_texts(byte_lens, clean, "yes", "no")
    # the form that the clean run finds likeliest comes first
    assert goal == Goal((ids("y"), ids("Y")), (ids("N"), ids("n")), 1)
    assert goal_of_texts(byte_lens, clean, "No", "Yes").is_yes == 0
    assert goal_of_texts(byte_lens, clean, "red", None) == Goal(goal_of_texts(byte_lens, clean, "red", None).right)


def test_answers_that_begin_alike_are_refused(byte_lens):
    with pytest.raises(ScoreError) as raised:
        goal_of_texts(byte_lens, torch.zeros(300), "blue", "black")
    assert "the answers 'blue' and 'black' begin with the same token" in str(raised.value)


@pytest.fixture
def spaced_lens():
    """A tokenizer in which words are tokens behind a space, and pieces without one, as GPT-2's and Llama 3's."""
    tokens = {"": [], "tent": [1, 2], "Tent": [3, 2], " tent": [4], " Tent": [5], " tiger": [6], " Tiger": [7]}
    tokens |= {"tiger": [1, 8], "Tiger": [3, 8]}  # 1 is "t", 3 is "T"

    class Spaced:
        unk_token_id = 0
        unk_token = "<unk>"

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": tokens[text]}

        def decode(self, ids):
            return f"token {ids}"

        def convert_ids_to_tokens(self, ids):
            return [f"piece {each}" for each in ids]

    return SimpleNamespace(adapter=SimpleNamespace(tokenizer=Spaced()))


def test_a_form_that_both_answers_begin_with_counts_for_neither(spaced_lens):
    clean = torch.zeros(9)
    clean[4], clean[7] = 3, 1
    assert goal_of_texts(spaced_lens, clean, "tent", "tiger") == Goal((4, 5), (7, 6))
    clean[1] = 4  # now the model says them without a space, where one token is both
    with pytest.raises(ScoreError, match=r"'tent' and 'tiger' begin with the same token \[1, 3\]"):
        goal_of_texts(spaced_lens, clean, "tent", "tiger")


def test_an_answer_that_is_one_token_behind_a_space_is_named(spaced_lens):
    with pytest.raises(ScoreError) as raised:
        answer_token(spaced_lens, "tent", 9)
    assert str(raised.value) == (
        "'tent' has 2 tokens: 'piece 1' 'piece 2'\n  an answer is one token; ' tent', with the space before it, is one"
    )
    assert answer_token(spaced_lens, " tent", 9) == 4


def test_yes_no_statistics_by_hand():
    # right answers yes, yes, no, no; said yes, no, yes, something else
    marks = torch.tensor([[1], [-1], [-1], [0]])
    outcomes = Outcomes(torch.zeros(4, 1, 2), torch.zeros(4, 1), torch.zeros(4, 1, dtype=torch.long), marks)
    counts = yes_no_counts(outcomes, torch.tensor([1, 1, 0, 0]))
    assert counts[:, 0].tolist() == [[1, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    scores = yes_no_scores(counts.sum(0), 4)
    assert {name: float(value) for name, value in scores.items()} == {
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "yes_ratio": 0.5,
    }
