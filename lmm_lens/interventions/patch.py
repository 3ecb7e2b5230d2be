"""Activation patching: put activations of one run into another, at rows and heads of choice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.rows import Rows
from ..core.taps import Tap, TapContext, TapFunction
from ..errors import InterventionError
from ..hooks.heads import DECODER, VISION, check_layer
from ..hooks.points import HOOK_POINTS, ModelShape, check_site
from ..hooks.projector import PROJECTOR, editing, levels_of, visual_rows
from ..hooks.results import Run
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows
from .base import (
    Heads,
    HeadsLike,
    Intervention,
    checked_heads,
    checked_part,
    control_heads,
    heads_by_layer,
    plain_rows,
    shown,
    shown_heads,
    shown_part,
    whole_numbers,
)


def stored(run: Run, site: str, layer: int, prompt: Prompt, rows: Rows | None = None, in_tower: bool = False) -> Tensor:
    """All rows of an activation that a run read, [batch, position, ...] (at `pattern` [batch, head, position, key]).

    Args:
        run: the run to take it from.
        site: its hook point.
        layer: its layer.
        prompt: the prompt it is to be put into.
        rows: the rows that will be taken; all by default.
        in_tower: whether it is the vision tower's.

    Raises:
        InterventionError: the run did not read it, or not all of it, or its prompt has another layout than `prompt`.
    """
    name, ran = (f"{VISION}.{site}", run.tower) if in_tower else (site, run.prompt)
    if (name, layer) not in run.reads or ran is None:
        raise InterventionError(
            f"the clean run holds no {name} of layer {layer}: make it with lens.run(prompt, read=[{name!r}])"
        )
    check_same_layout(ran, prompt)
    # one index for all layers, on the CPU: they may lie on several devices
    positions, dim = run.positions[name].cpu(), 2 if site == "pattern" else 1
    values = run.reads[name, layer]
    rows = rows or bind_rows("all", prompt)
    have = torch.zeros_like(rows.prompt)
    batch, entry = (positions >= 0).nonzero(as_tuple=True)
    have[batch, positions[batch, entry]] = True
    if bool((rows.prompt & ~have).any()) or values.ndim != 3 + (site in ("z", "pattern")):
        raise InterventionError(
            f"the clean run holds {name} of layer {layer} reduced, or not for all rows of {rows.label!r}\n"
            f"  make it with lens.run(prompt, read=[{site!r}])"
        )
    shape = list(values.shape)
    shape[dim] = ran.n_tokens
    whole = torch.zeros(shape, dtype=values.dtype, device=values.device).movedim(dim, 1)
    whole[batch, positions[batch, entry]] = values.detach().movedim(dim, 1)[batch, entry]
    return whole.movedim(1, dim)


def all_heads(z: Tensor, shape: ModelShape, layer: int) -> Tensor:
    """z [batch, position, head, ...] itself; InterventionError unless it holds all heads of the layer."""
    if z.shape[2] != shape.n_heads[layer]:
        raise InterventionError(
            f"the clean run holds {z.shape[2]} of the {shape.n_heads[layer]} heads of layer {layer}\n"
            "  read it without heads=..."
        )
    return z


def check_run(clean: object, name: str) -> None:
    """InterventionError unless `clean` is a run."""
    if not isinstance(clean, Run):
        raise InterventionError(
            f"{name} takes its activations from a run, made with lens.run(clean_prompt, read=[...]), "
            f"given {type(clean).__name__}"
        )


def check_same_layout(clean: Prompt, corrupt: Prompt) -> None:
    """InterventionError unless both prompts have the same rows, length, padding and visual tokens."""
    sizes = [(p.n_rows, p.n_tokens) for p in (clean, corrupt)]
    if sizes[0] != sizes[1]:
        raise InterventionError(
            f"the two prompts differ in size: {sizes[0][0]} rows x {sizes[0][1]} tokens and "
            f"{sizes[1][0]} x {sizes[1][1]}\n  patching needs a pair that differs in one thing and has the same length"
        )
    for name in ("pad", "image", "video", "marker"):
        if name not in clean.masks:
            continue
        differ = (clean.mask(name) != corrupt.mask(name)).any(1).nonzero().flatten().tolist()
        if differ:
            raise InterventionError(
                f"the two prompts differ in where their {name} tokens are, in batch rows {differ}\n"
                "  patching needs a pair with the same layout: the same question, a picture with one thing changed"
            )


def replace_rows(source: Tensor) -> TapFunction:
    """The edit that puts the rows of `source`, [batch, position, ...], in the place of the given ones."""

    def put(rows: Tensor, context: TapContext) -> Tensor:
        whole = source.to(rows.device, rows.dtype)
        batch = torch.arange(len(whole), device=rows.device)[:, None]
        taken = whole[batch, context.positions]
        return taken[:, :, list(context.heads)] if rows.ndim == 4 else taken

    return put


@dataclass(frozen=True)
class PatchHeads(Intervention):
    """Put the heads' outputs z of a clean run into this one.

    Args:
        heads: a HeadSet, or (layer, head) pairs.
        clean: `lens.run(clean_prompt, read=["z"])`, of a prompt with the same layout.
        rows: which query rows; see `AblateHeads`. Prompt rows only.
        part: by default what a HeadSet says, else "decoder"; or "vision", with a run that read "vision.SITE".
    """

    heads: Heads
    clean: Run
    rows: RowsLike
    part: str

    def __init__(self, heads: HeadsLike, clean: Run, rows: RowsLike = "all", part: str | None = None) -> None:
        self._set(part=checked_part(part, heads), clean=clean, rows=plain_rows(rows))
        self._set(heads=checked_heads(heads, "PatchHeads", self.part))
        check_run(clean, "PatchHeads")

    def control_of(self, seed: int = 0) -> PatchHeads:
        """Its control: random heads patched from the same run, as many in each layer."""
        return PatchHeads(control_heads(self.heads, seed, "PatchHeads"), self.clean, self.rows, self.part)

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """One edit of z in each layer that has a chosen head."""
        rows = bind_rows(self.rows, prompt).prompt_only()
        return [
            Tap(
                "z",
                layer,
                rows,
                replace_rows(all_heads(stored(self.clean, "z", layer, prompt, rows, self.in_tower), shape, layer)),
                chosen,
                edits=True,
            )
            for layer, chosen in heads_by_layer(self.heads, shape).items()
        ]

    def __repr__(self) -> str:
        return f"PatchHeads({shown_heads(self.heads)}, rows={shown(self.rows)}{shown_part(self)})"


@dataclass(frozen=True)
class PatchResidual(Intervention):
    """Put a residual stream, or a layer's contribution to it, of a clean run into this one.

    With `source_layer` it comes from another layer: back-patching (Nikankin et al., arXiv:2506.09047) puts the stream
    that a prompt's own image rows have in a late layer into an early one, `clean` being a run of the very prompt. Where
    a model adds visual features between early layers (deepstack), it adds them once more to what was put back.

    Args:
        layers: which layers.
        clean: `lens.run(clean_prompt, read=[site])`, of a prompt with the same layout.
        rows: which query rows; see `AblateHeads`. Prompt rows only.
        site: "resid_pre", "attn_out", "mlp_out" or "resid_post"; or "projector", what enters the decoder for visual
            tokens, `layers` being the layers that it enters: [0], with deepstack some more.
        part: "decoder", or "vision", with a run that read "vision.SITE".
        source_layer: the layer to take it from; None for each layer's own. One number holds the rows at that layer's
            stream in all of `layers`; several, as many as `layers`, move a window: the first into the first, and on.

    Raises:
        InterventionError: a hook point with heads, layers that are none, sources that do not match the layers.
    """

    layers: Sequence[int]
    clean: Run
    rows: RowsLike = "image"
    site: str = "resid_pre"
    part: str = DECODER
    source_layer: int | Iterable[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", whole_numbers(self.layers, "PatchResidual", "layers"))
        check_run(self.clean, "PatchResidual")
        checked_part(self.part)
        object.__setattr__(self, "rows", plain_rows(self.rows))
        if self.site == PROJECTOR:
            if self.part != DECODER or self.source_layer is not None:
                raise InterventionError("what the projector gives is patched without part and source_layer")
        elif HOOK_POINTS[check_site(self.site)].by_head:
            raise InterventionError(f"PatchResidual patches no {self.site}: use PatchHeads or PatchPattern")
        if self.source_layer is not None:
            given = self.source_layer if isinstance(self.source_layer, Iterable) else [self.source_layer]
            sources = whole_numbers(given, "PatchResidual", "source_layer")
            if len(sources) not in (1, len(self.layers)):
                raise InterventionError(
                    f"PatchResidual: {len(sources)} source layers for {len(self.layers)} layers\n"
                    "  give one for all of them, or one for each, each once"
                )
            one = not isinstance(self.source_layer, Iterable)
            object.__setattr__(self, "source_layer", sources[0] if one else sources)

    @property
    def _sources(self) -> dict[int, int]:
        """Where each layer's rows come from, by layer."""
        if self.source_layer is None:
            return {layer: layer for layer in self.layers}
        given = tuple(self.source_layer) if isinstance(self.source_layer, Iterable) else (self.source_layer,)
        each = given * len(self.layers) if len(given) == 1 else given
        return dict(zip(self.layers, each, strict=True))

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """One edit a layer."""
        if self.site == PROJECTOR:
            visual = visual_rows(self.rows, prompt)
            levels = levels_of(shape, self.layers)
            changes = [(level, replace_rows(self._stored(level, prompt, visual))) for level in levels]
            return [tap for level, change in changes for tap in editing(level, visual, prompt.n_tokens, change)]
        rows = bind_rows(self.rows, prompt).prompt_only()
        return [
            Tap(
                self.site,
                check_layer(layer, shape.n_layers),
                rows,
                replace_rows(self._stored(check_layer(source, shape.n_layers), prompt, rows)),
                edits=True,
            )
            for layer, source in self._sources.items()
        ]

    def _stored(self, layer: int, prompt: Prompt, rows: Rows) -> Tensor:
        return stored(self.clean, self.site, layer, prompt, rows, self.in_tower)

    def __repr__(self) -> str:
        source = self.source_layer
        named = "" if source is None else f", source_layer={list(source) if isinstance(source, Iterable) else source}"
        where = f"layers={list(self.layers)}, site={self.site!r}, rows={shown(self.rows)}"
        return f"PatchResidual({where}{named}{shown_part(self)})"


