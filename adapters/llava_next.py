"""LLaVA-NeXT (LLaVA-1.6, the "HD" LLaVA): any resolution, in up to five crops."""

from .anyres import AnyRes


class LlavaNext(AnyRes):
    """LLaVA-1.6 on any decoder: Vicuna, Mistral, LLaMA-3, Qwen, Yi."""

    family = "llava_next"
    model_types = ("llava_next",)
