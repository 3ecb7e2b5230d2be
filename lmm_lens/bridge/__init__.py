"""The TransformerLens backend: any multimodal model as a TransformerBridge whose hooks all work."""

from .backend import BridgeBackend
from .build import bridge_of
from .cache import PromptCache
from .patching import PatchingModel, get_act_patch_by_span

__all__ = ["BridgeBackend", "PatchingModel", "PromptCache", "bridge_of", "get_act_patch_by_span"]
