"""Every family with its real processor on a tiny model, one lens of each for all tests.

A family is entered in the file of its kind with `@family`; `lens_of(name, backend)` is the only way to a lens of it.
Tiny models without processors, for what a decoder does, are in `tests/support/models`.
"""

from functools import cache

from lmm_lens import Prompt
from tests.support.evidence import picture

from . import cropped, gemma3, gemma4, grid_thw, llavas, mllama, one_run, pixtral, queries, square, tiled  # noqa: F401  (they enter theirs)
from .table import BUILD, lens_of

EVERY = [name for name in BUILD if " " not in name]
"""One of each family, no variants."""
TOWERS = (
    *(
        "llava",
        "perception_lm",
        "gemma3",
        "gemma4",
        "qwen2_vl",
        "qwen2_5_vl",
        "qwen3_vl",
        "qwen3_5",
        "glm4v",
        "exaone4_5",
    ),
    *("paddleocr_vl", "video_llama_3", "mllama", "pixtral", "hunyuan_vl", "kimi_k25", "muse_glimmer", "dots3_note"),
    *("idefics2", "internvl", "llama4", "lfm2_vl", "janus", "molmo2", "step3p7", "minicpmv4_6", "unlimited_ocr"),
    *("got_ocr2", "fast_vlm"),
)
"""One family of each kind of vision tower, and two whose towers have no heads."""
SIZE = (90, 60)


@cache
def prompt_of(name: str) -> Prompt:
    """A question about one picture."""
    return lens_of(name).prompt("What is this?", images=picture(*SIZE))


__all__ = ["BUILD", "EVERY", "SIZE", "TOWERS", "lens_of", "prompt_of"]
