"""Ways to lay a model out that accelerate knows: layers on several devices, weights away between calls.

`PLACEMENTS[name](folder, kind, offload)` loads the model of a folder so. Away means on "meta" until the module is
called: kept in memory or in files.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.support import pretend
from tests.support.cases import TOLERANCE, close

CPU = torch.device("cpu")
HAS_CUDA = torch.cuda.is_available()
if HAS_CUDA:
    torch.backends.cudnn.allow_tf32 = False  # the reference is the CPU's


def device_map(folder: Path, where: Callable[[str, int | None], str | int]) -> dict[str, str | int]:
    """A map that cuts a model into the parts beside its decoder layers and these, each put where `where` says.

    Args:
        folder: the saved model.
        where: of a part's name and its layer number, None for what is no decoder layer.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    layers = model.get_decoder().layers
    found: dict[str, str | int] = {}

    def cut(module: nn.Module, name: str) -> None:
        for child_name, child in module.named_children():
            path = f"{name}.{child_name}".lstrip(".")
            if child is layers:
                found.update({f"{path}.{i}": where(path, i) for i in range(len(layers))})
            elif any(part is layers for part in child.modules()):
                cut(child, path)
            else:
                found[path] = where(path, None)

    cut(model, "")
    return found


def load(folder: Path, placement: Any = None, offload: Path | None = None) -> Any:
    return AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, device_map=placement, offload_folder=offload
    ).eval()


def _mapped(where: Callable[[str, int | None], str | int]) -> Callable[[Path, Path], Any]:
    return lambda folder, offload: load(folder, device_map(folder, where), offload)


def _on_both(where: Callable[[str, int | None], str | int]) -> Callable[[Path, Path], Any]:
    """Computed on two devices, with the CPU as the main one; else all would be computed on the other."""
    return lambda folder, offload: dispatch_model(load(folder), device_map(folder, where), main_device="cpu")


PLACEMENTS: dict[str, Callable[[Path, Path], Any]] = {
    "later layers on disk": _mapped(lambda name, layer: "disk" if layer else "cpu"),
    "words and every other layer on disk": _mapped(  # the words out as well, which may be tied to the words in
        lambda name, layer: "disk" if name.endswith(("embed_tokens", "lm_head")) or layer in (0, 2, 4) else "cpu"
    ),
    "cpu offload": lambda folder, offload: cpu_offload(load(folder), CPU),
    "disk offload": lambda folder, offload: disk_offload(load(folder), str(offload), CPU),
    "every other layer elsewhere": _on_both(lambda name, layer: pretend.DEVICE if layer in (0, 2, 4) else "cpu"),
}
if HAS_CUDA:  # a leading name of a device is where the words are computed, and so where prompts go
    PLACEMENTS |= {
        "cpu, and later layers on a GPU": _on_both(lambda name, layer: 0 if layer else "cpu"),
        "cpu, and every other layer on a GPU": _on_both(lambda name, layer: 0 if layer in (0, 2, 4) else "cpu"),
        "cuda, later layers in memory": _mapped(lambda name, layer: "cpu" if layer else 0),
        "cuda offload": lambda folder, offload: cpu_offload(load(folder), torch.device("cuda", 0)),
    }


def home(placement: str) -> str:
    """The kind of device on which a placement computes the words."""
    return "cuda" if placement.startswith("cuda") else "cpu"


def same(given: Tensor, expected: Tensor, placement: str) -> None:
    """The same but for the rounding of kernels, which depends on where in memory weights begin, and on the device."""
    close(given.cpu(), expected, TOLERANCE if home(placement) == "cpu" and "GPU" not in placement else 10 * TOLERANCE)


def weights_away(model: nn.Module) -> set[int]:
    """Where in memory the weights are that accelerate keeps between calls."""
    hooked = {id(module): module for module in model.modules() if hasattr(module, "_hf_hook")}.values()
    return {
        module._hf_hook.weights_map[name].data_ptr()
        for module in hooked
        for name, weight in module.named_parameters(recurse=False)
        if weight.device.type == "meta"
    }
