"""What a request to a server trusts; how it is answered is tested with servers that lie, in tests/backends/remote."""

import ssl

import certifi
import httpx
import pytest

from lmm_lens.backends.nnsight.connection import ask, trusted

END = "-----END CERTIFICATE-----\n"


@pytest.fixture
def of_the_package(monkeypatch):
    """The certificates of httpx itself."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    return trusted()


def test_it_is_what_httpx_trusts_and_read_once(of_the_package):
    assert trusted() is of_the_package
    assert of_the_package.verify_mode == ssl.CERT_REQUIRED
    assert of_the_package.check_hostname
    with open(certifi.where(), encoding="utf-8") as file:
        assert len(of_the_package.get_ca_certs()) == file.read().count(END)


def test_a_request_reads_none(of_the_package, monkeypatch):
    read = []
    monkeypatch.setattr(ssl, "create_default_context", lambda *args, **kwargs: read.append(kwargs))
    with pytest.raises(httpx.ConnectError):
        ask("GET", "http://127.0.0.1:9", timeout=5)
    assert read == []


def test_other_certificates_that_the_environment_names_hold_from_then_on(of_the_package, monkeypatch, tmp_path):
    with open(certifi.where(), encoding="utf-8") as file:
        own = file.read().split(END)[0] + END
    (tmp_path / "own.pem").write_text(own, encoding="utf-8")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "own.pem"))
    assert len(trusted().get_ca_certs()) == 1
    monkeypatch.delenv("SSL_CERT_FILE")
    assert trusted() is of_the_package
