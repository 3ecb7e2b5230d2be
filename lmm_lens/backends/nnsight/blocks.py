"""nnsight's tracers, which read a `with` block while no other thread reads sources.

nnsight finds the source of a block, parses it and compiles it when it is first entered.
"""

from __future__ import annotations

import ast
from types import CodeType, FrameType
from typing import Any

from nnsight.intervention.tracer import InterleavingTracer, Invoker
from nnsight.tracing.tracer import Tracer

from ..sources import READING


class _ReadsAlone(Tracer):  # type: ignore[misc]  # nnsight has no types
    @staticmethod
    def source(filename: str) -> str:
        with READING:
            return str(Tracer.source(filename))

    def parse(self, source: str, lineno: int) -> ast.With | ast.AsyncWith | None:
        with READING:
            block: ast.With | ast.AsyncWith | None = super().parse(source, lineno)
        return block

    def compile(self, module: ast.Module, frame: FrameType) -> CodeType:
        with READING:
            code: CodeType = super().compile(module, frame)
        return code


class SessionBlock(_ReadsAlone):
    """The block of a session."""

    def __reduce__(self) -> Any:
        """As nnsight's own, which is all that a server has."""
        return Tracer, (), self.__getstate__()


class TraceBlock(_ReadsAlone, InterleavingTracer):  # type: ignore[misc]
    """The block of a trace or of a generation."""

    def invoke(self, *args: Any, **kwargs: Any) -> InvokeBlock:
        """One of the inputs of the trace, with a block of its own."""
        return InvokeBlock(self, *args, **kwargs)

    def __reduce__(self) -> Any:
        """As nnsight's own, which is all that a server has."""
        return InterleavingTracer, (self.envoy, self.fn), self.__getstate__()


class InvokeBlock(_ReadsAlone, Invoker):  # type: ignore[misc]
    """The block of one input of a trace."""
