# ruff: noqa: E402  (the environment and the import hook come before every import)
"""Set up before anything of the library is imported: offline, one thread, shapes checked at run time."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from jaxtyping import install_import_hook

# the shape annotations of the pure functions are checked in the tests, not in users' hot paths
install_import_hook(
    ["lmm_lens.core.kernels", "lmm_lens.core.selection", "lmm_lens.core.spatial", "lmm_lens.results"],
    "beartype.beartype",
)

import pytest
import torch

from tests.cases import Case, case
from tests.models import FAMILIES

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error:::lmm_lens")  # a warning of our own code is a failure


@pytest.fixture(scope="session")
def lens():
    """The bundled model."""
    from lmm_lens import Lens

    return Lens.demo()


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Case:
    """Each of the tiny models in turn."""
    return case(request.param)
