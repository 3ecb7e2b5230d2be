"""The six classes, each with its adapter, how it is called by itself, and where its tokens stand, counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lmm_lens import Lens

from . import internvl, llava, minicpm, molmo, phi3v, vila
from .adapters import adapters
from .parts import Tokenizer


@dataclass(frozen=True)
class Place:
    """Positions of one batch row in the sequence that runs.

    Attributes:
        length: of the sequence, padding included.
        visual, markers, padding: positions.
    """

    length: int
    visual: tuple[int, ...]
    markers: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()

    @property
    def after(self) -> int:
        """The first position behind the picture and its markers."""
        return max((*self.visual, *self.markers)) + 1


@dataclass(frozen=True, eq=False)
class Case:
    """One class.

    Attributes:
        name: of its adapter in the page.
        model: a tiny random one.
        inputs_of: makes inputs of one row, or of two with padding.
        plain: calls a model with inputs, as its own repository does, for logits of all positions.
        parts: of a model, each layer with the module that computes its attention, and its output projection.
        single, batch: where the tokens of the inputs stand.
        lens: with the adapter of the page.
    """

    name: str
    model: Any
    inputs_of: Callable[[int], dict[str, Any]]
    plain: Callable[[Any, dict[str, Any]], Tensor]
    parts: Callable[[Any], list[tuple[nn.Module, Any, nn.Module]]]
    single: Place
    batch: tuple[Place, Place]
    lens: Lens = field(init=False)

    def __post_init__(self) -> None:
        adapter = adapters()[self.name](self.model, Tokenizer())
        object.__setattr__(self, "lens", Lens(self.model, Tokenizer(), adapter=adapter))

    def places(self, n_rows: int) -> tuple[Place, ...]:
        return self.batch if n_rows == 2 else (self.single,)

    def grown(self, inputs: dict[str, Any], tokens: list[Tensor]) -> dict[str, Any]:
        """Inputs with tokens behind them."""
        grown = dict(inputs)
        grown["input_ids"] = torch.cat([inputs["input_ids"], *(token[:, None] for token in tokens)], 1)
        if "attention_mask" in inputs:
            mask = inputs["attention_mask"]
            grown["attention_mask"] = torch.cat([mask, mask.new_ones(len(mask), len(tokens))], 1)
        return grown


def _language(inner: str) -> Callable[[Any], list[tuple[nn.Module, Any, nn.Module]]]:
    """The parts of transformers' own layers somewhere in a model."""
    return lambda model: [
        (layer, layer.self_attn, layer.self_attn.o_proj) for layer in model.get_submodule(inner).layers
    ]


def _blocks(model: Any) -> list[tuple[nn.Module, Any, nn.Module]]:
    return [(block, block, block.attn_out) for block in model.model.transformer["blocks"]]


def _called(model: Any, inputs: dict[str, Any]) -> Tensor:
    return model(**inputs).logits


def _internvl(model: Any, inputs: dict[str, Any]) -> Tensor:
    return model(**inputs, image_flags=torch.ones(len(inputs["pixel_values"]), 1, dtype=torch.long)).logits


def _minicpm(model: Any, inputs: dict[str, Any]) -> Tensor:
    mask = inputs["attention_mask"]
    return model({**inputs, "position_ids": mask.cumsum(1) - 1}, attention_mask=mask).logits


def _phi(model: Any, inputs: dict[str, Any]) -> Tensor:
    return model(**{**inputs, "input_ids": inputs["input_ids"].clone()}).logits  # it writes into them


def _span(*bounds: tuple[int, int]) -> tuple[int, ...]:
    return tuple(position for start, stop in bounds for position in range(start, stop))


def _hd(start: int, *pictures: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Patches and markers of Phi's pictures, of so many (rows, columns) of crops, from a position on."""
    patches, markers, at = [], [], start
    for down, across in pictures:
        for kind, rows, columns in (("crops", 12 * down, 12 * across), ("whole", 12, 12)):
            for _ in range(rows):
                patches += range(at, at + columns)
                markers.append(at + columns)
                at += columns + 1
            if kind == "crops":
                markers.append(at)
                at += 1
    return tuple(patches), tuple(markers)


PHI_BATCH = _hd(3, (1, 2)), _hd(146, (1, 1))
PLACES = {
    "InternVLChat": (Place(22, _span((3, 19))), Place(22, _span((4, 20)), padding=(0, 1))),
    "OriginalLlava": (Place(22, _span((3, 19))), Place(22, _span((4, 20)), padding=(0, 1))),
    "MiniCPMV": (Place(20, _span((3, 9), (11, 17))), Place(20, _span((11, 17)), padding=_span((0, 8)))),
    "Vila": (
        Place(39, _span((1, 17), (19, 35)), (17, 35)),
        Place(39, _span((21, 37)), (37,), padding=_span((0, 19))),
    ),
    "Phi35Vision": (
        Place(775, *_hd(2, (1, 2), (1, 1))),
        Place(462, *PHI_BATCH[1], padding=_span((0, 144))),
    ),
    "Molmo": (
        Place(15, _span((2, 6), (7, 11)), (6, 11)),
        Place(15, _span((3, 7), (8, 12)), (7, 12), padding=(0, 1)),
    ),
}
FIRST_OF_PHI = Place(462, *PHI_BATCH[0])
"""The first row of its batch has one picture, alone it has two."""
WAYS: dict[str, tuple[ModuleType, Any, Any]] = {
    "InternVLChat": (internvl, _internvl, _language("language_model.model")),
    "OriginalLlava": (llava, _called, _language("model")),
    "MiniCPMV": (minicpm, _minicpm, _language("llm.model")),
    "Vila": (vila, _called, _language("llm.model")),
    "Phi35Vision": (phi3v, _phi, _language("model")),
    "Molmo": (molmo, _called, _blocks),
}
NAMES = tuple(WAYS)


@cache
def case(name: str) -> Case:
    module, plain, parts = WAYS[name]
    single, second = PLACES[name]
    first = FIRST_OF_PHI if name == "Phi35Vision" else single
    return Case(name, module.model(), module.inputs, plain, parts, single, (first, second))
