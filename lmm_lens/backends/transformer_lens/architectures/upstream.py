"""TransformerLens's own adapters, with the edits that they discard and the imports they do not need put right."""

from __future__ import annotations

from typing import Any

from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import AttentionBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from .decoder import Decoder, norm_of, opaque_vision
from .hooked_attention import HookedAttention, HookedTowerAttention, use_hooks

FORKS = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")  # the stream before the norm, by head
KNOWN_TOWERS = ("clip_vision_model", "siglip_vision_model")


def make_editable(adapter: Any) -> bool:
    """Replace the delegated attention of an adapter's decoder layers by one whose hooks can be edited.

    Returns:
        Whether there was any.
    """
    blocks = adapter.components.get("blocks")
    parts = getattr(blocks, "submodules", {})
    delegated = [name for name, part in parts.items() if type(part) is AttentionBridge]
    if delegated:
        blocks.hook_aliases = {name: hook for name, hook in blocks.hook_aliases.items() if name not in FORKS}
    for name in delegated:
        old = parts.pop(name)  # Gemma 3n's is named self_attn, unlike any other
        parts["attn"] = HookedAttention(str(old.name), adapter.cfg, old.submodules, optional=old.optional)
    return bool(delegated)


def make_tower_editable(adapter: Any) -> None:
    """Replace the attention of an adapter's vision tower by one whose `hook_pattern` can be edited."""
    encoder = adapter.components.get("vision_encoder")
    layers = getattr(encoder, "submodules", {}).get("encoder_layers")
    parts = getattr(layers, "submodules", {})
    old = parts.get("attn")
    if type(old) is AttentionBridge:
        parts["attn"] = HookedTowerAttention(str(old.name), old.config, old.submodules)


def editable(base: type[ArchitectureAdapter]) -> type[ArchitectureAdapter]:
    """An adapter of TransformerLens whose hooks can all be edited and which needs no library for tensors."""

    def prepare_model(self: Any, hf_model: Any) -> None:
        base.prepare_model(self, hf_model)
        self.cfg.is_multimodal = True
        final = self.components.get("ln_final")
        if type(final) is GeneralizedComponent:  # without hook_scale, so that no attribution could apply it
            path = str(final.name)
            self.components["ln_final"] = norm_of(path, hf_model.get_submodule(path), self.cfg)
        if make_editable(self):
            use_hooks(hf_model)

    members = {"required_libraries": [], "prepare_model": prepare_model, "__doc__": editable.__doc__}
    return type(f"Editable{base.__name__}", (base,), members)


def on_any_decoder(base: type[ArchitectureAdapter]) -> type[ArchitectureAdapter]:
    """An adapter of the LLaVA kind for every decoder and vision tower: TransformerLens's knows LLaMA's and CLIP's."""

    def prepare_model(self: Any, hf_model: Any) -> None:
        layer = hf_model.get_decoder().layers[0]
        if not (hasattr(layer.self_attn, "q_proj") and hasattr(layer.mlp, "gate_proj")):
            reader = Decoder(self.cfg)
            reader.prepare_model(hf_model)
            self.component_mapping = reader.component_mapping
            return
        self.cfg.attn_implementation = "eager"
        base.prepare_model(self, hf_model)
        if hf_model.config.vision_config.model_type not in KNOWN_TOWERS:
            self.component_mapping = {**self.components, **opaque_vision(hf_model)}

    members = {"prepare_model": prepare_model, "__doc__": on_any_decoder.__doc__}
    return type(f"AnyDecoder{base.__name__}", (base,), members)
