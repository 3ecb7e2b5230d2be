"""Sinks of the vision tower: visual tokens of outlying norm (arXiv:2510.08510).

They are another set than the language model's sinks: a vision transformer stores global information in a few patches,
whose norm explodes. Rule: ||x|| >= 100 in the tower's last layers (CLIP ViT-L: 3 to 5 an image).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import ModelError, ScoreError
from ..hooks.points import Read
from ..hooks.runner import Runner
from ..prompts.prompt import Prompt

CLIP_NORM = 100.0
"""From which norm on tokens of CLIP ViT-L are sinks."""


@dataclass(frozen=True, eq=False)
class VisionSinks:
    """Norms of the vision tower's tokens and which of them are sinks.

    Attributes:
        norms: ||x|| of every token that leaves a layer of the tower.
        threshold: from which norm on a token is a sink.
    """

    norms: Float[Tensor, "picture layer token"]
    threshold: float

    @property
    def sinks(self) -> Bool[Tensor, "picture layer token"]:
        """Which tokens are sinks at which layer."""
        return self.norms >= self.threshold

    def positions(self, layer: int, picture: int = 0) -> tuple[int, ...]:
        """The sink tokens of a picture, tile or frame that leave a layer; `Lens.vision.patches` says where they lie.

        Raises:
            ScoreError: there is no such layer or picture.
        """
        n_pictures, n_layers = self.norms.shape[:2]
        if not (0 <= layer < n_layers and 0 <= picture < n_pictures):
            raise ScoreError(
                f"layer {layer} of picture {picture} is not there: the tower ran {n_layers} layers on {n_pictures} "
                "pictures, counted from 0"
            )
        return tuple(self.sinks[picture, layer].nonzero().flatten().tolist())

    def __repr__(self) -> str:
        per_layer = self.sinks.float().sum(-1).mean(0)
        if not bool(self.sinks.any()):
            return (
                f"VisionSinks: none: no token of the vision tower reaches norm {self.threshold:g}, "
                f"the largest is {float(self.norms.max()):.1f}"
            )
        return (
            f"VisionSinks: {per_layer[-1]:.1f} tokens a picture after the last layer, "
            f"at most {per_layer.max():.1f} before"
        )


def find_vision_sinks(lens: Runner, prompt: Prompt, threshold: float = CLIP_NORM) -> VisionSinks:
    """Find the vision tower's sink tokens on the pictures of a prompt.

    Args:
        lens: the model.
        prompt: a prompt with pictures.
        threshold: the norm from which on a token is a sink; 100 fits CLIP ViT-L.

    Raises:
        ModelError: the model has no vision tower with layers that could be found.
        ScoreError: the prompt has no pictures, or the tower's layers did not run.
    """
    if not bool(prompt.mask("visual").any()):
        raise ScoreError("the prompt has no visual tokens, so the vision tower does not run on it")
    layers = vision_layers(lens.model)
    norms: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: object) -> None:
        x = output[0] if isinstance(output, tuple) else output
        assert isinstance(x, Tensor)
        norms.append(x.detach().float().norm(dim=-1).cpu())

    # prepended, so that features that a tower captures itself are seen as it sees them
    hooks = [layer.register_forward_hook(keep, prepend=True) for layer in layers]
    try:
        lens.run(prompt, logits="last")
    finally:
        for hook in hooks:
            hook.remove()
    if not norms:  # the lens runs a twin of its model, or a server does
        read = lens.run(prompt, read=[Read("vision.resid_post")], logits="last").reads
        norms = [read["vision.resid_post", layer].float().norm(dim=-1).cpu() for layer in range(len(layers))]
    if len(norms) != len(layers):
        raise ScoreError(
            f"{len(norms)} of {len(layers)} layers of the vision tower ran once; expected each to run once"
        )
    stacked = torch.stack(norms, dim=-2)  # [picture,] layer token
    return VisionSinks(stacked if stacked.ndim == 3 else stacked[None], threshold)


def vision_layers(model: Any) -> nn.ModuleList:
    """The layers of the vision tower: the longest module list outside the decoder.

    Raises:
        ModelError: there is none.
    """
    encoder = model.get_encoder(modality="image")  # returns the model itself where it knows no encoder
    lists = [] if encoder is model else [m for m in encoder.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ModelError(f"{type(model).__name__} has no vision tower with layers that could be found")
    return max(lists, key=len)
