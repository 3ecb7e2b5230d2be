"""Whatever a test did, nothing of ours stays in transformers."""

import pytest


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    from lmm_lens.backends.native import interface as attention

    yield
    assert attention.LISTENERS == ()
    assert attention._SWITCHES == {}
