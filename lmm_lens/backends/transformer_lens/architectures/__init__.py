"""What TransformerLens lacks to bridge the multimodal models of transformers, registered with its own factory.

`register` runs when a bridge is built. The architectures that TransformerLens has no adapter for are offered through
its entry-point group `transformer_lens.architectures` too, so that they work without importing this library.
"""

from __future__ import annotations

from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES, ArchitectureAdapterFactory
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter

from .decoder import Decoder
from .hooked_attention import HookedAttention, use_hooks
from .upstream import editable, make_editable, make_tower_editable, on_any_decoder

NEW = (
    "AyaVisionForConditionalGeneration",
    "Cohere2VisionForConditionalGeneration",
    "Idefics2ForConditionalGeneration",
    "InternVLForConditionalGeneration",
    "MllamaForConditionalGeneration",
    "PaliGemmaForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
    "VideoLlavaForConditionalGeneration",
    "VipLlavaForConditionalGeneration",
)
"""Architectures that TransformerLens 4.3 has no adapter for; others that it lacks are read off the model as well."""

MENDED = (
    "Gemma3nForConditionalGeneration",
    "Gemma4ForConditionalGeneration",
    "Gemma4UnifiedForConditionalGeneration",
    "Glm4vForConditionalGeneration",
    "Llama4ForConditionalGeneration",
    "MuseGlimmerForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
)
"""Architectures whose attention TransformerLens delegates, or for which it demands torchvision."""


ON_ANY_DECODER = (
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
)
"""Architectures that TransformerLens knows with one form of decoder only."""


def adapters() -> dict[str, type[ArchitectureAdapter]]:
    """Our adapter of each architecture."""
    new: dict[str, type[ArchitectureAdapter]] = dict.fromkeys(NEW, Decoder)
    mended = {name: editable(SUPPORTED_ARCHITECTURES[name]) for name in MENDED if name in SUPPORTED_ARCHITECTURES}
    widened = {name: on_any_decoder(SUPPORTED_ARCHITECTURES[name]) for name in ON_ANY_DECODER}
    return {**new, **mended, **widened}


def register() -> None:
    """Make TransformerLens build these architectures with our adapters.

    Not done at import: TransformerLens imports us while it reads entry points, and warns of names that it finds taken.
    """
    ArchitectureAdapterFactory.discover_entry_points()
    for name, adapter in adapters().items():
        ArchitectureAdapterFactory.register_adapter(name, adapter)


__all__ = ["MENDED", "NEW", "ON_ANY_DECODER", "Decoder", "HookedAttention", "adapters", "make_editable", "register"]
__all__ += ["make_tower_editable", "use_hooks"]
