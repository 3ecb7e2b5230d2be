"""Mistral Small 3.1 and later: Pixtral's layout, with each square of patches merged into one token."""

from .pixtral import Pixtral


class Mistral3(Pixtral):
    """Mistral 3; `spatial_merge_size` patches along each side make one token."""

    family = "mistral3"
    model_types = ("mistral3", "mistral_large4")
