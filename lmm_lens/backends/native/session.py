"""One run of the model with taps in it: hooks in, passes told apart, everything undone at the end.

1. A pre-hook on the model announces each pass, finds out which prompt it is of, and counts the tokens seen before it.
2. The taps are bound to the prompt, and only the modules that they need are hooked.
3. At each hook the rows of each tap are cut out and handed to it; a read's result is kept, an edit's put back.
4. A pass is checked: a tap whose hook did not fire, a sequence of another length than the prompt's, and attention that
   is not what its rows were recomputed to be are errors, never silent no-ops.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from ...adapters import Layer
from ...adapters.walker import every_module, parents_of
from ...core.attention import AttentionCall, FusedAttention
from ...core.carried import Carried
from ...core.masked_step import mask_of_step
from ...core.tapping import Tapping, check_stream
from ...core.whole_pattern import WholePattern
from ...errors import HookError, InterventionError, ModelError
from ...prompts.prompt import Prompt
from .. import holders
from ..base import PromptOf, TapsOf
from ..interrupts import GUARD, uninterrupted
from ..placement import Shards, has_weights
from . import interface
from .module_hooks import hook_on, modules_of
from .own_attention import overheard
from .passes import Pass, Passes
from .row_check import RowCheck


def check_runnable(model: nn.Module, modules: Iterable[nn.Module] | None = None) -> None:
    """ModelError for a model that cannot run as it is: it is being trained, or has no weights.

    Args:
        model: the model.
        modules: those in it, where they are known.
    """
    if model.training:
        raise ModelError("the model is in training mode, so dropout would change its answers\n  call model.eval()")
    for module in every_module(model) if modules is None else modules:
        if module.training and _differs_in_training(module):
            name = next(name for name, each in model.named_modules() if each is module)
            raise ModelError(
                f"{name} ({type(module).__name__}) is in training mode, so its answers would not be the model's\n"
                "  call model.eval()"
            )
    if not has_weights(model):
        raise ModelError(
            f"the weights of {type(model).__name__} are on the meta device: it has a shape and no values\n"
            "  load them: from_pretrained(name), with device_map='auto' where they do not fit on one device"
        )


def _differs_in_training(module: nn.Module) -> bool:
    """Whether a module drops out, takes the statistics of a batch, or computes with other kernels."""
    if isinstance(module, nn.modules.batchnorm._NormBase) or type(module).__module__.startswith("bitsandbytes."):
        return True
    rates = (value for name, value in vars(module).items() if "dropout" in name and isinstance(value, float))
    return (isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0) or any(rate > 0 for rate in rates)


def attention_configs(over: Iterable[nn.Module], layers: Sequence[Layer], chosen: Sequence[int]) -> list[Any]:
    """The configs that choose these layers' attention function, and the mask that fits it.

    Args:
        over: the modules that hold the list of layers.
        layers: the decoder layers.
        chosen: some of them.

    Raises:
        HookError: one of the layers has no attention.
    """
    for layer in chosen:
        if layers[layer].attention is None:
            name = type(layers[layer].module).__name__
            raise HookError(f"layer {layer} ({name}) has no attention heads, so it has no pattern")
    modules: list[Any] = [*(layers[layer].attention for layer in chosen), *over]
    return [module.config for module in modules if hasattr(module, "config")]


class NativeSession:
    """A context in which the model runs with taps.

    Args:
        model: the Hugging Face model.
        modules: all of its modules.
        layers: its decoder layers.
        taps_of: gives the taps of a prompt.
        prompt: the prompt about to be run; None to make one, with `prompt_of`, of whatever the model is called with.
        prompt_of: makes a prompt of the keyword arguments of a call.
        carried: what earlier runs have left to this one.
        around: what the model is held in, see `lmm_lens.backends.holders`.
        inside: models in it that may run by themselves, see `Adapter.runs_alone`.
        ends: token ids that end a batch row while generating.

    Attributes:
        tapping: the taps of the prompts, and what they read and did.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Sequence[nn.Module],
        layers: Sequence[Layer],
        taps_of: TapsOf,
        prompt: Prompt | None = None,
        prompt_of: PromptOf | None = None,
        carried: Carried | None = None,
        around: Sequence[nn.Module] = (),
        inside: Sequence[nn.Module] = (),
        ends: Sequence[int] = (),
    ) -> None:
        self.model, self.modules, self.layers, self.taps_of = model, modules, layers, taps_of
        self.around, self.inside = tuple(around), tuple(inside)
        # a run belongs to its thread; an open context holds for all, since `generate` is often called from its own
        self.thread = threading.get_ident() if prompt is not None else None
        self.tapping = Tapping([layer.n_heads for layer in layers], carried)
        self.passes = Passes(self.tapping, taps_of, prompt, prompt_of, ends)
        self._layer_of = {id(layer.attention): index for index, layer in enumerate(layers) if layer.attention}
        self._modules = {id(model), *self._layer_of}
        self._hooks, self._outer = ExitStack(), ExitStack()
        self._hooked: frozenset[tuple[str, int]] = frozenset()
        self._shards = Shards.of(model)
        self._under_way: Pass | None = None  # the pass under way, if it is one of ours
        self._entered: tuple[nn.Module, int] | None = None  # where it came in, and in which thread
        self._rows = RowCheck()

    @property
    def n_passes(self) -> int:
        """How often the model ran."""
        return self.passes.n

    # ------------------------------------------------------------------ opening and closing

    def end(self, rows: Tensor) -> None:
        """Note which batch rows of the given prompt have ended for another reason than a token, Bool[batch]."""
        self.passes.ended = rows

    @uninterrupted
    def __enter__(self) -> NativeSession:
        GUARD.open()
        try:
            check_runnable(self.model, self.modules)
            self._outer.enter_context(holders.eagerly(self._has_compiled_code()))
            for module in (*self.around, self.model, *self.inside):
                self._outer.callback(module.register_forward_pre_hook(self._before_pass, with_kwargs=True).remove)
                self._outer.callback(module.register_forward_hook(self._after_pass, always_call=True).remove)
            self._outer.callback(interface.stop_listening, self)
            interface.listen(self)
            if self.passes.prompt is not None:
                self.passes.begin(self.passes.prompt)
                self._connect()
        except BaseException:
            self.__exit__()
            raise
        if GUARD.waiting:
            self.__exit__()
        return self

    @uninterrupted
    def __exit__(self, *exception: object) -> None:
        try:
            self.passes.settle()
        finally:
            self._hooks.close()
            self._outer.close()
            GUARD.close()

    def owns(self, module: nn.Module) -> bool:
        """Whether the module is the session's model or one of its attention modules."""
        return id(module) in self._modules

    def _has_compiled_code(self) -> bool:
        """Whether compiled code may run: of what the model is held in, or of a `generate` that others call."""
        of_others = self.passes.prompt is None and holders.may_be_compiled(self.model)
        return of_others or holders.is_compiled(self.modules, self.around)

    def _is_innermost(self) -> bool:
        return interface.listener_of(self.model) is self

    def is_acting(self) -> bool:
        """Whether a pass of its own is under way, and no other session is inside it."""
        return self._under_way is not None and self._is_innermost()

    @uninterrupted
    def _connect(self) -> None:
        """Put the hooks in that the taps of the prompt under way need."""
        needed = frozenset(self.tapping.taps)
        if needed == self._hooked:
            return
        self._hooks.close()
        self._hooked = frozenset()
        self._install()
        self._hooked = needed

    def _install(self) -> None:
        """Hook the modules that taps need, each with its undoing on `_hooks`."""
        patterned = [layer for site, layer in self.tapping.taps if site == "pattern"]
        by_interface = [layer for layer in patterned if self.layers[layer].attends_in is None]
        if by_interface:
            over = parents_of(self.modules, self.layers[0].module)
            self._hooks.enter_context(interface.switched(attention_configs(over, self.layers, by_interface)))
        for layer in patterned:
            parts = self.layers[layer]
            if parts.attends_in is not None:
                self._hooks.enter_context(overheard(parts.attends_in, self, layer))
        for site, layer in self.tapping.taps:
            if site != "pattern":
                self._hooks.callback(self._hook(site, layer).remove)

    # ------------------------------------------------------------------ the passes of one run

    def _before_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        # without kwargs torch calls another thread's pass while this hook is being added or taken away
        if kwargs is None or not self._is_innermost():
            return
        if self._entered is not None:
            if self._entered[1] != threading.get_ident():
                raise InterventionError(
                    "two threads run the model inside one `with lens.apply(...)` block at the same time, so that their "
                    "passes cannot be told apart\n  open a block in each thread, or let them take turns"
                )
            return
        self._entered = module, threading.get_ident()
        if args:
            kwargs = dict(inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments)
            kwargs |= kwargs.pop("kwargs", {})
        self._under_way = self.passes.before(kwargs)
        if self._under_way is not None:
            self._rows.begin(self._under_way)
            self._connect()

    def _after_pass(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._entered is None or self._entered != (module, threading.get_ident()) or not self._is_innermost():
            return  # not where it came in, or a run of another session inside this pass
        under_way, self._under_way, self._entered = self._under_way, None, None
        if under_way is None or output is None:  # an exception is on its way
            return
        self.passes.after(under_way, output)
        if not self.tapping.fired >= self.tapping.taps.keys():
            site, layer = next(at for at in self.tapping.taps if at not in self.tapping.fired)
            through = "the attention interface of transformers" if site == "pattern" else "its module's forward"
            raise HookError(
                f"{site} of layer {layer} did not fire, so nothing was read or edited there\n"
                f"  {type(self.layers[layer].module).__name__} does not go through {through}"
            )
        self._rows.finish(self.layers, interface.implementation)

    def _hook(self, site: str, layer: int) -> Any:
        parts = self.layers[layer]
        module = modules_of(parts)[site]
        if module is None:
            raise HookError(f"layer {layer} ({type(parts.module).__name__}) has no {site}")

        n_heads, d_head = parts.n_heads, parts.d_head

        def tapped(x: Tensor) -> Tensor:
            check_stream(x, site, layer)  # or its second dimension is no row
            self.passes.check_length(self._under_way, x.shape[1])
            if site != "z":
                return self.tapping.through(x, site, layer)
            whole = self._shards.whole(x, -1, n_heads * d_head)
            by_head = whole.reshape(*whole.shape[:-1], n_heads, d_head)
            z = self.tapping.through(by_head, site, layer).reshape(whole.shape)
            return self._shards.own(z, -1, x.shape[-1])

        return hook_on(module, site, tapped, self.is_acting)

    def attend_whole(self, layer: int, pattern: WholePattern) -> None:
        """As `attend`, of a layer that has all of its pattern; an edit is what the layer goes on with."""
        if ("pattern", layer) in self.tapping.taps:
            self.passes.check_length(self._under_way, pattern.shape[2])
            self.tapping.attend(layer, pattern)

    def attend(self, module: nn.Module, call: AttentionCall, own: interface.Own) -> Tensor:
        """Called by the attention function of transformers; an edit of the pattern reaches its output in its linear
        form, or in a step, where it can, by its mask."""
        layer = self._layer_of.get(id(module))
        if layer is None or self._under_way is None or ("pattern", layer) not in self.tapping.taps:
            return own()
        # in the first passes attention is looked at; and a function of the user's may not know such a mask
        if self._under_way.is_late_step and not interface.has_function_of_its_own(interface.implementation(module)):
            mask = mask_of_step(self.tapping, layer, call)
            if mask is not None:
                return own(mask)
        out = own()
        self.passes.check_length(self._under_way, call.query.shape[2])
        n_heads = self.layers[layer].n_heads
        own_heads = out.shape[2]
        if own_heads != n_heads:
            call, out = self._shards.call(call, n_heads), self._shards.whole(out, 2, n_heads)
        fused = FusedAttention(call, out)
        with self._rows.of(layer, call, out):
            self.tapping.attend(layer, fused)
        return self._shards.own(fused.out, 2, own_heads)
