"""A job: one or several runs of the model in one nnsight session, here or on a server.

What is inside the `with` blocks is source that travels. It uses plain values, torch, nnsight and `lmm_lens.core`, so
the same lines run in this process and on a server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.carried import Carried
from ...core.envoys import finish, run_taps
from ...core.layer_envoys import LayerEnvoys
from ...core.packing import pack, slim, unpack
from ...core.tapping import Found, Tapping
from ...core.taps import Tap
from ...core.tower_envoys import run_tower_taps
from ...errors import HookError
from ...prompts.prompt import Prompt
from ..options import new_tokens
from ..sources import READING
from .answers import check_answers
from .loops import open_ended_loops


@dataclass
class Stopped:
    """Which batch rows have ended for another reason than a token, Bool[batch]; None for none."""

    rows: Tensor | None = None

    def note(self, rows: Tensor) -> None:
        """They have ended by now."""
        self.rows = rows


@dataclass(frozen=True)
class TowerTaps:
    """The taps of one run in the vision tower.

    Attributes:
        n_rows, n_tokens: of what the tower runs.
        taps: bound to that.
    """

    n_rows: int
    n_tokens: int
    taps: Sequence[Tap]


@dataclass(frozen=True)
class JobRun:
    """One run of the model, of those that make up a job.

    Attributes:
        inputs: the tensors that the model takes.
        n_rows, n_tokens: of the prompt.
        taps: bound to the prompt.
        options: of `generate`; None for one forward pass.
        last: Int[batch], return the logits of this position of each row alone; None for all.
        tokens: Int[batch, n], and of these tokens alone; None for the whole vocabulary.
        ends: token ids that end a batch row while generating.
        stopped: what else ends one, here; None for nothing.
        tower: taps of the vision tower; None for none.
    """

    inputs: Mapping[str, Any]
    n_rows: int
    n_tokens: int
    taps: Sequence[Tap]
    options: Mapping[str, Any] | None = None
    last: Tensor | None = None
    tokens: Tensor | None = None
    ends: Sequence[int] = ()
    stopped: Stopped | None = None
    tower: TowerTaps | None = None


@dataclass
class JobResult:
    """What came of one run.

    Attributes:
        tapping: the taps with what they read and did.
        logits: Float[batch, position, vocab] of a forward; Float[batch, new, vocab] of a generation that asked for it.
        tokens: Int[batch, new] of a generation.
        in_tower: what its taps of the vision tower read and did.
    """

    tapping: Tapping
    logits: Tensor | None = None
    tokens: Tensor | None = None
    in_tower: Found | None = None


@dataclass
class ModelEnvoys:
    """The model that a job runs on.

    Attributes:
        envoy: its nnsight TransformersModel.
        layers: its decoder layers.
        embedding: the envoy of its input embedding.
        unembedding: the envoy of its output embedding.
        cap, scale: what the model does to the output of that; None for nothing.
        tower: the layers of its vision tower.
    """

    envoy: Any
    layers: list[LayerEnvoys]
    embedding: Any
    unembedding: Any
    cap: float | None = None
    scale: float | None = None
    tower: Sequence[LayerEnvoys] = ()

    @property
    def n_heads(self) -> list[int]:
        """Heads of each layer."""
        return [envoys.n_heads for envoys in self.layers]


def run_job(model: ModelEnvoys, runs: Sequence[JobRun], backend: Any = None) -> list[JobResult]:
    """Do the runs one after the other in one session; `TapContext.carried` lives as long as that.

    Args:
        model: what they run on.
        runs: in order.
        backend: nnsight's backend of the session; None runs it here.

    Raises:
        HookError: a hook point was not reached.
        RemoteError: of a server, in many ways; what came back is no answer to these runs.
    """
    import nnsight
    from nnsight.intervention.interleaver import OutOfOrderError

    from .blocks import SessionBlock, TraceBlock

    envoy, unembedding, cap, scale = model.envoy, model.unembedding, model.cap, model.scale
    embedding = model.embedding
    packed: dict[int, Any] = {}  # what several runs are given goes once
    travels = backend is not None
    block = None if travels else TraceBlock  # a server has nnsight's own
    plain_runs = [_plain_values(model, run, packed if travels else None) for run in runs]
    n_heads = model.n_heads
    try:
        with open_ended_loops(), envoy.session(backend=backend, tracer_cls=SessionBlock):
            carried = Carried()
            answers = nnsight.save([])
            for run in plain_runs:
                tapping = Tapping(n_heads, carried)
                tapping.start(run["n_rows"], run["taps"])
                inputs, tower, in_tower = run["inputs"], run["tower"], None
                if tower is not None:
                    in_tower = Tapping(tower["n_heads"])
                    in_tower.start(tower["n_rows"], tower["taps"])
                if travels:
                    inputs = {name: unpack(value) for name, value in inputs.items()}
                layers, last, chosen, tokens = run["layers"], run["last"], run["tokens"], None
                steps, done, wrong = [], [], []
                if run["options"] is None:
                    with envoy.trace(**inputs, tracer_cls=block):
                        if in_tower is not None:
                            run_tower_taps(in_tower, tower["layers"], tower["n_tokens"])
                        run_taps(tapping, layers, run["n_tokens"])
                        logits = envoy.output.logits
                        if last is not None:
                            logits = logits[torch.arange(len(last)), last][:, None]
                        if chosen is not None:
                            logits = logits.gather(2, chosen[:, None].to(logits.device))
                        steps.append(logits)
                else:
                    with envoy.generate(**run["options"], tracer_cls=block) as tracer:
                        with tracer.invoke(**inputs):
                            if in_tower is not None:
                                run_tower_taps(in_tower, tower["layers"], tower["n_tokens"])
                            for step in tracer.iter[:]:
                                if step and run["ends"] is not None:
                                    tapping.course.note_ends(embedding.input, run["ends"])  # waits for this step
                                    if run["stopped"] is not None and run["stopped"].rows is not None:
                                        tapping.course.end(run["stopped"].rows)
                                run_taps(tapping, layers, run["n_tokens"] + step)
                                logits = unembedding.output[:, -1]
                                wrong.append(logits.isnan().any())
                                if run["samples"] and bool(wrong[-1]):  # it would end with an error of the device
                                    raise FloatingPointError(f"NaN in the logits after {run['n_tokens'] + step} tokens")
                                if run["wants_logits"]:
                                    steps.append(finish(logits, cap, scale))
                                done.append(step)
                        with tracer.invoke():
                            tokens = tracer.result
                    is_wrong = torch.stack(wrong).tolist() if wrong else []  # once: a look waits for the device
                    if True in is_wrong:
                        n_before = run["n_tokens"] + is_wrong.index(True)
                        raise FloatingPointError(f"NaN in the logits after {n_before} tokens")
                tapping.settle()
                parts = [tapping.found()]
                if in_tower is not None:
                    in_tower.settle()
                    parts.append(in_tower.found())
                found = (steps, len(done), tokens, *parts)
                answers.append(slim(found) if travels else found)
    except OutOfOrderError as error:
        raise HookError(_unfired(model, str(error))) from None
    if travels:
        check_answers(answers, tuple(runs), _n_vocab(unembedding))
    return [_result_of(run, n_heads, *found) for run, found in zip(runs, answers, strict=True)]


def _n_vocab(unembedding: Any) -> int | None:
    """Words of the output embedding, where it is a plain one."""
    weight = getattr(unembedding._module, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.ndim == 2 else None


def _unfired(model: ModelEnvoys, text: str) -> str:
    """What nnsight says of a place that the model did not reach, in our terms."""
    every = [("", envoys) for envoys in model.layers] + [("vision.", envoys) for envoys in model.tower]
    for part, envoys in every:
        places = {
            "resid_pre": (envoys.module, ".input"),
            "z": (envoys.output_projection, ".input"),
            "attn_out": (envoys.attention, ".output"),
            "mlp_out": (envoys.mlp, ".output"),
            "resid_post": (envoys.module, ".output"),
            "pattern": (envoys.attention, ".source"),
        }
        for site, (envoy, end) in places.items():
            if envoy is not None and f"'{envoy.path}{end}" in text:
                return (
                    f"{part}{site} of layer {envoys.layer} did not fire, so nothing was read or edited there\n"
                    f"  {envoys.module.path} was not run, or not in this way"
                )
    return text


def edited(
    model: ModelEnvoys, prompt: Prompt, taps: Sequence[Tap], generates: bool, tower: TowerTaps | None = None
) -> Any:
    """A copy of the model's envoy whose traces act with the taps before anything else in them."""
    from nnsight.intervention.iterator import Iterations

    envoy = model.envoy
    tapping = Tapping(model.n_heads)
    tapping.start(prompt.n_rows, taps)
    layers = [envoys.keeping_weights() for envoys in _tapped(model.layers, taps)]
    n_tokens = prompt.n_tokens
    in_tower, tower_layers, n_there = None, [], 0
    if tower is not None:
        in_tower, n_there = Tapping([envoys.n_heads for envoys in model.tower]), tower.n_tokens
        in_tower.start(tower.n_rows, tower.taps)
        tower_layers = [envoys.keeping_weights() for envoys in _tapped(model.tower, tower.taps)]
    with READING:  # the blocks are read here, and run later
        if generates:
            steps = Iterations()  # what `tracer.iter` is; the tracer of an edit cannot be packed
            with envoy.edit() as (_, copy):
                if in_tower is not None:
                    run_tower_taps(in_tower, tower_layers, n_there)
                if layers:  # with nothing to wait for, the loop would not end
                    for step in steps[:]:
                        run_taps(tapping, layers, n_tokens + step)
        else:
            with envoy.edit() as (_, copy):
                if in_tower is not None:
                    run_tower_taps(in_tower, tower_layers, n_there)
                run_taps(tapping, layers, n_tokens)
    return copy


