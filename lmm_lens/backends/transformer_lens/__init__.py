"""The TransformerLens backend: any multimodal model as a TransformerBridge whose hooks all work."""

from .backend import TransformerLensBackend
from .build import bridge_of

__all__ = ["TransformerLensBackend", "bridge_of"]
