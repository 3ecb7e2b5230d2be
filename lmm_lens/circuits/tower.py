"""A vision tower taken apart on a clean and a corrupt prompt, to be run by itself: its layers, then the projector.

The tower's layers run on what the model gave them. What comes behind them, up to the decoder's first layer and to all
others behind which features are added (deepstack), is the model itself: run on the corrupt pictures, with the layers
that features come from giving what they are told to. That all of the clean picture comes through these layers is
checked, or the model is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..backends.entering import entered_and_added, given_to
from ..errors import ModelError
from ..prompts.prompt import Prompt
from ..prompts.tower import tower_prompt
from ..replay import UnfitError
from ..replay.check import agree
from .decoder import Given
from .graph import WHOLE, Graph
from .parts import Parts, parts_of
from .unpacked import UnpackedLayer, check_thirds, is_fused, put_back, unpacked
from .watching import Seen, watching
from .written import Places, Written

if TYPE_CHECKING:
    from ..adapters import Layer
    from ..lens import Lens


@dataclass(frozen=True, eq=False)
class TowerStack:
    """The layers of a tower that the features come through, to be run by themselves.

    Attributes:
        lens: of the model.
        corrupt: the prompt whose pictures the model is run on.
        layers, parts: the layers, taken apart.
        given: of each layer, what it is given beside the stream.
        reads: behind which layers the projector reads, the last among them.
        behind: the decoder layers behind which features are added.
        configs: none of the tower's attention is exchanged.
    """

    lens: Lens
    corrupt: Prompt
    layers: tuple[Layer, ...]
    parts: tuple[Parts, ...]
    given: Given
    reads: tuple[int, ...]
    behind: tuple[int, ...] = ()
    configs: Sequence[Any] = ()

    def run(
        self,
        embed: Float[Tensor, "tower_row token d_model"],
        added: object = None,
        done: Callable[[int, Seen], None] | None = None,
    ) -> list[Tensor]:
        """Run all layers; the stream behind each that the projector reads, which has a gradient of its own."""
        x, found = embed, []
        with unpacked(self.layers), watching(self.layers, done) if done else nullcontext():
            for index, layer in enumerate(self.layers):
                x = self.layer(index, layer, x)
                if index in self.reads:
                    found.append(x.view_as(x))
        return found

    def layer(self, index: int, layer: Layer, x: Tensor) -> Tensor:
        """One layer."""
        args, kwargs = self.given[index]
        with unpacked((layer,)):
            out = layer.module(x, *args, **kwargs)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found

    def projected(
        self, streams: Sequence[Tensor]
    ) -> tuple[Float[Tensor, "batch position width"], dict[int, Float[Tensor, "batch position width"]]]:
        """What enters the decoder, and what is added in it by layer, where these streams leave the layers that are
        read; with gradients if they are on."""
        with self._giving(dict(zip(self.reads, streams, strict=True))):
            inputs, grad = self.corrupt.inputs, torch.is_grad_enabled()
            return entered_and_added(self.lens.adapter, inputs, self.behind, grad)

    @contextmanager
    def _giving(self, streams: Mapping[int, Tensor]) -> Iterator[None]:
        """Inside, and in this thread alone, some layers give these streams."""
        mine = threading.get_ident()
        with ExitStack() as undo:
            for number, layer in enumerate(self.layers):
                module, own = layer.module, layer.module.forward

                def forward(*args: Any, number: int = number, own: Callable[..., Any] = own, **kwargs: Any) -> Any:
                    if threading.get_ident() != mine or number not in streams:
                        return own(*args, **kwargs)
                    with torch.no_grad():
                        out = own(*args, **kwargs)
                    first = out[0] if isinstance(out, tuple) else out
                    given = streams[number].reshape(first.shape)
                    return (given, *out[1:]) if isinstance(out, tuple) else given

                had = module.__dict__.get("forward")
                module.__dict__["forward"] = forward
                undo.callback(put_back, module, had)
            yield


@dataclass(frozen=True, eq=False)
class TowerPair:
    """What the edges of a tower are computed from; its members are called as those of `Pair`.

    Attributes:
        decoder: the tower's layers.
        graph: nodes, entries, edges of the tower.
        clean, corrupt: what entered it in each run; of the corrupt run what its nodes wrote, too, if it was kept.
        change: what its nodes wrote, clean minus corrupt.
        places: the tokens of its spans.
        visual: Bool[batch, position], the decoder's tokens that the projector gives.
        n_rows: batch rows; the tower's rows are as many, or all of one.
    """

    decoder: TowerStack
    graph: Graph
    clean: Written
    corrupt: Written
    change: Written
    places: Places
    visual: Bool[Tensor, "batch position"]
    n_rows: int

    def by_row(self, scores: Tensor) -> Tensor:
        """Numbers of the tower's rows as those of batch rows."""
        found: Tensor = scores.unflatten(0, (self.n_rows, -1)).sum(1)
        return found

    def entering(self, streams: Sequence[Tensor], text: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """What enters the decoder, at visual tokens what is made of streams, else `text`; and what is added in it."""
        features, added = self.decoder.projected(streams)
        return torch.where(self.visual[..., None].to(features.device), features, text), added


class TowerWatch:
    """Watches the tower in the two runs of a pair.

    Args:
        lens: the model.
        prompt: one with pictures.

    Raises:
        UnfitError: it has no tower with heads.
    """

    def __init__(self, lens: Lens, prompt: Prompt) -> None:
        self.lens = lens
        try:
            tower = lens.vision.tower
        except ModelError as why:
            raise UnfitError(str(why).partition("\n")[0]) from why
        first = given_to(tower.layers[0].module, lens.adapter.model, prompt.inputs)
        packed = first is not None and first.ndim == 2  # all pictures in one sequence
        self.tower = tower
        used = tower.layers[: tower.n_used]
        self.layers = tuple(UnpackedLayer.of(each, packed) if packed or is_fused(each) else each for each in used)
        self.reads = tuple(layer for layer in tower.feature_layers if layer >= 0)
        self.parts: dict[int, Parts] = {}
        self.runs: list[Written] = []
        self.finals: list[list[Tensor]] = []
        self.given: list[Given] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, the model runs once."""
        written, given, n_passes = Written(torch.empty(0)), dict[int, Any](), [0]
        finals: list[Tensor] = []

        def done(index: int, seen: Seen) -> None:
            n_passes[0] += index == 0
            if index not in self.parts:
                found = parts_of(index, self.layers[index], seen)
                self.parts[index] = replace(found, n_kv=self.layers[index].n_heads)
            if index == 0:
                written.embed = seen.hidden
            written.note(index, seen, self.parts[index])
            if index in self.reads:
                finals.append(seen.out.detach())

        with ExitStack() as hooks:
            for number, layer in enumerate(self.layers):
                keep = _keeping(given, number)
                hooks.callback(layer.module.register_forward_pre_hook(keep, with_kwargs=True).remove)
            with unpacked(self.layers), watching(self.layers, done):
                yield
        if n_passes[0] != 1:
            raise UnfitError(f"its vision tower ran {n_passes[0]} times, expected once")
        self.runs.append(written)
        self.finals.append(finals)
        self.given.append(tuple(given[number] for number in range(len(self.layers))))

    def finished(self, corrupt: Prompt, entering: Written, by_span: bool, keep_corrupt: bool) -> TowerPair:
        """What was watched, clean first; `entering` is what entered the decoder in the clean run.

        Raises:
            UnfitError: not all of a picture comes through the layers that are read, or its rows cannot be told apart.
        """
        clean, dirty = self.runs
        n_tower, n_tokens = clean.embed.shape[:2]
        if corrupt.n_rows > 1 and (n_tower != corrupt.n_rows or any(len(images) != 1 for images in corrupt.images)):
            raise UnfitError(
                f"its vision tower ran {n_tower} rows for {corrupt.n_rows} prompts, so that it is not known which is "
                "whose: give batches of one row"
            )
        stack = TowerStack(
            self.lens,
            corrupt,
            self.layers,
            tuple(self.parts[n] for n in range(len(self.layers))),
            self.given[1],
            self.reads,
            tuple(sorted(entering.added)),
        )
        tower = self.tower
        places = tower.n_class, tower.n_registers, tower.class_behind, tower.knows_places
        masks = tower_prompt(n_tower, n_tokens, *places).masks
        spans = {name: masks[name] for name in ("image", "class", "register") if name in masks}
        spans = {name: mask for name, mask in spans.items() if bool(mask.any())}
        if not by_span or not spans:
            spans = {WHOLE: masks["all"]}
        entered_in = [Written(run.embed) for run in self.runs]
        change = clean.minus(dirty)
        graph = Graph(
            tuple(layer.n_heads for layer in self.layers),
            tuple(layer.n_heads for layer in self.layers),
            tuple(parts.parallel for parts in stack.parts),
            (),
            tuple(spans),
            to_all=True,
            reads=self.reads[:-1],
        )
        pair = TowerPair(
            stack,
            graph,
            entered_in[0],
            dirty if keep_corrupt else entered_in[1],
            change,
            Places.of(list(spans.values())),
            corrupt.mask("visual"),
            corrupt.n_rows,
        )
        self._check(pair, entering)
        return pair

    def _check(self, pair: TowerPair, entering: Written) -> None:
        with torch.no_grad():
            features, added = pair.entering(self.finals[0], entering.embed)
            alone = pair.decoder.run(pair.clean.embed)
        made = [(features, entering.embed), *((added[layer], entering.added[layer]) for layer in added)]
        if not all(agree(mine / theirs.abs().max(), theirs / theirs.abs().max()) for mine, theirs in made):
            named = f"layer{'s' * (len(self.reads) > 1)} {', '.join(map(str, self.reads))}"
            raise UnfitError(
                f"not all of a picture comes through {named} of its vision tower: features of other layers, of a "
                "second tower or of the pixels enter, too"
            )
        for mine, theirs in zip(alone, self.finals[0], strict=True):
            if not agree(mine / theirs.abs().max(), theirs / theirs.abs().max()):
                raise UnfitError("the layers of its vision tower do not run by themselves")
        check_thirds(pair.decoder.layer, self.layers[0], pair.clean.embed)


def _keeping(given: dict[int, Any], number: int) -> Any:
    """A hook that keeps what a layer is given beside the stream."""

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = {name: value for name, value in kwargs.items() if args or name != "hidden_states"}
        given[number] = (args[1:], rest)

    return keep
