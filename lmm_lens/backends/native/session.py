"""One run of the model with taps in it: hooks in, positions counted, everything undone at the end.

1. A pre-hook on the model announces each pass and counts the tokens seen before it (the cache's length).
2. The taps are bound to the prompt, and only the modules that they need are hooked.
3. At each hook the rows of each tap are cut out and handed to it; a read's result is kept, an edit's put back.
4. A tap whose hook did not fire in a pass is an error, never a silent no-op.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from ...adapters import Layer
from ...core.attention import AttentionCall, FusedAttention
from ...core.carried import Carried
from ...core.tapping import Tapping
from ...errors import HookError, InterventionError, ModelError
from ...prompts.prompt import Prompt
from ..base import PromptOf, TapsOf
from ..placement import Shards
from . import interface as attention


def check_eval(model: nn.Module) -> None:
    """ModelError for a model that is being trained."""
    if model.training:
        raise ModelError("the model is in training mode, so dropout would change its answers\n  call model.eval()")


def attention_configs(model: nn.Module, layers: Sequence[Layer], chosen: Sequence[int]) -> list[Any]:
    """The configs that choose these layers' attention function, and the mask that fits it.

    Raises:
        HookError: one of the layers has no attention.
    """
    for layer in chosen:
        if layers[layer].attention is None:
            name = type(layers[layer].module).__name__
            raise HookError(f"layer {layer} ({name}) has no attention heads, so it has no pattern")
    holders = (
        module
        for module in model.modules()
        if any(isinstance(child, nn.ModuleList) and layers[0].module in list(child) for child in module.children())
    )
    modules: list[Any] = [*(layers[layer].attention for layer in chosen), *holders]
    return [module.config for module in modules if hasattr(module, "config")]


class NativeSession:
    """A context in which the model runs with taps.

    Args:
        model: the Hugging Face model.
        layers: its decoder layers.
        taps_of: gives the taps of a prompt.
        prompt: the prompt about to be run; None to make one, with `prompt_of`, of whatever the model is called with.
        prompt_of: makes a prompt of the keyword arguments of a call.
        carried: what earlier runs have left to this one.

    Attributes:
        tapping: the taps of the prompt, and what they read and did.
        n_passes: how often the model ran.
    """

    replaces = False

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        taps_of: TapsOf,
        prompt: Prompt | None = None,
        prompt_of: PromptOf | None = None,
        carried: Carried | None = None,
    ) -> None:
        self.model, self.layers, self.taps_of = model, layers, taps_of
        self.prompt, self.prompt_of = prompt, prompt_of
        # a run belongs to its thread; an open context holds for all, since `generate` is often called from its own
        self.thread = threading.get_ident() if prompt is not None else None
        self.tapping = Tapping([layer.n_heads for layer in layers], carried)
        self.n_passes = 0
        self._layer_of = {id(layer.attention): index for index, layer in enumerate(layers) if layer.attention}
        self._modules = {id(model), *self._layer_of}
        self._length = self._next = 0  # of the pass under way; where the next one starts
        self._hooks, self._outer = ExitStack(), ExitStack()
        self._shards = Shards.of(model)

    # ------------------------------------------------------------------ opening and closing

    def __enter__(self) -> NativeSession:
        check_eval(self.model)
        try:
            self._outer.callback(self.model.register_forward_pre_hook(self._before_pass, with_kwargs=True).remove)
            self._outer.callback(self.model.register_forward_hook(self._after_pass).remove)
            attention.LISTENERS.append(self)
            self._outer.callback(attention.LISTENERS.remove, self)
            if self.prompt is not None:
                self._install(self.prompt)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.tapping.settle()
        self._hooks.close()
        self._outer.close()

    def owns(self, module: nn.Module) -> bool:
        """Whether the module is the session's model or one of its attention modules."""
        return id(module) in self._modules

    def _is_acting(self) -> bool:
        return attention.listener_of(self.model) is self

    def _install(self, prompt: Prompt) -> None:
        """Bind the taps to a prompt and hook the modules they need."""
        self._hooks.close()
        self.tapping.start(prompt.n_rows, self.taps_of(prompt))
        self._connect()

    def _connect(self) -> None:
        """Put the hooks in that the taps need, each with its undoing on `_hooks`."""
        patterned = [layer for site, layer in self.tapping.taps if site == "pattern"]
        if patterned:
            self._hooks.enter_context(attention.switched(attention_configs(self.model, self.layers, patterned)))
        for site, layer in self.tapping.taps:
            if site != "pattern":
                self._hooks.callback(self._hook(site, layer).remove)

    # ------------------------------------------------------------------ the passes of one run

    def _before_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        # without kwargs torch calls another thread's pass while this hook is being added or taken away
        if kwargs is None or not self._is_acting():
            return
        if args:
            kwargs = dict(inspect.signature(self.model.forward).bind_partial(*args, **kwargs).arguments)
            kwargs |= kwargs.pop("kwargs", {})
        cache = kwargs.get("past_key_values")
        tokens = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
        self._length = tokens.shape[1] if isinstance(tokens, Tensor) else 0
        self.tapping.first = int(cache.get_seq_length()) if cache is not None else 0
        self.tapping.fired = set()
        if self.prompt_of is None:
            return
        if self.tapping.first == 0:
            self._install(self.prompt_of(kwargs))
        elif self.tapping.first != self._next:
            raise InterventionError(
                f"the model was called with a cache of {self.tapping.first} tokens that were not seen here\n"
                "  run the prompt inside the same `with` block, so that its visual tokens are known"
            )

    def _after_pass(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._is_acting():
            return
        self.n_passes += 1
        self._next = self.tapping.first + self._length
        for site, layer in self.tapping.taps:
            if (site, layer) not in self.tapping.fired:
                through = "the attention interface of transformers" if site == "pattern" else "its module's forward"
                raise HookError(
                    f"{site} of layer {layer} did not fire, so nothing was read or edited there\n"
                    f"  {type(self.layers[layer].module).__name__} does not go through {through}"
                )

    def _hook(self, site: str, layer: int) -> Any:
        parts = self.layers[layer]
        modules = {
            "resid_pre": parts.module,
            "z": parts.output_projection,
            "attn_out": parts.attention,
            "mlp_out": parts.mlp,
            "resid_post": parts.module,
        }
        module = modules[site]
        if module is None:
            raise HookError(f"layer {layer} ({type(parts.module).__name__}) has no {site}")

        def tapped(x: Tensor) -> Tensor:
            if site != "z":
                return self.tapping.through(x, site, layer)
            whole = self._shards.whole(x, -1, parts.n_heads * parts.d_head)
            z = self.tapping.through(whole.unflatten(-1, (parts.n_heads, parts.d_head)), site, layer).flatten(-2)
            return self._shards.own(z, -1, x.shape[-1])

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
            if kwargs is None or not self._is_acting():  # as in _before_pass
                return None
            if args:
                return (tapped(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": tapped(kwargs["hidden_states"])}

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if not self._is_acting():
                return None
            return (tapped(output[0]), *output[1:]) if isinstance(output, tuple) else tapped(output)

        if site in ("resid_pre", "z"):
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)

    def attend(self, module: nn.Module, call: AttentionCall, out: Tensor) -> Tensor:
        """Called by the attention function of transformers; an edit of the pattern reaches `out` in its linear form."""
        layer = self._layer_of.get(id(module))
        if layer is None or ("pattern", layer) not in self.tapping.taps:
            return out
        n_heads = self.layers[layer].n_heads
        own_heads = out.shape[2]
        if own_heads != n_heads:
            call, out = self._shards.call(call, n_heads), self._shards.whole(out, 2, n_heads)
        fused = FusedAttention(call, out)
        self.tapping.attend(layer, fused)
        return self._shards.own(fused.out, 2, own_heads)
