"""A lens with interventions as a model of VLMEvalKit.

    # in a script beside VLMEvalKit's run.py
    from lmm_lens.harnesses.vlmevalkit import register
    name = register("llava-hf/llava-1.5-7b-hf", interventions="var.json")
    # python run.py --model NAME --data POPE MME

VLMEvalKit has no entry point for models of others: `register` puts one into its table. It keeps predictions by the
model's name alone, so that the name that `register` makes holds a digest of the interventions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlmeval.vlm.base import BaseModel

from ..errors import PromptError
from ..lens import Lens
from .asking import Asker, interventions_of
from .frames import frames_of
from .options import Asked


class LensModel(BaseModel):  # type: ignore[misc]  # VLMEvalKit has no types
    """A lens that answers VLMEvalKit's messages, pictures and words in their order.

    Args:
        model_path: a Hub name, a folder, or "demo".
        interventions: a file that `lmm_lens.interventions.to_json` wrote.
        backend: of the lens.
        max_frames: of a film.
        generation: of `Lens.generate`, or in lmms-eval's words; 1,024 new tokens by default, and greedy.
        **options: of `Lens.from_pretrained`.

    Raises:
        LensError: there is no such model, or interventions that do not exist.
    """

    INTERLEAVE = True
    is_api = False

    def __init__(
        self,
        model_path: str | Lens,
        interventions: str | None = None,
        backend: str = "native",
        max_frames: int = 32,
        generation: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(model_path, Lens):
            lens = model_path
        elif model_path == "demo":
            lens = Lens.demo(backend=backend)
        else:
            lens = Lens.from_pretrained(model_path, backend=backend, **{"dtype": "auto", **options})
        self.asker, self.max_frames = Asker(lens, interventions_of(interventions)), max_frames
        self.asked = Asked.of(generation or {}, 1024)
        self.VIDEO_LLM = lens.adapter.takes_videos

    def generate_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """The answer to one message."""
        return self._answer([{"role": "user", "content": message}])

    def chat_inner(self, message: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """The answer to a conversation."""
        return self._answer(message)

    def chat(self, messages: Sequence[Mapping[str, Any]], dataset: str | None = None) -> str:
        """As VLMEvalKit's, but an error is one: it would leave out the first turns until nothing is left to say."""
        return self.chat_inner([{**m, "content": self.preproc_content(m["content"])} for m in messages], dataset)

    def _answer(self, conversation: Sequence[Mapping[str, Any]]) -> str:
        chat: list[dict[str, Any]] = []
        for turn in conversation:
            for item in turn["content"]:
                role = item.get("role", turn["role"])
                if not chat or chat[-1]["role"] != role:
                    chat.append({"role": role, "content": []})
                chat[-1]["content"].append(self._part(item))
        return self.asker.answers(self.asker.lens.prompt([chat]), self.asked)[0].text

    def _part(self, item: Mapping[str, Any]) -> dict[str, Any]:
        kind, value = item["type"], item["value"]
        if kind == "text":
            return {"type": "text", "text": value}
        if kind == "image":
            return {"type": "image", "image": value}
        if kind == "video":
            return {"type": "video", "video": frames_of(value, self.max_frames)}
        raise PromptError(f"a message of VLMEvalKit has a part of type {kind!r}, expected text, image or video")


def register(model_path: str, interventions: str | None = None, name: str | None = None, **options: Any) -> str:
    """Put a lens into VLMEvalKit's table of models.

    Args:
        model_path, interventions, **options: of `LensModel`.
        name: by default the model's, and a digest of what is done to it.

    Returns:
        The name, for `--model`.

    Raises:
        InterventionError: the interventions cannot be read.
    """
    from vlmeval.config import supported_VLM

    if name is None:
        interventions_of(interventions)
        name = "lmm_lens-" + Path(model_path).name
        if interventions is not None:
            path = Path(interventions.partition("#")[0])
            name += f"-{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    supported_VLM[name] = partial(LensModel, model_path, interventions=interventions, **options)
    return name
