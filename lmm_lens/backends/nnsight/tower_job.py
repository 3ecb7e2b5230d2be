"""The vision tower in a job: what it will run, found by running it once, and the taps that are bound to that.

Reads and interventions are bound here; where the model runs there is nothing of them but taps. So rows and tokens of
the tower must be known before: the first job with pictures of some sizes is preceded by one that looks at them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ...adapters.towers import Tower
from ...core.packing import pack, unpack
from ...core.tapping import Found, Tapping
from ...core.taps import Tap
from ...core.tower_rows import as_rows
from ...errors import HookError
from ...prompts.prompt import Prompt
from ...prompts.tensors import fresh
from ...prompts.tower import tower_prompt
from ..base import TapsOf
from ..entering import given_to
from ..native.tower import check_taps, did_not_run
from .answers import check_shape
from .job import ModelEnvoys, TowerTaps

if TYPE_CHECKING:
    from .backend import NNsightBackend

OF_TEXT = ("input_ids", "attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids", "cache_position")
MOST_TOKENS = 10**8
JOBS: ContextVar[tuple[TowerJob, ...]] = ContextVar("tower jobs", default=())


class TowerJob:
    """A context in which a run on a server takes taps of the vision tower along.

    Args:
        backend: runs it.
        taps_of: gives the taps of what the tower runs.
        acts: whether runs inside take it; not those of an open block, which have their own.

    Attributes:
        tapping: what the taps read and did, once the run is done.
        prompt: what the tower ran.
    """

    def __init__(self, backend: NNsightBackend, taps_of: TapsOf, acts: bool) -> None:
        self.backend, self.taps_of, self.acts = backend, taps_of, acts
        self.tapping = Tapping([layer.n_heads for layer in backend.adapter.tower.layers])
        self.prompt: Prompt | None = None
        self._token: Token[tuple[TowerJob, ...]] | None = None

    def __enter__(self) -> TowerJob:
        if self.acts:
            self._token = JOBS.set((*JOBS.get(), self))
        return self

    def __exit__(self, *exception: object) -> None:
        if self._token is not None:
            JOBS.reset(self._token)

    def taps(self, prompt: Prompt) -> TowerTaps:
        """The taps of the tower on a prompt's pictures."""
        self.prompt = self.backend.tower_pass(prompt)
        return self.backend.tower_taps(self.prompt, self.taps_of(self.prompt))

    def take_over(self, found: Found) -> None:
        """What they read and did."""
        self.tapping.take_over(found)

    def check_ran(self) -> None:
        """Nothing to check: a tower that does not run is an error where it is asked for."""


def job_of(backend: NNsightBackend) -> TowerJob | None:
    """The innermost open one of a backend."""
    own = [job for job in JOBS.get() if job.backend is backend]
    return own[-1] if own else None


def checked_tower_taps(
    tower: Tower, layers: Sequence[Any], model_name: str, prompt: Prompt, taps: Sequence[Tap]
) -> TowerTaps:
    """Taps of a tower, as a job takes them.

    Raises:
        InterventionError: an edit behind what the features come from.
        HookError: a hook point that a layer does not have, or not here.
    """
    check_taps(tower, model_name, taps)
    for tap in taps:
        if tap.site not in layers[tap.layer].sites:
            raise HookError(
                f"layer {tap.layer} of the vision tower has no vision.{tap.site} here: its forward attends in a way in "
                "which what it needs has no names that nnsight serves\n"
                "  z, attn_out and the residual stream can be read and edited; patterns by lens.run with remote=False"
            )
    return TowerTaps(prompt.n_rows, prompt.n_tokens, taps)


def pictures_of(prompt: Prompt) -> str:
    """A digest of all that decides what the tower runs: the sizes of pixels, and every number that is not of text."""
    digest = hashlib.sha256()
    for name, value in sorted(prompt.inputs.items()):
        if name in OF_TEXT:
            continue
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            if not value.dtype.is_floating_point:
                digest.update(value.cpu().contiguous().numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def look_here(model: nn.Module, tower: Tower, prompt: Prompt, name: str) -> tuple[int, ...]:
    """The shape of what enters the first layer of the tower of a model that is here.

    Raises:
        HookError: the tower does not run.
    """
    _check_once(prompt)
    x = given_to(tower.layers[0].module, model, fresh(prompt.inputs))
    if x is None:
        raise did_not_run(name)
    return (*as_rows(x, 0).shape,)


def look_at_tower(model: ModelEnvoys, prompt: Prompt, backend: Any, name: str) -> tuple[int, ...]:
    """The shape of what enters the first layer of a tower on a server, by a job of its own.

    Raises:
        HookError: the tower does not run.
        RemoteError: of a server, in many ways.
    """
    import nnsight
    from nnsight.intervention.interleaver import OutOfOrderError

    from .blocks import SessionBlock

    _check_once(prompt)
    envoy, first = model.envoy, model.tower[0].module
    packed = {each: pack(value) for each, value in prompt.inputs.items()}
    try:
        with envoy.session(backend=backend, tracer_cls=SessionBlock):
            shape = nnsight.save([])
            inputs = {each: unpack(value) for each, value in packed.items()}
            with envoy.trace(**inputs) as tracer:
                for size in first.input.shape:
                    shape.append(int(size))
                tracer.stop()
    except OutOfOrderError:
        raise did_not_run(name) from None
    return check_shape(shape, MOST_TOKENS)


def _check_once(prompt: Prompt) -> None:
    if bool(prompt.mask("image").any()) and bool(prompt.mask("video").any()):
        raise HookError(
            "the vision tower runs twice, on pictures and on videos, and only the first would be read and edited here\n"
            "  give pictures and videos in prompts of their own"
        )


def prompt_of(tower: Tower, shape: Sequence[int]) -> Prompt:
    """What the tower runs, by the shape of what enters its first layer: [row, token, width] or [token, width]."""
    n_rows, n_tokens = shape[:2] if len(shape) == 3 else (1, shape[0])
    return tower_prompt(n_rows, n_tokens, tower.n_class, tower.n_registers, tower.class_behind, tower.knows_places)
