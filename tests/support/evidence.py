"""Independent evidence about visual tokens: the processor's ids, the tower's gradient, and marks in pictures."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lmm_lens.prompts.prompt import Prompt
from tests.support.cases import close, plain

Pixels = tuple[int, int, int, int]


def check_bookkeeping(lens, prompt: Prompt, image_id: int) -> None:
    """Every image token is in exactly one span, no span holds another token, and the masks partition the sequence."""
    ids = prompt.inputs["input_ids"]
    assert torch.equal(prompt.mask("visual"), (ids == image_id) & ~prompt.mask("marker"))
    for row, spans in enumerate(prompt.spans):
        positions = [p for span in spans for p in span.positions]
        assert len(positions) == len(set(positions))
        assert set((ids[row] == image_id).nonzero().flatten().tolist()) <= set(positions)
        assert all(len(span) == span.grid[0] * span.grid[1] for span in spans if span.grid)
    parts = torch.stack([prompt.mask(name) for name in ("image", "video", "marker", "text", "pad")])
    assert torch.equal(parts.sum(0), torch.ones_like(parts[0], dtype=torch.int))


def check_it_runs(lens, prompt: Prompt) -> None:
    """The model takes the prompt, and the lens gives what the model gives."""
    close(lens.run(prompt).logits, plain(lens.adapter.model, prompt.inputs))


NAMES_OF_INPUT = ("hidden_states", "hidden_state", "inputs_embeds")


@contextmanager
def identity(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within, every one of these layers gives back its input, so that no patch hears of another."""

    def first(_module: nn.Module, args: tuple, kwargs: dict, out: object) -> object:
        given = args[0] if args else next(kwargs[name] for name in NAMES_OF_INPUT if name in kwargs)
        return (given, *out[1:]) if isinstance(out, tuple) else given

    hooks = [layer.register_forward_hook(first, with_kwargs=True, prepend=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def supports(features: Callable[[Tensor], Tensor], pixels: Tensor) -> list[tuple[int, Pixels]]:
    """For each visual token, (picture, box) of the pixels [picture, 3, height, width] its feature depends on."""
    pixels = pixels.clone().requires_grad_(True)
    boxes = []
    for token in features(pixels):
        (slope,) = torch.autograd.grad(token.square().sum(), pixels, retain_graph=True)
        picture, _, y, x = slope.nonzero(as_tuple=True)
        assert len(picture.unique()) == 1
        boxes.append((int(picture[0]), (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)))
    return boxes


def picture(width: int, height: int, mark: Pixels | None = None) -> Image.Image:
    """A grey picture, with a white mark where asked."""
    array = np.full((height, width, 3), 90, np.uint8)
    if mark is not None:
        x0, y0, x1, y1 = mark
        array[y0:y1, x0:x1] = 255
    return Image.fromarray(array)


def changed(before: Tensor, after: Tensor, prompt: Prompt, row: int = 0) -> set[int]:
    """Positions of the visual tokens whose features differ between two pictures of one size."""
    visual = prompt.mask("visual")[row].nonzero().flatten().tolist()
    differs = ((before - after).abs().amax(-1) > 1e-6).tolist()
    return {position for position, differ in zip(visual, differs, strict=True) if differ}


def check_mark(prompt: Prompt, moved: set[int], mark: Pixels, halo: tuple[float, float], image: int = 0) -> None:
    """Features moved at the tokens whose box the mark meets, and at no token farther than the resampling reaches.

    Args:
        prompt: whose boxes are checked.
        moved: positions of the tokens that the mark changed.
        mark: in pixels of the picture as given.
        halo: how far, across and down, a pixel of the picture spreads when it is resized.
        image: which picture.
    """
    x0, y0, x1, y1 = mark
    across, down = halo
    assert moved >= set(prompt.positions_in_box((x0 + across, y0 + down, x1 - across, y1 - down), image=image))
    assert moved <= set(prompt.positions_in_box((x0 - across, y0 - down, x1 + across, y1 + down), image=image))
    assert moved


def check_boxes(prompt: Prompt, found: list[tuple[int, Pixels]]) -> None:
    """What the adapter says of every visual token of the first row is what `supports` found."""
    tokens = prompt.mask("image")[0].nonzero().flatten().tolist()
    for position, (image, box) in zip(tokens, found, strict=True):
        assert prompt.box(position) == box
        assert prompt.patch_at(box[0], box[1], image=image) == position
        assert prompt.positions_in_box(box, image=image) == (position,)
