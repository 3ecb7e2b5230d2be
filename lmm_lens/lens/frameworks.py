"""The two other frameworks' own ways on a lens, for people who already write TransformerLens or nnsight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from ..backends.base import Backend
from ..backends.requirements import importing
from ..core.trace import TraceLens
from ..errors import HookError, LensError, PromptError
from ..hooks.points import Reader
from ..interventions.base import Intervention
from ..prompts.prompt import Prompt
from .plan import Plan

if TYPE_CHECKING:
    from ..backends.nnsight import NNsightBackend
    from ..backends.transformer_lens import TransformerLensBackend
    from .bridge_cache import PromptCache
    from .bridge_patching import PatchingModel
    from .bridge_tokens import BoundTokens
    from .lens import Lens


class _OnBackend(ABC):
    """What the methods here need of the lens that they are methods of."""

    _backend: Backend

    @abstractmethod
    def _plan(self, prompt: Prompt, interventions: Sequence[Intervention], read: Sequence[Reader | str]) -> Plan: ...

    def _lens(self) -> Lens:
        return cast("Lens", self)


class TransformerLensMethods(_OnBackend):
    """What a lens with `backend="transformer_lens"` has beside the common calls."""

    @property
    def bridge(self) -> Any:
        """The TransformerBridge of the TransformerLens backend; its hooks all work, edits included."""
        if self._backend.name != "transformer_lens":
            raise LensError(
                f'the {self._backend.name} backend has no bridge: use Lens(..., backend="transformer_lens")'
            )
        backend = cast("TransformerLensBackend", self._backend)
        return backend.bridge if backend.is_given else self._with_pictures()

    def bound_tokens(self, *prompts: Prompt) -> BoundTokens:
        """The token ids of prompts of one length, bound to their pictures: `lens.bridge` runs them with these.

            clean, corrupt = lens.bound_tokens(clean_prompt), lens.bound_tokens(corrupt_prompt)
            attribution_patch(lens.bridge, clean, corrupt, metric)

        For functions that take tokens alone, as those of `transformer_lens.patching` and
        `transformer_lens.tools.analysis`. Rows may be cut out, repeated and put together; prompts whose ids are the
        same stay apart. A TransformerBridge that the lens was made of learns to take them with the first call, and its
        `hook_embed` is from then on what enters the first layer, pictures included.

        Raises:
            LensError: the lens has another backend.
            PromptError: no prompt, or prompts of several lengths.
        """
        lens = self._bridged()
        from .bridge_pictures import bound_tokens

        lens._with_pictures()
        return bound_tokens(*prompts)

    def bridge_inputs(self, prompt: Prompt) -> dict[str, Any]:
        """The prompt's tensors, pictures included, as `bridge(...)`, `bridge.run_with_hooks` and others take them."""
        with importing("transformer_lens"):
            from .bridge_calls import bridge_inputs

        return bridge_inputs(prompt)

    def run_with_cache(
        self, prompt: Prompt, interventions: Sequence[Intervention] = (), **options: Any
    ) -> tuple[Any, PromptCache]:
        """TransformerLens's `run_with_cache` on a prompt: logits, and an ActivationCache that answers by span.

        Args:
            prompt: from `Lens.prompt`.
            interventions: edits; the cache holds what they left.
            **options: of `TransformerBridge.run_with_cache`; name what to keep with `names_filter`.

        Raises:
            LensError: the lens has another backend.
        """
        lens = self._bridged()
        from .bridge_calls import run_with_cache

        return run_with_cache(lens, prompt, interventions, **options)

    def run_with_hooks(self, prompt: Prompt, interventions: Sequence[Intervention] = (), **options: Any) -> Any:
        """TransformerLens's `run_with_hooks` on a prompt: its logits under `fwd_hooks=[(name, function), ...]`.

        Raises:
            LensError: the lens has another backend.
        """
        lens = self._bridged()
        from .bridge_calls import run_with_hooks

        return run_with_hooks(lens, prompt, interventions, **options)

    def fwd_hooks(self, prompt: Prompt, interventions: Sequence[Intervention]) -> list[tuple[str, Any]]:
        """Interventions on a prompt as TransformerLens hooks, for `lens.bridge.run_with_hooks`.

        Raises:
            LensError: the lens has another backend.
        """
        lens = self._bridged()
        from .bridge_calls import fwd_hooks

        return fwd_hooks(lens, prompt, interventions)

    def patching_model(self, prompt: Prompt) -> PatchingModel:
        """A stand-in for the model that `transformer_lens.patching` can patch: the prompt's pictures are bound to it.

        Raises:
            LensError: the lens has another backend.
        """
        lens = self._bridged()
        from .bridge_patching import PatchingModel

        return PatchingModel(lens, prompt)

    def _with_pictures(self) -> Any:
        """The bridge, as one that is called by token ids and sees the pictures."""
        from .bridge_pictures import with_pictures

        lens, backend = self._lens(), cast("TransformerLensBackend", self._backend)
        ids = (lens.adapter.image_token_id, lens.adapter.video_token_id)
        return with_pictures(backend.bridge, tuple(x for x in ids if x is not None), lens.shape.reinjects)

    def _bridged(self) -> Lens:
        """The lens, if it has a bridge; else TransformerLens may be missing, and its absence not be the mistake."""
        assert self.bridge is not None
        return self._lens()


