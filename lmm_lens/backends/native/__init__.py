"""The native backend: reads and edits inside the plain Hugging Face forward, at the price of its fused kernels."""

from .backend import NativeBackend
from .session import NativeSession

__all__ = ["NativeBackend", "NativeSession"]
