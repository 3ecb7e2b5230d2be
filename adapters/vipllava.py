"""VIP-LLaVA: LLaVA's layout with features of several vision layers joined, for pictures with visual prompts."""

from .llava import Llava


class VipLlava(Llava):
    """VIP-LLaVA 7B and 13B."""

    family = "vipllava"
    model_types = ("vipllava",)
