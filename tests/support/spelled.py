"""Where the pixels lie that a token's feature depends on: by its gradient, and by pictures whose grey spells places.

Nothing is known here of how a processor arranges pixels: a black, a white and two ramped pictures are processed alike,
and what each number of the tensors became of them says from which column and which row of the picture it comes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lmm_lens import Lens
from lmm_lens.prompts.prompt import Prompt
from tests.support.evidence import identity
from tests.support.families.tile_evidence import entering

Extent = tuple[float, float, float, float]


def tower_layers(lens: Lens) -> list[nn.Module]:
    """The layers of the vision tower: members of lists in the model that attend, outside its decoder."""
    decoder = {id(layer.module) for layer in lens.adapter.layers}
    lists = [m for n, m in lens.model.named_modules() if isinstance(m, nn.ModuleList) and "audio" not in n]
    found = [layer for layers in lists for layer in layers if id(layer) not in decoder and _attends(layer)]
    known = {id(layer) for layer in found}
    return [layer for layer in found if not any(id(part) in known for part in layer.modules() if part is not layer)]


@contextmanager
def narrowed(lens: Lens) -> Iterator[None]:
    """Within, convolutions outside the decoder that overlap look at their own cell alone: further taps are zero."""
    convs = [m for m in lens.model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size > m.stride]
    before = [conv.weight.detach().clone() for conv in convs]
    try:
        with torch.no_grad():
            for conv in convs:
                edge, step = conv.kernel_size[0], conv.stride[0]
                first = conv.padding[0]  # the tap on the first pixel of the cell
                own = torch.zeros(edge)
                own[first : first + step] = 1
                conv.weight.mul_(own[:, None] * own[None, :])
        yield
    finally:
        with torch.no_grad():
            for conv, weight in zip(convs, before, strict=True):
                conv.weight.copy_(weight)


def _attends(layer: nn.Module) -> bool:
    parts = [name.rpartition(".")[2] for name, _ in layer.named_modules()]
    return any("attn" in part or "attention" in part or part == "dwconv" for part in parts)


def grey(size: tuple[int, int], kind: str) -> Image.Image:
    """A picture that is black, white, or rises from black to white to the right or downwards."""
    width, height = size
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    level = {"black": 0 * x, "white": 0 * x + 1, "right": x, "down": y[:, None]}[kind]
    values = np.broadcast_to((level * 255).round().astype(np.uint8), (height, width))
    return Image.fromarray(np.stack([values] * 3, -1))


def extents(lens: Lens, text: str, sizes: Sequence[tuple[int, int]]) -> list[tuple[Prompt, int, Extent | None]]:
    """Of every image token: the prompt of black pictures, its position, and the extent of what it sees.

    Extents are from the first to the last column and row, each by its middle, in shares of the picture's size; None
    where a token sees padding too.
    """
    kinds = ("black", "white", "right", "down")
    prompts = {kind: lens.prompt(text, images=[grey(size, kind) for size in sizes]) for kind in kinds}
    names = [n for n, v in prompts["black"].inputs.items() if n.startswith("pixel_values") and v.is_floating_point()]
    black, white, right, down = (_flat([prompts[kind].inputs[name] for name in names]) for kind in kinds)
    x, y = ((ramp - black) / (white - black) for ramp in (right, down))  # not a number in padding
    pixels = {name: prompts["black"].inputs[name].clone().requires_grad_(True) for name in names}
    found: list[tuple[Prompt, int, Extent | None]] = []
    with narrowed(lens), identity(tower_layers(lens)):
        out = entering(lens, prompts["black"], **pixels)
        for position in prompts["black"].mask("image")[0].nonzero().flatten().tolist():
            slopes = torch.autograd.grad(out[..., position, :].square().sum(), list(pixels.values()), retain_graph=True)
            seen = _flat(slopes) != 0
            assert bool(seen.any()), f"no pixel reaches the token at {position}"
            across, along = x[seen], y[seen]
            padded = bool(across.isnan().any() or along.isnan().any())
            edges = float(across.min()), float(along.min()), float(across.max()), float(along.max())
            found.append((prompts["black"], position, None if padded else edges))
    return found


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
