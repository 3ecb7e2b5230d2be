"""What the calls of a model are given beside a prompt's tensors."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig

from ..adapters.walker import every_module
from ..errors import InterventionError, LensError
from ..prompts.prompt import Prompt

MANY_PASSES = {
    "guidance_scale": "each step runs the model twice, with the prompt and without",
    "prompt_lookup_num_tokens": "a pass tries several tokens, some of which are rejected",
    "assistant_model": "a pass tries several tokens, some of which are rejected",
    "assistant_early_exit": "a pass tries several tokens, some of which are rejected",
    "prefill_chunk_size": "the prompt is read in several passes",
}
BESIDE = ("streamer", "logits_processor", "stopping_criteria")
"""What `generate` takes beside its config."""
MAX_NEW_TOKENS = 20
"""Where neither the call nor the model's own generation config says how many."""
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

    @property
    def defaults(self) -> GenerationConfig:
        """The model's own generation config; that of the language model in it where it has none."""
        configs: Iterator[Any] = (getattr(each, "generation_config", None) for each in every_module(self.model))
        return next((config for config in configs if config is not None), None) or GenerationConfig()

    def keeping(self, prompt: Prompt, last_only: bool) -> tuple[dict[str, Tensor], Int[Tensor, " batch"] | None]:
        """For logits of each row's last token alone: an option of the call, and which of its logits are each row's."""
        if not last_only:
            return {}, None
        last = prompt.mask("last").int().argmax(1)
        if not self._takes_logits_to_keep:
            return {}, last
        positions, index = last.unique(return_inverse=True)
        return {"logits_to_keep": positions.to(prompt.inputs["input_ids"].device)}, index

    def generating(self, options: Mapping[str, Any]) -> tuple[GenerationConfig, dict[str, Any]]:
        """How `generate` is called: its config, and what it is given beside it; greedy unless told otherwise.

        Raises:
            InterventionError: with one of them the passes of the model are not the prompt and then a token each.
        """
        rest = dict(options)
        given = rest.pop("generation_config", None)
        config = copy.deepcopy(self.defaults if given is None else given)
        beside = {name: rest.pop(name) for name in BESIDE if rest.get(name) is not None}
        rest = {name: value for name, value in rest.items() if name not in BESIDE}
        config.return_dict_in_generate = True  # else transformers warns about what is returned in it
        if given is None:
            config.update(do_sample=False, num_beams=1)
        config.update(**rest)
        config.disable_compile = True  # compiled code does not call the hooks of its modules
        for option, what in MANY_PASSES.items():
            value = getattr(config, option, None)
            if value is not None and not (option == "guidance_scale" and value == 1):
                raise InterventionError(
                    f"cannot generate with {option}={value!r}: {what}, so rows and steps would not be the answer's\n"
                    f"  leave it out, or set model.generation_config.{option} to None"
                )
        if not config.do_sample:
            config.update(temperature=None, top_p=None, top_k=None)  # else each greedy call warns about them
        if config.max_new_tokens is None and config.max_length is None:
            config.max_new_tokens = MAX_NEW_TOKENS
        if config.pad_token_id is None:
            eos = ends_of(config)
            config.pad_token_id = eos[0] if eos else None
        return config, beside

    def named(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The same as single options by name, for a `generate` that is not called with a config."""
        config, beside = self.generating(options)
        names = {"do_sample", "num_beams", "max_new_tokens", "pad_token_id", *options} - {*BESIDE, "generation_config"}
        if options.get("generation_config") is not None:
            names |= set(config.to_diff_dict()) - {"transformers_version", "return_dict_in_generate"}
        if config.cache_implementation is not None:  # transformers compiles for some of them, on a GPU
            names |= {"disable_compile"}
        if not config.do_sample:
            names |= {"temperature", "top_p", "top_k"}
        names -= {name for name in ("max_new_tokens", "num_beams", "pad_token_id") if getattr(config, name) is None}
        return {**{name: getattr(config, name) for name in sorted(names)}, **beside}

    @staticmethod
    def check(options: Mapping[str, Any]) -> None:
        """LensError for an option of `Lens.generate` that transformers would drop without a word."""
        known = vars(GenerationConfig())
        for option in options:
            if option in RETURNED:
                raise LensError(f"lens.generate does not take {option}\n  {RETURNED[option]}")
            if option not in known and option not in (*BESIDE, "generation_config"):
                close = difflib.get_close_matches(option, [*known, *BESIDE], 1)
                raise LensError(
                    f"lens.generate does not know the option {option!r}: it takes those of transformers' "
                    f"GenerationConfig and {', '.join(BESIDE)}{f', as {close[0]!r}' if close else ''}\n"
                    "  for others, call generate of the model itself within `with lens.apply(...)` (backend='native')"
                )
        if options.get("compile_config") is not None or options.get("disable_compile") is False:
            raise LensError(
                "lens.generate runs the model as it is written: compiled code does not call the hooks of its modules, "
                "and would lose edits and reads\n"
                "  leave out compile_config and disable_compile=False; a static cache itself is taken"
            )
        n = options.get("max_new_tokens")
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise LensError(
                f"max_new_tokens is a whole number from 1 on, given {n!r}; lens.run(prompt) generates nothing"
            )


def ends_of(config: GenerationConfig) -> list[int]:
    """The token ids that end a row."""
    eos = config.eos_token_id
    return [] if eos is None else [int(eos)] if isinstance(eos, int) else [int(each) for each in eos]


def new_tokens(sequences: Int[Tensor, "batch position"], ids: Int[Tensor, "prompt given"]) -> Int[Tensor, "batch new"]:
    """The tokens that were made, of what `generate` returned.

    A class that goes on from embeddings tells these alone; others repeat the ids that they were given, perhaps with
    another number where a negative one stood for a picture.
    """
    n, given = ids.shape[1], ids.to(sequences.device).repeat_interleave(len(sequences) // len(ids), 0)
    repeats = sequences.shape[1] >= n and bool(((sequences[:, :n] == given) | (given < 0)).all())
    return sequences[:, n:] if repeats else sequences
