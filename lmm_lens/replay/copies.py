"""One batch of changed copies of a recorded prompt through the decoder layers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..backends.native import interface as attention
from ..backends.placement import accelerate_hooks
from ..core.attention import AttentionCall
from ..core.flat import in_rows
from .hidden import lost_keys, without
from .layer_arguments import Excerpt
from .merged_attention import KeyBlock, causal, merged_attention
from .recording import Recording
from .variants import Put, Variant, puts
from .window import Window

if TYPE_CHECKING:
    from ..adapters import Layer


class _EnoughError(Exception):
    """The keys and values are there, and the rest of the layer is not wanted."""


class CopiesPass:
    """One batch of variants, sorted by their first layer, through the layers."""

    def __init__(self, recording: Recording, window: Window, variants: Sequence[Variant]) -> None:
        self.recording, self.window, self.variants = recording, window, variants
        self.thread: int | None = threading.get_ident()
        self.layer_of = {id(m.attention): i for i, m in enumerate(recording.modules) if m.attention is not None}
        self.rows = window.rows  # those whose queries are computed
        self.own: tuple[Tensor, Tensor] | None = None  # keys and values of all rows, where queries are of fewer
        self.keys_only = False

    def run(self) -> Float[Tensor, "variant vocab"]:
        """The logits of each variant's last row."""
        calls, window = self.recording.calls, self.window
        x: Tensor | None = None
        with torch.no_grad(), self._acting():
            for layer in range(self.variants[0].first_layer, len(calls)):
                joining = sum(variant.first_layer == layer for variant in self.variants)
                recorded = calls[layer].hidden[window.row : window.row + 1, window.rows]
                here = [] if x is None else [x.to(recorded.device)]
                x = torch.cat([*here, recorded.expand(joining, -1, -1)])
                x = self._layer(layer, x)
                added_after = calls[layer].added_after
                if added_after is not None:
                    x = x + added_after[window.row : window.row + 1, self.rows].to(x.device)
            assert x is not None
            return self.recording.unembedding(x[:, -1:])[:, 0]

    @contextmanager
    def _acting(self) -> Iterator[None]:
        with attention.switched(self.recording.configs):
            attention.listen(self)
            try:
                yield
            finally:
                attention.stop_listening(self)

    def _layer(self, layer: int, x: Tensor) -> Tensor:
        """One layer of the copies that have joined so far."""
        module = self.recording.modules[layer]
        for put in self._puts(layer, "resid_pre", x):
            put.into(x)
        is_last = layer == len(self.recording.calls) - 1
        if is_last and x.shape[1] > 1 and self._can_stop(module):
            self.keys_only = True
            try:
                self._call(layer, x)
            except _EnoughError:
                self.rows, x = slice(self.window.stop - 1, self.window.stop), x[:, -1:]
            finally:
                self.keys_only = False
        with ExitStack() as stack:
            for site, target in (("z", "output_projection"), ("attn_out", "attention"), ("mlp_out", "mlp")):
                found = self._puts(layer, site, x)
                if found:
                    stack.callback(_hook(getattr(module, target), site, found, module).remove)
            x = self._call(layer, x)
        found = self._puts(layer, "resid_post", x)
        if found:
            x = x.clone()
            for put in found:
                put.into(x)
        return x

    def _puts(self, layer: int, site: str, x: Tensor) -> list[Put]:
        return puts(self.variants[: len(x)], layer, site, 0, self.rows)

    def _call(self, layer: int, x: Tensor) -> Tensor:
        call, prompt = self.recording.calls[layer], self.recording.prompt
        excerpt = Excerpt(self.window.row, self.rows, prompt.n_rows, prompt.n_tokens, n_copies=len(x))
        args = [excerpt.of("", value) for value in call.args]
        kwargs = {name: excerpt.of(name, value) for name, value in call.kwargs.items()}
        out = self.recording.modules[layer].module(x, *args, **kwargs)
        hidden: Tensor = out[0] if isinstance(out, tuple) else out
        return hidden

    def _can_stop(self, module: Layer) -> bool:
        """Whether a layer may be left in its middle: not where accelerate has to clean up behind it."""
        if module.attention is None or module.is_cross_attention:
            return False
        return not any(accelerate_hooks(part) for part in module.module.modules())

    # ------------------------------------------------------------------ attention

    def owns(self, module: nn.Module) -> bool:
        """Whether the module is one of the layers' attention modules."""
        return id(module) in self.layer_of

    def attend(self, module: nn.Module, call: AttentionCall, own: object) -> Float[Tensor, "copy query head d_head"]:
        """Attention of the copies' rows over the recorded keys before them and their own."""
        layer = self.layer_of[id(module)]
        recorded = self.recording.calls[layer].attention
        assert recorded is not None
        if self.recording.modules[layer].is_cross_attention:
            return _fused(module, call, call.mask, False)
        if self.keys_only:
            self.own = call.key, call.value
            raise _EnoughError
        window, row = self.window, self.window.row
        key, value = self.own if self.own is not None and self.rows != window.rows else (call.key, call.value)
        is_plain = recorded.softcap is None and recorded.extra_logits is None
        own_mask = self._mask(recorded, window.rows)
        lost = lost_keys(self.variants[: len(call.query)], layer, recorded, window, self.rows)
        if lost is not None:
            own_mask = without(own_mask, lost[..., window.start - window.first :])
        elif window.prefix.start == window.prefix.stop and is_plain and self.rows == window.rows:
            by_default = recorded.mask is None
            return _fused(module, call, None if by_default else own_mask, by_default and recorded.is_causal)
        parts = [KeyBlock(key, value, own_mask)]
        if window.prefix.start < window.prefix.stop:
            keys, values = (x[row : row + 1, :, window.prefix] for x in (recorded.key, recorded.value))
            before = self._mask(recorded, window.prefix)
            if lost is not None:
                before = without(before, lost[..., : window.start - window.first])
            parts.append(KeyBlock(keys, values, before))
        return merged_attention(call.query, parts, recorded.scaling, recorded.softcap, recorded.extra_logits)

    def _mask(self, recorded: AttentionCall, keys: slice) -> Tensor | None:
        """The recorded mask of the computed rows over some keys, [1 | head, row, key]; None where they see all."""
        rows = self.rows
        if recorded.mask is None:
            n_queries, n_keys = rows.stop - rows.start, keys.stop - keys.start
            hides = recorded.is_causal and keys.stop > rows.start and n_queries > 1
            return causal(n_queries, n_keys, recorded.key.device) if hides else None
        mask = recorded.mask[min(self.window.row, len(recorded.mask) - 1), :, rows, keys]
        visible = mask if mask.dtype == torch.bool else mask == 0
        return None if bool(visible.all()) else mask


def _fused(module: nn.Module, call: AttentionCall, mask: Tensor | None, is_causal: bool) -> Tensor:
    """The plain kernel, where the copies' own keys are all there is."""
    wide = mask[None] if mask is not None and mask.ndim == 3 else mask
    if wide is not None and wide.dtype != torch.bool:
        wide = wide.to(call.query.dtype)
    causal_rows = is_causal and call.query.shape[2] > 1
    given = (module, call.query, call.key, call.value, wide)
    return sdpa_attention_forward(*given, scaling=call.scaling, is_causal=causal_rows)[0]


def _hook(target: nn.Module, site: str, found: Sequence[Put], parts: Layer) -> Any:
    """Change what goes into W_O, or what a module gives."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        z = args[0].unflatten(-1, (parts.n_heads, parts.d_head)).clone()
        for put in found:
            put.into(z)
        return (z.flatten(-2), *args[1:])

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        given = output[0] if isinstance(output, tuple) else output
        x = in_rows(given, args[0] if args else None).clone()
        for put in found:
            put.into(x)
        x = x.reshape(given.shape)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    hook: Callable[..., Any] = target.register_forward_hook
    return target.register_forward_pre_hook(before) if site == "z" else hook(after)
