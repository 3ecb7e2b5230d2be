"""The service speaks nnsight's protocol: plain nnsight client code gives what the model gives, over a real socket."""

import json
import linecache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nnsight
import numpy as np
import pytest
import torch
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.backends.remote import travelling
from tests.backends.remote.clients import REPO, client
from tests.backends.remote.service import Service
from tests.backends.remote.travelling import attention_off, halved_twice, says, scaled, steps_and_ids

nnsight.register(travelling)  # what it defines travels by source
TEXT = "USER: <image> what color is the circle? ASSISTANT:"
pytestmark = pytest.mark.usefixtures("known")


@pytest.fixture(scope="module")
def plain(model_folder: Path) -> Any:
    """The model itself, without nnsight: what every answer is compared with."""
    return AutoModelForImageTextToText.from_pretrained(model_folder).requires_grad_(False)


@pytest.fixture(scope="module")
def inputs(model_folder: Path) -> dict[str, torch.Tensor]:
    pixels = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    return dict(AutoProcessor.from_pretrained(model_folder)(text=[TEXT], images=[pixels], return_tensors="pt"))


def test_a_trace_gives_the_models_logits(service: Service, client_model: Any, plain: Any, inputs: dict) -> None:
    with client_model.trace(**inputs, remote=service.url):
        logits = client_model.output.logits.save()
    torch.testing.assert_close(logits, plain(**inputs).logits)
    assert not client_model.dispatched  # no weights were needed here
    entry = service.log()[-1]
    assert entry["status"] == "COMPLETED"
    assert entry["payload_bytes"] > 1000
    assert entry["result_bytes"] > 1000
    assert entry["env"] == {"attn_implementation": "sdpa"}
    assert not any("PIL" in name for name in entry["globals"])
    assert "nnsight.modeling.transformers.TransformersModel" in entry["globals"]


