"""Several independent questions behind one image prefix: equal to single prompts, at a fraction of the cost.

A row is `<s> USER: <image> x 36`, then question, answer, question, answer, ... A question sees the prefix
and itself (a block-diagonal mask) and its positions restart after the prefix, so its logits are those of a
prompt of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lmm_lens.bundled.shapes.processor import build_tokenizer
from lmm_lens.bundled.shapes.vocabulary import ASSISTANT, BOS, EOS, IMAGE, USER, VOCABULARY
from lmm_lens.bundled.worlds import N_PATCHES, Question

IGNORED = -100
FIRST_PATCH = 2  # position of the first visual token, after <s> and USER:
AFTER_IMAGE = FIRST_PATCH + N_PATCHES


@dataclass(frozen=True)
class Packed:
    """A training batch. `mask` is True where a query may look; `labels` are already shifted."""

    ids: Tensor  # [batch, position]
    mask: Tensor  # [batch, 1, query, key] bool
    positions: Tensor  # [batch, position]
    labels: Tensor  # [batch, position], IGNORED but where an answer token comes next


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@lru_cache(maxsize=20_000)
def encode(text: str) -> tuple[int, ...]:
    """Token ids of ordinary text, without <s>."""
    return tuple(_tokenizer().encode(text, add_special_tokens=False))


def prefix(with_image: bool) -> list[int]:
    """Token ids that every question of a row shares."""
    start = [VOCABULARY[BOS], VOCABULARY[USER]]
    return start + [VOCABULARY[IMAGE]] * N_PATCHES if with_image else start


def turn(question: Question) -> tuple[list[int], list[int]]:
    """(question and ASSISTANT:, answer and </s>) as token ids."""
    asked = [*encode(question.text), VOCABULARY[ASSISTANT]]
    return asked, [*encode(question.answer), VOCABULARY[EOS]]


def pack(rows: list[Iterator[Question]], length: int, with_image: bool) -> Packed:
    """Fill each row of `length` tokens with questions from its iterator until the next one does not fit."""
    start = prefix(with_image)
    shape = (len(rows), length)
    ids = torch.zeros(shape, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    owner = torch.full(shape, -1)  # 0 is the prefix, 1.. the questions, -1 padding
    ids[:, : len(start)] = torch.tensor(start)
    positions[:, : len(start)] = torch.arange(len(start))
    owner[:, : len(start)] = 0
    for row, questions in enumerate(rows):
        here = len(start)
        for number, question in enumerate(questions, start=1):
            asked, answered = turn(question)
            tokens = asked + answered[:-1]  # </s> is only ever a label
            end = here + len(tokens)
            if end > length:
                break
            ids[row, here:end] = torch.tensor(tokens)
            positions[row, here:end] = len(start) + torch.arange(len(tokens))
            owner[row, here:end] = number
            labels[row, end - len(answered) : end] = torch.tensor(answered)
            here = end
    same = owner[:, :, None] == owner[:, None, :]
    to_prefix = (owner == 0)[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return Packed(ids, ((same | to_prefix) & causal)[:, None], positions, labels)
