"""Checkpoints of a stage: all that a cut run needs to go on as if it had not been cut."""

import os
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass
class State:
    """What changes from step to step.

    `steps` is what the rate was planned for; `cpu` counts the seconds of all processes that worked on the stage.
    """

    trained: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    rng: random.Random
    steps: int
    step: int = 0
    cpu: float = 0.0

    def save(self, file: Path) -> None:
        """Write beside the file and rename, so that a cut leaves the last whole one."""
        torch.save(
            {
                "trained": {name: value.detach() for name, value in self.trained.items()},
                "optimizer": self.optimizer.state_dict(),
                "rng": self.rng.getstate(),
                "step": self.step,
                "cpu": self.cpu,
                "steps": self.steps,
            },
            file.with_suffix(".part"),
        )
        os.replace(file.with_suffix(".part"), file)

    @torch.no_grad()
    def load(self, file: Path) -> None:
        """Go on from a file that `save` wrote."""
        saved = torch.load(file, weights_only=True)
        for name, value in self.trained.items():
            value.copy_(saved["trained"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        version, numbers, gauss = saved["rng"]
        self.rng.setstate((version, tuple(numbers), gauss))
        self.step, self.cpu = saved["step"], saved["cpu"]


def trained_of(file: Path) -> dict[str, Tensor]:
    """The trained tensors of a checkpoint."""
    trained: dict[str, Tensor] = torch.load(file, weights_only=True)["trained"]
    return trained


def planned(file: Path) -> tuple[int, int]:
    """(steps done, steps that the rate was planned for) of a checkpoint."""
    saved = torch.load(file, weights_only=True)
    return saved["step"], saved["steps"]
