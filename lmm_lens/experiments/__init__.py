"""Experiments: what the lens and the interventions are put to, with the controls that belong to them."""

from .accuracy import exact_match

__all__ = ["exact_match"]
