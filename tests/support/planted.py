"""Tiny models in which some tokens carry massive activations, text and patches alike.

Whatever enters the decoder with a large value in one dimension gets the massive activation there: a few visual
tokens, by chance, and words whose embedding is set so. Which tokens are sinks thus follows from content alone: it is
the same in a batch, after a cache, and in the reference's copy of the model.
"""

from functools import cache
from itertools import pairwise
from unittest.mock import patch

import torch
from torch import Tensor, nn

from tests.support.cases import Case
from tests.support.models import BOS, FAMILIES, IMAGE, Inputs, another, joined, parts
from tests.support.oracle import ScoreReference, SlowVAR

DIMS = (9, 40)
HEIGHTS = (50.0, -30.0)  # in units of the token's other dimensions
THRESHOLD = 4.0  # phi is at most 8 in these models
WORD = 22  # a word after the image
WORDS = (BOS, WORD, *range(60, 140, 2))  # many, so that generated tokens are among them
OWN_DEPTH = ("gemma3", "qwen3_5")  # their builders list their layers one by one


def build(name: str, n_layers: int = 5) -> tuple[nn.Module, Inputs]:
    """A family's tiny model, deep enough for a first layer 2 and a last layer to be left alone."""
    depth = {} if name in OWN_DEPTH else {"num_hidden_layers": n_layers}
    with patch.dict(parts.TEXT, depth), patch.dict(parts.NO_HEAD_DIM, depth):
        model, inputs = FAMILIES[name]()
    with torch.no_grad():  # attention further from uniform
        for layer in model.get_decoder().layers:
            if hasattr(layer, "self_attn"):
                layer.self_attn.q_proj.weight.mul_(4)
    return model, inputs


def entering(model: nn.Module, inputs: Inputs) -> Tensor:
    """What enters the decoder's first layer."""
    seen = []
    first = model.get_decoder().layers[0]
    hook = first.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return seen[0]


def plant(
    model: nn.Module,
    inputs: Inputs,
    words: tuple[int, ...] = WORDS,
    n_visual: int = 2,
    dims: tuple[int, ...] = DIMS,
) -> nn.Module:
    """Give the words and `n_visual` visual tokens of these inputs massive activations."""
    values = entering(model, inputs)[0, inputs["input_ids"][0] == IMAGE].sort(dim=0, descending=True).values
    limits = torch.full((values.shape[1],), 10.0)
    mark = next(d for d in range(values.shape[1]) if d not in dims)
    if n_visual:
        # the dimension in which so many visual tokens stand out most
        following = values[n_visual] if n_visual < len(values) else torch.zeros_like(values[0])
        gaps = values[n_visual - 1] - following.clamp_min(0)
        gaps[list(dims)] = -1
        mark = int(gaps.argmax())
        limits = (values[n_visual - 1] + following.clamp_min(0)) / 2
    limit = float(limits[mark])
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, mark] = 0
        embedding[list(words), mark] = 2 * limit

    def massive(module: nn.Module, args: tuple, kwargs: dict):
        x = args[0] if args else kwargs["hidden_states"]
        tall = x / x.square().mean(-1, keepdim=True).sqrt()
        tall[..., mark] = 0
        tall[..., list(dims)] = torch.tensor(HEIGHTS[: len(dims)], dtype=x.dtype)
        x = torch.where(x[..., mark, None] > limit, tall, x)
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    model.get_decoder().layers[0].register_forward_pre_hook(massive, with_kwargs=True)
    return model


class Planted(Case):
    """A family with sinks.

    Attributes:
        settings: of VAR, so that it has layers to act in, and some rows meet its criteria and some do not.
    """

    def __init__(self, name: str) -> None:
        model, inputs = build(name)
        n_visual = {"mllama": 0, "gemma3": 1}.get(name, 2)
        super().__init__(name, plant(model, inputs, n_visual=n_visual), inputs)
        self.settings = {"sink_dims": DIMS, "sink_threshold": THRESHOLD}
        if name == "gemma3":  # its generated rows see the picture in the last layer alone
            self.settings |= {"first_layer": 0, "skip_last_layer": False}
        if name == "qwen3_5":
            self.settings |= {"first_layer": 1}
        self.settings |= self.criteria()

    def criteria(self) -> dict[str, float]:
        """Thresholds that some rows meet and some do not, halfway between two rows."""
        look = SlowVAR(self.reference, self.inputs, **self.settings, min_nonsink_ratio=0, min_visual_mass=0)
        with self.reference.editing(pattern=look):
            self.reference.run(self.inputs)
        least = lower_third([mass for mass, _ in look.observed])
        return {
            "min_visual_mass": least,
            "min_nonsink_ratio": lower_third([ratio for mass, ratio in look.observed if mass >= least]),
        }

    @property
    def reference(self) -> ScoreReference:
        if not hasattr(self, "_reference"):
            self._reference = ScoreReference(self.model)
        return self._reference

    def batch(self) -> tuple[list[Inputs], Inputs]:
        """Three prompts with three pictures, and all of them padded on the left."""
        prompts = [self.inputs, another(self.inputs), another(self.inputs, seed=2)]
        return prompts, joined(prompts)


@cache
def planted(name: str) -> Planted:
    return Planted(name)


def lower_third(values: list[float]) -> float:
    """A number that about a third of the values fall below, in the widest gap near there."""
    near = sorted(values)[len(values) // 4 : len(values) // 2 + 1]
    gaps = [(b - a, (a + b) / 2) for a, b in pairwise(near)]
    return max(gaps)[1] if gaps else 0.0


def real_tokens(inputs: Inputs) -> Tensor:
    """Which tokens are no padding."""
    return inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