def test_generation_step_by_step(service: Service, client_model: Any, plain: Any, inputs: dict) -> None:
    with client_model.generate(**inputs, max_new_tokens=3, do_sample=False, remote=service.url) as tracer:
        best = nnsight.save([])
        for _ in tracer.iter[:]:
            best.append(client_model.lm_head.output[0, -1].argmax().item())
    answer = plain.generate(**inputs, max_new_tokens=3, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert best == answer.tolist()


def test_a_session_calls_a_function_that_generates(
    service: Service, client_model: Any, plain: Any, inputs: dict
) -> None:
    with client_model.session(remote=service.url):
        steps, ids = nnsight.save(steps_and_ids(client_model, inputs, 2, 3))
        steps, ids = nnsight.save(steps), nnsight.save(ids)
    torch.testing.assert_close(ids, plain.generate(**inputs, max_new_tokens=3, do_sample=False))
    assert steps.shape == (ids.shape[1] - inputs["input_ids"].shape[1], 1, plain.config.text_config.hidden_size)


def test_a_session_calls_a_function_with_two_traces(
    service: Service, client_model: Any, plain: Any, inputs: dict
) -> None:
    with client_model.session(remote=service.url):
        result = nnsight.save(halved_twice(client_model, inputs, 2))
    torch.testing.assert_close(result[0], plain(**inputs).logits)
    hook = plain.model.language_model.layers[2].register_forward_hook(lambda module, args, out: out * 0.5)
    try:
        torch.testing.assert_close(result[1], plain(**inputs).logits)
    finally:
        hook.remove()


def test_a_plain_object_travels_and_what_it_gathered_returns(service: Service, client_model: Any, inputs: dict) -> None:
    scale = travelling.Scale(1.0)
    with client_model.session(remote=service.url):
        norms = nnsight.save(scaled(client_model, inputs, 1, scale)[1])
    assert len(norms) == 1
    assert norms[0] > 0
    assert scale.norms == []  # the server had a copy


def test_attention_is_read_and_written_at_its_first_level_operation(
    service: Service, client_model: Any, plain: Any, inputs: dict
) -> None:
    with client_model.session(remote=service.url):
        result = nnsight.save(attention_off(client_model, inputs, 1))
    (query, key, value), scaling, out, pattern, logits = result
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    torch.testing.assert_close(out, expected.transpose(1, 2))
    assert pattern is None
    projection = plain.model.language_model.layers[1].self_attn.o_proj
    hook = projection.register_forward_pre_hook(lambda module, args: (args[0] * 0,))
    try:
        torch.testing.assert_close(logits, plain(**inputs).logits)
    finally:
        hook.remove()


class Heard:
    """A display that only listens."""

    enabled = True

    def __init__(self) -> None:
        self.statuses: list[str] = []
        self.logged: list[str] = []

    def update(self, response: Any) -> None:
        if response.status.value == "LOG":
            self.logged.append(response.description)
        else:
            self.statuses.append(response.status.value)
            assert response.description

    def refresh(self) -> None: ...


def test_statuses_come_in_order_and_prints_as_log(service: Service, client_model: Any) -> None:
    backend = client_model._remote_backend(service.url, True, None, False)
    backend.display = heard = Heard()
    with client_model.session(backend=backend):
        loud = nnsight.save(says("hello from the other side"))
    assert loud == "HELLO FROM THE OTHER SIDE"
    assert heard.statuses == ["RECEIVED", "QUEUED", "RUNNING", "COMPLETED"]
    assert "hello from the other side" in heard.logged


def test_a_large_result_is_fetched_by_url(service: Service, client_model: Any) -> None:
    backend = client_model._remote_backend(service.url, True, None, False)
    kinds, fetch = [], backend.download_result
    backend.download_result = lambda data: kinds.append(type(data)) or fetch(data)
    with client_model.session(backend=backend):
        noise = torch.rand(1_000_000).save()
    assert noise.shape == (1_000_000,)
    assert kinds == [str]


def test_a_job_can_be_polled(service: Service, client_model: Any, plain: Any, inputs: dict) -> None:
    with client_model.trace(**inputs, remote=service.url, blocking=False) as tracer:
        logits = client_model.output.logits.save()  # noqa: F841  (the name it comes back under)
    found = None
    while found is None:
        found = tracer.backend()
    torch.testing.assert_close(found["logits"], plain(**inputs).logits)


@pytest.mark.parametrize(
    ("wrapper", "differs"),
    [
        ("nnsight.modeling.transformers.TransformersModel", {"repo_id": "lmm-lens/other"}),
        ("nnsight.modeling.transformers.TransformersModel", {"task": "text-generation"}),
        ("nnsight.modeling.transformers.TransformersModel", {"revision": "v2"}),
        ("nnsight.modeling.vlm.VisionLanguageModel", {"class": None}),
    ],
)
def test_another_identity_is_refused(
    service: Service, client_model: Any, inputs: dict, wrapper: str, differs: dict[str, Any]
) -> None:
    key = {"repo_id": REPO, "revision": None, "task": "image-text-to-text", **differs}
    key.pop("class", None)
    backend = RemoteBackend(f"{wrapper}:{json.dumps(key)}", host=service.url)
    with (
        pytest.raises(RemoteError, match=f"is not deployed: no deployment with this {next(iter(differs))}"),
        client_model.trace(**inputs, backend=backend),
    ):
        client_model.output.logits.save()
    assert service.log()[-1]["http"] == 404


def test_the_attention_a_client_has_is_the_one_it_gets(
    service: Service, client_model: Any, model_folder: Path, inputs: dict
) -> None:
    eager = client(model_folder, attn_implementation="eager")
    patterns = []
    for model in (eager, client_model, eager):
        with model.trace(**inputs, remote=service.url):
            pattern = nnsight.save(model.model.language_model.layers[0].self_attn.output[1])
        patterns.append(pattern)
    assert patterns[1] is None
    torch.testing.assert_close(patterns[0].sum(-1), torch.ones_like(patterns[0].sum(-1)))
    torch.testing.assert_close(patterns[0], patterns[2])


def test_the_same_line_of_a_changed_file_runs_its_new_code(
    service: Service, client_model: Any, inputs: dict, tmp_path: Path
) -> None:
    path = tmp_path / "changing.py"
    norms = []
    for factor in (1, 3):
        path.write_text(
            "def run(model, inputs):\n    with model.trace(**inputs):\n"
            f"        norm = (model.output.logits * {factor}).norm()\n    return norm\n"
        )
        linecache.clearcache()
        module = SimpleNamespace()
        exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
        run = module.run
        with client_model.session(remote=service.url):
            norm = nnsight.save(run(client_model, inputs))
        norms.append(norm)
    torch.testing.assert_close(norms[1], norms[0] * 3)


def test_a_picture_is_refused_and_its_module_named(service: Service, client_model: Any) -> None:
    with (
        pytest.raises(RemoteError, match="No module named 'PIL'"),
        client_model.trace(TEXT, images=[Image.new("RGB", (48, 48))], remote=service.url),
    ):
        client_model.output.logits.save()


def test_what_nnsight_asks_about_a_service(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnsight.CONFIG.API, "HOST", service.url)
    status = nnsight.status()
    assert status[REPO]["task"] == "image-text-to-text"
    assert status[REPO]["state"] == "RUNNING"
    assert nnsight.ndif.whoami("a-key") == {"email": "someone@example.org", "tags": []}
    there = nnsight.ndif.get_remote_env(force_refresh=True)["packages"]
    assert there["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert not {"lmm_lens", "lmm-lens"} & set(there)


def test_a_service_without_vision_language_models(
    text_only: Service, client_model: Any, inputs: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nnsight.CONFIG.API, "HOST", text_only.url)
    assert [entry["task"] for entry in nnsight.status().deployments.values()] == ["text-generation"]
    with (
        pytest.raises(RemoteError, match="is not deployed"),
        client_model.trace(**inputs, remote=text_only.url),
    ):
        client_model.output.logits.save()
