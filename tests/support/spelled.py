"""Where the pixels lie that a token's feature depends on: by its gradient, and by pictures whose grey spells places.

Nothing is known here of how a processor arranges pixels: a black, a white and two ramped pictures are processed alike,
and what each number of the tensors became of them says from which column and which row of the picture it comes.
"""

from collections.abc import Iterator, Mapping, Sequence
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
    kinds = nn.Conv2d, nn.Conv3d
    convs = [m for m in lens.model.modules() if isinstance(m, kinds) and m.kernel_size[-1] > m.stride[-1]]
    before = [conv.weight.detach().clone() for conv in convs]
    try:
        with torch.no_grad():
            for conv in convs:
                edge, step = conv.kernel_size[-1], conv.stride[-1]
                # the tap on the first pixel of the cell; those over time are filled up outside of them
                first = conv.padding[-1] if isinstance(conv, nn.Conv2d) else edge // 2
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


@contextmanager
def latents(lens: Lens) -> Iterator[list[Tensor]]:
    """Within, what goes into a codebook, in a list: after it, a token is a number, which has no gradient.

    Normalisation over all pixels and attention among them are left out meanwhile, as the layers of a tower are.
    """
    found: list[Tensor] = []
    books = [m for m in lens.model.modules() if type(m).__name__.endswith("VectorQuantizer")]
    hooks = [book.register_forward_pre_hook(lambda module, args: found.append(args[0])) for book in books]
    everywhere = [m for m in lens.model.modules() if type(m).__name__.endswith(("AttnBlock", "AttentionBlock"))]
    everywhere += [m for m in lens.model.modules() if isinstance(m, nn.GroupNorm)]
    try:
        with identity(everywhere):
            yield found
    finally:
        for hook in hooks:
            hook.remove()


def extents(lens: Lens, text: str, sizes: Sequence[tuple[int, int]]) -> list[tuple[Prompt, int, Extent | None]]:
    """Of every image token: the prompt of black pictures, its position, and the extent of what it sees.

    Extents are from the first to the last column and row, each by its middle, in shares of the picture's size; None
    where a token sees padding too.
    """
    kinds = ("black", "white", "right", "down")
    prompts = {k: lens.prompt(text, images=[grey(size, k) for size in sizes], template=False) for k in kinds}
    names = [n for n, v in prompts["black"].inputs.items() if n.startswith("pixel_values") and v.is_floating_point()]
    black, white, right, down = (_flat([prompts[kind].inputs[name] for name in names]) for kind in kinds)
    x, y = ((ramp - black) / (white - black) for ramp in (right, down))  # not a number in padding
    pixels = {name: prompts["black"].inputs[name].clone().requires_grad_(True) for name in names}
    found: list[tuple[Prompt, int, Extent | None]] = []
    with narrowed(lens), identity(tower_layers(lens)), latents(lens) as codes:
        out = entering(lens, prompts["black"], **pixels)
        if out.ndim == 4 and out.shape[1] == prompts["black"].n_tokens:  # several residual streams of each token
            out = out.flatten(2)
        positions = prompts["black"].mask("image")[0].nonzero().flatten().tolist()
        for index, position in enumerate(positions):
            token = _cells(codes[0], prompts["black"].inputs)[index] if codes else out[..., position, :]
            slopes = torch.autograd.grad(token.square().sum(), list(pixels.values()), retain_graph=True)
            seen = _flat(slopes) != 0
            assert bool(seen.any()), f"no pixel reaches the token at {position}"
            across, along = x[seen], y[seen]
            padded = bool(across.isnan().any() or along.isnan().any())
            edges = float(across.min()), float(along.min()), float(across.max()), float(along.max())
            found.append((prompts["black"], position, None if padded else edges))
    return found


def _cells(codes: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """[token, width] of what goes into a codebook, [picture, (time), width, row, column], without padding."""
    pictures = codes.squeeze(1) if codes.ndim == 5 else codes
    edge = inputs["pixel_values"].shape[-1] // pictures.shape[-1]
    sizes = inputs.get("image_sizes", torch.tensor([inputs["pixel_values"].shape[-2:]] * len(pictures))) // edge
    own = (picture[:, :rows, :columns] for picture, (rows, columns) in zip(pictures, sizes.tolist(), strict=True))
    return torch.cat([picture.flatten(1).T for picture in own])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
