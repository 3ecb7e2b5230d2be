"""An adapter that reads a model's decoder off the model itself.

TransformerLens describes each architecture in a file of its own; two thirds of the multimodal ones have none. What a
circuit analysis needs is alike in all of them: embedding, layers of norm, attention, norm, feed-forward, a final norm,
an unembedding, and an opaque vision tower with a projector. `Decoder` finds these by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    DelegatedAttentionBlockBridge,
    EmbeddingBridge,
    GatedMLPBridge,
    LinearBridge,
    NormalizationBridge,
    RotaryEmbeddingBridge,
    UnembeddingBridge,
    VisionProjectionBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from lmm_lens.adapters.walker import ATTENTION, MLP, OUTPUT_PROJECTION, find_layers
from lmm_lens.errors import ModelError

from .hooked_attention import HookedAttention, use_hooks

NORMS = (  # the field's names for the norms around the attention and the feed-forward
    {"ln1": "input_layernorm", "ln1_post": "post_attention_layernorm", "ln2": "pre_feedforward_layernorm",
     "ln2_post": "post_feedforward_layernorm"},
    {"ln1": "input_layernorm", "ln1_post": "post_self_attn_layernorm", "ln2": "post_attention_layernorm",
     "ln2_post": "post_mlp_layernorm"},
    {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"},
    {"ln1": "input_layernorm"},
)  # fmt: skip
PROJECTORS = ("multi_modal_projector", "connector", "modality_projection", "merger", "aligner", "mm_projector")


class Block(DelegatedAttentionBlockBridge):
    """A decoder layer; where it attends to the picture instead of the sequence, that is its `attn`."""

    def set_original_component(self, original_component: nn.Module) -> None:
        """Bind the layer, choosing its kind of attention."""
        super().set_original_component(original_component)
        found = [name for name in ATTENTION if getattr(original_component, name, None) is not None]
        if found and "attn" in self.submodules:
            self.submodules["attn"].name = found[0]


class Decoder(ArchitectureAdapter):
    """Any multimodal model whose attention goes through the attention interface of transformers."""

    supports_fold_ln = False

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.is_multimodal = True
        self.cfg.attn_implementation = "eager"
        self.cfg.positional_embedding_type = "rotary"
        self._extract_vision_dims(cfg)
        self.weight_processing_conversions = {}
        self.component_mapping = {}

    def prepare_model(self, hf_model: Any) -> None:
        """Find the parts, now that there is a model to look at."""
        super().prepare_model(hf_model)
        self.component_mapping = self.parts_of(hf_model)
        use_hooks(hf_model)

    def parts_of(self, model: Any) -> dict[str, Any]:
        """The bridge components of a model."""
        paths = {id(module): path for path, module in model.named_modules()}
        layers = decoder_layers(model)
        blocks = paths[id(layers[0])].rpartition(".")[0]
        text = blocks.rpartition(".")[0]
        decoder = model.get_submodule(text)
        final = [name for name, child in decoder.named_children() if "norm" in name.lower() or name == "ln_f"]
        found: dict[str, Any] = opaque_vision(model)
        found["embed"] = EmbeddingBridge(name=paths[id(decoder.get_input_embeddings())])
        if hasattr(decoder, "rotary_emb"):
            found["rotary_emb"] = RotaryEmbeddingBridge(name=f"{text}.rotary_emb")
        parts = self.layer_parts(layers)
        found["blocks"] = Block(name=blocks, submodules=parts)
        if "ln2" not in parts:  # attention and feed-forward read the same stream
            found["blocks"].hook_aliases.pop("hook_resid_mid")
        if final:
            norm = norm_of(f"{text}.{final[0]}", getattr(decoder, final[0]), self.cfg)
            found["ln_final"] = norm
            self.cfg.uses_rms_norm = getattr(norm, "uses_rms_norm", True)
            self.cfg.normalization_type = "RMS" if self.cfg.uses_rms_norm else "LN"
            self.cfg.rmsnorm_uses_offset = getattr(norm, "uses_weight_offset", False)
        head = model.get_output_embeddings()
        if head is None:
            raise ModelError(
                f"{type(model).__name__} has no output embedding, so it says nothing to analyse\n"
                "  expected a model for generation, such as LlavaForConditionalGeneration\n"
                "  load it with AutoModelForImageTextToText"
            )
        found["unembed"] = UnembeddingBridge(name=paths[id(head)], config=self.cfg)
        return found

    def layer_parts(self, layers: list[nn.Module]) -> dict[str, Any]:
        """What every layer holds; parts that some layers lack are optional."""
        first = next(layer for layer in layers if _first(layer, ATTENTION))
        parts: dict[str, Any] = {}
        names = next((norms for norms in NORMS if all(hasattr(first, name) for name in norms.values())), {})
        for key, name in names.items():
            parts[key] = norm_of(name, getattr(first, name), self.cfg)
        attention = _first(first, ATTENTION)
        parts["attn"] = self.attention(attention, getattr(first, attention))
        mlp = _first(first, MLP)
        if mlp:
            parts["mlp"] = self.mlp(mlp, [getattr(layer, mlp, None) for layer in layers])
        return parts

    def attention(self, name: str, module: nn.Module) -> HookedAttention:
        """The attention of a layer, its projections bridged where they are separate."""
        parts: dict[str, Any] = {}
        if all(hasattr(module, f"{key}_proj") for key in "qkv"):
            parts = {key: LinearBridge(name=f"{key}_proj", optional=True) for key in "qkv"}
        elif hasattr(module, "qkv_proj"):
            parts["qkv"] = LinearBridge(name="qkv_proj")
        parts["o"] = LinearBridge(name=_first(module, OUTPUT_PROJECTION))
        for norm in ("q_norm", "k_norm"):
            if hasattr(module, norm):
                parts[norm] = GeneralizedComponent(name=norm, optional=True)
        return HookedAttention(name, self.cfg, parts, optional=True)

    def mlp(self, name: str, modules: list[nn.Module | None]) -> GeneralizedComponent:
        """The feed-forward: its inner hooks too where every layer has the gated form of LLaMA."""
        llama = {"gate": "gate_proj", "in": "up_proj", "out": "down_proj"}
        if all(isinstance(getattr(module, part, None), nn.Linear) for module in modules for part in llama.values()):
            parts: dict[str, GeneralizedComponent] = {key: LinearBridge(name=part) for key, part in llama.items()}
            return GatedMLPBridge(name=name, config=self.cfg, submodules=parts)
        return GeneralizedComponent(name=name, optional=True)


def norm_of(name: str, module: Any, cfg: Any) -> GeneralizedComponent:
    """The bridge of a norm, which knows its form: whether it takes the mean off, and scales by weight or 1 + weight.

    The form is found by trying, since neither names nor configs tell it.
    """
    weight = getattr(module, "weight", None)
    if weight is None or weight.device.type == "meta":
        return GeneralizedComponent(name=name)
    with torch.no_grad():
        x = torch.linspace(1, 2, weight.shape[-1], device=weight.device, dtype=weight.dtype)
        out, wide = module(x.expand(1, *weight.shape)).double()[0], x.double()
        w, bias = weight.double(), getattr(module, "bias", None)
        b = 0 if bias is None else bias.double()
        scaled, centred = wide / wide.pow(2).mean().sqrt(), (wide - wide.mean()) / wide.std(correction=0)
        forms = {(True, False): scaled * w, (True, True): scaled * (1 + w), (False, False): centred * w + b}
        is_rms, has_offset = min(forms, key=lambda form: float((forms[form] - out).abs().max()))
    return NormalizationBridge(
        name=name,
        config=cfg,
        use_native_layernorm_autograd=True,
        uses_rms_norm=is_rms,
        uses_weight_offset=has_offset,
    )


def decoder_layers(model: Any) -> list[nn.Module]:
    """The layers of the decoder, by preference of what the model itself calls so: resamplers look much like it."""
    try:
        found = find_layers(model.get_decoder())
    except (AttributeError, ModelError):
        found = find_layers(model)
    return [layer.module for layer in found]


def opaque_vision(model: Any) -> dict[str, Any]:
    """The vision tower, opaque, and what projects its features into the residual stream."""
    paths = {id(module): path for path, module in model.named_modules()}
    found: dict[str, Any] = {}
    tower = model.get_encoder(modality="image")
    if tower is not model and paths.get(id(tower)):
        found["vision_encoder"] = GeneralizedComponent(name=paths[id(tower)])
    projectors = [path for path in paths.values() if path.rpartition(".")[2] in PROJECTORS]
    if projectors:
        found["vision_projector"] = VisionProjectionBridge(name=min(projectors, key=len))
    return found


def _first(module: nn.Module, names: tuple[str, ...]) -> str:
    """The first of some names that the module has a part of, or nothing."""
    return next((name for name in names if isinstance(getattr(module, name, None), nn.Module)), "")
