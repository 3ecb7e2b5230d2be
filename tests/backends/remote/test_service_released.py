"""The service does what ndif 0.1.2 was seen to do, and what that means for a lens."""

import re
from collections.abc import Iterator
from typing import Any

import nnsight
import pytest
import torch
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.intervention.backends.remote import RemoteError as NNsightRemoteError

from lmm_lens import VAR, Lens, Read, score_heads
from lmm_lens.backends.nnsight import versions
from lmm_lens.backends.nnsight.remote import ServerBackend
from lmm_lens.core.layer_envoys import LayerEnvoys
from lmm_lens.errors import RemoteError
from tests.backends.remote import travelling
from tests.backends.remote.audit import Payload
from tests.backends.remote.clients import REPO, fails, same, same_generation, same_run
from tests.backends.remote.service import Service

pytestmark = pytest.mark.long
nnsight.register(travelling)


@pytest.fixture
def released_lens(released: Service, sent: list[Payload]) -> Iterator[Lens]:
    released.fault(None)
    yield Lens.demo(backend="nnsight", remote=released.url)
    released.fault(None)


# ---------------------------------------------------------------------- what a block reads is a copy, written back


def test_reading_a_layers_input_while_generating_breaks_the_generation(
    released: Service, known: None, client_model: Any, pair: Any
) -> None:
    """In plain nnsight: among the layer's arguments is the cache. Its first norm has no other argument."""

    inputs, url = dict(pair[0].inputs), released.url

    def steps(read: str) -> Any:
        with client_model.generate(max_new_tokens=3, remote=url) as tracer:
            logits = nnsight.save([])
            with tracer.invoke(**inputs):
                for _ in tracer.iter[:]:
                    layer = client_model.model.language_model.layers[1]
                    if read == "layer":
                        layer.input  # noqa: B018
                    if read == "norm":
                        layer.input_layernorm.input  # noqa: B018
                    logits.append(client_model.lm_head.output[:, -1])
        return torch.stack(list(logits))

    plain = steps("nothing")
    assert torch.equal(steps("norm"), plain)
    try:
        broken = steps("layer")
    except NNsightRemoteError:
        return
    assert broken.shape != plain.shape or (broken - plain).abs().max() > 1e-2


def test_the_old_way_to_the_residual_stream_is_found_out_before_an_answer_is_taken(
    released_lens: Lens, pair: Any, monkeypatch: Any
) -> None:
    """As a lens would be on a server that behaves so, whatever it reads."""
    envoys = released_lens._backend.model_envoys.layers
    monkeypatch.setattr(LayerEnvoys, "entering", lambda self: self.module.input)
    monkeypatch.setattr(LayerEnvoys, "enter", lambda self, stream: setattr(self.module, "input", stream))
    assert all(each.entries for each in envoys)
    with fails(
        r"one edit gave two answers on http://.*: where a layer ends, and where the next begins \(.*\)\n  it does"
    ):
        released_lens.generate(pair[0], read=[Read("resid_pre", [0])], max_new_tokens=3)


def test_the_two_runs_that_must_agree_go_once(released_lens: Lens, native: Lens, pair: Any, monkeypatch: Any) -> None:
    from lmm_lens.backends.nnsight import backend

    jobs, run_job = [], backend.run_job
    monkeypatch.setattr(
        backend, "run_job", lambda model, runs, *more: jobs.append(len(runs)) or run_job(model, runs, *more)
    )
    read = [Read("resid_pre", [2])]
    for _ in range(2):
        same_run(released_lens.run(pair[0], read=read), native.run(pair[0], read=read))
    for _ in range(2):
        options = {"max_new_tokens": 3, "logits": True}
        given = released_lens.generate(pair[0], read=read, **options)
        same_generation(given, native.generate(pair[0], **options))
    released_lens.run(pair[0], read=["z"])
    assert jobs == [3, 1, 3, 1, 1]


# ---------------------------------------------------------------------- programs


def test_nested_sources_and_any_module_of_the_server_are_there(
    released: Service, known: None, client_model: Any
) -> None:
    inputs = {"input_ids": torch.tensor([[1, 5, 7, 8, 6]])}
    with client_model.session(remote=released.url):
        found = nnsight.save(travelling.nested_source(client_model, inputs))
    with client_model.session(remote=released.url):
        joined = nnsight.save(travelling.imports_functools("ab"))
    assert found is not None
    assert joined is not None


# ---------------------------------------------------------------------- jobs


def test_a_model_that_cannot_be_deployed_is_told_in_the_job(released: Service, pair: Any, sent: list) -> None:
    lens = Lens.demo("plain", backend="nnsight", remote=released.url)
    with fails(
        rf"^{released.url} could not load the model: Model lmm-lens/shapes-llava-plain .*\n"
        rf"  ask whoever runs it to deploy the model, or take another; vision-language models that it runs: {REPO}$"
    ) as caught:
        lens.run(pair[0])
    assert caught.value.details.startswith("Could not deploy this model. ")


def test_the_text_of_a_deployment_that_fails_inside_is_no_error_of_python(released_lens: Lens) -> None:
    backend = ServerBackend("key", released_lens.remote, {}, 1.0)  # type: ignore[arg-type]
    error = backend.refusals.failed(
        "Could not deploy this model. Traceback (most recent call last):\n"
        "TypeError: describe_checkpoint() got an unexpected keyword argument 'trust_remote_code'"
    )
    assert type(error) is RemoteError
    assert "could not load the model: Traceback (most recent call last): TypeError: describe_checkpoint()" in str(error)


