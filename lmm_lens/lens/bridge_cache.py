"""TransformerLens's ActivationCache that knows the prompt: spans, grids and token names beside the activations.

TransformerLens caches as `hook_embed` what the embedding table gives for the image placeholder, which no layer ever
sees. Here `hook_embed` is what really enters the residual stream (`blocks.0.hook_in`, less a position embedding where
there is one), so that `decompose_resid` and `logit_attrs` are right at visual positions too. `embed.hook_out` keeps
the table's own output.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache

from ..errors import HookError, PromptError, unknown
from ..hooks.heads import check_head, check_layer
from ..prompts.prompt import MASKS, Prompt
from ..prompts.spans import Span

EMBED, POS_EMBED, ENTERS = "hook_embed", "hook_pos_embed", "blocks.0.hook_in"
BY_KEY = ("pattern", "attn_scores", "hook_pattern", "hook_attn_scores")


class _Folded:
    """A bridge whose directions of tokens hold the weights of its final norm."""

    def __init__(self, bridge: Any) -> None:
        self._bridge = bridge

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bridge, name)

    def tokens_to_residual_directions(self, tokens: Any) -> Tensor:
        """What one unit along each normalized dimension adds to the tokens' logits, [..., d_model]."""
        directions: Tensor = self._bridge.tokens_to_residual_directions(tokens)
        norm = getattr(self._bridge, "ln_final", None)
        if norm is None or getattr(self._bridge, "compatibility_mode", False):  # there the weights are folded already
            return directions
        # asked of the module, since families disagree on what its weight means (Gemma multiplies by 1 + weight)
        probe = torch.full_like(directions.flatten(0, -2)[:1] if directions.ndim > 1 else directions[None], 1e3)
        probe[:, 1::2] *= -1
        module = norm.original_component
        with torch.no_grad():
            weight: Tensor = ((module(probe) - module(-probe)) / 2 / probe.sign())[0]
        return directions * weight


