# ruff: noqa: RET504  (a trace's block binds names; it cannot return)
"""What the service refuses to run, so that a client that passes here does not depend on luck."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import nnsight
import pytest
import torch
from nnsight.intervention.backends.remote import RemoteError

from lmm_lens.bundled.shapes import picture
from tests.backends.remote import travelling
from tests.backends.remote.clients import REPO
from tests.backends.remote.service import SERVER, Service

nnsight.register(travelling)
pytestmark = pytest.mark.usefixtures("known")


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([[1, 5, 7, 8, 6]])}  # words only: enough to be refused


def run(service: Service, model: Any, function: Any, *arguments: Any) -> Any:
    with model.session(remote=service.url):
        result = nnsight.save(function(*arguments))
    return result


def test_a_listed_module_can_be_imported(service: Service, client_model: Any) -> None:
    result = run(service, client_model, travelling.times_pi, torch.ones(1))
    torch.testing.assert_close(result, torch.full((1,), torch.pi))
    assert "math" in service.log()[-1]["globals"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (travelling.refers_to_functools, "could not be read .ModuleNotFoundError: No module named 'functools'"),
        (travelling.imports_functools, "Traceback(.|\n)*import functools(.|\n)*ModuleNotFoundError: No module named"),
        (travelling.opens_a_file, "NameError: name 'open' is not defined"),
    ],
)
def test_the_standard_library_is_not_open(service: Service, client_model: Any, function: Any, message: str) -> None:
    with pytest.raises(RemoteError, match=message):
        run(service, client_model, function, "ab")
    assert service.log()[-1]["status"] == "ERROR"


FORBIDDEN = {
    "weight": "'NoneType' object has no attribute 'weight'",
    "configuration": "'NoneType' object has no attribute 'config'",
    "module_itself": "'NoneType' object has no attribute 'in_features'",
    "source_names": "has no operation 'names'",
    "nested_source": "a source inside a source needs the module",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_block_runs_where_there_is_no_model(
    service: Service, client_model: Any, inputs: dict[str, Any], name: str
) -> None:
    with pytest.raises(RemoteError, match=FORBIDDEN[name]):
        run(service, client_model, getattr(travelling, name), client_model, inputs)


def test_a_trusted_service_lets_blocks_reach_the_model(
    model_folder: Path, client_model: Any, inputs: dict[str, Any]
) -> None:
    with Service(model_folder, REPO, trusted=True) as service:
        process = service.process
        found = run(service, client_model, travelling.weight, client_model, inputs)
        names = run(service, client_model, travelling.source_names, client_model, inputs)
    assert found.shape == (client_model.config.text_config.vocab_size, client_model.config.text_config.hidden_size)
    assert "attention_interface_1" in names
    assert process is not None
    assert process.poll() == -9  # and nothing is left running


def test_what_refers_to_lmm_lens_is_refused(service: Service, client_model: Any) -> None:
    with pytest.raises(RemoteError, match=r"No module named 'lmm_lens' on this server, which was asked for lmm_lens\."):
        run(service, client_model, picture, None)
    assert any(name.startswith("lmm_lens.") for name in service.log()[-1]["globals"])


def test_a_whole_module_does_not_travel(service: Service, client_model: Any) -> None:
    with (
        pytest.raises(RemoteError, match=r"could not be read .ModuleNotFoundError"),
        client_model.session(remote=service.url),
    ):
        nnsight.save(travelling.says("a"))


def test_the_service_does_not_start_where_lmm_lens_can_be_imported(model_folder: Path) -> None:
    repository = Path(__file__).parents[3]
    command = [sys.executable, "-I", "-S", str(SERVER), "--packages", str(repository)]
    ended = subprocess.run(
        [*command, "--model", str(model_folder), "--repo", REPO], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 1
    assert "lmm_lens can be imported here" in ended.stderr
    assert ended.stdout == ""
