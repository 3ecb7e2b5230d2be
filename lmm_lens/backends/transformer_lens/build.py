"""Build a TransformerBridge of a loaded model, which itself is never touched."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.utilities.attn_implementation import force_eager_attention
from transformers import PreTrainedModel
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from ...adapters.towers import Tower, tower_in
from ...errors import ModelError
from ...prompts.text_config import text_config_of
from ..native.interface import has_function_of_its_own, implementation_of
from ..placement import Shards
from ..sources import READING
from ..twins import check_copyable, hooked_by_user, twin_of
from .architectures import Decoder, HookedAttention, make_editable, make_tower_editable, register, use_hooks
from .tower_points import add_tower

CAPTURES = "_output_capturing_hooks_installed"  # where transformers notes that it hooked a model


def bridge_of(model: Any, tokenizer: Any = None, tower: Tower | None = None) -> TransformerBridge:
    """A TransformerBridge on the weights of a loaded model, every hook of which can be edited.

    The bridge stands on a twin of the model that shares its weights, since TransformerLens replaces modules in place.
    Nothing is downloaded or installed.

    Args:
        model: a multimodal model of transformers.
        tokenizer: its tokenizer, for the text methods of the bridge; without one it takes token ids only.
        tower: its vision tower, whose hook points the bridge then has as `vision.blocks.l.attn.hook_pattern` and so on.

    Raises:
        ModelError: the model has no decoder of a known form.
    """
    architecture = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"expected a Hugging Face model with a config, given {architecture}")
    if Shards.of(model).group is not None:  # its hooks would see some heads in each process, under wrong numbers
        raise ModelError(
            f"{architecture} is divided among processes (tensor parallel), which a TransformerBridge cannot be\n"
            "  use backend='native', or load it in one process with device_map='auto'"
        )
    implementation = implementation_of(text_config_of(model.config))
    if has_function_of_its_own(implementation) and implementation != "flex_attention":
        raise ModelError(
            f"{architecture} has the attention function {implementation!r}, and a TransformerBridge computes its own\n"
            "  use backend='native' or 'nnsight', which run the model's, or load it with attn_implementation='eager'"
        )
    check_copyable(model)
    hooked = hooked_by_user(model)
    if hooked:
        raise ModelError(
            f"hooks stand on {hooked[0]}{f' and {len(hooked) - 1} other modules' * (len(hooked) > 1)}, and a "
            "TransformerBridge, which puts modules of its own in the model's place, would not run them\n"
            "  take them off, put them on lens.bridge, or use backend='native' or 'nnsight'"
        )
    if tokenizer is not None and "name_or_path" not in getattr(tokenizer, "init_kwargs", {}):
        tokenizer = None  # TransformerLens opens it again by its name, which one made from nothing does not have
    with READING:  # TransformerLens and transformers read sources of what they build
        bridge = _built(model, tokenizer, architecture, tower is not None)
        if tower is not None:
            add_tower(bridge, tower_in(bridge.original_model, tower), architecture)
        return bridge


def _built(model: Any, tokenizer: Any, architecture: str, has_tower: bool) -> TransformerBridge:
    register()
    if architecture not in ArchitectureAdapterFactory._adapters:
        ArchitectureAdapterFactory.register_adapter(architecture, Decoder)
    with _quiet():
        try:
            bridge = build_bridge_from_module(
                _twin(model),
                architecture,
                hf_config=copy.deepcopy(model.config),
                tokenizer=tokenizer,
                model_name=model.config.name_or_path or architecture,
                post_adapter_hook=partial(_editable, has_tower),
            )
        except ModelError:
            raise
        except (AttributeError, KeyError, StopIteration, TypeError, ValueError, RuntimeError, ImportError) as error:
            raise ModelError(
                f"{architecture} cannot be made a TransformerBridge: {error}\n"
                "  expected decoder layers of norms, attention and feed-forward under known names\n"
                f"  use backend='native', or register an adapter with TransformerLens as for {', '.join(supported())}"
            ) from error
    if any(isinstance(module, HookedAttention) for module in bridge.modules()):
        use_hooks(bridge.original_model)
    return bridge


def supported() -> list[str]:
    """The multimodal architectures with an adapter, here or in TransformerLens; others are tried as they are."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as MULTIMODAL

    register()
    return sorted(set(MULTIMODAL.values()) & set(ArchitectureAdapterFactory._adapters))


def _editable(has_tower: bool, adapter: Any) -> None:
    """Give the adapters of others editable attention too."""
    if adapter.component_mapping:
        make_editable(adapter)
        if has_tower:
            make_tower_editable(adapter)


def _twin(model: Any) -> Any:
    """The copy of a model that is built over."""
    twin = twin_of(model, keeps_hooks=False)
    for module in twin.modules():
        if getattr(module, CAPTURES, False):
            setattr(module, CAPTURES, False)
    maybe_install_capturing_hooks(twin)  # now: in a bridge every module stands twice, and would report twice
    force_eager_attention(twin)  # not every adapter does
    return twin


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what TransformerLens says of every multimodal model while it is built, and nothing of any run."""
    logger = logging.getLogger("transformer_lens")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="transformer_lens")
            yield
    finally:
        logger.setLevel(level)
