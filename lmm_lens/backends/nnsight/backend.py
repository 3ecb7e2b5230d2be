"""Run and generate with taps inside nnsight traces, in this process or on a server."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch

from ...adapters import Adapter
from ...adapters.towers import Tower, tower_in
from ...core.carried import Carried
from ...core.envoys import NO_SCORES
from ...core.layer_envoys import LayerEnvoys
from ...core.taps import Tap
from ...core.trace import TraceLens
from ...errors import HookError, InterventionError, LensError, ModelError, RemoteError
from ...prompts.prompt import Prompt
from ..address import Address, without_login
from ..base import Continuation, Forward, ForwardPass, InTower, PromptOf, Remote, TapsOf
from ..ends import Ends
from ..native.session import check_runnable
from ..native.tower import TowerSession
from ..options import BESIDE, Options, ends_of
from ..placement import device_of, has_weights
from ..twins import structure_of
from .job import JobResult, JobRun, ModelEnvoys, Stopped, TowerTaps, edited, run_job
from .tower_job import TowerJob, checked_tower_taps, job_of, look_at_tower, look_here, pictures_of, prompt_of
from .traces import NNsightSession, trace_under_way
from .travel import TRAVELLING, check_one_model
from .witness import are_wanted, check_witnesses, witnesses
from .wrap import envoys_of_model, label_operations, model_key, wrapped


class NNsightBackend:
    """The nnsight backend.

    Here, whatever kernel the model uses, reads and edits of the pattern happen beside it, from its queries and keys. On
    a server they are taken from eager weights, which is all that NDIF hands out.

    Args:
        adapter: of the user's model, which is never changed; without weights if only a server has them.
        envoy: the model in nnsight's wrapping, if there is one already.
        name: by which a server knows the model.
        remote: where to run, see `Remote`.
        timeout: seconds without news from a server after which to give up.
    """

    name: ClassVar[str] = "nnsight"
    ways_in: ClassVar[str] = "lens.run, lens.generate or lens.trace"
    runs_replays: ClassVar[bool] = False

    def __init__(
        self,
        adapter: Adapter,
        envoy: Any = None,
        served_as: str | None = None,
        remote: Remote = False,
        timeout: float = 600.0,
    ) -> None:
        self.adapter = adapter
        self.served_as, self.timeout = served_as, timeout
        self.remote = self._opened_for = self._checked_remote(remote)
        self.trace_lens: TraceLens | None = None  # of the last trace
        self.has_weights = has_weights(adapter.model)
        self.lock = threading.RLock()
        self._given = envoy
        self._proved: set[tuple[str, bool]] = set()  # servers that witnesses came back from, and whether they generated
        self._wrap()

    def _wrap(self) -> None:
        self._structure = structure_of(self.adapter.model)
        self._envoy = wrapped(self.adapter.model, self.adapter.processor) if self._given is None else self._given
        self.options = Options(self._envoy._module)
        self._model_envoys: dict[bool, ModelEnvoys] = {}
        self._tower_passes: dict[tuple[bool, str], Prompt] = {}

    @property
    def tower(self) -> Tower:
        """As in `Backend.tower`."""
        return tower_in(self.envoy._module, self.adapter.tower)

    @property
    def envoy(self) -> Any:
        """The model in nnsight's wrapping; wrapped anew where the user's model is no longer what was wrapped."""
        if trace_under_way() is None:
            self.renew()
        return self._envoy

    def renew(self) -> None:
        """Before a run, wrap the model anew where it is no longer what was wrapped.

        Raises:
            ModelError: its user has wrapped it, and then exchanged modules in it.
        """
        with self.lock:
            structure = structure_of(self.adapter.model)
            if structure == self._structure:
                return
            if self._envoy._module is not self.adapter.model:
                self.adapter.look_again()
                self._wrap()
            elif structure.has_modules_of(self._structure):  # the rest nnsight's wrapping has from the model itself
                self._structure = structure
            else:
                raise ModelError(
                    "modules of the model were exchanged after nnsight had wrapped it, and its envoys have the old ones"
                    "\n  load the model anew, change it, and then make the lens"
                )

    def __reduce__(self) -> Any:
        """A copy wraps its own model anew: nnsight's wrapping cannot be copied."""
        if not self.has_weights:
            raise LensError("a lens on a server's model is not copied: open another with Lens(name, remote=...)")
        return NNsightBackend, (self.adapter, None, self.served_as, self.remote, self.timeout)

    # ------------------------------------------------------------------ running

    def prepare(self, prompt: Prompt) -> None:
        """As in `Backend.prepare`: nothing."""

    def forward(
        self,
        prompt: Prompt,
        taps_of: TapsOf,
        *,
        last_only: bool = False,
        grad: bool = False,
        carried: Carried | None = None,
    ) -> Forward:
        """As in `Backend.forward`."""
        if carried is not None:
            raise LensError("what runs carry from one to the next lives in one job here: use forward_all")
        if grad and self.remote:
            raise RemoteError("gradients do not travel: this needs a lens with remote=False")
        self.renew()
        with torch.set_grad_enabled(grad):
            done = self.run_one(self.forward_run(prompt, taps_of, last_only), prompt)
        assert done.logits is not None
        return Forward(done.logits, done.tapping)

    def forward_all(self, passes: Sequence[ForwardPass]) -> Iterator[Forward]:
        """As in `Backend.forward_all`, in one job; the answers come when all are done."""
        self.renew()
        runs = [replace(self.forward_run(each.prompt, each.taps_of, True), tokens=each.tokens) for each in passes]
        with torch.no_grad():
            for done in self.run_job(runs):
                assert done.logits is not None
                yield Forward(done.logits, done.tapping)

    def generate(self, prompt: Prompt, taps_of: TapsOf, options: Mapping[str, Any]) -> Continuation:
        """As in `Backend.generate`."""
        self.renew()
        taps = self.checked(taps_of(prompt))
        config, beside = self.options.generating(options)
        ends, settings, stopped = [*ends_of(config), *self.adapter.ends], self.generating(options), None
        if "stopping_criteria" in beside or config.stop_strings is not None:
            stopped = Stopped()
            settings["stopping_criteria"] = [
                Ends(config, beside.get("stopping_criteria", ()), self.adapter, stopped.note)
            ]
            settings["stop_strings"] = None  # read by the criterion
        run = JobRun(prompt.inputs, prompt.n_rows, prompt.n_tokens, taps, settings, ends=ends, stopped=stopped)
        with torch.no_grad():
            done = self.run_one(run, prompt)
        assert done.tokens is not None
        return Continuation(done.tokens, done.logits, done.tapping)

    def generating(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of `generate`, as `Options.generating` has them; on a server patterns need the cache."""
        if self.remote and options.get("use_cache", True) is False:
            raise RemoteError(
                "use_cache=False does not travel: a server's attention weights are read beside the values in the cache"
                "\n  leave it out, or use a lens with remote=False"
            )
        named = self.options.named(options)
        kept = sorted({*BESIDE, "stop_strings"} & named.keys())
        if self.remote and kept:
            raise RemoteError(
                f"{kept[0]} does not travel to a server\n  end rows with eos_token_id, or use a lens with remote=False"
            )
        return named

    def forward_run(self, prompt: Prompt, taps_of: TapsOf, last_only: bool) -> JobRun:
        """One forward pass as a run of a job."""
        keep, last = self.options.keeping(prompt, last_only)
        # the eager weights come with values only where there is a cache to take them from
        inputs = {"use_cache": bool(self.remote), **prompt.inputs, **keep}
        return JobRun(inputs, prompt.n_rows, prompt.n_tokens, self.checked(taps_of(prompt)), None, last)

    def run_one(self, run: JobRun, prompt: Prompt) -> JobResult:
        """Do one run, with what an open context of the vision tower wants of it."""
        job = job_of(self)
        if job is None:
            return self.run_job([run])[0]
        done = self.run_job([replace(run, tower=job.taps(prompt))])[0]
        assert done.in_tower is not None
        job.take_over(done.in_tower)
        return done

    def run_job(self, runs: Sequence[JobRun]) -> list[JobResult]:
        """Do the runs in one session: one job, where it runs on a server."""
        if trace_under_way() is not None:
            raise LensError(
                "lens.run, lens.generate and what is built on them cannot be called inside a trace\n"
                "  call them before it or after it; inside, use lens.read and lens.write"
            )
        # one session of a model at a time: what its envoys serve belongs to whichever trace is under way
        if not self.remote or self.remote == "local":
            with self.lock:
                return run_job(self.model_envoys, runs, self.transport())
        wanted, server = are_wanted(runs), self.transport()
        proves = (server.address, wanted is not None and wanted.options is not None)
        first = witnesses(wanted, len(self.adapter.layers)) if wanted and proves not in self._proved else []
        done = run_job(self.model_envoys, [*first, *runs], server)
        if first:
            check_witnesses(done[: len(first)], str(server.address))
            self._proved.add(proves)
        return done[len(first) :]

    def trace(
        self,
        prompt: Prompt,
        taps_of: TapsOf,
        remote: Remote | None,
        options: Mapping[str, Any],
        in_tower: TapsOf | None = None,
    ) -> Any:
        """A trace for the user's own block, in which the taps act first; see `Lens.trace`."""
        self.renew()
        with self.at(remote):
            taps = self.checked(taps_of(prompt))
            tower = None
            if in_tower is not None:
                seen = self.tower_pass(prompt)
                tower = self.tower_taps(seen, in_tower(seen))
            generates = "max_new_tokens" in options
            self.trace_lens = self.new_trace_lens(one_pass=not generates)
            in_its_tower = [] if tower is None else tower.taps
            changed = [tap.layer for tap in in_its_tower if tap.site == "pattern" and tap.edits]
            self.trace_lens.edited = tuple(changed)
            acts = taps or tower is not None
            envoy = edited(self.model_envoys, prompt, taps, generates, tower) if acts else self._envoy
            if generates:
                options = {"fn": envoy.generate, **self.generating(options)}
            backend = self.transport()
        from .blocks import TraceBlock

        return envoy.trace(**{**prompt.inputs, **options}, backend=backend, tracer_cls=TraceBlock)

    def tower_session(self, taps_of: TapsOf, thread: int | None) -> InTower:
        """As in `Backend.tower_session`: here by torch's hooks, on a server as part of the job.

        An open block hooks nothing: runs and traces in it carry what is applied.
        """
        if self.remote or thread is None:
            return TowerJob(self, taps_of, acts=thread is not None)
        return TowerSession(self.tower, type(self.adapter.model).__name__, taps_of, thread)

    def session(
        self, taps_of: TapsOf, prompt: Prompt | None = None, prompt_of: PromptOf | None = None
    ) -> NNsightSession:
        """For `Lens.apply`."""
        self.renew()
        return NNsightSession(self.adapter.model, self._envoy)

    def pickled(self) -> tuple[Any, ...] | None:
        """As in `Backend.pickled`: on its way to a server a lens is its hook points."""
        if not TRAVELLING.get():
            return None
        check_one_model(self._envoy)
        known = self.trace_lens or self.new_trace_lens()
        tower = known.tower, known.n_used, known.edited
        return TraceLens, (known.layers, known.envoy, known.one_pass, None, *tower)

    # ------------------------------------------------------------------ what runs where

    @property
    def model_envoys(self) -> ModelEnvoys:
        """The model as jobs take it, here or on a server."""
        from_weights = bool(self.remote)
        if from_weights not in self._model_envoys:
            self._model_envoys[from_weights] = envoys_of_model(self._envoy, self.adapter, from_weights)
        return self._model_envoys[from_weights]

    def new_trace_lens(self, one_pass: bool = True) -> TraceLens:
        """Hook points by layer and name, for use inside one trace."""
        tower = self.model_envoys.tower
        n_used = self.adapter.tower.n_used if tower else 0
        under_way = None if self.remote else self.pass_under_way
        return TraceLens(self.model_envoys.layers, self._envoy, one_pass, under_way, tower, n_used)

    def pass_under_way(self, envoys: LayerEnvoys, site: str) -> tuple[Any, int]:
        """Before a hook point is asked for inside a trace: which trace that is, and which pass over the layer it is.

        The operations that the hook point needs are labelled then.

        Raises:
            HookError: the trace is of another lens, whose model would answer.
        """
        mediator = trace_under_way()
        if mediator is None:  # nnsight says so
            return None, 0
        if mediator().interleaver is not self._envoy.interleaver:
            raise HookError("this trace is of another lens: inside `with a.trace(...)` call a.read and a.write")
        label_operations(envoys, site)
        # a step of `tracer.iter` that has just begun is counted by it; from then on, how often the layer ran
        return mediator, mediator().iteration or mediator().occurrence(f"{envoys.module.path}.output")

    def tower_pass(self, prompt: Prompt) -> Prompt:
        """What the vision tower runs of a prompt's pictures: found by running it, once for pictures of these sizes.

        Raises:
            HookError: it does not run, or twice.
        """
        key = (bool(self.remote), pictures_of(prompt))
        if key not in self._tower_passes:
            tower, name = self.adapter.tower, type(self.adapter.model).__name__
            if self.remote:
                shape = look_at_tower(self.model_envoys, prompt, self.transport(), name)
            else:
                shape = look_here(self._envoy._module, self.tower, prompt, name)
            self._tower_passes[key] = prompt_of(tower, shape)
        return self._tower_passes[key]

    def tower_taps(self, prompt: Prompt, taps: Sequence[Tap]) -> TowerTaps:
        """Taps on what the vision tower runs, as jobs and traces take them; see `checked_tower_taps`."""
        envoys, name = self.model_envoys.tower, type(self.adapter.model).__name__
        found = checked_tower_taps(self.adapter.tower, envoys, name, prompt, taps)
        for tap in taps:
            label_operations(envoys[tap.layer], tap.site)
        return found

    @contextmanager
    def at(self, remote: Remote | None) -> Iterator[None]:
        """Inside, run there; None changes nothing."""
        before = self.remote
        self.remote = before if remote is None else self._checked_remote(remote)
        try:
            yield
        finally:
            self.remote = before

    def transport(self) -> Any:
        """nnsight's backend for one job; None runs it here."""
        if not self.remote or self.remote == "local":
            if not self.has_weights and self._opened_for:
                raise LensError(
                    "this lens was opened for a server and has no weights here\n"
                    "  give remote=... to the call, or open the lens with remote=False"
                )
            check_runnable(self.adapter.model, self.adapter.modules)
            check_runnable(self._envoy._module)
        if not self.remote:
            return None
        if self.remote == "local":
            from .local_simulation import CheckedSimulation

            return CheckedSimulation(self._envoy)
        from .remote import ServerBackend

        address = None if self.remote is True else self.remote
        env = {**self._envoy._remoteable_get_env(), "attn_implementation": "eager"}
        return ServerBackend(model_key(self._envoy, self.served_as), address, env, self.timeout)

    @staticmethod
    def _checked_remote(remote: Remote) -> Remote:
        if isinstance(remote, (bool, Address)) or remote == "local":
            return remote
        if str(remote).startswith(("http://", "https://")):
            return Address(str(remote))
        raise LensError(
            f'remote is False, True (NDIF), "local" or the address of a server, as in "http://127.0.0.1:5001", '
            f"given {without_login(remote)!r}"
        )

    def checked(self, taps: Sequence[Tap]) -> Sequence[Tap]:
        """The taps, the operations that they need labelled.

        Raises:
            HookError: a hook point that the layer does not have.
            InterventionError: something that a server does not have is needed there.
        """
        if self.remote and any(tap.needs_scores for tap in taps):
            raise InterventionError(NO_SCORES)
        for tap in taps:
            envoys = self.model_envoys.layers[tap.layer]
            if tap.site not in envoys.sites:
                kind = type(self.adapter.layers[tap.layer].module).__name__
                if tap.site == "resid_pre":
                    raise HookError(
                        f"layer {tap.layer} ({kind}) has no resid_pre on a server: nnsight does not serve all that "
                        "it does with what enters it\n"
                        "  take resid_post of the layer before, or a lens with remote=False"
                    )
                raise HookError(f"layer {tap.layer} ({kind}) has no {tap.site}; it has {', '.join(envoys.sites)}")
            label_operations(envoys, tap.site)
        return taps

    @property
    def device(self) -> torch.device:
        """Where the prompt's tensors go."""
        if not self.has_weights:
            return torch.device("cpu")
        return device_of(self._envoy._module.get_input_embeddings(), self._envoy._module)

    @property
    def weights_elsewhere(self) -> str | None:
        """What stands for the weights of a model that only a server has; None where they are here."""
        return None if self.has_weights else f"as served: {self.served_as}"
