"""What a server says in words: no secret and nothing that steers a terminal is shown, and each case has its text."""

from typing import Any

import nnsight
import pytest

from lmm_lens import Lens
from lmm_lens.errors import LensError, RemoteError
from tests.backends.remote.audit import SECRET
from tests.backends.remote.clients import fails, run_once_packed, same_run
from tests.backends.remote.service import Service


def test_a_password_is_sent_and_never_shown(pair: Any, native: Lens, service: Service, sent: list, caplog: Any) -> None:
    secret = "my/own@pass:word"
    given = service.url.replace("://", f"://someone:{secret}@")
    lens = Lens.demo(backend="nnsight", remote=given)
    same_run(lens.run(pair[0]), native.run(pair[0]))
    assert "authorization" in service.log()[-1]["headers"]
    shown = [repr(lens), str(lens.remote), repr(lens.origin), repr(lens._backend.transport()), caplog.text]
    assert lens.remote == service.url
    assert repr(lens).endswith(f"on {service.url}")
    for kind, more in {
        "code": {"status": 400, "detail": f"who is someone:{secret}?"},
        "redirect": {"status": 307, "target": given},
        "page": {"status": 200},
    }.items():
        service.attack(kind, "request", **more)
        with pytest.raises(RemoteError) as caught:
            lens.run(pair[0])
        shown.append(f"{caught.value!r} {caught.value.details}")
    with pytest.raises(RemoteError) as caught:
        lens.run(pair[0], remote=f"http://someone:{secret}@127.0.0.1:9")
    shown.append(repr(caught.value))
    with pytest.raises(LensError) as refused:
        lens.run(pair[0], remote=f"ftp://someone:{secret}@127.0.0.1:9")
    shown.append(repr(refused.value))
    with pytest.raises(LensError) as refused:
        Lens.demo(remote=given)
    shown.append(repr(refused.value))
    for text in shown:
        assert "pass:word" not in text
        assert "someone" not in text


def test_what_steers_a_terminal_is_not_printed(
    served: Lens, pair: Any, service: Service, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nnsight.CONFIG.APP, "REMOTE_LOGGING", True)
    service.attack("escapes", "escapes", key=SECRET)
    with fails(r"^the job failed on .*: RuntimeError: .\[31mred.\[0m \[key\]") as caught:
        run_once_packed(served, pair)
    shown = capsys.readouterr().out
    assert "owned" in shown
    assert not any(
        code in shown + str(caught.value) + caught.value.details for code in ("\x1b]", "\x1b[2J", "\x1b[31m")
    )


# ---------------------------------------------------------------------- in other words


TEXTS = {
    429: r"did not take the request, too many requests at a time \(429\): slow down\n  .* lost: wait 7 s, then",
    500: r"did not take the request, it failed over the request \(500\): slow down\n  .*the mistake is not in",
    502: r"did not take the request, it failed over the request \(502\)",
    503: r"did not take the request, it is not available \(503\): slow down\n  .* lost: wait, then run",
    413: r"refused the request: slow down\n  the request is too large for it: send smaller batches",
    403: r"refused the request: slow down\n  a key is set but was not accepted",
}


@pytest.mark.parametrize("where", ["request", "socket"])
@pytest.mark.parametrize("status", TEXTS)
def test_a_status_has_its_own_text(served: Lens, pair: Any, service: Service, status: int, where: str) -> None:
    service.attack("code", where, status=status, detail="slow down", headers={"retry-after": "7"})
    with fails(rf"^{service.url} {TEXTS[status]}"):
        run_once_packed(served, pair)


@pytest.mark.parametrize(
    ("kind", "where", "status", "text"),
    [
        (
            "page",
            "request",
            200,
            r"is a web page, not an nnsight server \(200: Sign in & continue\)\n  check the",
        ),
        ("page", "request", 404, r"is a web page, not an nnsight server \(404: Sign in & continue\)"),
        ("page", "socket", 404, r"is a web page, not an nnsight server \(404: Sign in & continue\)"),
        ("page", "request", 503, r"it is not available \(503\): Sign in & continue"),
        ("other_json", "request", 200, r"is something else, not an nnsight server \(200: \['something', 'else'\]\)"),
    ],
)
def test_something_else_answers(
    served: Lens, pair: Any, service: Service, kind: str, where: str, status: int, text: str
) -> None:
    service.attack(kind, where, status=status)
    with fails(text):
        run_once_packed(served, pair)


@pytest.mark.parametrize("said", ["hello", "{}", "[]", '{"session_id": {}}', "[" * 100_000, "<html>"])
def test_a_websocket_that_greets_otherwise(served: Lens, pair: Any, service: Service, said: str) -> None:
    service.attack("hello", "hello", text=said)
    with fails("^what answers at .* is (something else|a web page), not an nnsight server"):
        run_once_packed(served, pair)
