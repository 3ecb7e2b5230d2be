"""Activation patching: which activation carries the answer? (NOTICE, arXiv:2406.16320; Zhang & Nanda, arXiv:2309.16042)

1. Run a clean and a corrupt prompt that differ in one thing, and keep the clean activations of one hook point.
2. For every layer and unit (a span, a patch, a head) run the corrupt prompt again with that one clean activation in it.
3. effect = (LD_patched - LD_corrupt) / (LD_clean - LD_corrupt), LD the logit difference at the last prompt token.

Several units of a layer share one forward pass: the batch is repeated, and each copy gets another unit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checkpoint import Checkpoint, digest
from ..core.selection import Rows
from ..core.taps import Place, Tap
from ..errors import ScoreError
from ..heads import check_layer
from ..interventions.base import Intervention
from ..interventions.patch import check_same_layout
from ..program import Planned
from ..prompt import Prompt
from ..rows import RowsLike
from ..taps import HOOK_POINTS, ModelShape
from .answers import AnswersLike, contrast
from .patch_scores import PatchScores
from .units import GroupsLike, Units, check_units

if TYPE_CHECKING:
    from ..lens import Lens

Pass = tuple[int, list[int]]  # a layer, and the units that share a forward
PASSES_PER_JOB = 32  # on a server
TOKENS_PER_PASS = 2048  # a batch of one gains 2.5 times; beyond this a CPU gains nothing


def activation_patching(
    lens: Lens,
    clean: Prompt,
    corrupt: Prompt,
    site: str = "resid_pre",
    by: str = "span",
    *,
    layers: Iterable[int] | None = None,
    rows: RowsLike = "all",
    groups: GroupsLike | None = None,
    answers: AnswersLike | None = None,
    tokens_per_pass: int = TOKENS_PER_PASS,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> PatchScores:
    """Put each clean activation alone into the corrupt run, and measure how much of the clean answer returns.

    Costs two plain forwards of the batch, and one for each layer and unit; `attribution_patching` estimates the same
    from one backward pass.

    Args:
        lens: the model.
        clean: a prompt or a batch of them.
        corrupt: as many; row i of both is a pair with the same layout that differs in one thing.
        site: "resid_pre", "attn_out", "mlp_out", "resid_post" (by span or patch), "z" (by span, patch or head) or
            "pattern" (by head).
        by: what is patched at once: "span" (the tokens of one role: bos, before_image, each picture, markers, question,
            answer_turn, last; every token is in one of them), "patch" (the i-th visual token of each row) or "head".
        layers: which layers; None for all that have the hook point.
        rows: with by="head", in which query rows the head is patched: "all", "after_image", "last", any other mask
            name, positions, or Bool[batch, position]. All rows and the last row are different experiments.
        groups: with by="span", more spans by name: positions of each row, or Bool[batch, position].
        answers: (correct, incorrect) of each pair, as token ids or texts of one token; by default what the model
            answers on clean and on corrupt.
        tokens_per_pass: how many tokens, padding included, one forward may have, so that several units share it where
            the batch is small. Larger suits a GPU, and takes more memory.
        checkpoint: a file for what is finished; the same call with the same file goes on where an earlier one ended.
            Without one, finished passes stay with the lens, so that the same call continues after a lost connection.
        progress: show a progress bar.

    Returns:
        PatchScores, Float[pair, layer, unit].

    Raises:
        ScoreError: site and units that do not go together, answers that tell nothing apart, pairs that do not differ.
        InterventionError: the two prompts have another layout.
        HookError: a layer, site or row scope that does not exist.
    """
    check_units(site, by)
    check_same_layout(*checked_pair(clean, corrupt))
    units = Units.of(by, corrupt, max(lens.shape.n_heads), rows, groups)
    chosen = chosen_layers(site, layers, lens.shape)
    about = {"site": site, "by": by, "rows": units.label, "layers": chosen, "units": list(units.names)}
    about |= {"prompts": digest(clean, corrupt), "answers": str(answers)}
    finished = Checkpoint(lens, "patching", about, checkpoint)
    clean_logits, corrupt_logits = (lens.run(prompt, logits="last").logits[:, 0] for prompt in (clean, corrupt))
    pair = contrast(lens, clean_logits, corrupt_logits, answers)
    repeats = _Repeats(corrupt, tokens_per_pass)
    passes = [
        (layer, part)
        for layer in chosen
        for part in repeats.split(list(range(lens.shape.n_heads[layer] if by == "head" else len(units.names))))
    ]
    todo = [each for each in passes if _named(*each) not in finished]
    with _progress(len(todo), progress) as advance:
        for job in _jobs(todo, site, lens):
            keep = _Keep(site, tuple(dict.fromkeys(layer for layer, _ in job)), Rows(by, units.scope))
            plan = [Planned(clean, reads=[keep], tokens=pair.ids)]
            for layer, part in job:
                edit = _PatchUnits(site, layer, units, part, corrupt.n_rows)
                plan.append(Planned(repeats.of(len(part)), [edit], tokens=pair.ids.repeat(len(part), 1)))
            runs = lens.run_all(plan)
            next(runs)
            for each, run in zip(job, runs, strict=True):
                correct, incorrect = run.logits[:, 0].double().cpu().unbind(1)
                finished.put(**{_named(*each): (correct - incorrect).reshape(len(each[1]), -1)})
                advance()
    patched = torch.full((corrupt.n_rows, len(chosen), len(units.names)), torch.nan, dtype=torch.float64)
    for layer, part in passes:
        patched[:, chosen.index(layer), part] = finished[_named(layer, part)].T
    finished.finish()
    effects = pair.normalized(patched - pair.corrupt_ld[:, None, None])
    effects = effects.masked_fill(~units.reached[:, None], torch.nan)
    return PatchScores(
        *(site, by, units.label, "patching", tuple(chosen), units.names, effects),
        *(pair.clean_ld.float(), pair.corrupt_ld.float(), pair.texts, lens.identity),
    )


def checked_pair(clean: Prompt, corrupt: Prompt) -> tuple[Prompt, Prompt]:
    """Both prompts; ScoreError if one of them is none."""
    for prompt in (clean, corrupt):
        if not isinstance(prompt, Prompt):
            raise ScoreError(f"expected a clean and a corrupt prompt made by lens.prompt(...), given {prompt!r}")
    return clean, corrupt


def chosen_layers(site: str, layers: Iterable[int] | None, shape: ModelShape) -> list[int]:
    """The given layers, each once, or all that have the hook point; HookError or ScoreError otherwise."""
    having = [layer for layer in range(shape.n_layers) if shape.n_heads[layer] or not HOOK_POINTS[site].needs_attention]
    if layers is None:
        return having
    chosen = list(dict.fromkeys(check_layer(int(layer), shape.n_layers) for layer in layers))
    lacking = [layer for layer in chosen if layer not in having]
    if lacking or not chosen:
        raise ScoreError(
            f"layers {lacking} have no attention heads, so they have no {site}\n  layers that have: {having}"
            if chosen
            else "no layers were given"
        )
    return chosen


def _named(layer: int, part: Sequence[int]) -> str:
    """A pass in the checkpoint."""
    return f"layer {layer} units {part[0]} to {part[-1]}"


def _jobs(passes: Sequence[Pass], site: str, lens: Lens) -> Iterator[list[Pass]]:
    """The passes in jobs; each runs the clean prompt once and keeps what its passes take from it."""
    if lens.remote:  # what a lost connection can cost
        for start in range(0, len(passes), PASSES_PER_JOB):
            yield list(passes[start : start + PASSES_PER_JOB])
    elif site == "pattern":  # patterns of all layers at once are large
        for _, layer in groupby(passes, key=lambda each: each[0]):
            yield list(layer)
    elif passes:
        yield list(passes)


@contextmanager
def _progress(n: int, shown: bool) -> Iterator[Callable[[], None]]:
    from rich.progress import Progress

    with Progress(transient=True, disable=not shown) as bar:
        task = bar.add_task("patching", total=n)
        yield lambda: bar.advance(task)


class _Repeats:
    """A prompt as a batch of several copies of itself, as many as fit into a forward."""

    def __init__(self, prompt: Prompt, tokens_per_pass: int) -> None:
        self.prompt = prompt
        self.most = max(1, tokens_per_pass // (prompt.n_rows * prompt.n_tokens))
        # whatever lies along the batch, or along its pictures in order (flattened patches too), is repeated along
        # dimension 0; position ids of several axes have the batch elsewhere
        for name, value in prompt.inputs.items():
            if not isinstance(value, Tensor) or value.ndim == 0 or (name == "position_ids" and value.ndim == 3):
                self.most = 1
        self.made: dict[int, Prompt] = {}

    def split(self, units: list[int]) -> Iterator[list[int]]:
        """Units for one forward each, in parts of nearly the same size."""
        n_parts = -(-len(units) // self.most)
        return (part.tolist() for part in torch.tensor(units).tensor_split(n_parts))

    def of(self, n: int) -> Prompt:
        """n copies, one after the other: batch row i of copy c is row c * n_rows + i."""
        if n not in self.made:
            prompt = self.prompt
            self.made[n] = (
                prompt
                if n == 1
                else replace(
                    prompt,
                    inputs={name: torch.cat([value] * n) for name, value in prompt.inputs.items()},
                    spans=prompt.spans * n,
                    images=prompt.images * n,
                    tokens=prompt.tokens * n,
                    masks={name: torch.cat([mask] * n) for name, mask in prompt.masks.items()},
                )
            )
        return self.made[n]


@dataclass(frozen=True, eq=False)
class _Keep:
    """Leaves activations [batch, position, ...] where the model is, for the runs after this one.

    Args:
        site, layers, rows: of what.
    """

    site: str
    layers: Sequence[int]
    rows: Rows

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """A read a layer that returns nothing."""
        n_tokens, by_row = prompt.n_tokens, self.site == "pattern"

        def keep(x: Tensor, place: Place) -> Tensor:
            rows = x.movedim(2, 1) if by_row else x
            key = "clean", place.layer
            if key not in place.stash:
                place.stash[key] = rows.new_zeros(rows.shape[0], n_tokens, *rows.shape[2:])
            batch, entry = place.valid.nonzero(as_tuple=True)
            place.stash[key][batch, place.positions[batch, entry]] = rows[batch, entry]
            return x[..., :0]

        return [Tap(self.site, layer, self.rows, keep) for layer in self.layers]


@dataclass(frozen=True, eq=False)
class _PatchUnits(Intervention):
    """Patch one unit in each copy of a batch.

    Args:
        site, layer: where.
        units: all units.
        part: the units of this pass, one a copy.
        n_rows: of the unrepeated batch.
    """

    site: str
    layer: int
    units: Units
    part: Sequence[int]
    n_rows: int

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """One edit, of all rows that belong to the unit of their copy."""
        rows = Rows(self.units.by, self.units.rows_of(self.part))
        by_head, by_row, part, n_rows = self.units.by == "head", self.site == "pattern", list(self.part), self.n_rows

        def put(x: Tensor, place: Place) -> Tensor:
            source = place.stash["clean", place.layer].to(x.dtype)
            copies = torch.arange(len(x), device=x.device)
            row = (copies % n_rows)[:, None]  # of the batch
            if not by_head:
                return source[row, place.positions]
            head = torch.tensor(part, device=x.device).repeat_interleave(n_rows)
            clean = source[row, place.positions, head[:, None]]  # copies*batch row d_head|key
            if by_row:
                x[copies, head] = clean
            else:
                x[copies, :, head] = clean
            return x

        return [Tap(self.site, self.layer, rows, put, edits=True)]

    def __repr__(self) -> str:
        return f"patching {self.site} of layer {self.layer} by {self.units.by}"
