# ruff: noqa: E402  (the environment and the import hook come before every import)
"""Set up before anything of the library is imported: offline, one thread, shapes checked."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from tests.support.torchvision_cpu import load

load()  # before transformers, which looks for torchvision once

from tests.support import shapes

shapes.install()  # before anything of the library

import pytest
import torch

from tests.support.cases import Case, case
from tests.support.models import FAMILIES

torch.set_num_threads(1)

collect_ignore = ["support"]  # holds no tests


@pytest.fixture(scope="session")
def lens():
    """The bundled model."""
    from lmm_lens import Lens

    return Lens.demo()


@pytest.fixture(scope="session")
def bridged():
    """The bundled model as a TransformerBridge."""
    from lmm_lens import Lens

    return Lens.demo(backend="transformer_lens")


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Case:
    """Each of the tiny models in turn."""
    return case(request.param)