def _tapped(layers: Sequence[LayerEnvoys], taps: Sequence[Tap]) -> list[LayerEnvoys]:
    """The layers that taps need."""
    tapped = {tap.layer for tap in taps}
    return [envoys for envoys in layers if envoys.layer in tapped]


def _plain_values(model: ModelEnvoys, run: JobRun, packed: dict[int, Any] | None) -> dict[str, Any]:
    """A run as plain values, for the session's block; only the layers that its taps need go along.

    Args:
        model: what it runs on.
        run: the run.
        packed: inputs that are packed already; None where nothing is, and gradients reach the user's own tensors.
    """
    inputs = dict(run.inputs)
    if packed is not None:
        for name, value in inputs.items():
            if id(value) not in packed:
                packed[id(value)] = pack(value)
            inputs[name] = packed[id(value)]
    options = dict(run.options) if run.options is not None else None
    may_end = bool(run.ends) or run.stopped is not None
    return {
        "inputs": inputs,
        "n_rows": run.n_rows,
        "n_tokens": run.n_tokens,
        "taps": list(run.taps),
        "layers": _tapped(model.layers, run.taps),
        "options": options,
        "wants_logits": bool(options.pop("output_logits", False)) if options else False,
        "samples": bool(options and options.get("do_sample", False)),
        "last": run.last,
        "tokens": run.tokens,
        "ends": torch.tensor(run.ends, dtype=torch.long) if run.n_rows > 1 and may_end and run.taps else None,
        "stopped": run.stopped,
        "tower": None if run.tower is None else _plain_tower(model, run.tower),
    }


