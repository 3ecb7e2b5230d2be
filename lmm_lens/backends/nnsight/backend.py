"""Run and generate with taps inside nnsight traces, in this process or on a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch

from ...adapters import Adapter
from ...adapters.towers import Tower
from ...core.carried import Carried
from ...core.taps import Tap
from ...core.trace import TraceLens
from ...errors import LensError, RemoteError
from ...prompts.prompt import Prompt
from ..base import Continuation, Forward, ForwardPass, InTower, PromptOf, Remote, TapsOf
from ..ends import Ends
from ..native.tower import TowerSession
from ..options import BESIDE, ends_of
from .job import JobResult, JobRun, ModelEnvoys, Stopped, TowerTaps, edited, run_job
from .tower_job import TowerJob, checked_tower_taps, job_of, look_at_tower, look_here, pictures_of, prompt_of
from .traces import NNsightSession, trace_under_way
from .transports import checked_remote, runs_here, transport_to
from .travel import TRAVELLING, check_one_model
from .witness import are_wanted, check_witnesses, witnesses
from .wrap import label_operations
from .wrapped_model import WrappedModel


class NNsightBackend:
    """The nnsight backend.

    Here, whatever kernel the model uses, reads and edits of the pattern happen beside it, from its queries and keys. On
    a server they are taken from eager weights, which is all that NDIF hands out.

    Args:
        adapter: of the user's model, which is never changed; without weights if only a server has them.
        envoy: the model in nnsight's wrapping, if there is one already.
        served_as: by which name a server knows the model.
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
        self.remote = checked_remote(remote)
        self._is_of_a_server = bool(self.remote)
        self.adapter, self.wrapped = adapter, WrappedModel(adapter, envoy)
        self.served_as, self.timeout = served_as, timeout
        self.trace_lens: TraceLens | None = None  # of the last trace
        self._proved: set[tuple[str, bool]] = set()  # servers that witnesses came back from, and whether they generated

    @property
    def envoy(self) -> Any:
        """The model in nnsight's wrapping; wrapped anew where the user's model is no longer what was wrapped."""
        return self._renewed().envoy

    @property
    def tower(self) -> Tower:
        """As in `Backend.tower`."""
        return self._renewed().tower

    def _renewed(self) -> WrappedModel:
        if trace_under_way() is None:
            self.wrapped.renew()
        return self.wrapped

    @property
    def device(self) -> torch.device:
        """Where the prompt's tensors go."""
        return self.wrapped.device

    @property
    def weights_elsewhere(self) -> str | None:
        """What stands for the weights of a model that only a server has; None where they are here."""
        return None if self.wrapped.has_weights else f"as served: {self.served_as}"

    def __reduce__(self) -> Any:
        """A copy wraps its own model anew: nnsight's wrapping cannot be copied."""
        if not self.wrapped.has_weights:
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
        self.wrapped.renew()
        with torch.set_grad_enabled(grad):
            done = self.run_one(self.forward_run(prompt, taps_of, last_only), prompt)
        assert done.logits is not None
        return Forward(done.logits, done.tapping)

    def forward_all(self, passes: Sequence[ForwardPass]) -> Iterator[Forward]:
        """As in `Backend.forward_all`, in one job; the answers come when all are done."""
        self.wrapped.renew()
        runs = [replace(self.forward_run(each.prompt, each.taps_of, True), tokens=each.tokens) for each in passes]
        with torch.no_grad():
            for done in self.run_job(runs):
                assert done.logits is not None
                yield Forward(done.logits, done.tapping)

    def generate(self, prompt: Prompt, taps_of: TapsOf, options: Mapping[str, Any]) -> Continuation:
        """As in `Backend.generate`."""
        self.wrapped.renew()
        taps = self._taps(prompt, taps_of)
        config, beside = self.wrapped.options.generating(options)
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
        named = self.wrapped.options.named(options)
        kept = sorted({*BESIDE, "stop_strings"} & named.keys())
        if self.remote and kept:
            raise RemoteError(
                f"{kept[0]} does not travel to a server\n  end rows with eos_token_id, or use a lens with remote=False"
            )
        return named

    def forward_run(self, prompt: Prompt, taps_of: TapsOf, last_only: bool) -> JobRun:
        """One forward pass as a run of a job."""
        keep, last = self.wrapped.options.keeping(prompt, last_only)
        # the eager weights come with values only where there is a cache to take them from
        inputs = {"use_cache": bool(self.remote), **prompt.inputs, **keep}
        return JobRun(inputs, prompt.n_rows, prompt.n_tokens, self._taps(prompt, taps_of), None, last)

    def _taps(self, prompt: Prompt, taps_of: TapsOf) -> Sequence[Tap]:
        return self.wrapped.checked(taps_of(prompt), bool(self.remote))

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
        if runs_here(self.remote):
            with self.wrapped.lock:
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
        self.wrapped.renew()
        with self.at(remote):
            taps = self._taps(prompt, taps_of)
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
            envoy = edited(self.model_envoys, prompt, taps, generates, tower) if acts else self.wrapped.envoy
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
        return TowerSession(self.tower, self.wrapped.name, taps_of, thread)

    def session(
        self, taps_of: TapsOf, prompt: Prompt | None = None, prompt_of: PromptOf | None = None
    ) -> NNsightSession:
        """For `Lens.apply`."""
        self.wrapped.renew()
        return NNsightSession(self.adapter.model, self.wrapped.envoy)

    def pickled(self) -> tuple[Any, ...] | None:
        """As in `Backend.pickled`: on its way to a server a lens is its hook points."""
        if not TRAVELLING.get():
            return None
        check_one_model(self.wrapped.envoy)
        known = self.trace_lens or self.new_trace_lens()
        tower = known.tower, known.n_used, known.edited
        return TraceLens, (known.layers, known.envoy, known.one_pass, None, *tower)

    # ------------------------------------------------------------------ what runs where

    @property
    def model_envoys(self) -> ModelEnvoys:
        """The model as jobs take it, here or on a server."""
        return self.wrapped.envoys(bool(self.remote))

    def new_trace_lens(self, one_pass: bool = True) -> TraceLens:
        """Hook points by layer and name, for use inside one trace."""
        tower = self.model_envoys.tower
        n_used = self.adapter.tower.n_used if tower else 0
        under_way = None if self.remote else self.wrapped.pass_under_way
        return TraceLens(self.model_envoys.layers, self.wrapped.envoy, one_pass, under_way, tower, n_used)

    def tower_pass(self, prompt: Prompt) -> Prompt:
        """What the vision tower runs of a prompt's pictures: found by running it, once for pictures of these sizes.

        Raises:
            HookError: it does not run, or twice.
        """
        key = (bool(self.remote), pictures_of(prompt))
        if key not in self.wrapped.tower_passes:
            tower, name = self.adapter.tower, self.wrapped.name
            if self.remote:
                shape = look_at_tower(self.model_envoys, prompt, self.transport(), name)
            else:
                shape = look_here(self.wrapped.module, self.tower, prompt, name)
            self.wrapped.tower_passes[key] = prompt_of(tower, shape)
        return self.wrapped.tower_passes[key]

    def tower_taps(self, prompt: Prompt, taps: Sequence[Tap]) -> TowerTaps:
        """Taps on what the vision tower runs, as jobs and traces take them; see `checked_tower_taps`."""
        envoys, name = self.model_envoys.tower, self.wrapped.name
        found = checked_tower_taps(self.adapter.tower, envoys, name, prompt, taps)
        for tap in taps:
            label_operations(envoys[tap.layer], tap.site)
        return found

    @contextmanager
    def at(self, remote: Remote | None) -> Iterator[None]:
        """Inside, run there; None changes nothing."""
        before = self.remote
        self.remote = before if remote is None else checked_remote(remote)
        try:
            yield
        finally:
            self.remote = before

    def transport(self) -> Any:
        """nnsight's backend for one job; None runs it here."""
        return transport_to(self.remote, self.wrapped, self.served_as, self.timeout, self._is_of_a_server)
