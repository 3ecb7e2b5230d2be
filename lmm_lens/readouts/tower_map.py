"""Where heads of the vision tower look, laid over the picture.

A token of the tower lies where the visual tokens lie that it is part of (`Lens.vision.patches`): what it gets goes to
them in equal shares. What class and register tokens get lies nowhere, and neither does padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.columns import Grown
from ..core.taps import Tap, TapContext
from ..errors import HookError, PromptError
from ..hooks.heads import HeadSet
from ..hooks.points import ModelShape
from ..interventions.base import Intervention
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows
from ..sinks.vision import CLIP_NORM

if TYPE_CHECKING:
    from ..lens import Lens
    from ..lens.patch_map import PatchMap

WEIGHTS, ON_SINKS = "tower attention map", "tower attention map on sinks"
SCOPES = ("image", "class", "register", "all")


@dataclass(frozen=True, eq=False)
class TowerMapReader:
    """The mean attention of some tokens of the tower, by head; nothing of the pattern is kept.

    Attributes:
        heads: of each layer.
        rows: a scope of the tower, or a mask of its tokens.
        sink_norm: the norm from which on a token is a sink where it enters a layer; None to leave none out.
    """

    heads: Mapping[int, Sequence[int]]
    rows: str | Bool[Tensor, "tower_row token"]
    sink_norm: float | None = None
    in_tower = True

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """On what the tower runs; HookError where it has no such tokens."""
        rows = bind_rows(self.rows, prompt)
        n, n_tokens, norm = int(rows.prompt.sum()), prompt.n_tokens, self.sink_norm
        if not n:
            raise HookError(f"this vision tower has no {self.rows} tokens, so none of them looks anywhere")

        def add_up(pattern: Tensor, context: TapContext) -> Tensor:
            total = (pattern * context.valid[:, None, :, None].to(pattern)).sum(2) / n
            if norm is not None:
                sink = context.columns(context.state.found_sinks["norm", context.layer].mask, total.shape[-1])[:, None]
                context.add(ON_SINKS, (total * sink).sum((0, 2)))
                total = total.masked_fill(sink, 0)
            context.add(WEIGHTS, torch.nn.functional.pad(total, (0, n_tokens - total.shape[-1])))
            return pattern[..., :0]  # everything is in the sums

        def find(x: Tensor, context: TapContext) -> Tensor:
            found: Tensor = x.float().norm(dim=-1) >= norm
            context.state.found_sinks["norm", context.layer] = Grown(found)
            return found

        every = bind_rows("all", prompt)
        norms = [] if norm is None else [Tap("resid_pre", layer, every, find) for layer in self.heads]
        return norms + [Tap("pattern", layer, rows, add_up, tuple(heads)) for layer, heads in self.heads.items()]


def tower_weights(
    lens: Lens,
    prompt: Prompt,
    heads: HeadSet,
    rows: RowsLike | None,
    interventions: Sequence[Intervention],
    sink_norm: float | None = None,
) -> tuple[str, Float[Tensor, "head position"], Float[Tensor, " head"] | None]:
    """What queries are called, how much of their attention lies on each visual token of the decoder, and on sinks.

    Args:
        lens: the model.
        prompt: of one row.
        heads: of the tower.
        rows: a scope of the tower, or positions of visual tokens, whose patches are meant; "image" by default.
        interventions: edits under which the attention is read.
        sink_norm: the norm from which on a token is a sink, whose attention is left out; None to leave none out.

    Raises:
        PromptError: a batch.
        HookError: no such rows, or visual tokens that mix all patches, and so lie nowhere.
    """
    patches = placed_patches(lens, prompt)
    visual = prompt.mask("visual")[0]
    chosen: str | Tensor
    if rows is None or isinstance(rows, str):
        name = chosen = rows or "image"
    else:
        wanted = bind_rows(rows, prompt)
        if bool((wanted.prompt[0] & ~visual).any()):
            raise HookError(
                f"{wanted.label} are not all visual tokens, which alone are made of patches\n"
                f"  give positions of visual tokens, or a scope of the tower: {', '.join(SCOPES)}"
            )
        made = patches.made_of[wanted.prompt[0][visual]].any(0)
        name, chosen = f"patches of {_told(prompt, wanted.prompt[0])}", made
    reader = TowerMapReader(heads.by_layer(), chosen, sink_norm)
    sums = lens.run(prompt, interventions, [reader], logits="last").sums
    places = {(layer, head): (layer, i) for layer, own in heads.by_layer().items() for i, head in enumerate(own)}
    by_head = [places[head] for head in heads]
    on_tower = torch.stack([sums[WEIGHTS, layer][:, i].float().cpu() for layer, i in by_head]).flatten(1)
    held = None
    if sink_norm is not None:
        held = torch.stack([sums[ON_SINKS, layer][i].float().cpu() for layer, i in by_head])
    share = shares_of(patches).flatten(1)
    weights = torch.zeros(len(heads), prompt.n_tokens)
    weights[:, visual] = on_tower @ share.T
    return name, weights, held


def checked_norm(norm: float | None) -> float:
    """From which norm on a token of the tower is a sink; HookError for one that every token reaches."""
    if norm is not None and not norm > 0:
        raise HookError(f"sink_norm is the norm from which on a token is a sink, above 0, given {norm!r}")
    return CLIP_NORM if norm is None else float(norm)


def placed_patches(lens: Lens, prompt: Prompt) -> PatchMap:
    """Which tokens of the tower each visual token of one prompt is made of, where that gives them a place.

    Raises:
        PromptError: a batch.
        HookError: visual tokens that mix all patches, and so lie nowhere.
        ModelError: no tower with heads.
    """
    if prompt.n_rows != 1:
        raise PromptError(f"a map of the vision tower is of one prompt, given a batch of {prompt.n_rows} rows")
    patches = lens.vision.patches(prompt)
    if patches.is_mixed:
        raise HookError(
            f"each visual token of {type(lens.model).__name__} is made of all patches of its tower, so its patches lie "
            "under none of them\n  read vision.pattern for its numbers"
        )
    return patches


def shares_of(patches: PatchMap) -> Float[Tensor, "visual tower_row token"]:
    """How much of what a token of the tower gets goes to each visual token, in equal shares."""
    made_of = patches.made_of.float()
    return made_of / made_of.sum(0).clamp_min(1)


def _told(prompt: Prompt, chosen: Bool[Tensor, " position"]) -> str:
    positions = chosen.nonzero().flatten().tolist()
    return f"{len(positions)} visual tokens" if len(positions) > 1 else f"token {positions[0]}"
