"""A tiny model with its lens, its prompt and its reference, made once for all tests."""

import warnings
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.models import FAMILIES, IMAGE, Inputs, another, joined
from tests.support.reference import Reference, attention_of, heads_of

SITES = ("resid_pre", "pattern", "z", "attn_out", "mlp_out", "resid_post")
HEAD_SITES = ("pattern", "z", "attn_out")
TOLERANCE = 1e-5  # logits are of order 1; sdpa and eager differ by 1e-6


class Case:
    """One family.

    Attributes:
        model: as a user would have it.
        inputs: one prompt of one picture.
    """

    def __init__(self, name: str, model: nn.Module, inputs: Inputs) -> None:
        self.name, self.model, self.inputs = name, model, inputs
        layers = model.get_decoder().layers
        self.n_layers = len(layers)
        self.attending = [i for i, layer in enumerate(layers) if attention_of(layer) is not None]
        self.self_attending = [i for i in self.attending if hasattr(layers[i], "self_attn")]
        self.heads = heads_of(model)

    @property
    def lens(self) -> Any:
        return self.on("native")

    @cache  # noqa: B019  (cases live as long as the tests)
    def on(self, backend: str) -> Any:
        """The lens of a backend; "remote" is nnsight as a server would run it. All share the model."""
        from lmm_lens import Lens

        if backend == "remote":
            return Lens(self.model, backend="nnsight", remote="local")
        return Lens(self.model, backend=backend)

    def lenses(self, backend: str) -> tuple[Any, Any]:
        """The native lens and that of a backend, to compare."""
        return self.lens, self.on(backend)

    @cached_property
    def prompt(self) -> Any:
        return self.lens.prompt(inputs=self.inputs)

    @cached_property
    def reference(self) -> Reference:
        """Run on this case's own prompt before it is handed out."""
        return Reference(self.model)

    @cached_property
    def logits(self) -> Tensor:
        """What the user's model says, without us."""
        return plain(self.model, self.inputs)

    @cached_property
    def scopes(self) -> dict[str, list[int]]:
        """Row scope -> its prompt positions, counted here; what follows the image but is a marker is no text."""
        ids = self.inputs["input_ids"][0].tolist()
        last_visual = max(i for i, token in enumerate(ids) if token == IMAGE)
        return {
            "all": list(range(len(ids))),
            "after_image": [i for i in range(last_visual + 1, len(ids)) if not self.prompt.mask("marker")[0, i]],
            "last": [len(ids) - 1],
        }

    def layers_of(self, site: str) -> list[int]:
        return self.attending if site in HEAD_SITES else list(range(self.n_layers))

    def pair(self, side: str = "left") -> tuple[list[Inputs], Inputs]:
        """Two prompts of different length and image position, and both as a batch."""
        prompts = [self.inputs, another(self.inputs)]
        return prompts, joined(prompts, side)

    def __repr__(self) -> str:
        return self.name


@cache
def case(name: str) -> Case:
    return Case(name, *FAMILIES[name]())


@cache
def double(name: str) -> Case:
    """The same in fp64, and its numbers in the inputs too."""
    model, inputs = FAMILIES[name]()
    wide = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    return Case(name, model.double(), wide)


def plain(model: nn.Module, inputs: Mapping[str, Any], **options: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs, **options).logits


def close(given: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(given, expected, atol=tolerance, rtol=tolerance)


def edits_of(run: Any) -> list[int]:
    """Rows times heads that each intervention of a run edited."""
    return [report.n_edits for report in run.reports]


def honest(call: Callable[[], Any]) -> Any:
    """The run that a call gives, which must have warned of every intervention that changed nothing, and of no other."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = call()
    idle = [report.intervention for report in run.reports if not report.n_edits]
    assert [str(warning.message).partition(" changed nothing")[0] for warning in told] == [str(edit) for edit in idle]
    return run


def hooks_of_ours(model: nn.Module) -> list[str]:
    """The library's hooks on a model's modules; transformers leaves some of its own on vision towers."""
    hooks = (hook for m in model.modules() for hook in (*m._forward_pre_hooks.values(), *m._forward_hooks.values()))
    ours = (hook for hook in hooks if (hook.__module__ or "").startswith("lmm_lens"))
    return [getattr(hook, "__qualname__", type(hook).__qualname__) for hook in ours]
