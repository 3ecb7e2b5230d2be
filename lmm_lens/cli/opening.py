"""What commands and configs name, opened: models and data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

from ..errors import LensError, unknown
from .network import stay_offline_if_unreached
from .waiting import waiting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..data import DataSet
    from ..lens import Lens


DTYPES = ("auto", "float32", "bfloat16", "float16")


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
    """The model that a config names."""
    placed: dict[str, Any] = {} if config.device_map is None else {"device_map": config.device_map}
    return load(config.model, config.dtype, console, config.backend, **placed)


def load(name: str, dtype: str, console: Console, backend: str = "native", **placed: Any) -> Lens:
    """A model by name, and a line that says which.

    Raises:
        LensError: a data type that is none, before anything is loaded; or no such model.
    """
    if dtype not in DTYPES:
        raise LensError(unknown("dtype", dtype, DTYPES))
    with waiting("loading the model"):
        if name != "demo":
            stay_offline_if_unreached(name)
        from ..lens import Lens

        lens = (
            Lens.demo(backend=backend) if name == "demo" else Lens.from_pretrained(name, backend, dtype=dtype, **placed)
        )
    console.print(lens)
    return lens
