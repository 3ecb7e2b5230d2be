"""One number a head and query row, for the map of heads: exact, from the weights themselves."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.kernels import concentration, mass
from .reading import ShownAttention
from .sequence import TokenRow


class Map(NamedTuple):
    """One map of heads.

    Attributes:
        name: as code would call it.
        label: as people would.
        meaning: in one line.
        unit: what the number is.
        values: Float[query, layer, head]; NaN for heads that a layer does not have.
    """

    name: str
    label: str
    meaning: str
    unit: str
    values: Float[Tensor, "query layer head"]


def maps_of(attention: ShownAttention, tokens: TokenRow) -> list[Map]:
    """The maps that a page offers; the parts `nonsink_mass` to `marker_mass` of a head add up to one."""
    masks = {name: tokens.mask(name) for name in ("visual", "bos", "marker", "text")}
    pattern = attention.values.flatten(0, 1).permute(1, 0, 2)[None]  # batch head query key, a row a (query, layer)

    def by_query(scores: Tensor) -> Tensor:
        return scores[0].T.reshape(attention.values.shape[:3])

    def over(keys: Tensor) -> Tensor:
        return by_query(mass(pattern, keys[None]))

    def image_concentration() -> Tensor:
        value = by_query(concentration(pattern, masks["visual"][None]))
        return value.where(~attention.values[..., 0].isnan(), torch.nan)

    visual, share = over(masks["visual"]), "share of attention"
    found = [Map("visual_mass", "visual mass", "attention on the visual tokens", share, visual)]
    if attention.sinks.of_layer is not None:
        on_sinks = _over_sinks(attention, masks["visual"])
        found += [
            Map(
                "nonsink_mass",
                "non-sink visual mass",
                "attention on visual tokens that are no sinks",
                share,
                (visual - on_sinks).clamp_min(0),
            ),
            Map("sink_mass", "visual sink mass", "attention on visual tokens that are sinks", share, on_sinks),
        ]
    entropy = -torch.special.xlogy(attention.values, attention.values).sum(-1)
    return [
        *found,
        Map("text_mass", "text mass", "attention on text", share, over(masks["text"] & ~masks["bos"])),
        Map("bos_mass", "first-token mass", "attention on the beginning-of-sequence token", share, over(masks["bos"])),
        Map("marker_mass", "marker mass", "attention on row breaks and tags", share, over(masks["marker"])),
        Map(
            "concentration",
            "concentration",
            "of the attention within the image: 0 even, 1 on one patch",
            "0 even, 1 one patch",
            image_concentration(),
        ),
        Map("entropy", "entropy", "over how many tokens attention is spread: 0 one, ln n all of n", "nats", entropy),
    ]


def _over_sinks(attention: ShownAttention, visual: Tensor) -> Float[Tensor, "query layer head"]:
    """Attention on the visual sinks, which differ from layer to layer."""
    keys = torch.zeros(len(attention.layers), attention.values.shape[-1])
    for index, layer in enumerate(attention.layers):
        keys[index, list((attention.sinks.of_layer or {}).get(layer, ()))] = 1
    return torch.einsum("qlhk,lk->qlh", attention.values, keys * visual)
