"""Any family nobody wrote an adapter for: which tokens are visual is known, where each lies in the picture is not."""

from .base import Adapter


class Generic(Adapter):
    """Image tokens by id, decoder layers by search. No grid, so pixels are not mapped to tokens."""

    family = "generic"
