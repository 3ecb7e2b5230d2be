"""A server cannot run anything here: what it sends is refused by name, wherever it stands; no file is left behind."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nnsight.schema.response import ResponseModel, Status

from lmm_lens import Lens
from lmm_lens.errors import RemoteError
from tests.backends.remote.clients import fails, packed_once
from tests.backends.remote.programs import LIES, NAMES, archive, named, programs
from tests.backends.remote.service import Service

pytestmark = pytest.mark.attack
COUNTED = "programs sent by a server that did not run"

REFUSED = r"^the answer of {url} asks for {what}, which is no part of a result: .* nothing of it was run\n"
DANGEROUS = [
    name for name in NAMES if name.startswith(("posix.system (old)", "posix.system (st", "posix.system with"))
] + [
    *("posix.system", "posix.system (remembered)", "posix.system (in the hooks of a tensor)"),
    *("builtins.eval", "builtins.exec", "torch.storage._load_from_bytes", "torch.utils.collect_env.run"),
]
ADVICE = r"  save tensors, numbers, text, and lists or dicts of them; if you did, do not trust this server$"


@pytest.fixture
def refuses(served: Lens, pair: Any, service: Service, tmp_path: Path) -> Callable[..., None]:
    """A run against one attack: refused for what it asks for, and no file is there afterwards."""
    left = tmp_path / "left"

    def run(what: str, kind: str, where: str = "inline", **more: Any) -> None:
        service.attack(kind, where, file=str(left), **more)
        with fails(REFUSED.format(url=service.url, what=what) + ADVICE), packed_once():
            served.run(pair[0], logits="last")
        assert not left.exists()

    return run


def asked(name: str) -> str:
    """What a program is refused for."""
    return rf".*{re.escape(name.partition(' (')[0])}.*"


@pytest.mark.parametrize("name", DANGEROUS)
def test_these_programs_run_where_they_are_unpickled(tmp_path: Path, name: str) -> None:
    """As nnsight does it: else refusing them would show nothing."""
    left = tmp_path / "left"
    with contextlib.suppress(Exception):  # what they leave is no status
        program = named(dict(programs(str(left)))[name])
        ResponseModel.unpickle(archive({"data.pkl": program, "data/0": bytes(8), "version": b"3"}))
    assert left.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_program_in_a_result(refuses: Callable[..., None], name: str) -> None:
    refuses(asked(name), "program", "inline", name=name)


@pytest.mark.parametrize("name", ["posix.system", "BUILD"])
@pytest.mark.parametrize("where", ["first", "status", "error", "fetched"])
def test_a_program_elsewhere(refuses: Callable[..., None], where: str, name: str) -> None:
    refuses(asked(name), "program", where, name=name)


def test_a_pickle_in_no_archive(refuses: Callable[..., None]) -> None:
    refuses("a form that torch.save does not write", "program", "bare", name="posix.system")
    refuses("a form that torch.save does not write", "old_torch")


@pytest.mark.parametrize("name", LIES)
def test_an_archive_that_lies(refuses: Callable[..., None], name: str) -> None:
    refuses(LIES[name][1], "lie", name=name)


def test_records_are_stored_as_they_are(refuses: Callable[..., None]) -> None:
    refuses("compressed records", "zip_bomb")


def test_what_is_honest_is_read(served: Lens, pair: Any, service: Service) -> None:
    """Of every kind of value that a user may save in a trace."""
    with served.trace(pair[0]):
        numbers = [served.read(1, "z").norm(), 3, 2.5, 1 + 2j, True, None, 2**70]
        found = {
            "text": ("a", b"bytes", slice(1, 2)),
            "sets": [{1, 2}, frozenset([3])],
            "torch": [torch.float32, torch.Size([2, 3]), torch.device("cpu")],
            "dtypes": [torch.ones(3).to(kind) for kind in (torch.bfloat16, torch.int16, torch.bool, torch.complex64)],
            "new": [torch.ones(2).to(torch.float8_e4m3fn), torch.ones(2).to(torch.uint16)],
            "views": [torch.arange(6).reshape(2, 3).T, torch.ones(1).expand(4), torch.empty(0, 3)],
        }
        numbers = numbers.save()
        found = found.save()
    assert numbers[1:] == [3, 2.5, 1 + 2j, True, None, 2**70]
    assert numbers[0] > 0
    assert found["text"] == ("a", b"bytes", slice(1, 2))
    assert found["sets"] == [{1, 2}, frozenset([3])]
    assert found["torch"] == [torch.float32, torch.Size([2, 3]), torch.device("cpu")]
    assert [x.dtype for x in found["dtypes"]] == [torch.bfloat16, torch.int16, torch.bool, torch.complex64]
    assert all(bool((x == 1).all()) for x in found["dtypes"])
    assert [x.float().tolist() for x in found["new"]] == [[1, 1], [1, 1]]
    assert torch.equal(found["views"][0], torch.arange(6).reshape(2, 3).T)
    assert found["views"][1].tolist() == [1] * 4
    assert found["views"][2].shape == (0, 3)


def test_what_cannot_be_read_says_what_can(served: Lens, pair: Any, service: Service) -> None:
    said = r"asks for transformers\..*OutputWithPast .*, which is no part of a result: .*\n  save tensors"
    with pytest.raises(RemoteError, match=said), served.trace(pair[0]):
        whole = served.envoy.output.save()  # noqa: F841
    assert Status.COMPLETED.value == service.log()[-1]["status"]
