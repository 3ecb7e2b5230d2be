"""`lmm-lens info MODEL`: what the library knows of a model, from its config alone."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def run(name: str) -> None:
    """Print family, decoder, visual tokens and hook points.

    Raises:
        ModelError: there is no such model, or it is no image-text-to-text model.
    """
    from ..adapters import adapter_for
    from ..taps import HOOK_POINTS

    adapter = adapter_for(empty_model(name))
    heads = sorted({layer.n_heads for layer in adapter.layers})
    sizes = sorted({layer.d_head for layer in adapter.layers if layer.n_heads})
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    facts = {
        "model": f"{type(adapter.model).__name__} (model_type {adapter.config.model_type})",
        "family": f"{adapter.family}" + ("" if adapter.has_grid else ": no adapter, served by what is generic"),
        "decoder": f"{len(adapter.layers)} layers x {_either(heads)} heads of {_either(sizes)}",
        "visual tokens": f"image token id {adapter.image_token_id}"
        + (f", video token id {adapter.video_token_id}" if adapter.video_token_id is not None else ""),
        "pixels to tokens": "both ways" if adapter.has_grid else "not known for this family",
    }
    headless = [index for index, layer in enumerate(adapter.layers) if not layer.n_heads]
    if headless:
        facts["no heads"] = f"layers {headless} (linear attention): no pattern and no z there"
    for key, value in facts.items():
        table.add_row(key, value)
    console = Console()
    console.print(table)
    points = Table("hook point", "shape", "meaning", title="hook points (backend native)", title_justify="left")
    for site, point in HOOK_POINTS.items():
        points.add_row(site, f"[dim]{point.shape}[/]", point.meaning)
    console.print(points)


def _either(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))


def empty_model(name: str) -> Any:
    """The model without its weights, built on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from .. import shapes
    from ..lens import loading

    with loading(name):
        config = AutoConfig.from_pretrained(shapes.checkpoint() if name == "demo" else name)
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
