"""Strikes with Ctrl-C at one bytecode after another while a model is edited; a process of its own.

Always at each of opening and closing a block, and at so many others, evenly.

Prints JSON: how often it struck, how many of the blocks raised KeyboardInterrupt, and what was left behind.
"""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import lmm_lens
from lmm_lens import AblateHeads, Lens
from lmm_lens.backends.native import interface
from tests.support.cases import hooks_of_ours
from tests.support.models import FAMILIES

FILES = {
    str(Path(lmm_lens.__file__).parent / name)
    for name in ("lens/applied.py", "backends/native/session.py", "backends/native/interface.py")
}


class Strike:
    """Raises SIGINT at the n-th bytecode of those files, and counts them."""

    def __init__(self, at: int | None) -> None:
        self.at, self.n = at, 0
        self.edges: list[int] = []  # those of opening and closing, where an interrupt would do harm

    def __enter__(self) -> "Strike":
        sys._getframe().f_trace_opcodes = True  # without one before `settrace`, Python 3.12 traces none
        sys.settrace(self.entering)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(None)

    def entering(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        frame.f_trace_opcodes = True
        return self.each

    def each(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            if self.n == self.at:
                os.kill(os.getpid(), signal.SIGINT)
            if frame.f_code.co_name in ("__enter__", "__exit__") and frame.f_code.co_filename.endswith("applied.py"):
                self.edges.append(self.n)
            self.n += 1
        return self.each


def main(strikes: int) -> None:
    torch.set_num_threads(1)
    model, inputs = FAMILIES["llava"]()
    lens = Lens(model)
    prompt = lens.prompt(inputs=inputs)
    edit = AblateHeads([(0, 1), (1, 2)], "uniform")
    plainly = lens.run(prompt).logits

    def block() -> None:
        with lens.apply(edit):
            model(**inputs)
            lens.run(prompt)
            with lens.nothing_applied():
                lens.run(prompt)

    with Strike(None) as counting, torch.no_grad():
        block()
    step = max(1, counting.n // strikes)
    chosen = sorted({*range(0, counting.n, step), *counting.edges})
    found: dict[str, Any] = {"struck": 0, "raised": 0, "bytecodes": counting.n, "left": []}
    for at in chosen:
        raised = False
        with torch.no_grad():
            try:
                with suppress(InterruptedError), Strike(at):
                    block()
            except KeyboardInterrupt:
                raised = True
        found["struck"] += 1
        found["raised"] += raised
        left = [
            *hooks_of_ours(model),
            *(str(type(each)) for each in interface.LISTENERS.all),
            *map(repr, lens.applied),
            model.config.text_config._attn_implementation.removeprefix("sdpa"),
        ]
        if any(left) or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            found["left"].append([at, *left])
    with torch.no_grad():
        found["same"] = torch.equal(lens.run(prompt).logits, plainly) and torch.equal(model(**inputs).logits, plainly)
    print(json.dumps(found))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(int(sys.argv[1]))
