"""A job: one or several runs of the model in one nnsight session, here or on a server.

What is inside the `with` blocks is source that travels. It uses plain values, torch, nnsight and `lmm_lens.core`, so
the same lines run in this process and on a server.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.carried import Carried
from ...core.envoys import finish, run_taps
from ...core.packing import pack, slim, unpack
from ...core.tapping import Tapping
from ...core.taps import Tap
from ...errors import HookError
from ...prompts.prompt import Prompt


@dataclass(frozen=True)
class Request:
    """One run of the model.

    Attributes:
        inputs: the tensors that the model takes.
        n_rows, n_tokens: of the prompt.
        taps: bound to the prompt.
        options: of `generate`; None for one forward pass.
        last: Int[row], return the logits of this position of each row alone; None for all.
        pick: Int[row, n], and of these tokens alone; None for all.
    """

    inputs: Mapping[str, Any]
    n_rows: int
    n_tokens: int
    taps: Sequence[Tap]
    options: Mapping[str, Any] | None = None
    last: Tensor | None = None
    pick: Tensor | None = None


@dataclass
class JobResult:
    """What came of one run.

    Attributes:
        tapping: the taps with what they read and did.
        logits: Float[batch, position, vocab] of a forward; Float[batch, new, vocab] of a generation that asked for it.
        tokens: Int[batch, new] of a generation.
    """

    tapping: Tapping
    logits: Tensor | None = None
    tokens: Tensor | None = None


@dataclass
class Target:
    """The model that a job runs on.

    Attributes:
        envoy: its nnsight TransformersModel.
        parts: its layers, see `lmm_lens.core.envoys`.
        head: the envoy of its output embedding.
        cap, scale: what the model does to the output of that; None for nothing.
    """

    envoy: Any
    parts: list[dict[str, Any]]
    head: Any
    cap: float | None = None
    scale: float | None = None


def perform(target: Target, requests: Sequence[Request], backend: Any = None) -> list[JobResult]:
    """Run the requests one after the other in one session; `TapContext.carried` lives as long as that.

    Args:
        target: the model.
        requests: the runs.
        backend: nnsight's backend of the session; None runs it here.
    """
    import nnsight
    from nnsight.intervention.interleaver import OutOfOrderError

    envoy, head, cap, scale = target.envoy, target.head, target.cap, target.scale
    packed: dict[int, Any] = {}  # what several runs are given goes once
    travels = backend is not None
    runs = [_plain(target, request, packed if travels else None) for request in requests]
    n_heads = [part["n_heads"] for part in target.parts]
    try:
        with warnings.catch_warnings():
            # an open-ended loop over the steps of a generation ends with a warning, by design
            warnings.filterwarnings("ignore", message=".*was never reached", category=UserWarning)
            with envoy.session(backend=backend):
                carried = Carried()
                answers = nnsight.save([])
                for run in runs:
                    tapping = Tapping(n_heads, carried)
                    tapping.start(run["n_rows"], run["taps"])
                    inputs = run["inputs"]
                    if travels:
                        inputs = {name: unpack(value) for name, value in inputs.items()}
                    parts, last, pick, tokens = run["parts"], run["last"], run["pick"], None
                    steps, done = [], []
                    if run["options"] is None:
                        with envoy.trace(**inputs):
                            run_taps(tapping, parts, run["n_tokens"])
                            logits = finish(head.output, cap, scale)
                            if last is not None:
                                logits = logits[torch.arange(len(last)), last][:, None]
                            if pick is not None:
                                logits = logits.gather(2, pick[:, None].to(logits.device))
                            steps.append(logits)
                    else:
                        with envoy.generate(**run["options"]) as tracer:
                            with tracer.invoke(**inputs):
                                for step in tracer.iter[:]:
                                    run_taps(tapping, parts, run["n_tokens"] + step)
                                    logits = head.output[:, -1]
                                    if bool(logits.isnan().any()):
                                        raise FloatingPointError(
                                            f"NaN in the logits after {run['n_tokens'] + step} tokens"
                                        )
                                    if run["wants_logits"]:
                                        steps.append(finish(logits, cap, scale))
                                    done.append(step)
                            with tracer.invoke():
                                tokens = tracer.result
                    tapping.settle()
                    found = (
                        steps,
                        len(done),
                        tokens,
                        tapping.kept,
                        tapping.edited,
                        tapping.moved,
                        tapping.short,
                        tapping.sums,
                    )
                    answers.append(slim(found) if travels else found)
    except OutOfOrderError as error:
        raise HookError(_unfired(target, str(error))) from None
    return [_answer(request, target, *plain) for request, plain in zip(requests, answers, strict=True)]


def _unfired(target: Target, text: str) -> str:
    """What nnsight says of a place that the model did not reach, in our terms."""
    for part in target.parts:
        places = {"resid_pre": ("module", ".input"), "z": ("z", ".input"), "attn_out": ("attention", ".output")}
        places |= {
            "mlp_out": ("mlp", ".output"),
            "resid_post": ("module", ".output"),
            "pattern": ("attention", ".source"),
        }
        for site, (name, end) in places.items():
            if name in part and f"'{part[name].path}{end}" in text:
                return (
                    f"{site} of layer {part['layer']} did not fire, so nothing was read or edited there\n"
                    f"  {part['module'].path} was not run, or not in this way"
                )
    return text


def edited(
    envoy: Any, target: Target, parts: list[dict[str, Any]], prompt: Prompt, taps: Sequence[Tap], generates: bool
) -> Any:
    """A copy of the envoy whose traces act with the taps before anything else in them."""
    from nnsight.intervention.iterator import Iterations

    tapping = Tapping([part["n_heads"] for part in target.parts])
    tapping.start(prompt.n_rows, taps)
    parts = [{**part, "keeps": True} for part in parts]
    n_tokens = prompt.n_tokens
    if generates:
        steps = Iterations()  # what `tracer.iter` is; the tracer of an edit cannot be packed
        with envoy.edit() as (_, copy):
            for step in steps[:]:
                run_taps(tapping, parts, n_tokens + step)
    else:
        with envoy.edit() as (_, copy):
            run_taps(tapping, parts, n_tokens)
    return copy


def _plain(target: Target, request: Request, packed: dict[int, Any] | None) -> dict[str, Any]:
    """A request as plain values; only the layers that its taps need go along.

    Args:
        target: the model.
        request: the run.
        packed: inputs that are packed already; None where nothing is, and gradients reach the user's own tensors.
    """
    tapped = {tap.layer for tap in request.taps}
    inputs = dict(request.inputs)
    if packed is not None:
        for name, value in inputs.items():
            if id(value) not in packed:
                packed[id(value)] = pack(value)
            inputs[name] = packed[id(value)]
    options = dict(request.options) if request.options is not None else None
    return {
        "inputs": inputs,
        "n_rows": request.n_rows,
        "n_tokens": request.n_tokens,
        "taps": list(request.taps),
        "parts": [part for part in target.parts if part["layer"] in tapped],
        "options": options,
        "wants_logits": bool(options.pop("output_logits", False)) if options else False,
        "last": request.last,
        "pick": request.pick,
    }


def _answer(
    request: Request,
    target: Target,
    steps: list[Tensor],
    n_steps: int,
    tokens: Tensor | None,
    kept: Any,
    edited: Any,
    moved: Any,
    short: Any,
    sums: Any,
) -> JobResult:
    tapping = Tapping([part["n_heads"] for part in target.parts])
    tapping.kept, tapping.edited, tapping.moved, tapping.short, tapping.sums = kept, edited, moved, short, sums
    if request.options is None:
        return JobResult(tapping, steps[0])
    assert tokens is not None
    n_new = tokens.shape[1] - request.n_tokens
    if n_steps < n_new:  # a place that is not reached ends nnsight's loop over the steps, without an error
        raise HookError(
            f"a hook point did not fire in step {n_steps} of {n_new}, so nothing was read or edited from there on\n"
            f"  asked for: {', '.join(sorted({f'{tap.site} of layer {tap.layer}' for tap in request.taps}))}"
        )
    return JobResult(tapping, torch.stack(steps, 1) if steps else None, tokens[:, request.n_tokens :])
