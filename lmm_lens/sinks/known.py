"""Sink dimensions that others have published, with their sources.

A language model is told by the model_type of its text config and by d_model; LLaMA-2 and LLaMA-3, which share both, by
the size of the vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..prompts.text_config import text_config_of


class KnownSinks(NamedTuple):
    """Published sink dimensions of one language model."""

    model: str
    model_type: str
    d_model: int
    dims: tuple[int, ...]
    source: str
    max_vocab: int | None = None


_PAPER = "Kang et al., ICLR 2025, paper and code"
_CODE = "Kang et al., ICLR 2025, code"
_NOTES = "notes on Kang et al., ICLR 2025"
_THIRD = "third party, uncalibrated"

KNOWN: tuple[KnownSinks, ...] = (
    KnownSinks("LLaMA-2-7B (LLaVA-1.5-7B)", "llama", 4096, (1415, 2533), _PAPER, 40_000),
    KnownSinks("LLaMA-2-13B (LLaVA-1.5-13B)", "llama", 5120, (2100, 4743), _CODE, 40_000),
    KnownSinks("Qwen2-VL-7B", "qwen2_vl_text", 3584, (458, 2570), _NOTES),
    KnownSinks("InternVL2-8B", "internlm2", 4096, (3584,), _NOTES),
    KnownSinks("Qwen2.5-VL-3B", "qwen2_5_vl_text", 2048, (318, 1874, 1819), _THIRD),
    KnownSinks("Qwen2.5-VL-7B", "qwen2_5_vl_text", 3584, (458, 2570), _THIRD),
    KnownSinks("Qwen2.5-VL-32B", "qwen2_5_vl_text", 5120, (4675, 3094), _THIRD),
    KnownSinks("Qwen3-VL-2B", "qwen3_vl_text", 2048, (1793, 1999, 1401), _THIRD),
    KnownSinks("Qwen3-VL-4B", "qwen3_vl_text", 2560, (0,), _THIRD),
    KnownSinks("Qwen3-VL-8B", "qwen3_vl_text", 4096, (1838,), _THIRD),
    KnownSinks("InternVL3.5-1B", "qwen3", 1024, (35, 13), _THIRD),
    KnownSinks("InternVL3.5-4B", "qwen3", 2560, (4, 396, 0), _THIRD),
    KnownSinks("InternVL3.5-8B", "qwen3", 4096, (2276, 233), _THIRD),
    KnownSinks("InternVL3.5-38B", "qwen3", 5120, (731,), _THIRD),
)


def known_for(config: Any) -> KnownSinks | None:
    """The entry of a model's config, if its language model is in the table."""
    text = text_config_of(config)
    for entry in KNOWN:
        same = (entry.model_type, entry.d_model) == (text.model_type, text.hidden_size)
        if same and (entry.max_vocab is None or text.vocab_size < entry.max_vocab):
            return entry
    return None
