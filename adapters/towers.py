"""Find the vision tower of any Hugging Face model: its layers, and the hooked parts of each.

The tower is what the model itself calls its encoder of images, or else whatever lies outside its decoder; its layers
are the longest module list there whose members hold attention, those of later stages behind them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import nn

from lmm_lens.errors import ModelError

from .walker import ATTENTION, MLP, Layer, first_of

OUTPUT_PROJECTION = ("out_proj", "o_proj", "proj", "projection_layer", "projection", "dense", "wo")
OTHERS = ("audio", "speech", "sound", "resampler", "qformer", "q_former", "projector", "connector", "merger")
"""In the names of module lists that encode something else, or project what the tower gave."""
SECOND = ("sam_", "high_res", "video_tower")
"""In the names of towers that stand beside or before the one that is meant, if there is another."""
CLASS_TOKENS = ("class_embedding", "cls_token", "class_token")
REGISTER_TOKENS = ("register_tokens", "register_embedding", "reg_token")
CLASS_BEHIND = ("Llama4VisionEncoderLayer",)
"""Layers of towers whose class token stands behind the patches."""
UNKNOWN_PLACES = ("MllamaVisionEncoderLayer", "Inkling2VisionEncoderLayer", "RadioLayer", "Molmo2VisionEncoderLayer")
"""Layers of towers in whose rows patches and other tokens stand in an order of their own."""


@dataclass(frozen=True, eq=False)
class Tower:
    """The vision tower of a model.

    Attributes:
        name: of its layers in the model.
        paths: the name of each layer in the model.
        layers: its layers in order, those of a second stage behind those of the first.
        n_used: the layers that the model's features come from, or through; what later ones do reaches no answer.
        feature_layers: the layers whose output the features are, as the config says; -1 for what enters the first.
        n_class: class tokens that stand before the patches of each row, or behind them.
        n_registers: register tokens between them.
        class_behind: whether the class token stands behind.
        knows_places: whether it is known which tokens of a row are patches.
    """

    name: str
    paths: tuple[str, ...]
    layers: tuple[Layer, ...]
    n_used: int
    n_class: int = 0
    n_registers: int = 0
    class_behind: bool = False
    knows_places: bool = True
    feature_layers: tuple[int, ...] = ()

    @property
    def d_model(self) -> int:
        """Width of its residual stream."""
        weight: Any = _linear(self.layers[0].output_projection).weight
        return int(weight.shape[0])


def find_tower(model: Any, decoder: tuple[Layer, ...]) -> Tower:
    """The vision tower.

    Args:
        model: the whole model.
        decoder: its decoder layers, which are none of the tower's.

    Raises:
        ModelError: it has none, or one without attention heads.
    """
    lists = sorted(_lists(model, decoder), key=lambda each: (any(word in each[0] for word in SECOND), -len(each[1])))
    if not lists:
        raise ModelError(
            f"no vision tower with attention heads was found in {type(model).__name__}: its pictures go through "
            "convolutions, or straight into the decoder\n  write an adapter that overrides `find_tower` to name it"
        )
    name, longest = lists[0]
    # a second stage of the same class follows the first in the order of the model
    stages = [each for each in _lists(model, decoder) if type(each[1][0]) is type(longest[0])]
    stages = [each for each in stages if _stem(each[0]) == _stem(name)]
    paths = tuple(f"{stage}.{number}" for stage, modules in stages for number in range(len(modules)))
    layers = tuple(_parts(layer) for _, modules in stages for layer in modules)
    root = model.get_submodule(_stem(name))
    kind = type(layers[0].module).__name__
    return Tower(
        name,
        paths,
        layers,
        _feature_layers(model.config, len(layers))[-1] + 1,
        _count(root, CLASS_TOKENS),
        _count(root, REGISTER_TOKENS),
        kind in CLASS_BEHIND,
        kind not in UNKNOWN_PLACES,
        _feature_layers(model.config, len(layers)),
    )


def tower_in(model: Any, tower: Tower) -> Tower:
    """The same tower in another object of the model, as in a twin that a framework runs; its parts may be wrapped."""
    return replace(tower, layers=tuple(_parts(_at(model, path)) for path in tower.paths))


def _at(model: Any, path: str) -> Any:
    module = _inside(model)
    for part in path.split("."):
        module = _inside(getattr(module, part) if not part.isdigit() else module[int(part)])
    return module


def _inside(module: Any) -> Any:
    """What a component of a TransformerBridge wraps."""
    while hasattr(module, "original_component"):
        module = module.original_component
    return module


DEEPSTACK = "deepstack_visual_indexes"


def _feature_layers(config: Any, n: int) -> tuple[int, ...]:
    """The layers whose output the features are, in order: `vision_feature_layer` counts hidden states from 0.

    With deepstack those of other layers enter later ones of the decoder: Qwen3-VL names these by their numbers, Granite
    4 Vision all of them as hidden states.
    """
    named = [getattr(config, name, None) for name in ("vision_feature_layer", "vision_feature_layers")]
    chosen = next((each for each in named if each is not None), -1)
    chosen = [chosen] if isinstance(chosen, int) else chosen
    by_layer = getattr(config, "deepstack_layer_map", None)
    if by_layer:
        chosen = [*(layer for layer, _ in by_layer), getattr(config, "spatial_vision_layer", -1)]
    found = {(int(each) + n if each < 0 else int(each) - 1) for each in chosen}
    return tuple(sorted({*found, *(getattr(getattr(config, "vision_config", None), DEEPSTACK, None) or ())}))


def _stem(name: str) -> str:
    """The tower that a module list is in: everything up to the part that says so."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if any(word in part for word in ("vision", "visual", "tower", "image")):
            return ".".join(parts[: place + 1])
    return ".".join(parts[:-1])


