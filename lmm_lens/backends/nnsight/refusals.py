"""What a server said, as an error to act on: one text for every way in which a job can fail, and no secret in any."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.schema.config import CONFIG

from ... import errors
from ...errors import LensError, RemoteError
from ..address import Address, without_login
from .connection import CONNECT_SECONDS, ask

LONGEST = 300  # characters of what a server says, in an error's first line
TOO_LARGE = "the request is too large for it: send smaller batches, or fewer runs at a time"
UNDEPLOYED = "Could not deploy this model."  # how ndif begins to say why a model is not loaded
INTERRUPTED = (  # what ndif says where a job ended for no reason of its own
    "cancelled or preempted",
    "was evicted",
    "try again later",
    "closed before message complete",  # the process that ran the block was killed
    "Broken pipe",
)
AGAIN = "nothing that finished is lost: run the same again, and a sweep with checkpoint=... goes on where it was"


class Refusals:
    """The errors for one server.

    Args:
        address: of the server.
        api_key: sent with each request; "" for none.
    """

    def __init__(self, address: Address, api_key: str) -> None:
        self.address, self.api_key = address, api_key

    def clean(self, text: str) -> str:
        """Without the key, which some servers quote, without a password, and without what steers a terminal."""
        secrets = {self.api_key, CONFIG.API.APIKEY} | self.address.secrets
        for secret in sorted((each for each in secrets if each and len(each) > 3), key=len, reverse=True):
            text = text.replace(secret, "[key]")
        return "".join(each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in text)

    def line(self, text: str) -> str:
        """The same as one line, not too long."""
        text = " ".join(self.clean(text).split())
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."

    # ------------------------------------------------------------------ the way there and back

    def unreachable(self, why: str) -> RemoteError:
        """Nothing answers."""
        return RemoteError(
            f"no nnsight server answers at {self.address}: {self.line(why)}\n"
            "  check the address and your network; nnsight.status() shows whether NDIF is up"
        )

    def lost(self, why: str, where: str = "") -> RemoteError:
        """It was there, and is no longer understood."""
        return RemoteError(f"the connection to {self.address} was lost{self.clean(where)}: {self.line(why)}\n  {AGAIN}")

    def redirected(self, status: int, target: str) -> RemoteError:
        """It sends on to somewhere else."""
        where = self.line(without_login(target.partition("?")[0]))  # what follows may be a signature
        return RemoteError(
            f"{self.address} sends on to another address ({status}: {where}), which was not "
            "followed: the key goes to the server that you name\n"
            "  if you trust that one, name it: remote=..."
        )

    def unwanted(self, what: str) -> RemoteError:
        """Its answer asks this computer for more than values."""
        return RemoteError(
            f"the answer of {self.address} asks for {self.line(what)}, which is no part of a result: it was refused, "
            "and nothing of it was run\n"
            "  save tensors, numbers, text, and lists or dicts of them; if you did, do not trust this server"
        )

    def no_values(self, what: str) -> RemoteError:
        """A job is said to be done, and the values are not there."""
        return RemoteError(
            f"{self.address} reports the job as completed, but {self.line(what)}\n"
            "  run the same again; if it stays so, compare versions with nnsight.compare()"
        )

    # ------------------------------------------------------------------ a request that was not taken

    def refused(self, status: int, body: str, headers: Mapping[str, str]) -> RemoteError:
        """A request was answered with another status than success."""
        said = self.line(_said(body, status))
        low = said.lower()
        if 300 <= status < 400:
            return self.redirected(status, headers.get("location", "nowhere"))
        if status == 429:
            pause = headers.get("retry-after", "")
            wait = f"{pause} s" if pause.isdecimal() and len(pause) < 7 else "a minute"
            return self._not_now(f"too many requests at a time (429): {said}", f"wait {wait}, then run the same again")
        if status == 503:
            return self._not_now(f"it is not available (503): {said}", "wait, then run the same again")
        if status >= 500:
            return self._not_now(
                f"it failed over the request ({status}): {said}",
                "the mistake is not in the request: run the same again later, or tell whoever runs the server",
            )
        if status == 413 or (status == 400 and "parsing the body" in low):  # what ndif 0.1.2 says above 1 MiB
            advice = TOO_LARGE
        elif "version" in low:
            advice = "install the version the server asks for: pip install nnsight==...; nnsight.compare() shows both"
        elif status in (401, 403) or "key" in low:
            have = "a key is set but was not accepted" if self.api_key else "no key is set"
            advice = f"{have}: get one at https://login.ndif.us, then nnsight.login() or set NDIF_API_KEY"
        elif _is_page(body):
            return self.page(status, body)
        else:
            advice = self.hosted()
        return RemoteError(f"{self.address} refused the request: {said}\n  {advice}")

    def _not_now(self, what: str, advice: str) -> RemoteError:
        return RemoteError(
            f"{self.address} did not take the request, {what}\n  nothing that finished is lost: {self.line(advice)}"
        )

    def page(self, status: int, body: str) -> RemoteError:
        """Something answers, and it is no nnsight server."""
        what, said = "a web page" if _is_page(body) else "something else", self.line(_said(body, status))
        return RemoteError(
            f"what answers at {self.address} is {what}, not an nnsight server ({status}: {said})\n"
            "  check the address: the server itself, not a page about it or a login in front of it"
        )

    def hosted(self) -> str:
        """Which models the server runs, as advice."""
        try:
            reply = ask("GET", f"{self.address}/status", CONNECT_SECONDS, headers=self.address.headers)
            found = dict(json.loads(reply.body)["deployments"]) if reply.status == 200 else None
        except Exception:  # it refused already; what else it does wrong is no news
            found = None
        if found is None or not all(isinstance(model, dict) for model in found.values()):
            return "its list of models cannot be read either; see nnsight.status()"
        tasks = dict(running_models(found))
        seeing = sorted(name for name, task in tasks.items() if "image-text" in task)
        if seeing:
            return f"vision-language models that it runs: {self.line(', '.join(seeing))}"
        return f"it runs no vision-language model, only: {self.line(', '.join(sorted(tasks))) or 'nothing'}"

    # ------------------------------------------------------------------ a job that failed

    def failed(self, text: str) -> Exception:
        """The error for a job that failed on the server, from its traceback."""
        text = self.clean(text)
        lines = [line for line in text.strip().splitlines() if line.strip()] or ["no reason was given"]
        if lines[0].startswith(UNDEPLOYED):
            why = self.line(" ".join(lines).removeprefix(UNDEPLOYED)) or "it does not say why"
            failure = RemoteError(
                f"{self.address} could not load the model: {why}\n"
                f"  ask whoever runs it to deploy the model, or take another; {self.hosted()}"
            )
            failure.details = text
            return failure
        start = max((i for i, line in enumerate(lines) if _raised(line)), default=len(lines) - 1)
        name, _, message = lines[start].partition(": ")
        message = "\n".join([message, *lines[start + 1 :]])
        ours = getattr(errors, name.rpartition(".")[2], None)
        if isinstance(ours, type) and issubclass(ours, LensError):
            return ours(message)
        if name.endswith("OutOfOrderError"):
            raised: Exception = OutOfOrderError(message)
            return raised
        if name == "FloatingPointError":
            return errors.ModelError(message)
        advice = "the server's own words are in the error's `details`"
        if "out of memory" in text.lower() or "OutOfMemory" in text:
            advice = "the server ran out of memory: send smaller batches, or read fewer rows or heads"
        elif "ModuleNotFoundError" in text or "ImportError" in text or "UnknownPersistentId" in text:
            advice = "the server could not rebuild what was sent: compare versions with nnsight.compare()"
        elif "execution timeout of" in text:
            advice = "send fewer prompts, layers or tokens in one job; nothing that finished is lost"
        elif any(said in text for said in INTERRUPTED):
            advice = AGAIN
        elif "attn" in text and "implementation" in text:
            advice = "the server could not switch its model to eager attention"
        failure = RemoteError(f"the job failed on {self.address}: {self.line(lines[start])}\n  {advice}")
        failure.details = text
        return failure


def running_models(found: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The models of a server that run, or are about to, and their tasks; ndif lists those on its disk too, as COLD.

    An entry that ndif could not describe has its replica's name alone, REPLICA:ModelActor:CLASS:{"repo_id": ...}.
    """
    for replica, model in found.items():
        if model.get("deployment_level") == "COLD":
            continue
        key = str(model.get("model_key") or replica)
        try:
            told = json.loads(key[key.index("{") :])
        except (ValueError, RecursionError):
            told = {}
        told = told if isinstance(told, dict) else {}
        name = model.get("repo_id") or told.get("repo_id")
        if name:
            yield str(name), str(model.get("task") or told.get("task") or key)


def _raised(line: str) -> bool:
    """Whether a line of a traceback names the exception."""
    name = line.partition(":")[0]
    return bool(name) and name.replace(".", "").replace("_", "").isalnum() and not line.startswith((" ", "Traceback"))


def _is_page(body: str) -> bool:
    return body.lstrip().startswith("<")


def _said(body: str, status: int) -> str:
    """What a body says: its `detail` where it is JSON, the title or the text of a page."""
    body = body[:20_000]
    if _is_page(body):
        title = re.search(r"<title[^>]*>([^<]*)", body, re.IGNORECASE)
        return html.unescape(title[1] if title else re.sub(r"<[^>]*>", " ", body)).strip() or f"status {status}"
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        found = body
    detail = found.get("detail", found) if isinstance(found, dict) else found
    return str(detail).strip() or f"status {status}"
