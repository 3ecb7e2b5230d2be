"""A TransformerBridge that is called by token ids and sees the pictures.

    clean, corrupt = lens.bound_tokens(with_a_red_circle), lens.bound_tokens(with_a_blue_circle)
    attribution_patch(lens.bridge, clean, corrupt, metric)

`PicturesBridge` is what `lens.bridge` is: TransformerLens's own class, with three differences. Token ids that are bound
to prompts run with everything those prompts hold; ids of visual tokens that come without pictures are refused, where
the model would silently embed the placeholder; and `hook_embed` is what enters the first layer, where TransformerLens's
is what the embedding table has for the placeholder, which no layer ever sees.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge.bridge import TransformerBridge

from ..errors import PromptError
from ..prompts.prompt import Prompt
from .bridge_cache import PromptCache
from .bridge_calls import bridge_inputs
from .bridge_tokens import BoundTokens

OF_TEXT = ("attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids", "cache_position", "labels")
"""Tensors that come with any text, so that they are no sign of a picture."""


class PicturesBridge(TransformerBridge):
    """The bridge of a lens."""

    hook_aliases = {**TransformerBridge.hook_aliases, "hook_embed": "blocks.0.hook_in"}  # noqa: RUF012 its own form
    _visual_ids: tuple[int, ...] = ()
    _reinjects: bool = False

    def forward(self, input: Any, *arguments: Any, **options: Any) -> Any:
        """As TransformerLens's; bound token ids run with their pictures.

        Raises:
            PromptError: there are visual tokens and no pictures, or the ids are no longer those of their prompts.
        """
        if isinstance(input, BoundTokens):
            options = {"use_cache": False, **bridge_inputs(input.prompt), **options}
            input = options.pop("input")
        else:
            self._check_has_pictures(input, options)
        return super().forward(input, *arguments, **options)

    def hf_generate(self, input: Any = "", *arguments: Any, **options: Any) -> Any:
        """As TransformerLens's, which calls the model past `forward`; bound token ids go on with their pictures.

        Raises:
            PromptError: as `forward`.
        """
        if isinstance(input, BoundTokens):
            options = {**bridge_inputs(input.prompt), **options}
            input = options.pop("input")
        else:
            self._check_has_pictures(input, options)
        return super().hf_generate(input, *arguments, **options)

    def run_with_cache(self, input: Any, *arguments: Any, **options: Any) -> Any:
        """As TransformerLens's; of bound token ids the cache knows the spans, see `PromptCache`."""
        out = super().run_with_cache(input, *arguments, **options)
        if isinstance(input, BoundTokens) and hasattr(out[1], "cache_dict"):
            return out[0], PromptCache(out[1], input.prompt, self._reinjects)
        return out

    def to_tokens(self, input: Any, *arguments: Any, **options: Any) -> Tensor:
        """As TransformerLens's; a prompt gives its bound token ids, and bound token ids are already tokens."""
        if isinstance(input, Prompt):
            return bound_tokens(input)
        if isinstance(input, BoundTokens):
            return input
        tokens: Tensor = super().to_tokens(input, *arguments, **options)
        return tokens

    def _check_has_pictures(self, input: Any, options: dict[str, Any]) -> None:
        if options.get("past_key_values") is not None or (isinstance(input, Tensor) and input.is_floating_point()):
            return
        given = {name for name, value in options.items() if isinstance(value, (Tensor, dict, list)) and len(value)}
        if given - set(OF_TEXT) - {"input_ids"}:
            return
        if not isinstance(input, Tensor):  # words, in which a placeholder is a visual token, too
            input = self.to_tokens(input)
        visual = torch.isin(input, torch.tensor(self._visual_ids, device=input.device, dtype=input.dtype))
        if bool(visual.any()):
            raise PromptError(
                f"these token ids have {int(visual.sum())} visual tokens, and no pictures came with them\n"
                "  give lens.bound_tokens(prompt) as tokens, or call bridge(**lens.bridge_inputs(prompt))\n"
                "  bound ids that were cut short or changed are plain ids again"
            )


def with_pictures(bridge: Any, visual_ids: tuple[int, ...], reinjects: bool) -> Any:
    """Make a TransformerBridge one that takes bound token ids; the same object, none of its hooks or weights touched.

    Args:
        bridge: a TransformerBridge.
        visual_ids: ids of the model's image and video tokens.
        reinjects: whether the model adds visual features again after layer 0 (deepstack).
    """
    if not isinstance(bridge, PicturesBridge) and type(bridge) is TransformerBridge:
        bridge.__class__ = PicturesBridge
        bridge._visual_ids, bridge._reinjects = visual_ids, reinjects
        bridge._register_aliases()
    return bridge


def bound_tokens(*prompts: Prompt) -> BoundTokens:
    """The token ids of prompts of one length, which stay bound to their pictures.

    Raises:
        PromptError: no prompt, or prompts of several lengths.
    """
    if not prompts:
        raise PromptError("expected prompts made by lens.prompt(...), given none")
    ids = [bridge_inputs(prompt)["input"] for prompt in prompts]
    lengths = sorted({x.shape[1] for x in ids})
    if len(lengths) > 1:
        raise PromptError(
            f"prompts of {', '.join(map(str, lengths))} tokens cannot be one tensor of ids\n"
            "  give prompts of one length, or bind each by itself"
        )
    return BoundTokens.of(torch.cat(ids), [(prompt, row) for prompt in prompts for row in range(prompt.n_rows)])
