"""The config of the language model inside a multimodal one, under whichever name it stands."""

from __future__ import annotations

from typing import Any

NAMES = ("llm_config", "text_config", "language_config", "lm_config", "llm_cfg")
"""Where remote code keeps it; transformers' own configs answer `get_text_config`."""


def text_config_of(config: Any) -> Any:
    """The text config; the config itself where it has none apart."""
    get = getattr(config, "get_text_config", None)
    found = get() if callable(get) else config
    if found is not config or hasattr(found, "hidden_size"):
        return found
    return next((part for name in NAMES if hasattr(part := getattr(config, name, None), "hidden_size")), found)
