"""The two answers that a pair of prompts is about, and how far a patched run has moved from one to the other.

    LD = logit[correct] - logit[incorrect]      at the last prompt token, in logits
    effect = (LD_patched - LD_corrupt) / (LD_clean - LD_corrupt)

So 0 is the corrupt run, 1 the clean one (Zhang & Nanda, arXiv:2309.16042; NOTICE, arXiv:2406.16320).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ScoreError
from ..warnings import warn

if TYPE_CHECKING:
    from ..lens import Lens

AnswerLike = int | str
AnswersLike = Sequence[tuple[AnswerLike, AnswerLike]] | Tensor
"""(correct, incorrect) of each pair: token ids or texts of one token."""

NOISE = 8
"""Logit differences that lie closer than this many rounding errors of the logits count as equal."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """What the clean and the corrupt run of each pair answer.

    Attributes:
        ids: Int[pair, 2], the tokens (correct, incorrect).
        texts: the same as text.
        clean_ld, corrupt_ld: Float[pair], fp64 and on the CPU, the logit differences of the unpatched runs, in logits.
        gap: their difference, NaN in pairs where it is no more than rounding noise.
    """

    ids: Int[Tensor, "pair 2"]
    texts: tuple[tuple[str, str], ...]
    clean_ld: Float[Tensor, " pair"]
    corrupt_ld: Float[Tensor, " pair"]
    gap: Float[Tensor, " pair"]

    def normalized(self, change: Float[Tensor, " pair *unit"]) -> Float[Tensor, " pair *unit"]:
        """A change of the corrupt logit difference as an effect; fp32, NaN where that is undefined."""
        return (change.double() / self.gap.reshape(-1, *[1] * (change.ndim - 1))).float()


def logit_difference(logits: Float[Tensor, "pair vocab"], ids: Int[Tensor, "pair 2"]) -> Float[Tensor, " pair"]:
    """logit[correct] - logit[incorrect] of each pair, fp64."""
    chosen = logits.gather(1, ids.to(logits.device)).double()
    return chosen[:, 0] - chosen[:, 1]


def contrast(
    lens: Lens,
    clean_logits: Float[Tensor, "pair vocab"],
    corrupt_logits: Float[Tensor, "pair vocab"],
    answers: AnswersLike | None = None,
) -> Contrast:
    """The answers of each pair and their logit differences without any patch.

    Args:
        lens: the model, whose tokenizer reads the answers.
        clean_logits, corrupt_logits: at the last prompt token of each pair.
        answers: (correct, incorrect) of each pair; by default what the model itself answers on clean and on corrupt.

    Raises:
        ScoreError: answers that are no single token, the same twice, or not one pair of them a row; no pair in which
            the clean and the corrupt run differ.
    """
    if answers is None:
        ids = torch.stack([clean_logits.argmax(1), corrupt_logits.argmax(1)], 1).cpu()
    else:
        ids = _given(lens, answers, len(clean_logits), clean_logits.shape[1])
    texts = tuple((token_text(lens, correct), token_text(lens, incorrect)) for correct, incorrect in ids.tolist())
    same = (ids[:, 0] == ids[:, 1]).nonzero().flatten().tolist()
    if same:
        who = "the model answers" if answers is None else "the correct and the incorrect answer are both"
        raise ScoreError(
            f"pair {same[0]}: {who} {texts[same[0]][0]!r}{' clean and corrupt' * (answers is None)}, "
            f"so no logit difference tells the two runs apart (pairs {same})\n"
            "  leave these pairs out, or give answers=[(correct, incorrect), ...], one a pair"
        )
    clean, corrupt = (logit_difference(x.detach(), ids).cpu() for x in (clean_logits, corrupt_logits))
    gap = clean - corrupt
    scale = torch.cat([x.detach().cpu().gather(1, ids).abs() for x in (clean_logits, corrupt_logits)], 1).amax(1)
    undefined = ~(gap.abs() > NOISE * torch.finfo(clean_logits.dtype).eps * scale.double())
    if bool(undefined.all()):
        raise ScoreError(
            "the clean and the corrupt run have the same logit difference in every pair, so the effect is undefined: "
            f"0 / 0\n  pair 0, {texts[0][0]!r} against {texts[0][1]!r}: {clean[0]:.4g} and {corrupt[0]:.4g} logits\n"
            "  give pairs that differ in what the answer depends on"
        )
    if bool(undefined.any()):
        warn(
            f"pairs {undefined.nonzero().flatten().tolist()} have the same logit difference clean and corrupt, so "
            "their effect is undefined: they are NaN and no part of any mean"
        )
    return Contrast(ids, texts, clean, corrupt, gap.masked_fill(undefined, torch.nan))


def _given(lens: Lens, answers: AnswersLike, n_pairs: int, n_vocab: int) -> Int[Tensor, "pair 2"]:
    """The user's answers as token ids."""
    rows = answers.tolist() if isinstance(answers, Tensor) else answers
    if isinstance(rows, str) or len(rows) != n_pairs or any(isinstance(r, (str, int)) or len(r) != 2 for r in rows):
        raise ScoreError(
            f"expected answers=[(correct, incorrect), ...], one for each of the {n_pairs} pairs, given {answers!r}"
        )
    ids = [[answer_token(lens, answer, n_vocab) for answer in row] for row in rows]
    return torch.tensor(ids)


def answer_token(lens: Lens, answer: AnswerLike, n_vocab: int) -> int:
    """An answer's token id; ScoreError for an id out of range, and for a text that is not one token."""
    if not isinstance(answer, str):
        if isinstance(answer, bool) or not 0 <= int(answer) < n_vocab:
            raise ScoreError(f"token id {answer} is out of range: the model has tokens 0 to {n_vocab - 1}")
        return int(answer)
    tokenizer = lens.adapter.tokenizer
    if tokenizer is None:
        raise ScoreError(f"the answer {answer!r} is text, but this lens has no processor to read it: give token ids")
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = " ".join(repr(piece) for piece in tokenizer.convert_ids_to_tokens(ids))
        spaced = f" {answer.strip()}"
        whole = len(tokenizer(spaced, add_special_tokens=False)["input_ids"]) == 1
        remedy = "give the first token that tells the answers apart, or its id"
        raise ScoreError(
            f"{answer!r} has {len(ids)} tokens: {pieces}\n"
            f"  an answer is one token; {f'{spaced!r}, with the space before it, is one' if whole else remedy}"
        )
    if ids[0] == tokenizer.unk_token_id:
        raise ScoreError(f"{answer!r} is no token of this model: its tokenizer reads it as {tokenizer.unk_token!r}")
    return int(ids[0])


def token_text(lens: Lens, token: int) -> str:
    """A token as text, or its number without a tokenizer."""
    tokenizer = lens.adapter.tokenizer
    return f"token {token}" if tokenizer is None else tokenizer.decode([token]).strip() or f"token {token}"
