"""One service for all remote tests, and one of its own for a test that breaks it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.remote.service import Service

REPO = "lmm-lens/shapes-llava"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No spinner and no key of whoever runs the tests, and -v of pytest is not taken for nnsight's."""
    from nnsight import CONFIG

    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    monkeypatch.setattr(CONFIG.APP, "DEBUG", False)
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model and its processor, as a checkpoint of the Hub would be."""
    from lmm_lens import shapes

    folder = tmp_path_factory.mktemp("served") / "shapes-llava"
    for part in shapes.load("sinks"):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shared_service(model_folder: Path) -> Iterator[Service]:
    with Service(model_folder, REPO) as running:
        yield running


@pytest.fixture
def service(shared_service: Service) -> Iterator[Service]:
    """The session's service, healthy before each test. Do not kill it: take `fresh_service` for that."""
    if not shared_service.alive:
        shared_service.restart()
    shared_service.fault(None)
    with patience(shared_service):
        yield shared_service


@pytest.fixture
def fresh_service(model_folder: Path) -> Iterator[Service]:
    """A service of the test's own, to kill and restart."""
    with Service(model_folder, REPO) as running, patience(running):
        yield running


@contextmanager
def patience(service: Service, seconds: float = 60) -> Iterator[None]:
    """nnsight waits for ever; a service that is gone makes the test that waits for it fail."""
    end = threading.Timer(seconds, service.kill)
    end.start()
    try:
        yield
    finally:
        end.cancel()


@pytest.fixture
def known(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell nnsight the folder's id, which it would ask the Hub for."""
    from nnsight.modeling import huggingface

    monkeypatch.setitem(huggingface._ID_CACHE, str(model_folder), REPO)


@pytest.fixture(scope="session")
def client_model(model_folder: Path) -> Any:
    """nnsight's own wrapper of the model, without weights, as a client has it. Its id is set by `known`."""
    return client(model_folder)


def client(folder: Path, **settings: Any) -> Any:
    from nnsight import TransformersModel
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    return TransformersModel(str(folder), task="image-text-to-text", processor=processor, **settings)
