"""What the pretrained model costs, 30 layers of 9 heads: `python -m benchmarks.pretrained`, with `lmm-lens[emoji]`.

Steps and single passes as `benchmarks.steps` has them for the bundled model, and sweeps over all 270 heads beside one
full forward a head, as `benchmarks.sweeps` has them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from lmm_lens import Lens, emoji

from .steps import HEADING, N_NEW, Asked, measured
from .sweeps import SCOPES, measure, table_of
from .timing import machine, show, write

RESULTS = Path(__file__).parent / "results" / "pretrained.md"
N_EXAMPLES = 6


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrained", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    lens, cpu = Lens.demo("emoji"), torch.device("cpu")
    examples = emoji.examples(N_EXAMPLES, ["name"], seed=0)
    prompts = [lens.prompt(example.question, images=example.image) for example in examples]
    asked = Asked(lens, prompts[0])
    steps = [HEADING]
    steps += measured(f"{N_NEW} tokens", asked.generations(rivals=False), lens.n_layers, N_NEW, rounds)
    steps += measured("one pass", asked.passes(lens, "model(...)", asked.forward), lens.n_layers, 1, rounds)
    name = f"{lens.n_layers} layers x {lens.n_heads} heads, {prompts[0].n_tokens} tokens"
    swept = table_of({(name, rows, ""): measure(lens, prompts, rows, rounds, cpu, False) for rows in SCOPES})
    notes = (
        f"{machine(cpu)}. Medians of {rounds} interleaved rounds; a sweep's rival is the mean of one forward in each "
        "layer, times the number of heads. Waits are reads of a number from the device."
    )
    show(steps, notes)
    show(swept, notes)
    write(steps, "What the pretrained model costs", notes, RESULTS, swept)


if __name__ == "__main__":
    main()
