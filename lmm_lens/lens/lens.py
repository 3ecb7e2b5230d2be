"""The lens: a multimodal model with its visual tokens annotated, to be run, generated from, read and edited."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch

from ..adapters import Adapter, Layer, adapter_for
from ..backends.base import Forward, ForwardPass, InTower
from ..backends.holders import framework_of, unwrapped
from ..backends.identity import identity_of
from ..backends.options import Options
from ..backends.table import backend_of, check_backend
from ..errors import LensError, ModelError, PromptError, unknown
from ..hooks.points import ModelShape, Reader
from ..hooks.results import Generation, Run
from ..interventions.base import Intervention
from ..prompts import build as prompting
from ..prompts.chat import Messages
from ..prompts.prompt import Prompt, check_prompt
from ..sinks import SinkReport, find_sinks
from .applied import Applied, NothingApplied, applied_to, blocks_of
from .frameworks import NNsightMethods, TransformerLensMethods
from .nan import where_nan
from .opening import open_model
from .plan import Plan, PlannedRun
from .vision import VisionTower


class Lens(TransformerLensMethods, NNsightMethods):
    """A lens on a multimodal model. The model is never changed; whatever a call puts in, it takes out again.

    Args:
        model: a loaded Hugging Face image-text-to-text model, in eval mode, also as people hold them (PEFT,
            torch.compile, ...); a TransformerBridge or an nnsight TransformersModel is taken as it is.
        processor: its processor; None if you always give processed tensors.
        backend: "native", plain transformers at the price of its fused kernels; "transformer_lens", a
            TransformerBridge, or "nnsight", a TransformersModel, both on a twin that shares the model's weights. By
            default native, or the framework that the model is given in.
        adapter: the family's adapter, if it should not be looked up.
        remote: with nnsight, where to run: False here, True on NDIF, "http://..." on that server, "local" here but
            packed as for a server. `run`, `generate` and `trace` can say otherwise for one call.
        timeout: seconds without news from a server after which a call gives up.

    Raises:
        ModelError: the model has no image token or no decoder layers.
        LensError: no such backend.
    """

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        backend: str | None = None,
        adapter: Adapter | None = None,
        *,
        remote: bool | str = False,
        timeout: float = 600.0,
    ) -> None:
        given = framework_of(model)
        backend = check_backend(backend or given or "native")
        if given is not None and given != backend:
            raise LensError(
                f"a {type(model).__name__} was given, expected backend={given!r}, given backend={backend!r}\n"
                "  give the plain Hugging Face model for another backend"
            )
        envoy, bridge = (model if given == each else None for each in ("nnsight", "transformer_lens"))
        if envoy is not None:
            model = envoy._module
        self.model = model
        self.processor = processor
        runs, around = unwrapped(model if bridge is None else bridge.original_model)
        self.adapter = adapter or adapter_for(runs, processor)
        name = (envoy.repo_id if envoy is not None else None) or getattr(model, "name_or_path", None)
        self._backend = backend_of(
            backend,
            self.adapter,
            around=around,
            envoy=envoy,
            bridge=bridge,
            served_as=name,
            remote=remote,
            timeout=timeout,
        )
        self._shape: tuple[tuple[Layer, ...], ModelShape] | None = None  # and of which layers
        self.origin: Callable[[], Lens] | None = None  # opens the same lens in another process

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        backend: str = "native",
        *,
        remote: bool | str = False,
        timeout: float = 600.0,
        **options: Any,
    ) -> Lens:
        """Load a model and its processor by name or folder; with `remote`, its shape and its processor alone.

        Args:
            name: a Hub name or a local folder, of a model or of a PEFT adapter, whose base model is then opened too.
            backend, remote, timeout: see `Lens`.
            **options: of `AutoModelForImageTextToText.from_pretrained` (dtype, device_map, quantization_config, ...),
                of the processor (max_pixels, use_fast, padding_side, ...), of where both are found (revision, token,
                subfolder, ...), and processor=, one that is loaded already or the name of one.

        Raises:
            ModelError: there is no such model, it is no image-text-to-text model, or neither takes an option.
        """
        model, processor = open_model(name, backend, remote, **options)
        lens = cls(model, processor, backend, remote=remote, timeout=timeout)
        lens.origin = partial(cls.from_pretrained, name, backend, remote=lens.remote, timeout=timeout, **options)
        return lens

    @classmethod
    def demo(
        cls,
        variant: str = "sinks",
        backend: str = "native",
        *,
        remote: bool | str = False,
        timeout: float = 600.0,
    ) -> Lens:
        """A bundled model, offline.

        Args:
            variant: of shapes-llava, which was trained from nothing, "sinks", with planted attention sinks and sparse
                visual heads, or "plain", trained on the tasks alone. "emoji" is a language model that only read text,
                SmolLM2-135M-Instruct, untouched behind a tower that learned to show it pictures, and "emoji-adapted"
                the same with a low-rank adapter on its attention, so that it learned to look; they need the packages
                of `lmm-lens[emoji]`.
            backend, remote, timeout: see `Lens`; a server knows it as "lmm-lens/shapes-llava" or
                "lmm-lens/emoji-llava".

        Raises:
            ModelError: the language model is not installed.
        """
        from .. import bundled

        lens = cls(*bundled.load(variant), backend=backend, remote=remote, timeout=timeout)
        lens.origin = partial(cls.demo, variant, backend, remote=lens.remote, timeout=timeout)
        return lens

    # ------------------------------------------------------------------ what the model is

    @property
    def n_layers(self) -> int:
        """Decoder layers."""
        return len(self.adapter.layers)

    @property
    def n_heads(self) -> int:
        """Query heads a layer; the largest number, where layers differ."""
        return max(self.shape.n_heads)

    @property
    def d_head(self) -> int:
        """Size of one head's output; the largest, where layers differ."""
        return max(self.shape.d_head)

    @property
    def shape(self) -> ModelShape:
        """Layers, heads of each and head sizes."""
        layers = self.adapter.layers
        if self._shape is None or self._shape[0] is not layers:
            self._shape = layers, ModelShape.of(self.adapter)
        return self._shape[1]

    @property
    def vision(self) -> VisionTower:
        """The vision tower: layers, heads, sizes.

        Raises:
            ModelError: the model has none, or one without attention heads.
        """
        self.adapter.look_again()
        return VisionTower(self, self.adapter.tower)

    @property
    def backend(self) -> str:
        """Its name: "native", "transformer_lens" or "nnsight"."""
        return self._backend.name

    @property
    def runs_replays(self) -> bool:
        """Whether a recorded forward's layers can be run again by themselves, which makes sweeps fast."""
        return self._backend.runs_replays

    @property
    def remote(self) -> bool | str:
        """Where the model runs: False here, True on NDIF, or the address of a server."""
        return self._backend.remote

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self._backend.device

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this model, as it is now, from any other: a digest of each ingredient of its answers.

        The weights and buffers to the last bit, the modules and their settings, code and hooks that are not the
        library's, adapters, attention implementation, configs, processor and chat template. The same in another
        process and on another device. Reads all weights, about a second for ten billion bytes; of a GPU only once, and
        then those whose bits have another checksum there than when they were read. A fast tokenizer's vocabulary is
        written down anew where its size, its settings, one in some of its pieces, or the tokens of a text are others.

        Raises:
            ModelError: the weights have no values, as on the meta device.
        """
        return {
            **identity_of(self.model, self.processor, self._backend.weights_elsewhere),
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "family": self.adapter.family,
        }

    def __repr__(self) -> str:
        return (
            f"Lens on {type(self.model).__name__} (family {self.adapter.family}, backend {self._backend.name}): "
            f"{self.n_layers} layers x {self.n_heads} heads of {self.d_head}, on {self.remote or self.device}"
        )

    # ------------------------------------------------------------------ prompts

    def prompt(
        self,
        text: str | Sequence[str] | Messages | Sequence[Messages] | None = None,
        images: Any = None,
        *,
        videos: Any = None,
        inputs: Mapping[str, Any] | None = None,
        template: bool = True,
    ) -> Prompt:
        """A prompt from text and pictures, from a conversation, or from processed tensors.

        Args:
            text: one text or a batch. Pictures come before the text unless it holds the processor's image placeholder.
                Or a conversation, or a batch of them: messages {"role": ..., "content": ...}, whose content is words or
                a list of parts {"type": "text", "text": ...}, {"type": "image", "image": ...}, as Hugging Face and
                OpenAI write them. A last message of the assistant is an answer begun, which `generate` goes on with.
            images: for one text an image or a list of images; for a batch a list with an image, a list, or None a row.
                An image is a PIL image, a path, the bytes of a file, base64, a `data:` URL, an open file, an array
                [height, width, 3] or a tensor [3, height, width] of 0 to 255 or of 0 to 1. The model sees it as a
                person would: upright as its EXIF tag says, on white where it is transparent, 16 bits scaled to 8.
                Nothing is downloaded. For a conversation, what its image parts without a picture show, in order.
            videos: given as `images` are; a video is a list of images, an array [frame, height, width, 3], an animated
                picture, or a film, which needs a decoder (`pip install lmm-lens[video]`). Every frame is seen.
            inputs: instead of text, what your own processor made: tensors, arrays or lists.
            template: put the text into the model's chat format, with the answer turn opened; False takes it as it is.

        Raises:
            PromptError: slots and pictures do not match, pixels are missing, something is no picture, ...
        """
        if (text is None) == (inputs is None):
            raise PromptError("give either a text (and images), or inputs=... processed by your own processor")
        if inputs is not None:
            if images is not None or videos is not None:
                raise PromptError("images and videos cannot be added to inputs that are processed already")
            return prompting.from_inputs(self.adapter, inputs, self.device)
        assert text is not None
        return prompting.from_text(self.adapter, text, images, videos, template, self.device)

    # ------------------------------------------------------------------ running

    def run(
        self,
        prompt: Prompt,
        interventions: Sequence[Intervention] = (),
        read: Sequence[Reader | str] = (),
        *,
        logits: Literal["all", "last"] = "all",
        grad: bool = False,
        remote: bool | str | None = None,
    ) -> Run:
        """One forward pass over a prompt.

        Args:
            prompt: from `Lens.prompt`.
            interventions: edits, in order; those of an enclosing `apply` come first.
            read: what to return: hook point names, or `Read` for some layers, heads or rows, reduced on the spot.
            logits: of all positions, or of each row's last prompt token.
            grad: keep the graph for a backward pass.
            remote: where to run, with nnsight; the lens's own by default.
        """
        if logits not in ("all", "last"):
            raise LensError(unknown("choice of logits", logits, ("all", "last")))
        plan = self._plan(prompt, interventions, read)
        with self._at(remote), self._in_tower(plan, prompt) as tower:
            done = self._backend.forward(prompt, plan.taps_beside(tower), last_only=logits == "last", grad=grad)
        return self._run_of(prompt, plan, done, tower)

    def run_all(self, runs: Sequence[PlannedRun]) -> Iterator[Run]:
        """Several forward passes of one experiment, each with the logits of its rows' last prompt tokens.

        On a server they are one job. What a tap of one run leaves in `TapContext.carried` the next ones find there, so
        that activations which go from run to run need not travel.

        Args:
            runs: prompt, interventions, reads and tokens of each.
        """
        plans = [self._plan(each.prompt, each.interventions, each.reads) for each in runs]
        if any(plan.needs_tower for plan in plans):
            raise LensError("runs of one job neither read nor edit the vision tower\n  run them one by one")
        passes = [ForwardPass(each.prompt, plan.taps, each.tokens) for each, plan in zip(runs, plans, strict=True)]
        for each, plan, done in zip(runs, plans, self._backend.forward_all(passes), strict=True):
            yield self._run_of(each.prompt, plan, done)

    def _run_of(self, prompt: Prompt, plan: Plan, done: Forward, tower: InTower | None = None) -> Run:
        """The result of a forward pass; ModelError where a last logit is NaN."""
        logits, tapping = done.logits, done.tapping
        rows = torch.arange(len(logits))
        last = logits[:, -1] if logits.shape[1] == 1 else logits[rows, prompt.mask("last").int().argmax(1)]
        if bool(last.isnan().any()):
            raise ModelError(where_nan(self, prompt, plan))
        reads, reports = plan.collect(tapping, tower), plan.reports(tapping, tower)
        if tower is None:
            return Run(prompt, logits, *reads, reports, tapping.sums)
        return Run(prompt, logits, *reads, reports, {**tapping.sums, **tower.tapping.sums}, tower.prompt)

    def generate(
        self,
        prompt: Prompt,
        interventions: Sequence[Intervention] = (),
        read: Sequence[Reader | str] = (),
        *,
        max_new_tokens: int | None = None,
        logits: bool = False,
        remote: bool | str | None = None,
        **options: Any,
    ) -> Generation:
        """Continue a prompt, edited at prefill and at every decoding step; greedy unless the options say otherwise.

        Args:
            prompt: from `Lens.prompt`. A batch must be padded on the left.
            interventions, read: as in `run`.
            max_new_tokens: at most this many; by default what `max_length` or the model's own generation config says,
                and 20 where neither says anything.
            logits: return the logits of each step.
            remote: where to run, with nnsight; the lens's own by default.
            **options: of transformers' GenerationConfig (do_sample, temperature, eos_token_id, ...), a
                `generation_config`, `streamer`, `logits_processor` and `stopping_criteria`; none ignored. Beams and
                several sequences only where nothing is read or edited.

        Raises:
            PromptError: the batch is padded on the right, so that some rows would be continued from padding.
            LensError: an option that transformers would ignore, or that makes several passes of one step.
        """
        options = options if max_new_tokens is None else {**options, "max_new_tokens": max_new_tokens}
        Options.check(options)
        plan = self._plan(prompt, interventions, read)
        if not bool(prompt.mask("last")[:, -1].all()):
            raise PromptError(
                "cannot generate from a batch that is padded on the right: some rows end in padding\n"
                "  set processor.tokenizer.padding_side = 'left'"
            )
        options["output_logits"] = logits
        try:
            with self._at(remote), self._in_tower(plan, prompt) as tower:
                done = self._backend.generate(prompt, plan.taps_beside(tower), options)
        except FloatingPointError as error:
            raise ModelError(f"{error}\n  {where_nan(self, prompt, plan)}") from error
        decode = self.adapter.tokenizer.batch_decode if self.processor else None
        decoded = decode(done.tokens, skip_special_tokens=True) if decode else [""] * len(done.tokens)
        text = tuple(row.strip() for row in decoded)
        reads, reports = plan.collect(done.tapping, tower), plan.reports(done.tapping, tower)
        return Generation(prompt, text, done.tokens, done.logits, *reads, reports, done.tapping.sums)

    # ------------------------------------------------------------------ editing whatever runs

    def apply(self, *interventions: Intervention) -> AbstractContextManager[Lens]:
        """Edit everything that runs inside the `with` block: `run`, `generate`, and direct calls of the model.

        With nnsight `run`, `generate` and `trace`; direct calls are refused there, and a trace of `lens.envoy` itself
        is nnsight's own, which nothing here edits. The block holds for calls of this lens in the thread that opened
        it, and for direct calls of the model in every thread.

        Raises:
            PromptError: the model is called with inputs whose visual tokens cannot be found.
            InterventionError: the block ended without the model having run, or the model was called directly where
                that is not edited.
        """
        return Applied(self, interventions, self._backend, self._prompt_of_call)

    @property
    def applied(self) -> tuple[Intervention, ...]:
        """What enclosing `apply` blocks put into every run here."""
        return applied_to(self)

    def nothing_applied(self) -> AbstractContextManager[None]:
        """Inside an `apply` block, run the model as it is."""
        return NothingApplied(self)

    def _prompt_of_call(self, kwargs: Mapping[str, Any]) -> Prompt:
        return prompting.from_call(self.adapter, kwargs, self.device)

    def _in_tower(self, plan: Plan, prompt: Prompt | None) -> AbstractContextManager[InTower | None]:
        """Inside, the vision tower runs with what a plan reads and edits there; nothing where it does neither."""
        if not plan.needs_tower:
            return nullcontext()
        if prompt is not None:
            self._backend.prepare(prompt)
        thread = None if prompt is None else threading.get_ident()  # an open context holds for all
        taps_of = partial(plan.tower_taps, self.vision.shape)
        return self._backend.tower_session(taps_of, thread)

    def _at(self, remote: bool | str | None) -> AbstractContextManager[None]:
        """Inside, run there."""
        return nullcontext() if remote is None else self._backend.at(remote)

    def _sinks_on(self, prompt: Prompt, dims: Sequence[int] | None = None) -> SinkReport:
        """What "auto" asks: the sinks of this model on this prompt, whatever ran before."""
        with self.nothing_applied():
            return find_sinks(self, prompt, dims)

    def _plan_of(self, interventions: Intervention | Sequence[Intervention], read: Sequence[Reader | str] = ()) -> Plan:
        self.adapter.look_again()
        return Plan(self.shape, self._sinks_on, interventions, read)

    def _plan(self, prompt: Prompt, interventions: Sequence[Intervention], read: Sequence[Reader | str]) -> Plan:
        check_prompt(prompt)
        for block in blocks_of(self):
            block.n_runs += 1
        own = [interventions] if isinstance(interventions, Intervention) else interventions
        return self._plan_of((*self.applied, *own), read)
