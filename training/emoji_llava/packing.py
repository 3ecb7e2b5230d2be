"""Several independent questions behind one picture: equal to single prompts, at a fraction of the cost.

A row is the prompt up to the question, then question, answer, question, answer, ... A question sees the picture and
itself (a block-diagonal mask) and its positions restart behind the picture, so its logits are those of a prompt of its
own.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lmm_lens.bundled.emoji.architecture import soft_ids
from lmm_lens.bundled.emoji.processor import IMAGE
from lmm_lens.bundled.worlds import N_PATCHES, Question

IGNORED = -100
ANSWER = "<|im_end|>\n<|im_start|>assistant\nAnswer:"


@dataclass(frozen=True)
class Packed:
    """A batch. `mask` is True where a query may look; `labels` are already shifted.

    `question` says which question of its row a label belongs to, in the order given, and is -1 elsewhere.
    """

    ids: Tensor  # [batch, position]
    mask: Tensor  # [batch, 1, query, key] bool
    positions: Tensor  # [batch, position]
    labels: Tensor  # [batch, position], IGNORED but where an answer token comes next
    question: Tensor  # [batch, position]


class Packer:
    """Packs questions with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.encode = lru_cache(50_000)(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))
        start = list(self.encode("<|im_start|>user\n"))
        self.first_patch = len(start)
        self.first_soft = self.first_patch + N_PATCHES
        image = tokenizer.convert_tokens_to_ids(IMAGE)
        self.prefix = [*start, *[image] * N_PATCHES, *soft_ids(tokenizer), *self.encode("\n")]
        self.end = tokenizer.eos_token_id

    def turn(self, question: Question) -> tuple[list[int], list[int]]:
        """(question and "Answer:", answer and end) as token ids."""
        asked = [*self.encode(question.text), *self.encode(ANSWER)]
        return asked, [*self.encode(" " + question.answer), self.end]

    def need(self, questions: Iterable[Question]) -> int:
        """Tokens of a row that holds all of these."""
        return len(self.prefix) + sum(len(asked) + len(answer) - 1 for asked, answer in map(self.turn, questions))

    def pack(self, rows: list[list[Question]], length: int) -> Packed:
        """Fill each row of `length` tokens with its questions until one does not fit."""
        n, shape = len(self.prefix), (len(rows), length)
        ids = torch.full(shape, self.end)
        positions = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED)
        number = torch.full(shape, -1)
        owner = torch.full(shape, -1)  # 0 is the prefix, 1.. the questions, -1 padding
        ids[:, :n], positions[:, :n], owner[:, :n] = torch.tensor(self.prefix), torch.arange(n), 0
        for row, questions in enumerate(rows):
            here = n
            for i, question in enumerate(questions):
                asked, answer = self.turn(question)
                tokens = asked + answer[:-1]  # the end is only ever a label
                stop = here + len(tokens)
                if stop > length:
                    break
                ids[row, here:stop] = torch.tensor(tokens)
                positions[row, here:stop] = n + torch.arange(len(tokens))
                owner[row, here:stop] = i + 1
                labels[row, stop - len(answer) : stop] = torch.tensor(answer)
                number[row, stop - len(answer) : stop] = i
                here = stop
        same = (owner[:, :, None] == owner[:, None, :]) | (owner == 0)[:, None, :]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        return Packed(ids, (same & causal)[:, None], positions, labels, number)
