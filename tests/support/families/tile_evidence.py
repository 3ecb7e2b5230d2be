"""Evidence about tiles: what enters the decoder and depends on which pixels, and colours that spell coordinates."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lmm_lens import Lens
from lmm_lens.prompts.prompt import Prompt
from tests.support.families.table import lens_of
from tests.support.families.tiled import PATCH, TOKEN


def vision_layers(model: nn.Module) -> list[nn.Module]:
    lists = [m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and "vision" in n]
    return list(
        next(layers for layers in lists if any("attn" in n or "attention" in n for n, _ in layers.named_modules()))
    )


def entering(lens: Lens, prompt: Prompt, **changed: Tensor) -> Tensor:
    """What the first decoder layer gets: [batch, position, width]. Differentiable."""
    seen: list[Tensor] = []
    hook = lens.adapter.layers[0].module.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    try:
        lens.adapter.model(**{**prompt.inputs, **changed})
    finally:
        hook.remove()
    return seen[0]


def tiles_of(name: str, prompt: Prompt, pixels: Tensor | None = None) -> list[Tensor]:
    """The tiles of a batch in the order of the text, as the model takes them (or another tensor of that form):
    [channel, y, x] each. Without `pixels`, as values from 0 to 1."""
    values = prompt.inputs["pixel_values"].float()
    given = values if pixels is None else pixels.float()
    if pixels is None:
        processor = lens_of(name).processor.image_processor
        form, times = ([-1], PATCH**2) if name == "lfm2_vl" else ([3, 1, 1], 1)
        mean, std = (
            torch.tensor(getattr(processor, f"image_{key}")).repeat(times).view(form) for key in ("mean", "std")
        )
        given = values * std + mean
    if name == "lfm2_vl":  # patches of each tile, row by row
        shapes = prompt.inputs["spatial_shapes"].tolist()
        return [_joined(tile[: h * w], h, w) for tile, (h, w) in zip(given, shapes, strict=True)]
    real = values.flatten(0, -4).flatten(1).any(1)  # rows with fewer tiles than others are filled up with zeros
    return list(given.flatten(0, -4)[real])


def _joined(patches: Tensor, rows: int, columns: int) -> Tensor:
    cut = patches.view(rows, columns, PATCH, PATCH, 3)
    return cut.permute(4, 0, 2, 1, 3).reshape(3, rows * PATCH, columns * PATCH)


def spelling(width: int, height: int) -> Image.Image:
    """A picture whose red is the share of the width, and whose green is the share of the height, at every pixel."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    red, green = np.broadcast_arrays(x[None, :], y[:, None])
    return Image.fromarray((np.stack([red, green, red * 0], -1) * 255).round().astype(np.uint8))


def check_spelling(name: str, prompt: Prompt, sizes: Sequence[Sequence[tuple[int, int]]]) -> None:
    """Of a prompt on spelling pictures: each token's box is where its processed pixels say that they come from."""
    owners = [(row, span) for row, spans in enumerate(prompt.spans) for span in spans if span.kind != "marker"]
    for (row, span), pixels in zip(owners, tiles_of(name, prompt), strict=True):
        width, height = sizes[row][span.image]
        for position in span.positions:
            box, (r, c) = span.box(position), span.cell(position)
            seen = pixels[:, r * TOKEN : (r + 1) * TOKEN, c * TOKEN : (c + 1) * TOKEN].mean((1, 2))
            if box.x1 <= width + 0.01 and box.y1 <= height + 0.01:  # else it holds padding
                assert abs(float(seen[0]) - (box.x0 + box.x1) / 2 / width) < 0.02
                assert abs(float(seen[1]) - (box.y0 + box.y1) / 2 / height) < 0.02
                assert prompt.box(position, row) == box
