"""What is supported, read off the adapters and the frameworks: one source for the command line and the README."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from ..adapters import Adapter, Generic, families
from ..adapters.classes import GENERIC, REFUSED

PAPER_MODELS = (
    ("LLaVA-1.5 7B and 13B", "llava"),
    ("LLaVA-1.5 on LLaMA-3-8B and on Phi-3-mini", "llava"),
    ("LLaVA-1.6 Vicuna 7B and 13B, Mistral 7B", "llava_next"),
    ("LLaVA-1.5-HD, with several crops", "llava_next"),
    ("VIP-LLaVA 7B and 13B", "vipllava"),
    ("Qwen2-VL", "qwen2_vl"),
    ("InternVL", "internvl"),
)
"""The models of the two papers that this library grows from, and the family that serves each."""


@dataclass(frozen=True)
class Support:
    """One family.

    Attributes:
        family: its name.
        what: in one line, where its visual tokens stand.
        model_types: `config.model_type` values.
        grid: whether tokens are mapped to pixels and back.
        videos: whether it takes videos.
        transformer_lens: whether a TransformerBridge of it runs.
        tower_heads: whether heads of its vision tower are read and edited.
    """

    family: str
    what: str
    model_types: tuple[str, ...]
    grid: bool
    videos: bool
    transformer_lens: bool
    tower_heads: bool

    @property
    def tower_on(self) -> str:
        """On which backends the tower has hook points."""
        if not self.tower_heads:
            return "no heads"
        return "all backends" if self.transformer_lens else "native, nnsight"


def table() -> list[Support]:
    """Every family with an adapter, by name."""
    return [
        Support(
            adapter.family,
            _said(adapter),
            adapter.model_types,
            adapter.has_grid,
            adapter.takes_videos,
            adapter.has_bridge,
            adapter.has_tower_heads,
        )
        for adapter in sorted(set(families().values()), key=lambda adapter: adapter.family)
    ]


def _said(adapter: type[Adapter]) -> str:
    """The first sentence of the family's file, without its name."""
    text = inspect.getdoc(inspect.getmodule(adapter)) or inspect.getdoc(adapter) or ""
    first = text.split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip(".")
    return first.partition(": ")[2] or first


def markdown() -> str:
    """The table of families, and that of the papers' models, as the README has them."""
    head = "| family | visual tokens | pixels to tokens | videos | TransformerLens | heads of the tower |"
    lines = [head, "|---|---|---|---|---|---|"]
    for row in table():
        names = row.family if row.model_types == (row.family,) else f"{row.family} ({', '.join(row.model_types)})"
        cells = [names, row.what, *("yes" if each else "no" for each in (row.grid, row.videos, row.transformer_lens))]
        lines.append(f"| {' | '.join([*cells, row.tower_on])} |")
    rest = inspect.getdoc(inspect.getmodule(Generic)) or ""
    lines.append(f"| any other with an image token | {rest.partition(': ')[2].rstrip('.')} | no | no | tried | tried |")
    lines += ["", "| model of the two papers | family |", "|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in PAPER_MODELS]
    return "\n".join(lines)


def classes() -> list[tuple[str, str, str]]:
    """Every class that transformers maps as image-text-to-text: its `model_type`, how it is served, what that means."""
    rows = []
    for model_type, adapter in families().items():
        grid = "spans, and tokens to pixels" if adapter.has_grid else "spans; " + _said(adapter)
        rows.append((model_type, f"family `{adapter.family}`", grid))
    rows += [(model_type, "generic adapter", f"spans; no grid: {why}") for model_type, why in GENERIC.items()]
    rows += [(model_type, "refused", f"it is {what}") for model_type, what in REFUSED.items()]
    return sorted(rows)


BEGIN, END = "<!-- families: written by `make readme` from the adapters -->", "<!-- end of families -->"


def within(text: str) -> str:
    """A text with the tables between its two marks brought up to date."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


if __name__ == "__main__":
    import sys
    from pathlib import Path

    page = Path(sys.argv[1])
    page.write_text(within(page.read_text(encoding="utf-8")), encoding="utf-8")
