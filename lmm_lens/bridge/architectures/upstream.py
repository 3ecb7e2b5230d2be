"""TransformerLens's own adapters, with the edits that they discard and the imports they do not need put right."""

from __future__ import annotations

from typing import Any

from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import AttentionBridge

from .attention import HookedAttention, use_hooks
from .decoder import Decoder


def make_editable(adapter: Any) -> bool:
    """Replace the delegated attention of an adapter's decoder layers by one whose hooks can be edited.

    Returns:
        Whether there was any.
    """
    parts = getattr(adapter.components.get("blocks"), "submodules", {})
    delegated = [name for name, part in parts.items() if type(part) is AttentionBridge]
    for name in delegated:
        old = parts[name]
        parts[name] = HookedAttention(str(old.name), adapter.cfg, old.submodules, optional=old.optional)
    return bool(delegated)


def editable(base: type[ArchitectureAdapter]) -> type[ArchitectureAdapter]:
    """An adapter of TransformerLens whose hooks can all be edited and which needs no library for tensors."""

    def prepare_model(self: Any, hf_model: Any) -> None:
        base.prepare_model(self, hf_model)
        if make_editable(self):
            use_hooks(hf_model)

    members = {"required_libraries": [], "prepare_model": prepare_model, "__doc__": editable.__doc__}
    return type(f"Editable{base.__name__}", (base,), members)


class Llava(SUPPORTED_ARCHITECTURES["LlavaForConditionalGeneration"]):  # type: ignore[misc]
    """LLaVA on any decoder and any vision tower: TransformerLens's adapter knows LLaMA's layout and CLIP's."""

    def prepare_model(self, hf_model: Any) -> None:
        """Fall back on reading the model where it is not laid out as LLaMA with CLIP or SigLIP."""
        layer = hf_model.get_decoder().layers[0]
        known = ("clip_vision_model", "siglip_vision_model")
        if hasattr(layer.self_attn, "q_proj") and hasattr(layer.mlp, "gate_proj"):
            super().prepare_model(hf_model)
            if hf_model.config.vision_config.model_type not in known:
                paths = {id(module): path for path, module in hf_model.named_modules()}
                self.component_mapping = {**self.components, **Decoder.vision_parts(self, hf_model, paths)}
        else:
            reader = Decoder(self.cfg)
            reader.prepare_model(hf_model)
            self.component_mapping = reader.component_mapping
