"""A lens with its real processor for every family, and a prompt of each."""

from collections.abc import Callable
from functools import cache

from lmm_lens import Lens, Prompt
from tests.adapters import test_gemma3, test_gemma4, test_llava, test_mllama, test_pixtral, test_queries, test_square
from tests.support.evidence import picture
from tests.support.families import grid_thw, llavas, tiled

SIZE = (90, 60)


def _named(lens_of: Callable[[str], Lens], *names: str) -> dict[str, Callable[[], Lens]]:
    return {name: lambda name=name: lens_of(name) for name in names}


LENSES: dict[str, Callable[[], Lens]] = {
    **_named(grid_thw.lens_of, *grid_thw.NAMES),
    **_named(tiled.lens_of, *tiled.FAMILIES),
    **_named(test_square.lens_of, "paligemma", "deepseek_vl", "deepseek_vl_hybrid", "janus", "fast_vlm"),
    **_named(test_llava.lens_of, "llava", "vipllava", "video_llava"),
    **_named(test_pixtral.lens_of, "pixtral", "mistral3"),
    **_named(test_queries.lens_of, *test_queries.BLIPS),
    "idefics2": lambda: test_queries.idefics2_lens(True),
    "llava_next": llavas.llava_next,
    "llava_next_video": llavas.llava_next_video,
    "llava_onevision": llavas.llava_onevision,
    "gemma3": lambda: test_gemma3.lens_of(False),
    "gemma4": test_gemma4.lens,
    "mllama": test_mllama.lens,
}


@cache
def lens_of(name: str) -> Lens:
    """The native lens of a family."""
    return LENSES[name]()


@cache
def prompt_of(name: str) -> Prompt:
    """A question about one picture."""
    return lens_of(name).prompt("What is this?", images=picture(*SIZE))
