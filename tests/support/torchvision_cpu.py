"""`import torchvision` beside a CPU build of torch, for tests of processors that need its transforms.

The wheel of the package index is built against CUDA, so beside a CPU torch its compiled operators do not load and the
import stops at the first of them. Declared beforehand, they are never called, and the transforms, pure torch, work.
Where torchvision imports by itself nothing is done.

A broken torchvision on the path would stop transformers itself, so it is installed beside it, out of sight:
`pip install --no-deps --target .venv/torchvision torchvision==0.28.0`.
"""

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

ASIDE = Path(sys.prefix) / "torchvision"


@cache
def load() -> ModuleType:
    """Torchvision. To be called before transformers is imported, which looks for it once."""
    if importlib.util.find_spec("torchvision") is None:
        if "transformers" in sys.modules:
            raise ImportError("load torchvision before transformers is imported, which looks for it only then")
        sys.path.append(str(ASIDE))
    declared = []  # kept alive: a library that is gone takes its operators along
    while True:
        try:
            import torchvision
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if not missing:
                raise
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
            import torch

            declared.append(torch.library.Library("torchvision", "FRAGMENT"))
            declared[-1].define(missing[1] + "(Tensor x) -> Tensor")
        else:
            torchvision.declared_for_tests = declared
            return torchvision
