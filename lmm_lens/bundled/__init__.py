"""The models in the box, offline."""

from typing import Any

DEMOS = {
    "sinks": "shapes-llava, with planted attention sinks and sparse visual heads",
    "plain": "shapes-llava, trained on the tasks alone",
    "emoji": "SmolLM2-135M-Instruct behind a small tower, its own weights untouched",
    "emoji-adapted": "the same with a low-rank adapter on its attention, trained to see",
}
"""Every variant of `Lens.demo`, and what it is."""


def load(variant: str) -> tuple[Any, Any]:
    """A bundled model in eval mode and its processor.

    Raises:
        ValueError: there is no such variant.
        ModelError: its language model comes from packages that are not installed.
    """
    if variant not in DEMOS:
        raise ValueError(f"the models in the box are {', '.join(map(repr, DEMOS))}; got {variant!r}")
    if variant.startswith("emoji"):
        from lmm_lens.bundled import emoji

        return emoji.load("frozen" if variant == "emoji" else "adapted")
    from lmm_lens.bundled import shapes

    return shapes.load(variant)
