"""A model as nnsight sees it: its TransformersModel, and the envoys and operations of every decoder layer.

nnsight names the operations inside a forward by counting assignments and calls, and the count has changed from one
version of it to the next. So no label is written down here: the source of each attention class is read for the call of
the attention function and for the cache's update, and what is found is checked against the numbers of the first run.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from torch import nn

from ...adapters import Adapter, Layer
from ...core.layer_envoys import LayerEnvoys
from ...errors import ModelError, RemoteError
from ..placement import Shards, accelerate_hooks, device_of
from ..requirements import importing
from ..sources import READING
from ..twins import twin_of
from ..unembedding import finishing
from .attention_labels import attends_by_part, operations_of, packed_in, values_of
from .entries import entries_of
from .job import ModelEnvoys

TASK = "image-text-to-text"


def wrapped(model: nn.Module, processor: Any) -> Any:
    """A twin of the model that shares its weights as an nnsight TransformersModel.

    nnsight replaces the forward of every module it wraps, which the user's own model is spared. A model whose modules
    accelerate has hooked, to move weights between devices, cannot be copied and is wrapped itself; outside a trace
    nnsight's forwards only call the model's.

    Raises:
        ModelError: nnsight is not installed, or cannot wrap the model.
    """
    with importing("nnsight"):
        from nnsight import TransformersModel
    if Shards.of(model).group is not None:
        raise ModelError(
            "nnsight 0.8 cannot open a tensor-parallel model with this version of transformers\n"
            "  use backend='native', which can"
        )
    dispatched = any(accelerate_hooks(module) for module in model.modules())
    if not dispatched:
        model = twin_of(model, keeps_hooks=True)
    if dispatched and next(model.parameters()).device.type == "meta":
        raise ModelError(
            "nnsight takes inputs to where a model's first weights are, and these are offloaded (on 'meta')\n"
            "  use backend='native', or a device_map that keeps the vision tower and the embeddings on a device"
        )
    # by itself transformers' pipeline moves a model to the first GPU
    device = {} if dispatched else {"device": str(device_of(model.get_input_embeddings(), model))}  # type: ignore[operator]
    with READING:
        envoy = TransformersModel(model, task=TASK, processor=copy.deepcopy(processor) or _NoProcessor(), **device)
    if envoy.tokenizer is not None:  # a copy, whose side of padding makes nnsight add position ids to left-padded text
        envoy.tokenizer.padding_side = "right"
    return envoy


def opened(name: str, processor: Any, **options: Any) -> Any:
    """A model by name as nnsight opens it for a server: its shape, without weights.

    Raises:
        ModelError: nnsight is not installed.
    """
    with importing("nnsight"):
        from nnsight import TransformersModel

        return TransformersModel(name, task=TASK, processor=processor, **options)


def model_key(envoy: Any, name: str | None) -> str:
    """What names the model to a server: nnsight's key for its repository.

    Args:
        envoy: the model.
        name: its repository, or whatever the server calls it.

    Raises:
        RemoteError: the model has no name.
    """
    if not name:
        raise RemoteError(
            "a server knows models by the name of their repository, and this one was given as an object\n"
            "  use Lens.from_pretrained(name, backend='nnsight', remote=...)"
        )
    from nnsight import TransformersModel
    from nnsight.util import to_import_path

    if envoy.repo_id == name and not Path(name).exists():
        try:  # asks the Hub for the name's right spelling
            return str(envoy.to_model_key())
        except Exception:  # where there is no network, any of several HTTP libraries'; the name is taken as it is
            pass
    key = {"repo_id": name, "revision": envoy.revision, "task": TASK}
    return f"{to_import_path(TransformersModel)}:{json.dumps(key)}"


class _NoProcessor:
    """Stands where nnsight wants a processor and the user has none: prompts are made of tensors."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ModelError("this lens has no processor, so nnsight cannot process text\n  use lens.trace(prompt)")


def envoys_of_model(envoy: Any, adapter: Adapter, from_weights: bool = False) -> ModelEnvoys:
    """The model as jobs take it.

    Args:
        envoy: its nnsight TransformersModel.
        adapter: of the model, or of the one that this is a twin of.
        from_weights: see `LayerEnvoys`.

    Raises:
        ModelError: the model has no output embedding.
        HookError: the source of an attention forward cannot be read.
    """
    names = {id(module): name for name, module in envoy._module.named_modules()}
    at = {id(module._module): module for module in envoy.modules()}
    parts = (envoy._module, *envoy._module.children())  # some know of it only in the language model inside
    heads = (part.get_output_embeddings() for part in parts if hasattr(part, "get_output_embeddings"))
    head = next((head for head in heads if head is not None), None)
    if head is None or id(head) not in names:
        raise ModelError(f"{type(envoy._module).__name__} has no output embedding, so its logits cannot be read")
    with READING:
        layers = envoys_of_layers(envoy, adapter, from_weights)
        embedding = at[id(envoy._module.get_input_embeddings())]
        tower = envoys_of_tower(envoy, adapter, from_weights)
        return ModelEnvoys(envoy, layers, embedding, at[id(head)], *finishing(envoy._module, adapter), tower=tower)


