"""One service for all remote tests, and one of its own for a test that breaks it."""

import inspect
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lmm_lens import Lens
from lmm_lens.bundled import shapes
from lmm_lens.runs.checkpoint import unfinished
from tests.backends.remote import stand_in
from tests.backends.remote.audit import SECRET, Payload
from tests.backends.remote.clients import REPO, client
from tests.backends.remote.service import Service

CHECKED = ("lmm_lens.core.kernels", "lmm_lens.core.rows", "lmm_lens.core.spatial")

collect_ignore = ["serving", "ndif"]  # a program of its own, which has another path
if not (os.environ.get("LMM_LENS_NDIF_MODEL") and os.environ.get("NDIF_API_KEY")):
    collect_ignore.append("test_ndif.py")  # asks the real NDIF, and only those who want it


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No spinner and no key of whoever runs the tests, and -v of pytest is not taken for nnsight's."""
    from nnsight import CONFIG

    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    monkeypatch.setattr(CONFIG.APP, "DEBUG", False)
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)


@pytest.fixture(scope="session")
def wrappers() -> list[tuple[Any, str, Any]]:
    """Where functions stand that tests/conftest.py has wrapped to check shapes, and what they are without that."""
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "lmm_lens"]
    classes = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    return [
        (owner, name, as_it_was)
        for owner in (*modules, *(owner for owner in classes if owner.__module__ in CHECKED))
        for name, value in vars(owner).items()
        if (as_it_was := unwrapped(value)) is not value
    ]


def unwrapped(value: Any) -> Any:
    if isinstance(value, (staticmethod, classmethod)):
        inner = unwrapped(value.__func__)
        return value if inner is value.__func__ else type(value)(inner)
    if isinstance(value, property):
        inner = unwrapped(value.fget)
        return value if inner is value.fget else property(inner)
    if inspect.isfunction(value) and value.__module__ in CHECKED:
        return inspect.unwrap(value)
    return value


@pytest.fixture(autouse=True)
def as_written(wrappers: list[tuple[Any, str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the shape checks: nnsight takes a wrapped function's source from within, its globals from the wrapper."""
    for owner, name, plain in wrappers:
        monkeypatch.setattr(owner, name, plain)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model and its processor, as a checkpoint of the Hub would be."""
    folder = tmp_path_factory.mktemp("served") / "shapes-llava"
    for part in shapes.load("sinks"):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shared_service(model_folder: Path) -> Iterator[Any]:
    """Ours; where `make ndif` runs the tests, NDIF's own."""
    if url := os.environ.get(stand_in.VARIABLE):
        yield stand_in.RealServer(url)
        return
    with Service(model_folder, REPO, strict=True) as running:
        yield running


@pytest.fixture
def service(shared_service: Service) -> Iterator[Service]:
    """The session's service, healthy before each test. Do not kill it: take `fresh_service` for that."""
    if not shared_service.alive:
        shared_service.restart()
    shared_service.fault(None)
    shared_service.attack(None)
    with patience(shared_service):
        yield shared_service


@pytest.fixture(scope="session")
def victim(model_folder: Path) -> Iterator[Service]:
    with Service(model_folder, REPO, strict=True) as running:
        yield running


@pytest.fixture
def fresh_service(victim: Service) -> Iterator[Service]:
    """A service to kill and restart; alive and healthy before each test."""
    if not victim.alive:
        victim.restart()
    victim.fault(None)
    with patience(victim):
        yield victim


@pytest.fixture(scope="session")
def released(model_folder: Path) -> Iterator[Service]:
    """A service that does what ndif 0.1.2 does, and is no stricter."""
    with Service(model_folder, REPO) as running:
        yield running


@pytest.fixture(scope="session")
def text_only(model_folder: Path) -> Iterator[Service]:
    """A service that runs no vision-language model."""
    with Service(model_folder, REPO, text_only=True, strict=True) as running:
        yield running


@contextmanager
def patience(service: Service, seconds: float = 300) -> Iterator[None]:
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


# ---------------------------------------------------------------------- lenses and what they send


@pytest.fixture(scope="session")
def native() -> Lens:
    """What answers from a server are compared with."""
    return Lens.demo()


@pytest.fixture(scope="session")
def shared_lens(shared_service: Service) -> Lens:
    return Lens.demo(backend="nnsight", remote=shared_service.url)


@pytest.fixture
def served(shared_lens: Lens, service: Service, sent: list[Payload]) -> Lens:
    """The bundled model on the session's service. What it sends is audited, and nothing of a test before is left."""
    unfinished(shared_lens).clear()
    return shared_lens


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Payload]]:
    """The payloads of this test, each of them held against the list in audit.py when it ends. A key is set."""
    from nnsight import CONFIG

    from lmm_lens.backends.nnsight.remote import ServerBackend

    payloads: list[Payload] = []
    serialize = ServerBackend._serialize

    def recorded(self: ServerBackend, tracer: Any) -> bytes:
        blob = serialize(self, tracer)
        payloads.append(Payload.of(blob))
        return blob

    monkeypatch.setattr(ServerBackend, "_serialize", recorded)
    monkeypatch.setattr(CONFIG.API, "APIKEY", SECRET)
    yield payloads
    for payload in payloads:
        payload.check()


@pytest.fixture(scope="session")
def batch(native: Lens) -> Any:
    """Three rows of different length, padded on the left."""
    asked = shapes.examples(3, kinds=["color", "count", "shape"])
    prompt = native.prompt([e.question for e in asked], images=[e.image for e in asked])
    assert not prompt.mask("all").all()
    return prompt


@pytest.fixture(scope="session")
def pair(native: Lens) -> tuple[Any, Any]:
    """Two clean and two corrupt prompts, which differ in one colour."""
    pairs = shapes.color_pairs(2)
    clean, corrupt = (native.prompt([p[i].question for p in pairs], images=[p[i].image for p in pairs]) for i in (0, 1))
    return clean, corrupt
