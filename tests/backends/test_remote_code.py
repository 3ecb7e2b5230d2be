"""What all backends share of remote code: which tokens are new, and what a bridge cannot be made of."""

import pytest
import torch

from lmm_lens import Lens
from lmm_lens.backends.options import new_tokens
from lmm_lens.errors import ModelError
from tests.support.remote_code.cases import case
from tests.support.remote_code.parts import Tokenizer

IDS = torch.tensor([[1, -1, -1, 7]])


@pytest.mark.parametrize(
    "returned",
    [
        [[1, -1, -1, 7, 8, 9]],  # the prompt again
        [[1, 0, 0, 7, 8, 9]],  # with what the class has written over its negative ids
        [[8, 9]],  # the new ones alone, as from embeddings
    ],
)
def test_new_tokens_are_those_that_were_made(returned):
    assert new_tokens(torch.tensor(returned), IDS).tolist() == [[8, 9]]


def test_new_tokens_of_several_sequences_a_row():
    ids = torch.tensor([[1, 7], [1, 8]])
    rows = torch.tensor([[1, 7, 3], [1, 7, 4], [1, 8, 5], [1, 8, 6]])
    assert new_tokens(rows, ids).tolist() == [[3], [4], [5], [6]]


def test_a_bridge_of_a_class_that_it_does_not_know_is_refused():
    with pytest.raises(ModelError, match="LlavaLlamaModel cannot be made a TransformerBridge"):
        Lens(case("Vila").model, Tokenizer(), backend="transformer_lens", adapter=case("Vila").lens.adapter)
