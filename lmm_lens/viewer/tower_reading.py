"""What the viewer shows of a vision tower: where its heads look from patches, put where their visual tokens lie.

A query is all patches, the class token, or the patches that a visual token is made of: the mean over them. What a token
of the tower gets goes to the visual tokens that it is part of, in equal shares, as in `attention_map(part="vision")`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import HookError
from ..figures.canvas import canvases_of, check_placed
from ..hooks.results import Run
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows
from ..prompts.spans import Span
from ..readouts.tower_map import placed_patches, shares_of
from ..scoring.tower import TOWER_METRICS
from ..scoring.tower_places import TowerPlaces
from .masses import Map
from .reading import ShownAttention, check_size, next_tokens
from .sink_tokens import Sinks
from .tower_reader import DISTANCE, ENTROPY, WEIGHTS, TowerViewReader
from .tower_tokens import ALL_PATCHES, OTHERS, TowerTokens

if TYPE_CHECKING:
    from ..lens import Lens

MAX_TOWER_VALUES = 2**23  # probabilities of the tower on one page, unless queries are named


@dataclass(frozen=True, eq=False)
class TowerAsked:
    """What is to be read of a tower, in the forward pass that reads the decoder.

    Attributes:
        lens, prompt: the model, and a prompt of one row.
        reader: reads it.
        about: what is left out, in words.
    """

    lens: Lens
    prompt: Prompt
    reader: TowerViewReader
    about: str

    @classmethod
    def of(cls, lens: Lens, prompt: Prompt, queries: bool | RowsLike) -> TowerAsked:
        """Find the patches of each visual token, which takes a forward and a backward, and choose the queries.

        Args:
            lens: the model.
            prompt: of one row.
            queries: visual tokens whose patches are queries; True for as many as fit on a page, evenly spread. All
                patches and the class token, where there is one, are queries too.

        Raises:
            PromptError: a batch, or no visual token whose place is known.
            HookError: visual tokens that mix all patches, queries that are none, or attention out of reach.
            ModelError: the model has no tower with heads.
            ScoreError: more numbers than a page should hold.
        """
        check_placed(canvases_of(prompt, 0), prompt, 0)
        patches = placed_patches(lens, prompt)
        layers, about = _layers(lens)
        n_heads, visual = lens.vision.n_heads, prompt.mask("visual")[0].nonzero().flatten().tolist()
        one = len(layers) * n_heads * (len(visual) + len(OTHERS))
        if isinstance(queries, bool):
            asked, said = _spread(prompt, MAX_TOWER_VALUES // one - 2)
        else:
            asked, said = _named(prompt, queries), ""
            check_size(len(asked) + 2, len(layers), n_heads, len(visual) + len(OTHERS))
        groups: dict[int, Tensor | None] = {place: patches.made_of[visual.index(place)] for place in asked}
        if lens.vision.tower.n_class and lens.vision.tower.knows_places:
            groups[OTHERS["class"]] = None
        groups[ALL_PATCHES] = None  # the one shown first
        heads = {layer: lens.vision.shape.n_heads[layer] for layer in layers}
        centres = TowerPlaces.of(lens, prompt, patches).centres
        reader = TowerViewReader(heads, groups, shares_of(patches), centres)
        return cls(lens, prompt, reader, " ".join(filter(None, (about, said))))

    def read(self, run: Run) -> tuple[ShownAttention, TowerTokens, list[Map]]:
        """What a run with the reader has read, the tokens that its queries and keys are, the numbers of its heads."""
        assert run.tower is not None
        reader, layers, n_heads = self.reader, tuple(self.reader.heads), self.lens.vision.n_heads
        others = reader.others(run.tower)
        tokens = TowerTokens(self.prompt, 0, {}, self.prompt.n_tokens, "", tuple(others))
        keys = torch.cat([reader.shares, *(mask[None].float() for mask in others.values())])
        on_tokens, entropy, far = ([run.sums[name, layer] for layer in layers] for name in (WEIGHTS, ENTROPY, DISTANCE))
        placed = [torch.einsum("ghrk,vrk->ghv", each.float(), keys.to(each.device)) for each in on_tokens]
        values = _stacked(placed, n_heads)
        shown = ShownAttention(
            values,
            tuple(reader.groups),
            layers,
            tuple(range(n_heads)),
            Sinks(None, "not looked for; find_sinks(lens, prompts, part='vision') finds the tower's"),
            next_tokens(self.lens, run, 0),
            self.about,
        )
        own = _stacked([total / known for total, known in far], n_heads), _stacked(entropy, n_heads)
        return shown, tokens, _maps(values, tokens, *own)


def _layers(lens: Lens) -> tuple[list[int], str]:
    """The layers to show, and what to say of the others."""
    vision = lens.vision
    reached = [number for number, layer in enumerate(vision.tower.layers) if layer.attends_in is None]
    shown = [number for number in reached if number < vision.n_used]
    if not shown:
        raise HookError(
            f"the vision tower of {type(lens.model).__name__} computes attention in forwards of its own, out of reach\n"
            "  z, attn_out and the residual stream can be read and edited"
        )
    hidden = [number for number in range(vision.n_used) if number not in reached]
    unused = list(range(vision.n_used, vision.n_layers))
    said = [f"layers {hidden} of the tower, whose attention is out of reach"] if hidden else []
    said += [f"layers {unused} of the tower, behind what the decoder is given"] if unused else []
    return shown, f"Left out: {', and '.join(said)}." if said else ""


def _named(prompt: Prompt, queries: RowsLike) -> list[int]:
    """The visual tokens that are asked for."""
    bound = bind_rows(queries, prompt)
    if bool((bound.prompt & ~prompt.mask("visual")).any()) or not bool(bound.prompt.any()):
        raise HookError(
            f"{bound.label} are not all visual tokens, which alone are made of patches\n"
            "  give positions of visual tokens, or tower=True for as many as fit"
        )
    chosen: list[int] = bound.prompt[0].nonzero().flatten().tolist()
    return chosen


def _spread(prompt: Prompt, most: int) -> tuple[list[int], str]:
    """At most so many visual tokens, as close together as that allows, and what to say of the others."""
    spans = [span for span in prompt.spans[0] if span.kind != "marker" and span.grid is not None]
    n_visual = int(prompt.mask("visual")[0].sum())
    for step in range(1, 1 + max(max(span.grid) for span in spans if span.grid)):
        chosen = [position for span in spans for position in _every(step, span)]
        if len(chosen) <= most:
            some = f"Of {n_visual} visual tokens {len(chosen)} are queries, one in {step} of each row and column: "
            return sorted(chosen), f"{some}a click takes the nearest." if step > 1 else ""
    return [], f"Left out: queries of single patches, of which {n_visual} visual tokens are too many for a page."


def _every(step: int, span: Span) -> list[int]:
    """One in so many of each row and column of a grid."""
    assert span.grid is not None
    rows, columns = span.grid
    down, across = (range(min(step // 2, n // 2), n, step) for n in (rows, columns))
    return [span.positions[row * columns + column] for row in down for column in across]


def _stacked(by_layer: Sequence[Tensor], n_heads: int) -> Float[Tensor, "query layer head *key"]:
    """[query, head, ...] of each layer put together; NaN for heads that a layer does not have."""
    held = torch.full((by_layer[0].shape[0], len(by_layer), n_heads, *by_layer[0].shape[2:]), torch.nan)
    for index, each in enumerate(by_layer):
        held[:, index, : each.shape[1]] = each.float().cpu()
    return held


def _maps(
    values: Float[Tensor, "query layer head key"],
    tokens: TowerTokens,
    distance: Float[Tensor, "query layer head"],
    entropy: Float[Tensor, "query layer head"],
) -> list[Map]:
    """The numbers of the tower's heads."""
    share = "share of attention"
    said = {
        "class": ("class-token mass", "attention on the class token"),
        "register": ("register mass", "attention on registers"),
        "elsewhere": ("mass elsewhere", "attention on patches that are part of no visual token"),
    }
    masses = [
        Map(
            "visual_mass",
            "visual mass",
            "attention on patches of visual tokens",
            share,
            values[..., tokens.mask("visual")].sum(-1),
        )
    ]
    for name in tokens.others:
        masses.append(Map(f"{name}_mass", *said[name], share, values[..., tokens.mask(name)].sum(-1)))
    own = [
        Map(name, name, TOWER_METRICS[name][0], TOWER_METRICS[name][1], numbers)
        for name, numbers in (("distance", distance), ("entropy", entropy))
    ]
    return [*own, *masses]
