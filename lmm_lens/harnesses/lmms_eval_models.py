"""A lens with interventions as a model of lmms-eval (0.7), for simple tasks and for those of chat messages.

    lmms-eval --model lmm_lens --model_args pretrained=llava-hf/llava-1.5-7b-hf,interventions=var.json --tasks pope,mme

An answer is what the harness's own class would give with the same text, pictures and options; with interventions, what
they make of it. Errors stop the run, and no sample is answered by "". What the interventions did stands in each logged
sample, beside its counts of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm  # type: ignore[import-untyped]  # none are installed

from ..errors import LensError, PromptError
from ..lens import Lens
from ..prompts.prompt import Prompt
from ..prompts.videos import is_video
from .asking import Answer, Asker, interventions_of
from .frames import frames_of
from .options import Asked

MAX_ROUNDS = 100


@dataclass
class EditedCounts(TokenCounts):  # type: ignore[misc]  # lmms-eval has no types
    """A sample's tokens, and what was edited for its answer: the one place of a logged sample that a model can fill."""

    edits: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As it is logged."""
        counts: dict[str, Any] = super().to_dict()
        return {**counts, "seconds": self.seconds, "interventions": list(self.edits)}


def _result(answers: Sequence[Answer], result: Any) -> Any:
    """What is returned for a request. lmms-eval unwraps it whatever it is; a bare pair of numbers it makes a text."""
    given, said = (sum(answer.n_tokens[index] for answer in answers) for index in (0, 1))
    edits = tuple(edit for answer in answers for edit in answer.edits())
    return GenerationResult(result, EditedCounts(given, said, edits=edits, seconds=sum(a.seconds for a in answers)))


class _LensModel(lmms):  # type: ignore[misc]  # lmms-eval has no types
    """What both kinds share.

    Args:
        pretrained: a Hub name, a folder, or "demo".
        backend: of the lens.
        interventions: a file that `lmm_lens.interventions.to_json` wrote, also "var.json#SHA256" to make sure of it.
        batch_size: questions at a time; with one, a sample's log says what was edited for it alone.
        device, device_map: where the model goes; `device_map=auto` over everything.
        max_new_tokens: where a task does not say.
        max_frames: of a film.
        system_prompt: what a system message says.
        leave_out: options of tasks that this model need not know, joined by "+", as image_aspect_ratio is.
        max_batch_size: not used; the harness hands it over.
        **options: of `Lens.from_pretrained`.

    Raises:
        LensError: there is no such model, or interventions that do not exist.
    """

    def __init__(
        self,
        pretrained: str | Lens,
        backend: str = "native",
        interventions: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        device_map: str | None = None,
        max_new_tokens: int = 1024,
        max_frames: int = 32,
        system_prompt: str | None = None,
        leave_out: str = "",
        max_batch_size: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise LensError(f"batch_size must be a whole number of at least 1, given {batch_size!r}")
        from accelerate import Accelerator

        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if device_map is None and self._world_size > 1:
            device = str(self.accelerator.device)
        if device is not None or device_map is not None:
            options["device_map"] = device_map or device
        if isinstance(pretrained, Lens):
            lens = pretrained
        elif pretrained == "demo":
            lens = Lens.demo(backend=backend)
        else:
            lens = Lens.from_pretrained(pretrained, backend=backend, **{"dtype": "auto", **options})
        if lens.processor is None:
            raise LensError(f"{pretrained!r} has no processor, and questions are text\n  give processor=...")
        self.asker = Asker(lens, interventions_of(interventions))
        self.batch_size = int(batch_size)
        self.max_new_tokens, self.max_frames = int(max_new_tokens), int(max_frames)
        self.system_prompt = self._resolve_system_prompt(system_prompt) if system_prompt else None
        self.leave_out = frozenset(leave_out.split("+")) - {""}
        if self.batch_size > 1:
            lens.adapter.tokenizer.padding_side = "left"

    @property
    def lens(self) -> Lens:
        """The lens."""
        return self.asker.lens

    # ------------------------------------------------------------------ what both kinds do

    def _prompt_of(self, requests: Sequence[Any]) -> Prompt:
        raise NotImplementedError

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """The answers, in the order of the requests; those with the same options in batches."""
        found: dict[int, Any] = {}
        for indices in tqdm(list(self._batches(requests)), disable=self.rank != 0, desc="Model Responding"):
            chosen = [requests[index] for index in indices]
            answers = self.asker.answers(self._prompt_of(chosen), self._asked(chosen[0]))
            found |= {index: _result([answer], answer.text) for index, answer in zip(indices, answers, strict=True)}
        return [found[index] for index in range(len(requests))]

    def _batches(self, requests: Sequence[Any]) -> Iterator[list[int]]:
        by_options: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            key = json.dumps(self._options_of(request), sort_keys=True, default=str)
            by_options.setdefault(key, []).append(index)
        for indices in by_options.values():
            yield from (indices[at : at + self.batch_size] for at in range(0, len(indices), self.batch_size))

    def _options_of(self, request: Any) -> Mapping[str, Any]:
        options: Mapping[str, Any] = next(value for value in request.args if isinstance(value, Mapping))
        return options

    def _asked(self, request: Any) -> Asked:
        return Asked.of(self._options_of(request), self.max_new_tokens, self.leave_out)

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """(loss, whether greedy) of each request's answer: the mean negative log-likelihood of its tokens in nats, of
        which lmms-eval takes the smallest."""
        found = []
        for request in tqdm(requests, disable=self.rank != 0, desc="Model Responding"):
            if len(request.args) != 6:
                raise LensError(
                    "acc_mutual_info asks for the likelihood of an answer without its question, which no chat has\n"
                    "  take acc or acc_norm"
                )
            context, target, doc_to_visual, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            prompt = self._asking([context], [doc_to_visual(doc)])
            loss = self.asker.loss(prompt, target if isinstance(target, str) else str(target(doc)))
            found.append(_result([loss.answer], (loss.loss, loss.greedy)))
        return found

    def _asking(self, texts: Sequence[str], visuals: Sequence[Any]) -> Prompt:
        """Questions, each with its pictures before it or where its slots are."""
        media = [self._media(each) for each in visuals]
        images, videos = [each[0] or None for each in media], [each[1] or None for each in media]
        if self.system_prompt is not None:
            chats = [
                [
                    {"role": "system", "content": self.system_prompt},
                    {"role": "user", "content": [*_places(text, *found, self.lens), {"type": "text", "text": text}]},
                ]
                for text, found in zip(texts, media, strict=True)
            ]
            return self.lens.prompt(chats, images=[i or [] for i in images], videos=[v or [] for v in videos])
        return self.lens.prompt(
            list(texts), images=images if any(images) else None, videos=videos if any(videos) else None
        )

    def _media(self, visuals: Any) -> tuple[list[Any], list[Any]]:
        """Pictures and films among what a task shows."""
        images: list[Any] = []
        videos: list[Any] = []
        for visual in [] if visuals is None else visuals:
            if isinstance(visual, dict):
                raise PromptError(
                    f"a task shows {sorted(visual)[:4]}, which is no picture and no film: sound, it seems\n"
                    "  lmm-lens has no models that listen"
                )
            if isinstance(visual, Image.Image) or not is_video(visual):
                images.append(visual)
            else:
                videos.append(frames_of(visual, self.max_frames))
        return images, videos


class SimpleLensModel(_LensModel):
    """A lens for tasks that give a text and its pictures."""

    is_simple = True

    def _prompt_of(self, requests: Sequence[Any]) -> Prompt:
        contexts, _, to_visuals, ids, tasks, splits = zip(*(request.args for request in requests), strict=True)
        docs = [self.task_dict[task][split][i] for i, task, split in zip(ids, tasks, splits, strict=True)]
        return self._asking(contexts, [show(doc) for show, doc in zip(to_visuals, docs, strict=True)])

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        """The answers of all rounds of each request; a round's question is made of the answers before it."""
        rounds = []
        for request in tqdm(requests, disable=self.rank != 0, desc="Multi-round Responding"):
            context, options, doc_to_visual, doc_to_text, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            asked = Asked.of(options, self.max_new_tokens, self.leave_out)
            visuals, said, about, answers = doc_to_visual(doc), [], None, []
            for number in range(1, MAX_ROUNDS + 1):
                answers += self.asker.answers(self._asking([context], [visuals]), asked)
                said.append(answers[-1].text)
                visuals, context, is_over, said, about = doc_to_text(
                    doc, previous_output=said, round_idx=number, previous_round_info=about
                )
                said = list(said)
                if is_over:
                    break
            else:
                raise LensError(f"the task {task!r} has not ended after {MAX_ROUNDS} rounds")
            rounds.append(_result(answers, said))
        return rounds