def _lists(model: Any, decoder: tuple[Layer, ...]) -> Iterator[tuple[str, nn.ModuleList]]:
    """The module lists outside the decoder that may be a tower's layers, by name."""
    named = getattr(model, "get_decoder", None)
    language = named() if callable(named) else None
    inside = set(map(id, language.modules())) if isinstance(language, nn.Module) and language is not model else set()
    inside |= {id(part) for layer in decoder for part in layer.module.modules()}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module) or id(module) in inside:
            continue
        if id(module[0]) in inside or any(word in name.lower() for word in OTHERS):
            continue
        if all(attention_in(layer) is not None for layer in module):
            yield name, module


def attention_in(layer: nn.Module) -> nn.Module | None:
    """The attention module of a tower's layer, if it has one with an output projection."""
    attention = first_of(layer, ATTENTION)
    return attention if attention is not None and first_of(attention, OUTPUT_PROJECTION) is not None else None


def _parts(layer: nn.Module) -> Layer:
    attention: Any = _inside(attention_in(layer))
    projection: Any = _inside(first_of(attention, OUTPUT_PROJECTION))
    width: int = _linear(projection).weight.shape[-1]
    counts = ("num_heads", "num_attention_heads", "n_heads")
    said = (attention, getattr(attention, "config", None))
    told = [getattr(each, name) for each in said for name in counts if hasattr(each, name)]
    if not told:
        raise ModelError(f"the number of heads of {type(attention).__name__} is not known; write an adapter")
    kind = type(attention)
    own = None if _asks_transformers(kind.__module__, kind.__qualname__) else attention
    mlp = _inside(first_of(layer, MLP))
    return Layer(layer, attention, projection, mlp, told[0], width // told[0], attends_in=own)


@cache
def _asks_transformers(module: str, name: str) -> bool:
    """Whether a class of attention fetches its function from transformers, so that a tap can take its place."""
    return "ALL_ATTENTION_FUNCTIONS" in inspect.getsource(getattr(sys.modules[module], name))


def _linear(projection: Any) -> Any:
    """The module that holds the weight of an output projection."""
    return projection if hasattr(projection, "weight") else projection.linear


def _count(root: nn.Module, names: tuple[str, ...]) -> int:
    """How many tokens of a kind the tower puts before its patches, from the parameter that holds them."""
    for name, parameter in root.named_parameters():
        if name.rpartition(".")[2] in names:
            return parameter.numel() // parameter.shape[-1]
    return 0
