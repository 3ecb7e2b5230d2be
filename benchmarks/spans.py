"""What it costs to annotate a prompt of 20,000 visual tokens, beyond the processor: `python -m benchmarks.spans`."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lmm_lens import Lens
from tests.support.models import FAMILIES, IMAGE

from .timing import machine

RESULTS = Path(__file__).parent / "results" / "spans.md"
TARGET_MS, ROUNDS = 50, 15


def one_picture(rows: int, columns: int) -> tuple[str, dict[str, Any]]:
    """One picture of Qwen2-VL, as a grid."""
    ids = torch.tensor([[1, 5, 152, *[IMAGE] * (rows * columns), 153, 6, 7]])
    return "qwen2_vl", {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": torch.zeros(4 * rows * columns, 1176),
        "image_grid_thw": torch.tensor([[1, 2 * rows, 2 * columns]]),
    }


def many_pictures(n: int, rows: int, columns: int) -> tuple[str, dict[str, Any]]:
    """Many small pictures of Qwen2-VL in one batch row."""
    ids = torch.tensor([[1, *[152, *[IMAGE] * (rows * columns), 153] * n, 6, 7]])
    return "qwen2_vl", {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": torch.zeros(4 * n * rows * columns, 1176),
        "image_grid_thw": torch.tensor([[1, 2 * rows, 2 * columns]] * n),
    }


def batch(n: int, rows: int, columns: int) -> tuple[str, dict[str, Any]]:
    """A batch of Qwen2-VL, one picture a batch row."""
    ids = torch.tensor([[1, 5, 152, *[IMAGE] * (rows * columns), 153, 6, 7]] * n)
    return "qwen2_vl", {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": torch.zeros(4 * n * rows * columns, 1176),
        "image_grid_thw": torch.tensor([[1, 2 * rows, 2 * columns]] * n),
    }


CASES = {
    "one picture of 141 x 142 tokens (Qwen2-VL)": one_picture(141, 142),
    "200 pictures of 10 x 10 tokens in one batch row (Qwen2-VL)": many_pictures(200, 10, 10),
    "16 batch rows of one picture of 25 x 50 tokens (Qwen2-VL)": batch(16, 25, 50),
}


def main() -> None:
    """Measure and write the table."""
    lines = ["# What it costs to annotate 20,000 visual tokens", "", "| prompt | ms | target |", "|---|---:|---:|"]
    for name, (family, inputs) in CASES.items():
        lens = Lens(FAMILIES[family]()[0])
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            prompt = lens.prompt(inputs=inputs)
            times.append(1e3 * (time.perf_counter() - start))
        assert int(prompt.mask("visual").sum()) >= 20_000
        lines.append(f"| {name} | {statistics.median(times):.0f} | {TARGET_MS} |")
    lines += [
        "",
        f"{machine(torch.device('cpu'))}. Medians of {ROUNDS} calls of `lens.prompt(inputs=...)`, no processor.",
    ]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    Console().print("\n".join(lines))


if __name__ == "__main__":
    main()
