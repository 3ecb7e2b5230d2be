"""What tasks ask of a generation, in the words of lmms-eval, as options of `Lens.generate`. Nothing is dropped."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import LensError

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")
LENGTHS = {"max_gen_toks": "max_new_tokens", "max_tokens": "max_new_tokens"}
"""Other words for one thing."""


@dataclass(frozen=True)
class Asked:
    """How answers of a task are generated.

    Attributes:
        options: of `Lens.generate`.
        stops: texts that end an answer and are not part of it.
    """

    options: Mapping[str, Any]
    stops: tuple[str, ...]

    @classmethod
    def of(cls, given: Mapping[str, Any], max_new_tokens: int, leave_out: Collection[str] = ()) -> Asked:
        """What a task's `generation_kwargs` mean.

        Args:
            given: them.
            max_new_tokens: where they do not say.
            leave_out: names in them that the user says this model needs not know.

        Raises:
            LensError: they contradict each other; what transformers does not know is refused by `Lens.generate`.
        """
        options = {LENGTHS.get(name, name): value for name, value in given.items() if name not in leave_out}
        stops = _stops(options.pop("until", None))
        options = {name: value for name, value in options.items() if value is not None}
        options.setdefault("max_new_tokens", max_new_tokens)
        options["do_sample"] = _samples(options.get("do_sample"), options.get("temperature"))
        if not options["do_sample"]:
            for name in SAMPLING:  # the most likely token is the same under all of them
                options.pop(name, None)
        return cls(options, stops)

    def cut(self, text: str) -> str:
        """An answer up to the first text that ends it."""
        ends = [text.find(stop) for stop in self.stops if stop in text]
        return text[: min(ends)] if ends else text


def _stops(until: Any) -> tuple[str, ...]:
    listed = [until] if isinstance(until, str) else [] if until is None else until
    if not isinstance(listed, (list, tuple)) or not all(isinstance(each, str) for each in listed):
        raise LensError(f"until must be a text or a list of texts, given {until!r}")
    return tuple(each for each in listed if each)


def _samples(do_sample: Any, temperature: Any) -> bool:
    """Whether to draw tokens: as do_sample says, or, without it, if there is a temperature."""
    warm = temperature is not None and float(temperature) > 0
    if do_sample is None:
        return warm
    if temperature is not None and bool(do_sample) != warm:
        raise LensError(
            f"do_sample={do_sample} and temperature={temperature} contradict each other: transformers goes by the "
            "first, the harness's own models by the second\n"
            "  say which is meant, with --gen_kwargs temperature=0,do_sample=False or do_sample=True,temperature=1.0"
        )
    return bool(do_sample)
