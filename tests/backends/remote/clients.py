"""A client of the service, and its answers beside those of a lens here."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lmm_lens.errors import RemoteError
from tests.backends.remote.audit import SECRET

REPO = "lmm-lens/shapes-llava"


def client(folder: Path, **settings: Any) -> Any:
    from nnsight import TransformersModel
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    return TransformersModel(str(folder), task="image-text-to-text", processor=processor, **settings)


@contextmanager
def fails(pattern: str) -> Iterator[pytest.ExceptionInfo[RemoteError]]:
    """A RemoteError of that text: what happened and what to do, without the key in anything that could be printed."""
    with pytest.raises(RemoteError, match=pattern) as caught:
        yield caught
    error = caught.value
    text = str(error)
    assert text.count("\n") == 1
    assert all(line.startswith("  ") for line in text.splitlines()[1:])
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    for shown in ("".join(traceback.format_exception(error)), repr(error), error.details, str(vars(error))):
        assert SECRET not in shown


PACKED: list[bytes] = []


@contextmanager
def packed_once() -> Iterator[None]:
    """Inside, the same payload is sent by whatever asks, packed when it was first needed: only the answer matters."""
    from lmm_lens.backends.nnsight.remote import ServerBackend

    pack = ServerBackend._serialize

    def kept(self: ServerBackend, tracer: Any) -> bytes:
        if not PACKED:
            PACKED.append(pack(self, tracer))
        return PACKED[0]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ServerBackend, "_serialize", kept)
        yield


def run_once_packed(served: Any, pair: Any) -> Any:
    """A run, of which only the answer matters."""
    with packed_once():
        return served.run(pair[0], logits="last")


def same(given: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Equal tensors within the tolerance, NaN where the other has NaN."""
    torch.testing.assert_close(given, expected, atol=tolerance, rtol=tolerance, equal_nan=True)


def same_run(given: Any, expected: Any) -> None:
    """Logits of real rows, all reads, positions, reports and sums of two runs of one prompt."""
    real = expected.prompt.mask("all")
    rows = real if expected.logits.shape[1] == real.shape[1] else real.any(1)
    same(given.logits[rows], expected.logits[rows])
    assert given.reads.keys() == expected.reads.keys()
    for key, value in expected.reads.items():
        same(given.reads[key], value)
    assert all(torch.equal(given.positions[name], value) for name, value in expected.positions.items())
    assert [report.edits for report in given.reports] == [report.edits for report in expected.reports]
    assert all(report.n_edits for report in given.reports)
    for mine, theirs in zip(given.reports, expected.reports, strict=True):
        assert mine.moved == pytest.approx(theirs.moved, abs=1e-3)


def same_generation(given: Any, expected: Any) -> None:
    """Tokens, text, and the logits of each step where a row was not finished."""
    assert torch.equal(given.tokens, expected.tokens)
    assert given.text == expected.text
    same(given.logits, expected.logits)
    assert [report.edits for report in given.reports] == [report.edits for report in expected.reports]
