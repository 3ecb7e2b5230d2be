"""An answer that is none: what came is held against what was asked for, and writes no variable that was not."""

import copy
import pickle
from typing import Any

import pytest
import torch

from lmm_lens import AblateHeads, Lens, Read
from lmm_lens.backends.address import Address, checked_result_address, is_public
from lmm_lens.errors import LensError, RemoteError
from tests.backends.remote.clients import fails, same_run
from tests.backends.remote.service import Service

pytestmark = pytest.mark.attack
COUNTED = "wrong answers of a server that were refused"

READ = Read("z", [1], rows="last")
RUNS = {
    "shape": r"logits of shape \[2, 45, 90\], not float32 \[1, 45, 90\]",
    "vocabulary": r"logits of shape \[2, 45, 90\], not float32 \[2, 45, 89\]",
    "dtype": r"logits that are floats, not int64 \[2, 45, 90\]",
    "infinite": "finite logits",
    "text": r"logits of shape \[2, 45, 90\], not str",
    "runs": "one result for each run",
    "no_runs": "one result for each run",
    "read": r"what was asked for alone, not \('z', 4\)",
    "count": r"what was asked for alone, not \(0, 99\)",
    "nan_count": "finite counts of what was edited",
    "sum": "a finite sum 'x' of layer 1",
    "positions": "positions of z of layer 1 within the sequence",
    "rows": r"z of layer 1 of 2 x 1 rows, not float32 \[1, 1, 1\]",
}


@pytest.mark.parametrize("name", RUNS)
def test_an_answer_to_another_question(served: Lens, pair: Any, service: Service, name: str) -> None:
    service.attack("tamper", name=name)
    with fails(
        rf"^what the server sent is no answer to this job: it should have {RUNS[name]}\n"
        r"  compare versions with nnsight.compare\(\); if they agree, do not trust this server$"
    ):
        served.run(pair[0], [AblateHeads([(1, 2)])], read=[READ])


def test_tokens_of_no_vocabulary(served: Lens, pair: Any, service: Service) -> None:
    service.attack("tamper", name="tokens")
    with fails("it should have tokens of a vocabulary of 90"):
        served.generate(pair[0], max_new_tokens=2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("others", "it sent __builtins__, os, which the block does not name"),
        ("missing", "it did not send answers, which the block saves"),
    ],
)
def test_values_that_were_not_asked_for(served: Lens, pair: Any, service: Service, name: str, text: str) -> None:
    service.attack("tamper", name=name)
    with fails(rf"^{service.url} reports the job as completed, but {text}\n  run the same again"):
        served.run(pair[0])


def test_what_a_block_only_reads_keeps_its_value(served: Lens, native: Lens, pair: Any, service: Service) -> None:
    service.attack("tamper", name="read_only")
    same_run(served.run(pair[0]), native.run(pair[0]))


def test_a_trace_writes_what_it_saves(served: Lens, pair: Any, service: Service) -> None:
    os = "mine"
    service.attack("tamper", name="others")
    with pytest.raises(RemoteError, match="it sent __builtins__, os, which"), served.trace(pair[0]):
        z = served.read(1, "z").save()
    assert os == "mine"
    service.attack("tamper", name="missing")
    with pytest.raises(RemoteError, match="it did not send z, which the block saves"), served.trace(pair[0]):
        z = served.read(1, "z").save()
    service.attack(None)
    scale = 2
    with served.trace(pair[0]):
        z = served.read(1, "z") * scale
        number = (1 + 1).save()
        z.save()
    assert z.shape[0] == 2
    assert number == scale == 2  # one object on the server, so that both come back


@pytest.mark.parametrize("data", [None, "", {"answers": 1}, [1], 3])
def test_completed_without_values(served: Lens, pair: Any, service: Service, data: Any) -> None:
    service.attack("empty", "empty", data=data)
    with fails(rf"^{service.url} reports the job as completed, but sent no values\n  run the same again; if it stays"):
        served.run(pair[0])


def test_a_result_that_is_no_dict(served: Lens, pair: Any, service: Service) -> None:
    service.attack("no_dict")
    with fails("reports the job as completed, but sent something else than named values"):
        served.run(pair[0])


# ---------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("http://127.0.0.1:9000/bucket/x?X-Amz-Signature=1", "http://127.0.0.1:5001"),
        ("https://127.0.0.1:9000/bucket/x", "http://127.0.0.1:5001"),
        ("https://93.184.216.34/bucket/x?X-Amz-Signature=1", "https://api.example.org"),
        ("https://api.example.org/x", "https://api.example.org"),
    ],
)
def test_where_a_result_may_be(url: str, server: str) -> None:
    assert checked_result_address(url, Address(server)) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://93.184.216.34/x",  # not https
        "https://93.184.216.34:8443/x",  # a port of its own
        "http://api.example.org/x",  # less than the server itself
        "https://127.0.0.1/x",
        "https://localhost/x",
        "https://10.0.0.8/x",
        "https://192.168.1.1/x",
        "https://169.254.169.254/x",
        "https://[::1]/x",
        "https://[fe80::1]/x",
        "https://[::ffff:10.0.0.1]/x",
        "https://100.64.0.1/x",
        "https://0/x",
        "https://2130706433/x",  # 127.0.0.1 as one number
        "https://no-such-host.invalid/x",
        f"https://93.184.216.34/{'x' * 9000}",
    ],
)
def test_where_no_result_is_fetched(url: str) -> None:
    with pytest.raises(RemoteError, match="where it was not fetched"):
        checked_result_address(url, Address("https://api.example.org"))


def test_public_addresses() -> None:
    assert is_public("93.184.216.34")
    assert not is_public("127.0.0.1")


def test_an_address_hides_its_login_and_keeps_it() -> None:
    address = Address("http://me:pw@host:5001/")
    assert address == str(address) == "http://host:5001"
    assert "pw" not in repr(address)
    for same in (pickle.loads(pickle.dumps(address)), copy.deepcopy(address), Address("http://me:pw@host:5001")):
        assert (same, same.login) == (address, "me:pw")
    assert Address("http://host").headers == {}


@pytest.mark.parametrize(
    "text", ["http://", "http://host:port", "http://ho st", "http://host\r\nx: y", "http://host:99999"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(LensError, match=r"is no address of a server\n  give http:// or https:// and a host"):
        Lens.demo(backend="nnsight", remote=text)


def test_bools_are_zero_or_one(served: Lens, pair: Any, service: Service) -> None:
    with served.trace(pair[0]):
        odd = odd_bools().save()
    assert odd.tolist() == [True, False]


def odd_bools() -> torch.Tensor:
    return torch.tensor([7, 0], dtype=torch.uint8).view(torch.bool)
