"""Every test of the nnsight backend ends with nothing of ours left anywhere."""

from tests.support.left_behind import nothing_is_left_behind  # noqa: F401
