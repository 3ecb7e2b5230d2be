"""What notebooks hold."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

PICTURES = {"01": 5, "02": 5, "03": 10, "04": 6, "05": 0, "06": 1, "07": 2, "08": 5, "09": 8, "10": 4, "11": 10}
"""How many each notebook shows."""


def number(path: Path) -> str:
    """Which notebook it is."""
    return path.name[:2]


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: Any) -> Iterator[Any]:
    return (output for cell in code_cells(notebook) for output in cell.outputs)


def pictures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))