def _plain_tower(model: ModelEnvoys, tower: TowerTaps) -> dict[str, Any]:
    """Taps of the vision tower as plain values."""
    return {
        "n_heads": [envoys.n_heads for envoys in model.tower],
        "n_rows": tower.n_rows,
        "n_tokens": tower.n_tokens,
        "taps": list(tower.taps),
        "layers": _tapped(model.tower, tower.taps),
    }


def _result_of(
    run: JobRun,
    n_heads: Sequence[int],
    steps: list[Tensor],
    n_steps: int,
    tokens: Tensor | None,
    found: Found,
    in_tower: Found | None = None,
) -> JobResult:
    """The result of a run from what its block found.

    Raises:
        HookError: a hook point was not reached in every step.
    """
    tapping = Tapping(n_heads)
    tapping.take_over(found)
    if run.options is None:
        return JobResult(tapping, steps[0], in_tower=in_tower)
    assert tokens is not None
    tokens = new_tokens(tokens, run.inputs["input_ids"])
    n_new = tokens.shape[1]
    if n_steps < n_new:  # a place that is not reached ends nnsight's loop over the steps, without an error
        raise HookError(
            f"a hook point did not fire in step {n_steps} of {n_new}, so nothing was read or edited from there on\n"
            f"  asked for: {', '.join(sorted({f'{tap.site} of layer {tap.layer}' for tap in run.taps}))}\n"
            "  if the model's class embeds words and pictures apart, give one row at a time, or use backend='native'"
        )
    return JobResult(tapping, torch.stack(steps, 1) if steps else None, tokens, in_tower)
