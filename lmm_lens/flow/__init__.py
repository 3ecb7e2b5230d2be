"""Information flow: by which routes, and in which layers, what the picture shows reaches the answer."""

from .measuring import ROUTES, information_flow
from .result import InformationFlow

__all__ = ["ROUTES", "InformationFlow", "information_flow"]
