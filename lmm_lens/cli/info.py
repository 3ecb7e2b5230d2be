"""`lmm-lens info MODEL`: what the library knows of a model, from its config alone."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from ..adapters import Adapter, adapter_for
from . import support
from .network import stay_offline_if_unreached
from .waiting import waiting


def run(name: str) -> None:
    """Print family, decoder, visual tokens and hook points.

    Raises:
        ModelError: there is no such model, or it is no image-text-to-text model.
    """
    from ..hooks.points import HOOK_POINTS

    with waiting("reading the config"):
        adapter = adapter_for(empty_model(name))
    known = next((row for row in support.table() if row.family == adapter.family), None)
    heads = sorted({layer.n_heads for layer in adapter.layers if layer.n_heads})
    sizes = sorted({layer.d_head for layer in adapter.layers if layer.n_heads})
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    facts = {
        "model": f"{type(adapter.model).__name__} (model_type {adapter.config.model_type})",
        "family": adapter.family + ("" if known else ": no adapter, served by what is generic"),
        "decoder": f"{len(adapter.layers)} layers x {_either(heads)} heads of {_either(sizes)}",
        "visual tokens": known.what if known else "wherever the image token stands",
        "token ids": f"image {adapter.image_token_id}"
        + (f", video {adapter.video_token_id}" if adapter.video_token_id is not None else ""),
        "pixels to tokens": "both ways" if adapter.has_grid else "not known for this family",
        "videos": "yes" if known and known.videos else "no",
        "backends": "native, nnsight, transformer_lens" + ("" if known and known.transformer_lens else " (tried)"),
    }
    facts |= {f"not supported ({i})": lack for i, lack in enumerate(_lacks(adapter, known), 1)}
    for key, value in facts.items():
        table.add_row(key, value)
    console = Console()
    console.print(table)
    points = Table(title="hook points", title_justify="left")
    for column in ("hook point", "shape", "meaning", "layers"):
        points.add_column(column, no_wrap=column != "meaning")
    n_with_heads = sum(1 for layer in adapter.layers if layer.n_heads)
    for site, point in HOOK_POINTS.items():
        everywhere = n_with_heads == len(adapter.layers) or not point.needs_attention
        points.add_row(site, f"[dim]{point.shape}[/]", point.meaning, "all" if everywhere else "with heads")
    console.print(points)


def _lacks(adapter: Adapter, known: support.Support | None) -> list[str]:
    """What does not work with a model, each with its reason."""
    lacks = []
    headless = [index for index, layer in enumerate(adapter.layers) if not layer.n_heads]
    if headless:
        lacks.append(f"layers {headless} have no heads (linear attention): no pattern and no z there")
    crossing = [index for index, layer in enumerate(adapter.layers) if layer.is_cross_attention]
    if crossing:
        lacks.append(
            f"layers {crossing} attend to the vision tower's output, not to the sequence: no sinks, no VAR there"
        )
    if getattr(getattr(adapter.config, "vision_config", None), "deepstack_visual_indexes", None):
        lacks.append("visual features enter again in later layers: no AblateTokens on visual tokens")
    if not adapter.has_grid:
        lacks.append("no grid: no overlays, no boxes, no localization; masks, scores and interventions work")
    if not (known and known.transformer_lens):
        lacks.append(
            "TransformerLens: " + ("it does not run in a bridge" if known else "tried, and checked at the first prompt")
        )
    return lacks


def _either(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))


def empty_model(name: str) -> Any:
    """The model without its weights, built on the meta device."""
    if name != "demo":
        stay_offline_if_unreached(name)
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from ..bundled import shapes
    from ..lens.opening import loading

    with loading(name):
        config = AutoConfig.from_pretrained(shapes.checkpoint() if name == "demo" else name)
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
