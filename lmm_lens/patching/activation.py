"""Activation patching: which activation carries the answer? (NOTICE, arXiv:2406.16320; Zhang & Nanda, arXiv:2309.16042)

1. Run a clean and a corrupt prompt that differ in one thing, and keep the clean activations of one hook point.
2. For every layer and unit (a span, a patch, a head) run the corrupt prompt again with that one clean activation in it.
3. effect = (LD_patched - LD_corrupt) / (LD_clean - LD_corrupt), LD the logit difference at the last prompt token.

Step 2 runs the corrupt prompt's layers again from the patched one on, and only the rows that the patch can reach
(`lmm_lens.replay`); where that is not exact, one forward a layer and unit, several units of a layer sharing it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from ..answers.contrast import AnswersLike, contrast
from ..errors import ScoreError
from ..hooks.heads import check_layer
from ..hooks.points import HOOK_POINTS, TOWER, ModelShape
from ..interventions.patch import check_same_layout
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike
from ..replay import UnfitError
from ..runs.checkpoint import Checkpoint, digest
from .by_forwards import by_forwards
from .by_replay import by_replay
from .in_tower import tower_patching
from .scores import PatchScores
from .task import PatchingTask
from .units import GroupsLike, Units, check_units

if TYPE_CHECKING:
    from ..lens import Lens


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
    tokens_per_pass: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> PatchScores:
    """Put each clean activation alone into the corrupt run, and measure how much of the clean answer returns.

    Costs two plain forwards of the batch, and for each layer and unit the layers from there on in the rows that the
    patch can reach; `attribution_patching` estimates the same from one backward pass.

    Args:
        lens: the model.
        clean: a prompt or a batch of them.
        corrupt: as many; row i of both is a pair with the same layout that differs in one thing.
        site: "resid_pre", "attn_out", "mlp_out", "resid_post" (by span or patch), "z" (by span, patch or head) or
            "pattern" (by head). Of the vision tower "vision.resid_post" and so on, see `lmm_lens.patching.in_tower`.
        by: what is patched at once: "span" (the tokens of one role: bos, before_image, each picture, markers, question,
            template, answer_turn, last; every token is in one of them), "patch" (the i-th visual token of each row) or
            "head".
        layers: which layers; None for all that have the hook point.
        rows: with by="head", in which query rows the head is patched: "all", "after_image", "last", any other mask
            name, positions, or Bool[batch, position]. All rows and the last row are different experiments.
        groups: with by="span", more spans by name: positions of each row, or Bool[batch, position]; in the vision tower
            of its rows and tokens.
        answers: (correct, incorrect) of each pair, as token ids or texts of one token; by default what the model
            answers on clean and on corrupt.
        tokens_per_pass: how many tokens of all copies one batch may have; several units share it. Larger suits a GPU,
            and takes more memory; halved whenever memory runs out.
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
    if isinstance(site, str) and site.startswith(TOWER):
        if any(each is not None for each in (checkpoint, tokens_per_pass)):
            raise ScoreError("patching in the vision tower takes no checkpoint or tokens_per_pass")
        return tower_patching(
            lens, clean, corrupt, site, by, layers=layers, rows=rows, groups=groups, answers=answers, progress=progress
        )
    check_units(site, by)
    check_same_layout(*checked_pair(clean, corrupt))
    units = Units.of(by, corrupt, max(lens.shape.n_heads), rows, groups)
    chosen = chosen_layers(site, layers, lens.shape)
    about = {"site": site, "by": by, "rows": units.label, "layers": chosen, "units": list(units.names)}
    about |= {"prompts": digest(clean, corrupt), "answers": str(answers)}
    finished = Checkpoint(lens, "patching", about, checkpoint)
    clean_logits, corrupt_logits = (lens.run(prompt, logits="last").logits[:, 0] for prompt in (clean, corrupt))
    pair = contrast(lens, clean_logits, corrupt_logits, answers)
    given = PatchingTask(
        lens=lens,
        clean=clean,
        corrupt=corrupt,
        site=site,
        units=units,
        layers=tuple(chosen),
        ids=pair.ids,
        tokens_per_pass=tokens_per_pass,
    )
    try:
        patched, how = by_replay(given, finished, progress), "replayed"
    except UnfitError as why:
        patched, how = by_forwards(given, finished, progress), f"one forward for each layer and unit: {why}"
    finished.finish()
    effects = pair.normalized(patched - pair.corrupt_ld[:, None, None])
    effects = effects.masked_fill(~units.reached[:, None], torch.nan)
    return PatchScores.of_pairs(
        pair,
        effects,
        chosen,
        site=site,
        by=by,
        rows=units.label,
        method="patching",
        units=units.names,
        model=finished.model,
        how=how,
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
