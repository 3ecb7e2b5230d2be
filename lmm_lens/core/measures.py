"""Scores of heads, computed where the model is: functions of attention rows and of masks over their keys."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .kernels import concentration, hit, mass, nonsink_ratio, visual_preference
from .own import Keys
from .spatial import as_maps, at_cells, spatial_entropy

Pattern = Float[Tensor, "batch head query key"]
PerRow = Float[Tensor, "batch head query"]


class KeyMasks:
    """The keys a measure may ask about; masks are Bool[batch, key].

    Attributes:
        visual: patch tokens of pictures and video frames.
        n_visual: Int[batch], how many of them the prompt row has, also where a sliding window hides some.
        sink: sink tokens of the layer. This and the rest only where the measure needs them.
        region: the tokens the user named: patches that overlap the prompt's boxes, or the relevant tokens.
        n_region: Int[batch], how many of them the prompt row has.
        cells: Int[batch, rows, cols], the keys of the first picture's patches as a map; negative where there is none.
        n_cells: Int[batch], how many patches that picture has.
        named: the keys by the names of the prompt's masks, for metrics of one's own; `keys["question"]` asks it.
    """

    sink: Bool[Tensor, "batch key"]
    region: Bool[Tensor, "batch key"]
    n_region: Int[Tensor, " batch"]
    cells: Int[Tensor, "batch rows cols"]
    n_cells: Int[Tensor, " batch"]
    named: Keys

    def __init__(self, visual: Bool[Tensor, "batch key"], n_visual: Int[Tensor, " batch"]) -> None:
        self.visual, self.n_visual = visual, n_visual

    def __getitem__(self, name: str) -> Bool[Tensor, "batch key"]:
        """The keys of one of the prompt's masks."""
        return self.named[name][:, 0, 0]

    def nonsink(self) -> Bool[Tensor, "batch key"]:
        """Visual tokens that are no sinks."""
        return self.visual & ~self.sink


def visual_mass(pattern: Pattern, keys: KeyMasks) -> PerRow:
    """Mass on the visual tokens."""
    return mass(pattern, keys.visual)


def nonsink_mass(pattern: Pattern, keys: KeyMasks) -> PerRow:
    """Mass on the visual tokens that are no sinks."""
    return mass(pattern, keys.nonsink())


def region_mass(pattern: Pattern, keys: KeyMasks) -> PerRow:
    """Mass on the region."""
    return mass(pattern, keys.region)


def image_concentration(pattern: Pattern, keys: KeyMasks) -> PerRow:
    """Concentration within the visual tokens."""
    return concentration(pattern, keys.visual, keys.n_visual)


def preference(pattern: Pattern, keys: KeyMasks) -> PerRow:
    """Visual mass times concentration."""
    return visual_preference(pattern, keys.visual, keys.n_visual)


def ratio_off_sinks(pattern: Pattern, keys: KeyMasks) -> PerRow:
    """The share of visual mass off the sinks."""
    return nonsink_ratio(pattern, keys.visual, keys.sink)


def region_hit(pattern: Pattern, keys: KeyMasks) -> PerRow:
    """Whether the most attended key lies in the region, over the region's size."""
    return hit(pattern, keys.region, keys.n_region)


def map_entropy(pattern: Pattern, keys: KeyMasks) -> PerRow:
    """Spatial entropy of the first picture's map, inf without components."""
    return spatial_entropy(as_maps(pattern, keys.cells), keys.n_cells[:, None, None])


def nonsink_map_entropy(pattern: Pattern, keys: KeyMasks) -> PerRow:
    """The same with the sinks cut out of the map."""
    sink = at_cells(keys.sink, keys.cells)
    cells, n_cells = keys.cells.masked_fill(sink, -1), (keys.n_cells - sink.sum((1, 2))).clamp_min(1)
    return spatial_entropy(as_maps(pattern, cells), n_cells[:, None, None])


def bounded_entropy(pattern: Pattern, keys: KeyMasks) -> PerRow:
    """Spatial entropy with ln n of a map's n cells in place of inf: more than any components can have."""
    return _bounded(map_entropy(pattern, keys), keys)


def nonsink_bounded_entropy(pattern: Pattern, keys: KeyMasks) -> PerRow:
    """The same with the sinks cut out of the map."""
    return _bounded(nonsink_map_entropy(pattern, keys), keys)


def _bounded(entropy: PerRow, keys: KeyMasks) -> PerRow:
    return torch.where(entropy.isinf(), keys.n_cells[:, None, None].to(entropy.dtype).log(), entropy)
