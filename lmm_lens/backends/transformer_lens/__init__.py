"""The TransformerLens backend: any multimodal model as a TransformerBridge whose hooks all work."""

from .backend import BridgeBackend
from .build import bridge_of

__all__ = ["BridgeBackend", "bridge_of"]
