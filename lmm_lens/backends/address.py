"""The address of a server: what is shown of it, and which other addresses its answers may name."""

from __future__ import annotations

import base64
import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

from ..errors import LensError, RemoteError

SCHEMES = ("http", "https")
LONGEST = 8192  # characters of an address that a server names; a signed one has some hundred


class Address(str):
    """An http:// or https:// address, shown and compared without the user's name and password.

    Raises:
        LensError: it has no host, or a port that is none.
    """

    login: str  # name and password as given; it goes along when the address is pickled, since workers need it

    def __new__(cls, text: str) -> Address:
        scheme, _, rest = text.partition("://")
        login, at, place = rest.rpartition("@")  # a password may hold "/" and "@", a server's address holds neither
        shown = f"{scheme}://{place.rstrip('/')}"
        try:
            parts = urlsplit(shown)
            good = bool(parts.hostname) and (parts.port or 1) > 0 and scheme in SCHEMES and shown.isprintable()
        except ValueError:
            good = False
        if not good or " " in shown:
            raise LensError(
                f"{shown!r} is no address of a server\n  give http:// or https:// and a host, with a port where it "
                'has one: "http://127.0.0.1:5001"'
            )
        address = super().__new__(cls, shown)
        address.login = login if at else ""
        return address

    @property
    def headers(self) -> dict[str, str]:
        """What carries name and password, beside the address; nothing where it has none."""
        if not self.login:
            return {}
        return {"Authorization": "Basic " + base64.b64encode(self.login.encode()).decode()}

    @property
    def secrets(self) -> set[str]:
        """What must not be in a text: the login as given, its password, and both as they are sent."""
        password = self.login.partition(":")[2]
        sent = self.headers.get("Authorization", "").removeprefix("Basic ")
        return {secret for secret in (self.login, password, sent) if secret}


def without_login(value: Any) -> Any:
    """What may be shown of something that was given as an address."""
    if not isinstance(value, str) or "@" not in value:
        return value
    scheme, mark, rest = value.rpartition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def checked_result_address(url: str, server: Address) -> str:
    """An address that a server named for its answer, if it may be asked there.

    The server's own host may be, at any port: a server of one's own keeps large results in an object store beside it.
    NDIF and others in a cloud name an object store elsewhere, in an address that is signed for this one result. That is
    taken from a server that is itself asked over https, for an https address in the public network alone; neither the
    key nor a password goes there. A name that leads into the private network once it was looked at gains nothing:
    what answers there has no certificate for it.

    Raises:
        RemoteError: any other address.
    """
    try:
        parts = urlsplit(url)
        host, port, has_login = parts.hostname or "", parts.port, "@" in parts.netloc
    except ValueError:
        raise _refused("an address that cannot be read", server) from None
    shown = f"{parts.scheme}://{host}" + (f":{port}" if port else "")
    if parts.scheme not in SCHEMES or not host or has_login or len(url) > LONGEST or not url.isprintable():
        raise _refused("something that is no plain http address", server)
    own = urlsplit(server)
    if host == own.hostname and (parts.scheme == own.scheme or parts.scheme == "https"):
        return url
    if own.scheme == parts.scheme == "https" and port in (None, 443) and is_public(host):
        return url
    raise _refused(shown, server)


def _refused(what: str, server: Address) -> RemoteError:
    return RemoteError(
        f"{server} says that its answer is at {what}, where it was not fetched\n"
        "  answers come from the server's own host or, from a server on https, from a public host on https: name the "
        "server by the host that its results are on"
    )


def is_public(host: str) -> bool:
    """Whether no address that a host name leads to is of this machine or of a private network."""
    try:
        found = socket.getaddrinfo(host, 443, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(ipaddress.ip_address(str(each[4][0]).partition("%")[0]).is_global for each in found)
