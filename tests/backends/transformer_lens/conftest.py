"""The bundled model in a bridge."""

import pytest

from lmm_lens import Lens


@pytest.fixture(scope="module")
def bridged() -> Lens:
    return Lens.demo(backend="transformer_lens")
