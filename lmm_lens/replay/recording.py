"""One plain forward, kept: what each decoder layer was given, and what its attention saw."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..adapters.walker import every_module, parents_of
from ..backends.native import interface as attention
from ..backends.native.session import attention_configs, check_runnable
from ..backends.options import Options
from ..backends.placement import Shards
from ..core.attention import AttentionCall
from ..prompts.tensors import fresh
from .check import UnfitError
from .unembedding import Unembedding, UnembeddingRecorder

if TYPE_CHECKING:
    from ..adapters import Layer
    from ..lens import Lens
    from ..prompts.prompt import Prompt


@dataclass(eq=False)
class LayerCall:
    """One call of a decoder layer.

    Attributes:
        hidden: Float[batch, position, d_model], what entered it.
        args, kwargs: what else it was given.
        attention: what its attention was given; None for a layer without.
        added_after: Float[batch, position, d_model], what the model added between this layer's output and the next
            one's input (deepstack features); None for nothing.
    """

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    attention: AttentionCall | None = None
    added_after: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Recording:
    """A prompt's forward pass.

    Attributes:
        prompt: what was run.
        modules: the decoder layers.
        calls: what each was given.
        unembedding: from the last layer's output to the logits.
        logits: Float[batch, vocab], at each row's last prompt token.
        configs: the configs that choose the layers' attention function.
    """

    prompt: Prompt
    modules: Sequence[Layer]
    calls: Sequence[LayerCall]
    unembedding: Unembedding
    logits: Float[Tensor, "batch vocab"]
    configs: Sequence[Any]

    def attention(self, layer: int) -> AttentionCall:
        """What a layer's attention was given; UnfitError where its pattern is not over the tokens of the sequence."""
        call = self.calls[layer].attention
        if call is None or self.modules[layer].is_cross_attention:
            raise UnfitError(f"the pattern of layer {layer} is not over the tokens of the sequence")
        return call


def why_not(lens: Lens) -> str:
    """Why nothing of a lens can be replayed, as far as can be said before a forward; empty for nothing known."""
    if not lens.runs_replays:
        return f"backend {lens.backend!r} goes through its own hook points"
    if Shards.of(lens.model).group is not None:
        return "the model is divided among processes"
    if any(layer.attends_in is not None for layer in lens.adapter.layers):
        return "its layers compute attention in their own forward"
    return "an enclosing lens.apply(...) edits every forward" if lens.applied else ""


def record(lens: Lens, prompt: Prompt) -> Recording:
    """Run a prompt once and keep what a replay needs.

    Holds two residual streams' worth of memory a layer: its input, and its keys and values.

    Raises:
        UnfitError: the model's layers do not run by themselves.
    """
    model, layers = lens.model, lens.adapter.layers
    why = why_not(lens)
    if why:
        raise UnfitError(why)
    check_runnable(model)
    inputs = fresh(prompt.inputs)
    keep, kept = Options(model).keeping(prompt, last_only=True)  # not those of every position, with every word
    options = {name: value for name, value in {"use_cache": False, **keep}.items() if name not in inputs}
    with torch.no_grad(), _Recorder(model, layers) as recorder:
        out = lens.adapter.forward(inputs, **options)
    rows, last = torch.arange(prompt.n_rows), prompt.mask("last").int().argmax(1)
    calls, logits = recorder.finished(), out.logits[rows, kept]
    unembedding = recorder.unembedding.finished(model, recorder.out[rows, last], logits, lens.adapter)
    return Recording(prompt, layers, calls, unembedding, logits, recorder.configs)


class _Recorder:
    """Hooks on the layers and a listener of their attention, for one forward."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        self.model, self.layers = model, layers
        self.thread: int | None = threading.get_ident()
        self.layer_of = {id(layer.attention): i for i, layer in enumerate(layers) if layer.attention is not None}
        self.calls: dict[int, LayerCall] = {}
        self.out: Tensor = torch.empty(0)
        self.unembedding = UnembeddingRecorder()
        self.configs = attention_configs(
            parents_of(every_module(model), layers[0].module), layers, list(self.layer_of.values())
        )
        self.stack = ExitStack()

    def __enter__(self) -> _Recorder:
        self.stack.enter_context(attention.switched(self.configs))
        self.stack.callback(attention.stop_listening, self)
        attention.listen(self)
        for index, layer in enumerate(self.layers):
            for hook in (
                layer.module.register_forward_pre_hook(self._before(index), with_kwargs=True),
                layer.module.register_forward_hook(self._after(index)),
            ):
                self.stack.callback(hook.remove)
        return self

    def __exit__(self, *exception: object) -> None:
        self.unembedding.close()
        self.stack.close()

    def owns(self, module: nn.Module) -> bool:
        return id(module) in self.layer_of or module is self.model

    def attend(self, module: nn.Module, call: AttentionCall, own: attention.Own) -> Tensor:
        layer = self.layer_of[id(module)]
        if layer not in self.calls:
            raise UnfitError("attention runs outside its layer")
        if self.calls[layer].attention is not None:
            raise UnfitError("a layer attends twice")
        self.calls[layer].attention = call
        return own()

    def _before(self, index: int) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if index in self.calls:
                raise UnfitError("a layer runs twice in one forward")
            given = dict(kwargs)
            hidden = args[0] if args else given.pop("hidden_states")
            if any(isinstance(value, (dict, list)) for value in (*args[1:], *given.values())):
                raise UnfitError("its layers hand keys and values to each other")
            if hidden.ndim != 3:
                raise UnfitError("its layers hand on several residual streams")
            self.calls[index] = LayerCall(hidden, args[1:], given)
            if index and hidden is not self.out and not torch.equal(hidden, self.out):
                self.calls[index - 1].added_after = hidden - self.out.to(hidden.device)

        return before

    def _after(self, index: int) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.out = output[0] if isinstance(output, tuple) else output
            if index == len(self.layers) - 1:
                self.unembedding.open()

        return after

    def finished(self) -> list[LayerCall]:
        """All calls in order; UnfitError where one is missing or is not what a replay can repeat."""
        if list(self.calls) != list(range(len(self.layers))):
            raise UnfitError("its layers do not run once each, in order")
        for layer in self.layer_of.values():
            call = self.calls[layer].attention
            if call is None:
                raise UnfitError(
                    f"the attention of layer {layer} does not go through transformers' attention interface"
                )
            if call.position_bias is not None:
                raise UnfitError("its attention has a position bias")
        return [self.calls[index] for index in range(len(self.layers))]
