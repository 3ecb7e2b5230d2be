"""Batch rows of prompts, taken out and put together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..errors import PromptError
from .prompt import Prompt


def row_of(prompt: Prompt, row: int) -> Prompt:
    """One batch row of a prompt as a prompt, padding kept.

    Raises:
        PromptError: no such row, or its tensors cannot be told from those of other rows: each row must have the same
            number of pictures, of one tensor entry each, as in a batch of one picture a row.
    """
    if not 0 <= row < prompt.n_rows:
        raise PromptError(f"row {row} is out of range: the prompt has rows 0 to {prompt.n_rows - 1}")
    if prompt.n_rows == 1:
        return prompt
    counts = [len({span.source for span in spans if span.kind != "marker"}) for spans in prompt.spans]
    shared = [name for name, value in prompt.inputs.items() if len(value) != prompt.n_rows]
    if shared or max(counts) > 1 or len(set(counts)) > 1:
        raise PromptError(
            f"the rows of this batch of {prompt.n_rows} cannot be run one by one: they hold {counts} pictures, and "
            f"{', '.join(shared) or 'their tensors'} do not say which row each part is of\n"
            "  make one prompt a row: [lens.prompt(text, images=image) for ...]"
        )
    part, keys = slice(row, row + 1), prompt.cross_keys
    return replace(
        prompt,
        inputs={name: value[part] for name, value in prompt.inputs.items()},
        spans=prompt.spans[part],
        images=prompt.images[part],
        tokens=prompt.tokens[part],
        masks={name: mask[part] for name, mask in prompt.masks.items()},
        texts=None if prompt.texts is None else prompt.texts[part],
        videos=prompt.videos[part],
        cross_keys=None if keys is None else keys[part],
    )


def joined(prompts: Sequence[Prompt]) -> Prompt:
    """Prompts of one length as one batch, in order.

    Raises:
        PromptError: their lengths, inputs or the shapes of their pictures differ.
    """
    first = prompts[0]
    if len(prompts) == 1:
        return first
    lengths = sorted({prompt.n_tokens for prompt in prompts})
    if len(lengths) > 1:
        raise PromptError(
            f"prompts of {', '.join(map(str, lengths))} tokens cannot be one batch\n"
            "  give prompts of one length, or make the batch with lens.prompt([...], images=[...]), which pads"
        )
    for name in sorted({name for prompt in prompts for name in prompt.inputs}):
        shapes = {tuple(prompt.inputs[name].shape[1:]) if name in prompt.inputs else None for prompt in prompts}
        if len(shapes) > 1:
            raise PromptError(
                f"these prompts cannot be one batch: their {name} is {' and '.join(sorted(map(str, shapes)))} a row\n"
                "  give pictures of one size, the same number to each prompt"
            )
    keys = [prompt.cross_keys for prompt in prompts]
    return replace(
        first,
        inputs={name: torch.cat([prompt.inputs[name] for prompt in prompts]) for name in first.inputs},
        spans=tuple(spans for prompt in prompts for spans in prompt.spans),
        images=tuple(images for prompt in prompts for images in prompt.images),
        tokens=tuple(tokens for prompt in prompts for tokens in prompt.tokens),
        masks={name: torch.cat([prompt.masks[name] for prompt in prompts]) for name in first.masks},
        texts=_texts(prompts),
        videos=tuple(videos for prompt in prompts for videos in prompt.videos),
        cross_keys=None if any(key is None for key in keys) else torch.cat([key for key in keys if key is not None]),
    )


def _texts(prompts: Sequence[Prompt]) -> tuple[str, ...] | None:
    if any(prompt.texts is None for prompt in prompts):
        return None
    return tuple(text for prompt in prompts for text in prompt.texts or ())