def envoys_of_layers(envoy: Any, adapter: Adapter, from_weights: bool) -> list[LayerEnvoys]:
    """The layers of an adapter's model, or of its twin; see `envoys_of_model`."""
    at = _envoy_of_module(envoy, adapter)
    operations: dict[type[nn.Module], tuple[str | None, str | None]] = {}
    for attention in (layer.attention for layer in adapter.layers if layer.attention is not None):
        if type(attention) not in operations:
            operations[type(attention)] = operations_of(type(attention), at[id(attention)].source.names)
    return [_envoys_of(index, layer, at, operations, from_weights) for index, layer in enumerate(adapter.layers)]


def _envoy_of_module(envoy: Any, adapter: Adapter) -> dict[int, Any]:
    """The envoy of each module of an adapter's model, or of its twin's, by the module's id."""
    twin = {id(module._module): module for module in envoy.modules()}
    modules = adapter.model.named_modules()
    return {id(module): twin.get(id(envoy._module.get_submodule(name))) for name, module in modules}


def envoys_of_tower(envoy: Any, adapter: Adapter, from_weights: bool) -> list[LayerEnvoys]:
    """The layers of a model's vision tower, which have no cache; none where there is none with heads.

    Patterns are there where a layer calls its attention function once, or once for each part of a packed sequence. On a
    server, where what the function is given is out of reach, what it is given must have names, too.
    """
    try:
        tower = adapter.tower
    except ModelError:  # asked for itself it says why
        return []
    at, found = _envoy_of_module(envoy, adapter), []
    with READING:
        for index, layer in enumerate(tower.layers):
            attention = layer.attention
            assert attention is not None
            kind, call, values = type(attention), None, ""
            packed: tuple[str, ...] = ()
            if layer.attends_in is None:
                if attends_by_part(kind):
                    packed = packed_in(kind)
                else:
                    call, _ = operations_of(kind, at[id(attention)].source.names)
                    values = values_of(kind) if from_weights else ""
            known = call if values or not from_weights else None
            envoys = _envoys_of(index, layer, at, {kind: (known, None)}, False)
            envoys.is_causal = bool(getattr(attention, "is_causal", False))
            envoys.from_weights, envoys.values, envoys.packed = bool(values), values, packed
            envoys.sites += ("pattern",) if packed else ()
            found.append(envoys)
    return found


def _envoys_of(
    index: int,
    layer: Layer,
    at: dict[int, Any],
    operations: dict[type[nn.Module], tuple[str | None, str | None]],
    from_weights: bool,
) -> LayerEnvoys:
    attention, entries = layer.attention, entries_of(layer.module) if from_weights else ()
    sites = ["resid_pre", "resid_post"] if entries or not from_weights else ["resid_post"]
    call, update = operations[type(attention)] if attention is not None else (None, None)
    if layer.mlp is not None:
        sites.append("mlp_out")
    if attention is not None:
        sites += ["z", "attn_out"] + (["pattern"] if call and (update or not from_weights) else [])
    return LayerEnvoys(
        index,
        layer.n_heads,
        layer.d_head,
        tuple(sites),
        at[id(layer.module)],
        attention=at[id(attention)] if attention is not None else None,
        output_projection=at[id(layer.output_projection)] if attention is not None else None,
        mlp=at[id(layer.mlp)] if layer.mlp is not None else None,
        attention_call=call or "",
        cache_update=update or "",
        scaling=getattr(attention, "scaling", None) or (layer.d_head or 1) ** -0.5,
        is_causal=getattr(attention, "is_causal", True),
        is_cross=layer.is_cross_attention,
        from_weights=from_weights,
        entries=tuple((at[id(entry.module)], entry.label, entry.end) for entry in entries),
    )


def label_operations(envoys: LayerEnvoys, site: str) -> None:
    """Have nnsight read the sources whose operations are a hook point, and label them, unless it has done so before."""
    with READING:
        if site == "pattern":
            _ = envoys.attention.source
        elif site == "resid_pre":
            for envoy, _, _ in envoys.entries:
                _ = envoy.source