class PromptCache(ActivationCache):
    """The activations of one prompt, by TransformerLens's names, and by span.

    Args:
        cache: what `TransformerBridge.run_with_cache` returned.
        prompt: what was run.
        reinjects: whether the model adds visual features again after layer 0 (deepstack).

    Attributes:
        prompt: what was run.
    """

    def __init__(self, cache: ActivationCache, prompt: Prompt, reinjects: bool = False) -> None:
        super().__init__(dict(cache.cache_dict), cache.model, cache.has_batch_dim)
        self.prompt, self._reinjects = prompt, reinjects
        self._sums_up_to: set[int] = set()
        for end in ("", "_grad"):
            if EMBED + end not in self.cache_dict:
                continue
            if ENTERS + end not in self.cache_dict:  # stopped before layer 0: better none than the placeholder's
                del self.cache_dict[EMBED + end]
                continue
            enters = self.cache_dict[ENTERS + end]
            if not end and POS_EMBED in self.cache_dict:
                enters = enters - self.cache_dict[POS_EMBED]
            self.cache_dict[EMBED + end] = enters
        self.has_embed = EMBED in self.cache_dict

    def __repr__(self) -> str:
        return f"PromptCache of {len(self)} activations of a {repr(self.prompt).splitlines()[0].lower()}"

    # ------------------------------------------------------------------ by span

    def visual(
        self, name: str, layer: int | None = None, row: int = 0, image: int | None = None
    ) -> Float[Tensor, "visual ..."]:
        """An activation at the visual tokens of one batch row, in the order of the sequence.

        Args:
            name: TransformerLens's name: "resid_post", "z", "mlp_out", ...
            layer: its layer; None with a full hook name.
            row: batch row.
            image: only this picture's tokens, all of its tiles; None for every picture.

        Raises:
            PromptError: no such row or picture, or the row has no visual tokens.
            HookError: the activation is not in the cache, or its rows are not those of the prompt.
        """
        if name.rsplit(".", 1)[-1] in BY_KEY:
            raise HookError(f"{name} has visual queries and visual keys: use image_pattern, or cache[{name!r}, layer]")
        x = self._of_row(name, layer, row)
        if x.shape[:1] != (self.prompt.n_tokens,):
            raise HookError(
                f"{name} has shape {tuple(x.shape)} in a row of {self.prompt.n_tokens} tokens\n"
                "  activations of the vision tower, and caches cut by pos_slice, have no visual positions"
            )
        positions = [position for span in self._spans(row, image) for position in span.positions]
        return x[sorted(positions)]

    def image_pattern(
        self,
        layer: int,
        head: int | None = None,
        row: int = 0,
        query: int | str = "last",
        image: int = 0,
        tile: int | None = None,
    ) -> Float[Tensor, "head rows columns"]:
        """Attention to one picture, laid out as the picture's patches.

        Args:
            layer: the layer.
            head: one head, which keeps its dimension; None for all.
            row: batch row.
            query: the position that attends, or a mask of the prompt whose rows are averaged.
            image: which of the row's pictures.
            tile: which of its crops; None if there is only one.

        Raises:
            PromptError: no such row, picture, tile or mask, or the grid of patches is not known.
            HookError: no such layer or head, or its pattern is not in the cache.
        """
        check_layer(layer, self.model.cfg.n_layers)
        pattern = self._of_row("pattern", layer, row)  # head query key
        if head is not None:
            check_head(layer, head, self.model.cfg.n_layers, pattern.shape[0])
            pattern = pattern[head : head + 1]
        span = self._tile(row, image, tile)
        at = self._queries(query, row)
        if pattern.shape[1:] != (self.prompt.n_tokens, self.prompt.n_tokens):
            raise HookError(
                f"the pattern of layer {layer} is {tuple(pattern.shape[1:])}, "
                f"the prompt has {self.prompt.n_tokens} tokens"
            )
        to_image = pattern[:, at][:, :, list(span.positions)].mean(1)
        assert span.grid is not None
        return to_image.reshape(-1, *span.grid)

    def token_strings(self, row: int = 0) -> list[str]:
        """Every token's text, patches by where they are: `<img 0 r3 c5>`, with tiles `<img 0 t1 r3 c5>`.

        Raises:
            PromptError: no such row.
        """
        self._check_row(row)
        names = list(self.prompt.tokens[row])
        spans = [span for span in self.prompt.spans[row] if span.kind != "marker"]
        seen: dict[str, int] = {}  # patches without a known place are counted, over all runs of their picture
        for span in spans:
            tiles = {other.tile for other in spans if (other.kind, other.source) == (span.kind, span.source)}
            head = "vid" if span.kind == "video" else "img"
            head += "" if span.source is None else f" {span.source}"
            head += "" if span.frame is None else f" f{span.frame}"
            head += f" t{span.tile}" if len(tiles) > 1 else ""
            for index, position in enumerate(span.positions):
                where = f"#{seen.get(head, 0)}" if span.grid is None else "r{} c{}".format(*divmod(index, span.grid[1]))
                seen[head] = seen.get(head, 0) + 1
                names[position] = f"<{head} {where}>"
        return names

    def attention_view(self, layer: int, row: int = 0) -> dict[str, Any]:
        """Tokens and pattern without padding, as CircuitsVis takes them:

            circuitsvis.attention.attention_patterns(**cache.attention_view(3))

        Returns:
            "tokens", a list of texts, and "attention", Float[head, query, key].
        """
        pattern = self._of_row("pattern", layer, row)
        real = self.prompt.mask("all")[row].nonzero()[:, 0]
        names = self.token_strings(row)
        return {
            "tokens": [names[position] for position in real.tolist()],
            "attention": pattern[:, real.to(pattern.device)][:, :, real.to(pattern.device)].detach(),
        }

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.prompt.n_rows:
            raise PromptError(f"row {row} is out of range: the prompt has rows 0 to {self.prompt.n_rows - 1}")

    def _of_row(self, name: str, layer: int | None, row: int) -> Tensor:
        self._check_row(row)
        try:
            x = self[name] if layer is None else self[name, layer]
        except KeyError as error:
            raise HookError(
                f"{error.args[0]!r} is not in this cache of {len(self)} activations\n"
                "  leave out names_filter, or let it name this one too"
            ) from error
        return x[row] if self.has_batch_dim else x

    def _spans(self, row: int, image: int | None) -> list[Span]:
        self._check_row(row)
        visual = [span for span in self.prompt.spans[row] if span.kind != "marker"]
        found = [span for span in visual if image is None or span.image == image]
        if not found:
            known = sorted({span.image for span in visual if span.image is not None})
            what = "visual tokens" if image is None else f"image {image}"
            raise PromptError(f"row {row} has no {what}: its images are {known or 'none'}")
        return found

    def _tile(self, row: int, image: int, tile: int | None) -> Span:
        spans = self._spans(row, image)
        tiles = [span.tile for span in spans]
        if tile is None and len(spans) > 1:
            raise PromptError(f"image {image} of row {row} has tiles {tiles}: name one with tile=...")
        chosen = spans if tile is None else [span for span in spans if span.tile == tile]
        if not chosen:
            raise PromptError(unknown("tile", tile, tiles))
        if chosen[0].grid is None:
            raise PromptError(
                f"the layout of these {len(chosen[0])} visual tokens is not known, so they are no map\n"
                "  cache['pattern', layer] and prompt.mask('image') have them in a row"
            )
        return chosen[0]

    def _queries(self, query: int | str, row: int) -> list[int]:
        if isinstance(query, str):
            if query not in self.prompt.masks:
                raise PromptError(unknown("query", query, MASKS))
            at = self.prompt.mask(query)[row].nonzero()[:, 0].tolist()
            if not at:
                raise PromptError(f"the mask {query!r} selects no token of row {row}")
            return at
        length = self.prompt.n_tokens
        if not -length <= query < length:
            raise PromptError(f"query {query} is out of range: the prompt has {length} tokens")
        return [query % length]

    # ------------------------------------------------------------------ sums

    def logit_attrs(self, *arguments: Any, **options: Any) -> Tensor:
        """As TransformerLens's, with the weights of the final norm, which a bridge with unfolded weights leaves out.

        Over all parts of `decompose_resid` it sums to the logits, but for a bias of the norm or the unembedding, and
        before a soft cap.
        """
        folded = copy.copy(self)
        folded.model = _Folded(self.model)
        return ActivationCache.logit_attrs(folded, *arguments, **options)

    def decompose_resid(self, layer: int | None = None, *arguments: Any, **options: Any) -> Any:
        """As TransformerLens's, with the true visual embeddings, and refused where the parts do not sum.

        Raises:
            HookError: the model adds to the residual stream outside its layers (deepstack), so that embedding,
                attention and feed-forward outputs are not all of it.
        """
        self._check_sum(layer)
        return super().decompose_resid(layer, *arguments, **options)

    def get_full_resid_decomposition(self, layer: int | None = None, *arguments: Any, **options: Any) -> Any:
        """As TransformerLens's, with the true visual embeddings, and refused where the parts do not sum.

        Raises:
            HookError: as in `decompose_resid`.
        """
        self._check_sum(layer)
        return super().get_full_resid_decomposition(layer, *arguments, **options)

    def _check_sum(self, layer: int | None) -> None:
        """HookError if the parts up to a layer do not make up the residual stream that enters it."""
        n_layers = self.model.cfg.n_layers
        end = n_layers if layer is None or layer == -1 else layer
        if end == 0 or end in self._sums_up_to:
            return
        whole = self._whole(end)
        try:
            parts: Any = super().decompose_resid(end)
        except KeyError:  # a partial cache, which cannot be compared
            parts = None
        if whole is None or parts is None or not self.has_embed:
            if self._reinjects:
                raise HookError(
                    "this model adds visual features to the residual stream after layer 0 (deepstack), and this cache\n"
                    "  lacks what tells whether its parts sum: cache everything, and use text positions alone"
                )
            return
        gap = (parts.sum(0) - whole).norm(dim=-1) / whole.norm(dim=-1).clamp_min(1e-6)
        if bool((gap > (1e-3 if whole.dtype in (torch.float32, torch.float64) else 5e-2)).any()):
            why = ": it adds visual features after layer 0 (deepstack)" if self._reinjects else ""
            raise HookError(
                f"the parts of the residual stream do not sum to what enters layer {end} of this model{why}\n"
                f"  up to {float(gap.nan_to_num().max()):.0%} of a position is missing: attributions would be wrong"
            )
        self._sums_up_to.add(end)

    def _whole(self, end: int) -> Tensor | None:
        for name in (f"blocks.{end}.hook_in", f"blocks.{end - 1}.hook_out", f"blocks.{end - 1}.hook_resid_post"):
            if name in self.cache_dict:
                return self.cache_dict[name]
        return None