AGAIN = r"nothing that finished is lost: run the same again"
ENDED = {
    "Your job was cancelled or preempted by the server.": AGAIN,
    "Your job exceeded the execution timeout of 3600s.": r"send fewer prompts, layers or tokens in one",
    "Replica was evicted while processing your request. Sorry for the inconvenience. Please try again later.": AGAIN,
    "Error submitting request to model deployment. Please try again later. Sorry for the inconvenience.": AGAIN,
    "Critical server error occurred. Please try again later. Sorry for the inconvenience.": AGAIN,
    "Traceback (most recent call last):\nConnectionError: connection closed before message complete\n": AGAIN,
    "Traceback (most recent call last):\nBrokenPipeError: [Errno 32] Broken pipe\n": AGAIN,
}


@pytest.mark.parametrize("said", ENDED)
def test_a_job_that_the_server_ended_has_its_words_and_what_to_do(released_lens: Lens, said: str) -> None:
    """In ndif's own sentences: an operator, its clock, an actor, Ray or a runner that was killed."""
    backend = ServerBackend("key", released_lens.remote, {}, 1.0)  # type: ignore[arg-type]
    error = backend.refusals.failed(said)
    first, second = str(error).splitlines()
    assert type(error) is RemoteError
    assert first == f"the job failed on {released_lens.remote}: {said.strip().splitlines()[-1]}"
    assert re.match(f"  {ENDED[said]}", second)


def test_models_on_the_servers_disk_are_not_listed_as_running(released_lens: Lens) -> None:
    backend = ServerBackend("key", released_lens.remote, {}, 1.0)  # type: ignore[arg-type]
    assert backend.refusals.hosted() == f"vision-language models that it runs: {REPO}"


def test_a_slow_deployment_is_waited_for_longer_than_any_other_silence(
    released_lens: Lens, native: Lens, pair: Any, released: Service
) -> None:
    released.fault("cold", seconds=3)
    released_lens._backend.timeout = 2.0
    same_run(released_lens.run(pair[0]), native.run(pair[0]))
    released.fault("cold", seconds=30)
    released_lens._backend.timeout = 0.5
    with fails(
        r"nothing was heard from .* for 3 s \(job \w+, last status DEPLOYING\)\n  nothing that finished is lost"
    ):
        released_lens.run(pair[0])


def test_a_request_that_is_too_large_is_told_so(released_lens: Lens, pair: Any) -> None:
    noise = torch.rand(2**19)
    with (
        fails(
            r"refused the request: There was an error parsing the body\n  the request is too large for it: send small"
        ),
        released_lens.trace(pair[0]),
    ):
        total = nnsight.save(float(noise.sum()))  # noqa: F841


def test_statuses_and_results_are_those_of_ndif(released: Service, known: None, client_model: Any) -> None:
    backend: RemoteBackend = client_model._remote_backend(released.url, True, None, False)
    seen, kinds, fetch = [], [], backend.download_result
    backend.display = type("Heard", (), {"enabled": True, "refresh": lambda self: None})()
    backend.display.update = lambda response: seen.append(response.status.value)
    backend.download_result = lambda data: kinds.append(type(data)) or fetch(data)
    with client_model.session(backend=backend):
        noise = torch.rand(1_000_000).save()  # noqa: F841
    assert [each for each in seen if each != "LOG"] == ["RECEIVED", "QUEUED", "DISPATCHED", "RUNNING", "COMPLETED"]
    assert kinds == [bytes]


# ---------------------------------------------------------------------- versions


@pytest.fixture
def unknown(monkeypatch: Any) -> None:
    monkeypatch.setattr(versions, "_known", set())


def test_a_server_whose_nnsight_is_too_old_is_found_out_before_a_job_goes(
    released_lens: Lens, native: Lens, pair: Any, released: Service, unknown: None
) -> None:
    released.fault("old")
    n_before = len(released.log())
    with fails(
        r"runs nnsight 0\.8\.0, and 0\.8\.1 or later is needed there: 0\.8\.0 leaves a model's attention as it is.*\n"
        r"  nothing was sent; whoever runs the server can upgrade it: pip install 'nnsight>=0\.8\.1'$"
    ):
        released_lens.run(pair[0])
    assert len(released.log()) == n_before
    released.fault(None)
    same_run(released_lens.run(pair[0]), native.run(pair[0]))


@pytest.mark.parametrize(
    ("told", "least", "is_older"),
    [
        ("0.8.0", (0, 8, 1), True),
        ("0.8.1", (0, 8, 1), False),
        ("0.10", (0, 8, 1), False),
        ("4.57.1", (5,), True),
        ("5.0.0.dev0", (5,), False),
        ("0.8.1+cpu", (0, 8, 1), False),
        ("of today", (5,), False),
        (None, (5,), False),
        (5, (6,), False),
    ],
)
def test_versions_are_compared_as_numbers(told: Any, least: tuple[int, ...], is_older: bool) -> None:
    assert versions._older(told, least) == is_older


def test_the_list_of_the_docs_is_the_one_that_is_checked() -> None:
    from pathlib import Path

    text = (Path(__file__).parents[3] / "docs" / "howto" / "remote.md").read_text(encoding="utf-8")
    for name, (least, _) in versions.NEEDS.items():
        assert f"| {name} | {'.'.join(map(str, least))} " in text


# ---------------------------------------------------------------------- what is built on it


def test_var_and_scores_of_an_answer_are_the_native_ones(released_lens: Lens, native: Lens, pair: Any) -> None:
    edits = [VAR(sink_dims="auto", sink_threshold="auto", min_nonsink_ratio=0.1)]
    given, expected = (lens.generate(pair[0], edits, max_new_tokens=4, logits=True) for lens in (released_lens, native))
    same_generation(given, expected)
    given, expected = (score_heads(lens, pair[0], "nonsink_mass", query="answer") for lens in (released_lens, native))
    same(given.values, expected.values)