class ChatLensModel(_LensModel):
    """A lens for tasks that give chat messages."""

    is_simple = False

    def _prompt_of(self, requests: Sequence[Any]) -> Prompt:
        chats = []
        for _, to_messages, _, doc_id, task, split in (request.args for request in requests):
            chats.append(self._chat(to_messages(self.task_dict[task][split][doc_id])))
        return self.lens.prompt(chats)

    def _chat(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Messages as `Lens.prompt` takes them."""
        chat = [{"role": each["role"], "content": [*self._parts(each["content"])]} for each in messages]
        if self.system_prompt is not None:
            rest = chat[1:] if chat[0]["role"] == "system" else chat
            chat = [{"role": "system", "content": self.system_prompt}, *rest]
        return chat

    def _parts(self, content: Any) -> Iterator[dict[str, Any]]:
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = part["type"]
            if kind == "text":
                if part["text"].strip():
                    yield {"type": "text", "text": part["text"]}
            elif kind == "image":
                yield {"type": "image", "image": part["url"]}
            elif kind == "video" and part.get("start_time") is None and part.get("end_time") is None:
                yield {"type": "video", "video": frames_of(part["url"], self.max_frames)}
            else:
                raise PromptError(
                    f"a message shows {sorted(name for name, value in part.items() if value is not None)} of kind "
                    f"{kind!r}\n  expected text, pictures and whole films"
                )

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        """The answers of all rounds of each request; a round's messages are made of the answers before it."""
        rounds = []
        for request in tqdm(requests, disable=self.rank != 0, desc="Multi-round Responding"):
            _, to_messages, options, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            asked = Asked.of(options, self.max_new_tokens, self.leave_out)
            messages, about, said, answers = to_messages(doc), None, [], []
            for number in range(1, MAX_ROUNDS + 1):
                answers += self.asker.answers(self.lens.prompt([self._chat(messages)]), asked)
                said.append(answers[-1].text)
                found = to_messages(doc, round_idx=number, previous_output=list(said), previous_round_info=about)
                if not isinstance(found, tuple) or len(found) != 4 or found[1]:
                    break
                messages, _, _, about = found
            else:
                raise LensError(f"the task {task!r} has not ended after {MAX_ROUNDS} rounds")
            rounds.append(_result(answers, said))
        return rounds


def _places(text: str, images: Sequence[Any], videos: Sequence[Any], lens: Lens) -> list[dict[str, str]]:
    """Places for pictures and films before a text that has no slots of its own."""
    places = []
    for kind, found, slot in (("image", images, lens.adapter.image_slot), ("video", videos, lens.adapter.video_slot)):
        if slot is None or slot not in text:
            places += [{"type": kind}] * len(found)
    return places
