"""The front door: a lens on a model, and what one call of it does."""

from .lens import Lens as Lens
