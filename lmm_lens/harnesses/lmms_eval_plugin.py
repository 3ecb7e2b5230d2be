"""What lmms-eval finds through the entry-point group `lmms_eval.models`: the name `lmm_lens`, for all tasks."""

from __future__ import annotations

from typing import Any

MODULE = "lmm_lens.harnesses.lmms_eval_models"


def manifest() -> Any:
    """The model's name and classes, as lmms-eval registers them."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("lmm_lens", f"{MODULE}.SimpleLensModel", f"{MODULE}.ChatLensModel")
