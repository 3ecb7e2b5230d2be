"""What the calls of a model are given beside a prompt's tensors."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig

from ..errors import InterventionError, LensError
from ..prompts.prompt import Prompt

MANY_PASSES = {
    "guidance_scale": "each step runs the model twice, with the prompt and without",
    "prompt_lookup_num_tokens": "a pass tries several tokens, some of which are rejected",
    "assistant_model": "a pass tries several tokens, some of which are rejected",
    "assistant_early_exit": "a pass tries several tokens, some of which are rejected",
    "prefill_chunk_size": "the prompt is read in several passes",
}
RETURNED = {
    "return_dict_in_generate": "it always gives a Generation: text, tokens, logits, reads, reports",
    "output_logits": "ask for logits=True",
    "output_scores": "ask for logits=True",
    "output_attentions": 'ask for read=["pattern"]',
    "output_hidden_states": 'ask for read=["resid_post"]',
}


class Options:
    """What the calls of a model are given beside a prompt's tensors, the same on every backend.

    Args:
        model: the Hugging Face model.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._takes_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters

    def keeping(self, prompt: Prompt, last_only: bool) -> tuple[dict[str, Tensor], Int[Tensor, " batch"] | None]:
        """For logits of each row's last token alone: an option of the call, and which of its logits are each row's."""
        if not last_only:
            return {}, None
        last = prompt.mask("last").int().argmax(1)
        if not self._takes_logits_to_keep:
            return {}, last
        positions, index = last.unique(return_inverse=True)
        return {"logits_to_keep": positions.to(prompt.inputs["input_ids"].device)}, index

    def generating(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of `generate`; greedy unless the user's say otherwise.

        Raises:
            InterventionError: with one of them the passes of the model are not the prompt and then a token each.
        """
        for option, what in MANY_PASSES.items():
            value = options.get(option, getattr(self.model.generation_config, option, None))
            if value is not None and not (option == "guidance_scale" and value == 1):
                raise InterventionError(
                    f"cannot generate with {option}={value!r}: {what}, so rows and steps would not be the answer's\n"
                    f"  leave it out, or set model.generation_config.{option} to None"
                )
        chosen: dict[str, Any] = {"do_sample": False, "num_beams": 1}
        if not options.get("do_sample"):
            chosen |= {"temperature": None, "top_p": None, "top_k": None}  # else each greedy call warns about them
        chosen |= options
        config = self.model.generation_config
        if chosen.get("pad_token_id", config.pad_token_id) is None:
            eos = chosen.get("eos_token_id", config.eos_token_id)
            chosen["pad_token_id"] = (eos[0] if eos else None) if isinstance(eos, list) else eos
        return chosen

    @staticmethod
    def check(options: Mapping[str, Any]) -> None:
        """LensError for an option of `Lens.generate` that transformers would drop without a word."""
        known = vars(GenerationConfig())
        for option in options:
            if option in RETURNED:
                raise LensError(f"lens.generate does not take {option}\n  {RETURNED[option]}")
            if option not in known:
                close = difflib.get_close_matches(option, known, 1)
                raise LensError(
                    f"lens.generate does not know the option {option!r}: it takes those of transformers' "
                    f"GenerationConfig{f', as {close[0]!r}' if close else ''}\n"
                    "  for others, call generate of the model itself within `with lens.apply(...)` (backend='native')"
                )
