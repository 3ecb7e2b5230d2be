"""Whether the Hub can be reached at all; where it cannot, nothing is asked of it over and over."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from ..errors import printable

HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
PROXIES = ("https_proxy", "all_proxy", "http_proxy")


def stay_offline_if_unreached(model: str) -> None:
    """Tell huggingface_hub to look on this machine alone, where the name of the Hub cannot be resolved.

    It asks six times otherwise, which takes 25 seconds and as many lines. Nothing is done for a model in a folder,
    behind a proxy, which resolves names itself, and where huggingface_hub was imported before: it reads this once.
    """
    settled = "HF_HUB_OFFLINE" in os.environ or "huggingface_hub" in sys.modules
    proxied = any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES)
    if settled or proxied or not HUB_NAME.fullmatch(model) or Path(model).exists() or _resolves():
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    said = f"no network: {model!r} is looked for among what was downloaded before"
    Console(stderr=True).print(printable(said), markup=False, highlight=False, soft_wrap=True)


def _resolves() -> bool:
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.getaddrinfo(address.hostname, address.port or 443)
    except OSError:
        return False
    return True
