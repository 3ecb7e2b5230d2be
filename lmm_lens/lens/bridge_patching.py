"""`transformer_lens.patching` on prompts: its functions take tokens alone, and would silently run without the image.

They call the model as `model.run_with_hooks(tokens, fwd_hooks=...)` and read `model.cfg`. `PatchingModel` stands in for
the bridge: it adds the prompt's image inputs to each such call, and passes everything else on.

    model = lens.patching_model(corrupt)
    _, clean_cache = lens.run_with_cache(clean)
    get_act_patch_resid_pre(model, model.tokens, clean_cache, metric)
    get_act_patch_by_span(model, clean_cache, metric, "resid_pre")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import PromptError
from ..prompts.prompt import Prompt
from .bridge_calls import bridge_inputs, run_with_cache
from .bridge_tokens import BoundTokens

if TYPE_CHECKING:
    from .lens import Lens


class PatchingModel:
    """A TransformerBridge whose every run has the image inputs of one prompt.

    Args:
        lens: a lens of the TransformerLens backend.
        prompt: the corrupt prompt, in most of the functions.

    Attributes:
        prompt: the prompt.
        tokens: its token ids, the only ones that it runs with.
    """

    def __init__(self, lens: Lens, prompt: Prompt) -> None:
        self._bridge, self._lens, self.prompt = lens.bridge, lens, prompt
        self._inputs = bridge_inputs(prompt)
        self.tokens: Tensor = self._inputs["input"]

    def __getattr__(self, name: str) -> Any:
        if name == "_bridge":  # not yet set: copying and unpickling look before __init__ ran
            raise AttributeError(name)
        return getattr(self._bridge, name)

    def __repr__(self) -> str:
        return f"PatchingModel of a {repr(self.prompt).splitlines()[0].lower()}"

    def __call__(self, tokens: Tensor, **options: Any) -> Any:
        """The logits of the prompt."""
        return self._bridge(**self._bound(tokens, options))

    forward = __call__

    def run_with_hooks(self, tokens: Tensor, **options: Any) -> Any:
        """As the bridge's, with the image."""
        return self._bridge.run_with_hooks(**self._bound(tokens, options))

    def run_with_cache(self, tokens: Tensor, **options: Any) -> Any:
        """As `Lens.run_with_cache`."""
        self._bound(tokens, {})
        return run_with_cache(self._lens, self.prompt, **options)

    def generate(self, tokens: Tensor, **options: Any) -> Any:
        """As the bridge's, with the image."""
        return self._bridge.generate(**{**self._bound(tokens, options), "use_cache": True})

    def hf_generate(self, tokens: Tensor, **options: Any) -> Any:
        """As the bridge's, with the image."""
        return self._bridge.hf_generate(**{**self._bound(tokens, options), "use_cache": True})

    def _bound(self, tokens: Tensor, options: dict[str, Any]) -> dict[str, Any]:
        if isinstance(tokens, BoundTokens) and tokens.prompt is not self.prompt:
            raise PromptError(
                "these token ids are bound to another prompt than this model's\n"
                "  pass model.tokens, or give lens.bridge the bound ids: it runs those of any prompt"
            )
        if not (isinstance(tokens, Tensor) and torch.equal(tokens.to(self.tokens.device), self.tokens)):
            given = f"tokens of shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise PromptError(
                f"this model runs one prompt of {self.prompt.n_rows} rows x {self.prompt.n_tokens} tokens, "
                f"given {given}\n"
                "  pass its own token ids, model.tokens; for another prompt make another lens.patching_model(prompt)"
            )
        return {"use_cache": False, **self._inputs, **options}