class NNsightMethods(_OnBackend):
    """What a lens with `backend="nnsight"` has beside the common calls."""

    @property
    def envoy(self) -> Any:
        """The nnsight TransformersModel of the nnsight backend."""
        return self._nnsight.envoy

    def trace(
        self,
        prompt: Prompt,
        interventions: Sequence[Intervention] = (),
        *,
        remote: bool | str | None = None,
        max_new_tokens: int | None = None,
        **options: Any,
    ) -> Any:
        """An nnsight trace of a prompt, in which hook points are read and written by layer and name.

            with lens.trace(prompt, interventions=[VAR()]) as tracer:
                mass = lens.read(3, "pattern")[:, :, -1][..., prompt.mask("image")[0]].sum(-1).save()
                lens.write(5, "z", lens.read(5, "z") * 0)

        The block may use nnsight's own `lens.envoy` as well. As in every trace, hook points are asked for in the order
        in which the model reaches them: by layer, and in a layer resid_pre, pattern, z, attn_out, mlp_out, resid_post.
        On a server `lens` is its hook points alone, and a list is filled only if the block made it:
        `out = nnsight.save([])`. One thread at a time may trace with a lens.

        Args:
            prompt: from `Lens.prompt`; a batch is one prompt.
            interventions: edits, made before the block sees the activations.
            remote: where to run; the lens's own by default.
            max_new_tokens: generate; the block then loops over `tracer.iter[:n]`, one pass a step.
            **options: of the call of the model, or of `generate`.

        Raises:
            LensError: the lens has another backend.
            PromptError: not one prompt, but several.
        """
        if isinstance(prompt, (list, tuple)):
            raise PromptError(
                f"a trace takes one prompt, given {len(prompt)}: nnsight cannot batch separate pictures\n"
                "  make one of them: lens.prompt([text, text], images=[image, image])"
            )
        plan = self._plan(prompt, interventions, ())
        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        in_tower = partial(plan.tower_taps, self._lens().vision.shape) if plan.needs_tower else None
        return self._nnsight.trace(prompt, plan.decoder_taps, remote, options, in_tower)

    def read(self, layer: int, site: str) -> Tensor:
        """Inside a trace, an activation, all rows of the pass: `Float[batch, query, d_model]`, at "z"
        [batch, query, head, d_head], at "pattern" [batch, head, query, key]. Of the vision tower "vision.z" and so on,
        which come before all layers of the decoder; its batch rows are those of `lens.run(...).tower`.

        Change it with `write`: a pattern is computed for the reader, so that a change of it in place changes nothing.

        Raises:
            HookError: the layer has no such hook point.
        """
        with self._inside_a_trace() as traced:
            return traced.read(layer, site)

    def write(self, layer: int, site: str, value: Tensor) -> None:
        """Inside a trace, put an activation in the place of the model's; shapes as in `read`, any device and dtype.

        Raises:
            HookError: the layer has no such hook point, or what was given is no tensor or has another shape.
        """
        with self._inside_a_trace() as traced:
            traced.write(layer, site, value)

    @contextmanager
    def _inside_a_trace(self) -> Iterator[TraceLens]:
        backend = self._nnsight
        try:
            yield backend.trace_lens or backend.new_trace_lens()
        except ValueError as error:
            if "outside of interleaving" not in str(error):
                raise
            raise HookError("lens.read and lens.write work inside `with lens.trace(prompt):` only") from error

    @property
    def _nnsight(self) -> NNsightBackend:
        if self._backend.name != "nnsight":
            raise LensError(f'the {self._backend.name} backend has no envoy: use Lens(..., backend="nnsight")')
        return cast("NNsightBackend", self._backend)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """On its way to a server a lens is its hook points; else it is pickled as any object."""
        return self._backend.pickled() or super().__reduce_ex__(protocol)
