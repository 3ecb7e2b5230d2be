"""Whatever a test did, nothing of ours stays in transformers, in nnsight's pickler, or in the models that users gave.

A folder's conftest.py imports the fixture, and every test of the folder is held to it.
"""

# before nnsight, which gives every object a method that beartype cannot hash while it is being imported
import beartype  # noqa: F401
import pytest
from cloudpickle.cloudpickle import list_registry_pickle_by_value

from tests.support.cases import case, hooks_of_ours
from tests.support.models import FAMILIES


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest):
    from lmm_lens.backends.native import interface as attention

    yield
    assert attention.LISTENERS.all == ()
    assert attention._SWITCHES == {}
    assert not [name for name in list_registry_pickle_by_value() if name.startswith("lmm_lens")]
    used = request.node.callspec.params.get("family") if hasattr(request.node, "callspec") else None
    if used in FAMILIES:
        model = case(used).model
        assert hooks_of_ours(model) == []
        assert not any("forward" in vars(module) for module in model.modules())
