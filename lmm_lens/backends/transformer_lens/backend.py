"""Run and generate with taps through the hook points of a TransformerBridge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from ...adapters import Adapter
from ...adapters.towers import Tower, tower_in
from ...adapters.walker import every_module
from ...core.carried import Carried
from ...core.flat import in_rows
from ...core.tapping import Tapping
from ...core.whole_pattern import WholePattern
from ...errors import HookError, ModelError
from ...prompts.prompt import Prompt
from ..base import PromptOf, TapsOf
from ..native.backend import NativeBackend
from ..native.interface import listener_of
from ..native.session import NativeSession, check_runnable
from ..native.tower import TowerSession
from ..twins import structure_of
from .build import bridge_of
from .selfcheck import check_edits_land
from .tower_points import BridgeTowerSession, has_tower

BRIDGE_HOOKS = {
    "resid_pre": "hook_in",
    "pattern": "attn.hook_pattern",
    "z": "attn.hook_z",
    "attn_out": "attn.hook_out",
    "mlp_out": "mlp.hook_out",
    "resid_post": "hook_out",
}
"""Our hook points as TransformerLens names them, after `blocks.{layer}.`. Its own `hook_attn_out` and `hook_mlp_out`
stand behind the post norms of Gemma and GLM; ours are what the modules give."""

Hook = tuple[str, Callable[..., Any]]


class TransformerLensBackend(NativeBackend):
    """The TransformerLens backend: a TransformerBridge on a twin of the model that shares its weights.

    It computes eager attention, as every TransformerBridge does, and so costs what that costs.

    Args:
        adapter: of the user's model, which is never changed; of a bridge's own model where there is one already.
        bridge: a TransformerBridge that the user has, taken as it is.
    """

    name: ClassVar[str] = "transformer_lens"
    runs_replays: ClassVar[bool] = False

    def __init__(self, adapter: Adapter, bridge: Any = None) -> None:
        super().__init__(adapter)
        self._given = bridge
        self._build()

    def _build(self) -> None:
        self._structure = structure_of(self.adapter.model)
        self._bridge = self._given or bridge_of(self.adapter.model, self.adapter.tokenizer, self._tower_with_heads())
        self.model = self._bridge.original_model
        self._is_checked = False

    @property
    def is_given(self) -> bool:
        """Whether the bridge is one that the user had."""
        return self._given is not None

    @property
    def bridge(self) -> Any:
        """The bridge; made anew where the user's model is no longer what it was made of.

        Raises:
            ModelError: hooks that the user has put on the bridge would be lost.
        """
        if self._given is None and structure_of(self.adapter.model) != self._structure:
            if any(point.fwd_hooks or point.bwd_hooks for point in self._bridge.hook_dict.values()):
                raise ModelError(
                    "the model was changed after its TransformerBridge was made (weights exchanged, an adapter "
                    "switched, ...), and the bridge has hooks that a new one would not have\n"
                    "  take them off with lens.bridge.reset_hooks(), or make a new lens"
                )
            self.adapter.look_again()
            self._build()
        return self._bridge

    @property
    def tower(self) -> Tower:
        """As in `Backend.tower`."""
        return tower_in(self.bridge.original_model, self.adapter.tower)

    def _tower_with_heads(self) -> Tower | None:
        try:
            return self.adapter.tower if self.adapter.has_tower_heads else None
        except ModelError:  # asked for itself it says why
            return None

    def tower_session(self, taps_of: TapsOf, thread: int | None) -> TowerSession:
        """As in `Backend.tower_session`."""
        kind = BridgeTowerSession if has_tower(self.bridge) else TowerSession
        return kind(self.tower, type(self.adapter.model).__name__, taps_of, thread)

    def _call(self, inputs: dict[str, Any], options: dict[str, Any]) -> Any:
        return self.model(**inputs, **options)

    def _generate(self, inputs: dict[str, Any], options: dict[str, Any]) -> Any:
        return self.model.generate(**inputs, **options)

    def prepare(self, prompt: Prompt) -> None:
        """The first prompt with a picture is also run eight times with probe edits, so that a hook whose edits are lost
        is an error and not a silent no-op.

        Raises:
            HookError: an edit at some hook point does not reach the logits of this bridge.
            ModelError: the model does not run inside a bridge.
        """
        self._check(self.bridge, prompt)

    def _check(self, bridge: Any, prompt: Prompt) -> None:
        has_picture = bool(prompt.mask("visual").any())
        # not inside an apply block, whose edits would reach the probes
        if self._is_checked or not has_picture or listener_of(self.model) is not None:
            return
        try:
            check_edits_land(bridge, prompt.inputs)
        except (TypeError, AttributeError, RuntimeError, IndexError) as error:
            raise ModelError(
                f"{type(self.adapter.model).__name__} cannot be run as a TransformerBridge: {error}\n"
                "  use backend='native' or backend='nnsight'"
            ) from error
        self._is_checked = True

    def _session(
        self,
        taps_of: TapsOf,
        prompt: Prompt | None,
        prompt_of: PromptOf | None,
        carried: Carried | None,
        ends: Sequence[int] | None = None,
    ) -> NativeSession:
        """A context in which the bridge runs with taps; see `prepare` for what it raises."""
        check_runnable(self.adapter.model, self.adapter.modules)
        bridge = self.bridge
        if prompt is not None:
            self._check(bridge, prompt)
        modules, layers = every_module(self.model), self.adapter.layers
        return BridgeSession(
            bridge, self.model, modules, layers, taps_of, prompt, prompt_of, carried, (), (), ends or ()
        )


class BridgeSession(NativeSession):
    """A session whose hooks sit on the bridge's own hook points."""

    def __init__(self, bridge: Any, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.bridge = bridge

    def _install(self) -> None:
        hooks = bridge_hooks(self.bridge, self.tapping, lambda site, layer, length: self.is_acting())
        if hooks:
            self._hooks.enter_context(self.bridge.hooks(fwd_hooks=hooks))


def bridge_hooks(bridge: Any, tapping: Tapping, begin: Callable[[str, int, int], bool]) -> list[Hook]:
    """The hooks that hand a bridge's activations to taps.

    Args:
        bridge: the TransformerBridge.
        tapping: the taps of a prompt.
        begin: called with hook point, layer and number of rows before anything is handed over; False to let it pass.

    Raises:
        HookError: the bridge lacks a hook point.
    """
    scores: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}
    entered: dict[int, Tensor] = {}

    def on_rows(site: str, layer: int, given: Tensor, hook: object) -> Tensor | None:
        x = in_rows(given, entered.pop(layer, None)) if site == "mlp_out" else given
        if not begin(site, layer, x.shape[1]):
            return None
        if site == "z":  # a bridge has one d_head for all its layers, which need not be that of this one's values
            z = x.flatten(2).unflatten(-1, (tapping.n_heads[layer], -1))
            return tapping.through(z, site, layer).reshape(x.shape)
        return tapping.through(x, site, layer).reshape(given.shape)

    def remember_entering(layer: int, x: Tensor, hook: object) -> None:
        entered[layer] = x

    def remember(layer: int, x: Tensor, hook: object) -> None:
        scores[layer] = x

    def remember_values(layer: int, x: Tensor, hook: object) -> None:
        values[layer] = x if x.ndim == 4 else x.unflatten(-1, (-1, bridge.cfg.d_head))

    def on_pattern(layer: int, pattern: Tensor, hook: object) -> Tensor | None:
        before, value = scores.pop(layer, None), values.pop(layer, None)
        if not begin("pattern", layer, pattern.shape[2]):
            return None
        whole = WholePattern(pattern, before, value)
        tapping.attend(layer, whole)
        return whole.pattern

    hooks: list[Hook] = []
    for site, layer in tapping.taps:
        name = f"blocks.{layer}.{BRIDGE_HOOKS[site]}"
        if name not in bridge.hook_dict:
            raise HookError(f"layer {layer} of this bridge has no {site}: TransformerLens knows no hook {name!r} there")
        if site == "pattern":
            hooks.append((f"blocks.{layer}.attn.hook_attn_scores", partial(remember, layer)))
            if f"blocks.{layer}.attn.hook_v" in bridge.hook_dict:
                hooks.append((f"blocks.{layer}.attn.hook_v", partial(remember_values, layer)))
            hooks.append((name, partial(on_pattern, layer)))
        else:
            if site == "mlp_out" and f"blocks.{layer}.mlp.hook_in" in bridge.hook_dict:
                hooks.append((f"blocks.{layer}.mlp.hook_in", partial(remember_entering, layer)))
            hooks.append((name, partial(on_rows, site, layer)))
    return hooks
