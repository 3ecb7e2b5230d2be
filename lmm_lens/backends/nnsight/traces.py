"""The user's own `with` blocks: which trace is under way, and what `Lens.apply` cannot edit."""

from __future__ import annotations

from typing import Any

from ...core.tapping import Tapping
from ...errors import InterventionError


def trace_under_way() -> Any:
    """A weak reference to what serves the block that runs, None outside of traces."""
    from greenlet import getcurrent

    return getattr(getcurrent(), "mediator", None)


class NNsightSession:
    """`Lens.apply`: nothing is hooked in advance, since `run`, `generate` and `trace` carry what is applied.

    A direct call of the user's model would not be edited, so that it is refused.

    Args:
        model: the user's.
        envoy: the wrapping of its twin, or of itself.
    """

    n_passes = 0

    def __init__(self, model: Any, envoy: Any) -> None:
        self.tapping = Tapping(())
        self.model, self.is_twin = model, envoy._module is not model

    def __enter__(self) -> NNsightSession:
        self.handle = self.model.register_forward_pre_hook(self.refuse) if self.is_twin else None
        return self

    def __exit__(self, *exception: object) -> None:
        if self.handle is not None:
            self.handle.remove()

    @staticmethod
    def refuse(*call: object) -> None:
        """The hook of a direct call."""
        raise InterventionError(
            "with backend='nnsight', lens.apply edits lens.run, lens.generate and lens.trace, not direct calls of the "
            "model\n  use those, or a lens with backend='native', which edits direct calls too"
        )
