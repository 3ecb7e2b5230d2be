"""A stand-in for the Hub on the loopback: a folder of models, served as the Hub serves files.

Names say how a model is served, so that one server shows everything: `open/NAME`, `gated/NAME` (its terms were not
accepted), `cut/NAME` (the first download of its weights breaks off in the middle), `without-weights/NAME`,
`without-processor/NAME`, `slow/NAME` (503 twice). What else is asked for is not there.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" * 6 + "c0ff"
LEFT_OUT = {
    "without-weights": ("model.safetensors",),
    "without-processor": ("processor_config.json", "preprocessor_config.json"),
}


class Hub:
    """What it serves, and what was asked of it.

    Attributes:
        folder: NAME/FILE.
        asked: (method, path, Range) of every request, in order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.lock = folder, [], threading.Lock()
        self.times: Counter[str] = Counter()

    def kinds(self, repo: str) -> Path | None:
        kind, _, name = repo.partition("/")
        known = kind in ("open", "gated", "cut", "slow", *LEFT_OUT)
        return self.folder / name if known and (self.folder / name).is_dir() else None


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            with hub.lock:
                hub.asked.append((self.command, self.path, self.headers.get("Range")))
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+?)(?:\?.*)?", self.path)
            api = re.match(r"/api/models/([^/]+/[^/]+)(/.*)?$", self.path)
            repo = found[1] if found else api[1] if api else ""
            folder = hub.kinds(repo)
            if folder is None:
                return self.refuse(401, "RepoNotFound", "Repository Not Found")
            if repo.startswith("gated/"):
                return self.refuse(
                    403, "GatedRepo", f"Access to model {repo} is restricted and you are not in its list"
                )
            if repo.startswith("slow/") and self.again(f"slow {self.path}") <= 2 and "config.json" in self.path:
                return self.refuse(503, "", "Service Unavailable")
            if found is None:
                return self.listing(repo, folder, api[2] or "")
            path = folder / found[3]
            if not path.is_file() or path.name in LEFT_OUT.get(repo.partition("/")[0], ()):
                return self.refuse(404, "EntryNotFound", "Entry not found")
            return self.file(repo, path, body)

        def again(self, what):
            with hub.lock:
                hub.times[what] += 1
                return hub.times[what]

        def file(self, repo, path, body):
            content = path.read_bytes()
            first = int(re.match(r"bytes=(\d+)-", self.headers.get("Range") or "bytes=0-")[1])
            self.send_response(206 if first else 200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            if not body:
                return
            is_cut = repo.startswith("cut/") and path.suffix == ".safetensors" and self.again(f"cut {path}") == 1
            if is_cut:
                self.wfile.write(content[first : len(content) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(content[first:])

        def listing(self, repo, folder, what):
            files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
            if what.startswith("/tree"):
                return self.say(
                    [] if "/additional" in what else [{"type": "file", "path": f, "size": 1} for f in files]
                )
            return self.say({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})

        def say(self, values):
            content = json.dumps(values).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def refuse(self, status, code, message):
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


@contextmanager
def serving(folder: Path):
    """The stand-in on a free port, while inside; gives its address and what it was asked."""
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
