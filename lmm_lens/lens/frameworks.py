"""The two other frameworks' own ways on a lens, for people who already write TransformerLens or nnsight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core.face import Face
from ..errors import HookError, LensError, PromptError
from ..interventions.base import Intervention
from ..prompts.prompt import Prompt

if TYPE_CHECKING:
    from .bridge_cache import PromptCache
    from .bridge_patching import PatchingModel


class TransformerLensFace:
    """What a lens with `backend="transformer_lens"` has beside the common calls."""

    _backend: Any

    @property
    def bridge(self) -> Any:
        """The TransformerBridge of the TransformerLens backend; its hooks all work, edits included."""
        if not hasattr(self._backend, "bridge"):
            raise LensError(
                f'the {self._backend.name} backend has no bridge: use Lens(..., backend="transformer_lens")'
            )
        return self._backend.bridge

    def bridge_inputs(self, prompt: Prompt) -> dict[str, Any]:
        """The prompt's tensors, pictures included, as `bridge(...)`, `bridge.run_with_hooks` and others take them."""
        from . import bridge_runs as face

        return face.bridge_inputs(prompt)

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
        from . import bridge_runs as face

        return face.run_with_cache(self, prompt, interventions, **options)  # type: ignore[arg-type]

    def run_with_hooks(self, prompt: Prompt, interventions: Sequence[Intervention] = (), **options: Any) -> Any:
        """TransformerLens's `run_with_hooks` on a prompt: its logits under `fwd_hooks=[(name, function), ...]`.

        Raises:
            LensError: the lens has another backend.
        """
        from . import bridge_runs as face

        return face.run_with_hooks(self, prompt, interventions, **options)  # type: ignore[arg-type]

    def patching_model(self, prompt: Prompt) -> PatchingModel:
        """A stand-in for the model that `transformer_lens.patching` can patch: the prompt's pictures are bound to it.

        Raises:
            LensError: the lens has another backend.
        """
        from .bridge_patching import PatchingModel

        return PatchingModel(self, prompt)  # type: ignore[arg-type]


class NNsightFace:
    """What a lens with `backend="nnsight"` has beside the common calls."""

    _backend: Any

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
        program = self._program(prompt, interventions, ())  # type: ignore[attr-defined]
        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        return self._nnsight.trace(prompt, program, remote, options)

    def read(self, layer: int, site: str) -> Tensor:
        """Inside a trace, an activation, all rows of the pass: `Float[batch, row, d_model]`, at "z" [batch, row, head,
        d_head], at "pattern" [batch, head, row, key].

        Change it with `write`: a pattern is computed for the reader, so that a change of it in place changes nothing.

        Raises:
            HookError: the layer has no such hook point.
        """
        with self._inside_a_trace() as face:
            return face.read(layer, site)

    def write(self, layer: int, site: str, value: Tensor) -> None:
        """Inside a trace, put an activation in the place of the model's; shapes as in `read`, any device and dtype.

        Raises:
            HookError: the layer has no such hook point, or what was given is no tensor or has another shape.
        """
        with self._inside_a_trace() as face:
            face.write(layer, site, value)

    @contextmanager
    def _inside_a_trace(self) -> Iterator[Face]:
        backend = self._nnsight
        try:
            yield backend.face or backend.new_face()
        except ValueError as error:
            if "outside of interleaving" not in str(error):
                raise
            raise HookError("lens.read and lens.write work inside `with lens.trace(prompt):` only") from error

    @property
    def _nnsight(self) -> Any:
        if not hasattr(self._backend, "envoy"):
            raise LensError(f'the {self._backend.name} backend has no envoy: use Lens(..., backend="nnsight")')
        return self._backend

    def __reduce_ex__(self, protocol: Any) -> Any:
        """On its way to a server a lens is its hook points; else it is pickled as any object."""
        from ..backends.nnsight.travel import TRAVELLING

        if TRAVELLING.get():
            backend = self._nnsight
            target = backend.target if backend.traced is None else backend.traced
            return Face, (target.parts, backend.envoy, backend.once)
        return super().__reduce_ex__(protocol)
