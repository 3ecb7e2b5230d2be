"""A lens on its way to the workers of a long run, where the same model is opened anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..backends.identity import differences, in_words
from ..errors import LensError

if TYPE_CHECKING:
    from .lens import Lens


@dataclass(eq=False)
class TravellingLens:
    """A lens: here the one at hand, on a worker of a cluster one of its own.

    Attributes:
        lens: the lens at hand; does not travel.
        device: the kind of device it is on, which a worker must have too.
        origin: opens it elsewhere; None where nobody is to.
        model: the model's identity, which a worker's must have.
    """

    lens: Lens | None
    device: str
    origin: Callable[[], Lens] | None = None
    model: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, lens: Lens, model: Mapping[str, Any], travels: bool) -> TravellingLens:
        """A lens of a model whose identity is known, that may be opened elsewhere.

        Raises:
            LensError: it is to travel from within `lens.apply`, whose edits stay here.
        """
        if travels and lens.applied:
            raise LensError(
                f"lens.apply(...) around it edits this lens alone, and Ray workers open lenses of their own: "
                f"{', '.join(type(each).__name__ for each in lens.applied)} would not be applied there\n"
                "  run without ray, or outside of the block"
            )
        return cls(lens, lens.device.type, origin_of(lens) if travels else None, model)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "lens": None}

    def open(self) -> Lens:
        """The lens, opened where there is none yet.

        Raises:
            LensError: here it is on another kind of device, or another model.
        """
        if self.lens is not None:
            return self.lens
        assert self.origin is not None
        self.lens = self.origin()
        if self.lens.device.type != self.device:
            raise LensError(
                f"the model is on {self.device} here and on {self.lens.device.type} in a Ray worker, which would "
                "be slow and give other last bits\n"
                "  give each worker its share: ray=RayCluster(workers=2, num_gpus=1)"
            )
        differing = [] if self.model is None else differences(self.model, self.lens.identity)
        if differing:
            raise LensError(
                f"a Ray worker has opened another model than the one here: {in_words(differing)}\n"
                "  it opens the model by name: save the changed one and open that, or run without ray"
            )
        return self.lens


def origin_of(lens: Lens) -> Callable[[], Lens]:
    """What opens the same lens in another process: by name where it was opened by name, else with its model."""
    if lens.origin is not None:
        return lens.origin
    model, processor, backend = lens.model, lens.processor, lens.backend

    def reopened() -> Lens:
        from .lens import Lens

        return Lens(model, processor, backend)

    return reopened
