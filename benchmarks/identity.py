"""What the identity of a model of a billion bf16 parameters costs: `python -m benchmarks.identity`.

The rival is the least that looking at every weight can cost: reading the memory once, by torch's sum and numpy's xor.
Beside it what `hashlib` takes for the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy
import torch
import transformers as hf
from torch import Tensor

from lmm_lens import Lens
from lmm_lens.bundled import shapes

from .timing import interleaved, machine, show, write

RESULTS = Path(__file__).parent / "results"
TARGET = 1.0  # seconds for a billion parameters
RIVAL = "reading the weights once (torch's sum)"


def build(device: torch.device) -> hf.LlavaForConditionalGeneration:
    """A LLaVA of a billion parameters, of random bits."""
    text = hf.LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=14,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32064,
    )
    with torch.device("meta"):
        config = hf.LlavaConfig(text_config=text, vision_config=hf.CLIPVisionConfig(num_hidden_layers=12))
        shape = hf.LlavaForConditionalGeneration(config)
    model: hf.LlavaForConditionalGeneration = shape.bfloat16().to_empty(device=device).eval()
    for tensor in bytes_of(model):
        tensor.random_()  # written, for memory that was never written is read from one page
    return model


def bytes_of(model: torch.nn.Module) -> list[Tensor]:
    """The memory of all weights and buffers."""
    held = (*model.parameters(), *model.buffers())
    return [tensor.detach().reshape(-1).view(torch.uint8) for tensor in held]


def by_torch(model: torch.nn.Module) -> None:
    """Read every byte: a sum of words of eight."""
    for tensor in bytes_of(model):
        tensor[: tensor.numel() // 8 * 8].view(torch.int64).sum()


def by_numpy(model: torch.nn.Module) -> None:
    """Read every byte: the xor of words of eight."""
    for tensor in bytes_of(model):
        numpy.bitwise_xor.reduce(tensor.numpy()[: tensor.numel() // 8 * 8].view(numpy.int64))


def by_hashlib(model: torch.nn.Module) -> None:
    """The digest that Python itself has."""
    found = hashlib.sha256()
    for tensor in bytes_of(model):
        found.update(tensor.numpy().data)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.identity", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    model, (small, processor) = build(device), shapes.load()
    billion, tiny = Lens(model, processor), Lens(small, processor)
    calls: dict[str, Callable[[], object]] = {
        RIVAL: lambda: by_torch(model),
        "`lens.identity`": lambda: billion.identity,
        "`lens.identity` of shapes-llava, 1.3 million parameters": lambda: tiny.identity,
    }
    if device.type == "cpu":
        calls["reading the weights once (numpy's xor)"] = lambda: by_numpy(model)
        calls["sha256 of `hashlib`"] = lambda: by_hashlib(model)
    for call in calls.values():
        call()
    times = interleaved(calls, options.repeats, device)
    middle = {name: statistics.median(times[name]) for name in calls}
    n_bytes = sum(tensor.numel() for tensor in bytes_of(model))
    lines = [["", "seconds", "GB a second", "times a plain read"]]
    for name in sorted(calls, key=middle.__getitem__):
        rates = [f"{n_bytes / middle[name] / 1e9:.1f}", f"{middle[name] / middle[RIVAL]:.2f}"]
        lines.append([name, f"{middle[name]:.3f}", *(["", ""] if "shapes" in name else rates)])
    n = sum(parameter.numel() for parameter in model.parameters())
    notes = (
        f"{machine(device)}. LLaVA of {n / 1e9:.2f} billion parameters in bfloat16, {n_bytes / 1e9:.2f} GB of random "
        f"bits; medians of {options.repeats} rounds. Target: {TARGET:.0f} second for a billion parameters."
    )
    show(lines, notes)
    write(lines, "What an identity costs", notes, RESULTS / f"identity{'' if device.type == 'cpu' else '_cuda'}.md")


if __name__ == "__main__":
    main()