@dataclass(frozen=True)
class PatchPattern(Intervention):
    """Put the heads' attention patterns of a clean run into this one: where they look changes, what they read does not.

    Args:
        heads: a HeadSet, or (layer, head) pairs.
        clean: `lens.run(clean_prompt, read=["pattern"])`, of a prompt with the same layout.
        rows: which query rows; see `AblateHeads`. Prompt rows only.
        part: as for `PatchHeads`.
    """

    heads: Heads
    clean: Run
    rows: RowsLike
    part: str

    def __init__(self, heads: HeadsLike, clean: Run, rows: RowsLike = "all", part: str | None = None) -> None:
        self._set(part=checked_part(part, heads), clean=clean, rows=plain_rows(rows))
        self._set(heads=checked_heads(heads, "PatchPattern", self.part))
        check_run(clean, "PatchPattern")

    def control_of(self, seed: int = 0) -> PatchPattern:
        """Its control: random heads patched from the same run, as many in each layer."""
        return PatchPattern(control_heads(self.heads, seed, "PatchPattern"), self.clean, self.rows, self.part)

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """One edit of the pattern in each layer that has a chosen head."""
        rows = bind_rows(self.rows, prompt).prompt_only()
        taps = []
        for layer, chosen in heads_by_layer(self.heads, shape).items():
            source = stored(self.clean, "pattern", layer, prompt, rows, self.in_tower)
            all_heads(source.movedim(1, 2), shape, layer)

            def put(pattern: Tensor, context: TapContext, source: Tensor = source) -> Tensor:
                whole = source.to(pattern.device, pattern.dtype)[:, list(context.heads)].movedim(2, 1)
                batch = torch.arange(len(whole), device=pattern.device)[:, None]
                taken = whole[batch, context.positions].movedim(1, 2)
                return torch.nn.functional.pad(taken, (0, pattern.shape[-1] - taken.shape[-1]))

            taps.append(Tap("pattern", layer, rows, put, chosen, edits=True))
        return taps

    def __repr__(self) -> str:
        return f"PatchPattern({shown_heads(self.heads)}, rows={shown(self.rows)}{shown_part(self)})"
