"""What configs name, opened: the model, and the data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

from ..errors import LensError, unknown
from .score import DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..data import DataSet
    from ..lens import Lens


class Opens(Protocol):
    """A config, as far as it names a model and a data set."""

    @property
    def model(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device_map(self) -> str | None: ...
    @property
    def backend(self) -> str: ...
    @property
    def data(self) -> Mapping[str, Any]: ...
    @property
    def n(self) -> int | None: ...


def open_data(config: Opens) -> DataSet:
    """The data set that a config names, or its first rows."""
    from ..data import named

    data = named(**config.data)
    return data if config.n is None else data.take(config.n)


def open_lens(config: Opens, console: Console) -> Lens:
    """The model that a config names; LensError for a data type that is none, before it is loaded."""
    from ..lens import Lens

    if config.dtype not in DTYPES:
        raise LensError(unknown("dtype", config.dtype, DTYPES))
    with console.status("loading the model"):
        if config.model == "demo":
            lens = Lens.demo(backend=config.backend)
        else:
            placed: dict[str, Any] = {} if config.device_map is None else {"device_map": config.device_map}
            lens = Lens.from_pretrained(config.model, config.backend, dtype=config.dtype, **placed)
    console.print(lens)
    return lens
