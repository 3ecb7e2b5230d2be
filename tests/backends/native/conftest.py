"""Every test of the native backend ends with nothing of ours left in transformers or in the models."""

import pytest

from tests.support.cases import case, hooks_of_ours
from tests.support.models import FAMILIES


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest):
    from lmm_lens.backends.native import interface as attention

    yield
    assert attention.LISTENERS == ()
    assert attention._SWITCHES == {}
    used = request.node.callspec.params.get("family") if hasattr(request.node, "callspec") else None
    if used in FAMILIES:
        assert hooks_of_ours(case(used).model) == []
