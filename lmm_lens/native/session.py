"""One run of the model with taps in it: hooks in, positions counted, everything undone at the end.

1. A pre-hook on the model announces each pass and counts the tokens seen before it (the cache's length).
2. The taps are bound to the prompt, and only the modules that they need are hooked.
3. At each hook the rows of each tap are cut out and handed to it; a read's result is kept, an edit's put back.
4. A tap whose hook did not fire in a pass is an error, never a silent no-op.
"""

from __future__ import annotations

import inspect
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Layer
from ..errors import HookError, InterventionError, ModelError
from ..prompt import Prompt
from ..rows import Chunk, JoinedRows
from ..taps import Place, Tap
from . import attention
from .attention import AttentionCall

CHUNK_ELEMENTS = 2**20  # probabilities held at once, 4 MiB: less than what a feed-forward layer needs anyway

Kept = dict[tuple[str, int], list[tuple[Chunk, Tensor, int]]]


class Session:
    """A context in which the model runs with taps.

    Args:
        model: the Hugging Face model.
        layers: its decoder layers.
        bind: gives the taps of a prompt.
        prompt: the prompt about to be run; None to make one, with `prompt_of`, of whatever the model is called with.
        prompt_of: makes a prompt of the keyword arguments of a call.

    Attributes:
        kept: what reading taps returned, by (name, layer): for each pass the rows, the result, and which of its
            dimensions is the rows.
        edited: rows times heads (or streams) that were edited, by (index of the intervention, layer).
        moved: attention moved in them, by the same; only of edits that report it.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        bind: Callable[[Prompt], Sequence[Tap]],
        prompt: Prompt | None = None,
        prompt_of: Callable[[Mapping[str, Any]], Prompt] | None = None,
    ) -> None:
        self.model, self.layers, self.bind = model, layers, bind
        self.prompt, self.prompt_of = prompt, prompt_of
        # a run belongs to its thread; an open context holds for all, since `generate` is often called from its own
        self.thread = threading.get_ident() if prompt is not None else None
        self.kept: Kept = defaultdict(list)
        self.edited: dict[tuple[int, int], int] = defaultdict(int)
        self.moved: dict[tuple[int, int], float] = defaultdict(float)
        self.memo: dict[Any, Any] = {}
        self.n_passes = 0
        self._layer_of = {id(layer.attention): index for index, layer in enumerate(layers) if layer.attention}
        self._modules = {id(model), *self._layer_of}
        self._taps: dict[tuple[str, int], list[Tap]] = {}
        self._joined: dict[tuple[Any, ...], JoinedRows | None] = {}
        self._fired: set[tuple[str, int]] = set()
        self._first = self._next = 0  # positions of this pass's first token and of the next pass's
        self._hooks, self._outer = ExitStack(), ExitStack()

    # ------------------------------------------------------------------ opening and closing

    def __enter__(self) -> Session:
        if self.model.training:
            raise ModelError("the model is in training mode, so dropout would change its answers\n  call model.eval()")
        try:
            self._outer.callback(self.model.register_forward_pre_hook(self._before_pass, with_kwargs=True).remove)
            self._outer.callback(self.model.register_forward_hook(self._after_pass).remove)
            attention.LISTENERS.append(self)
            self._outer.callback(attention.LISTENERS.remove, self)
            if self.prompt is not None:
                self._install(self.prompt)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._settle()
        self._hooks.close()
        self._outer.close()

    def _settle(self) -> None:
        """Add up what taps noted of the prompt so far, and forget the rest: no state reaches the next prompt."""
        for key, value in self.memo.items():
            if key[0] == "rows":
                self.edited[key[1:]] += int(value)
            elif key[0] == "moved":
                self.moved[key[1:]] += float(value)
        self.memo.clear()

    def owns(self, module: nn.Module) -> bool:
        """Whether the module is the session's model or one of its attention modules."""
        return id(module) in self._modules

    def _is_acting(self) -> bool:
        return attention.listener_of(self.model) is self

    def _install(self, prompt: Prompt) -> None:
        """Bind the taps to a prompt and hook the modules they need."""
        self._hooks.close()
        self._settle()
        self._prompt, self._taps, self._joined = prompt, {}, {}
        for tap in sorted(self.bind(prompt), key=lambda tap: not tap.edits):  # reads see what edits left
            self._taps.setdefault((tap.site, tap.layer), []).append(tap)
        patterned = [layer for site, layer in self._taps if site == "pattern"]
        if patterned:
            self._hooks.enter_context(attention.switched(self._attention_configs(patterned)))
        for (site, layer), taps in self._taps.items():
            if site != "pattern":
                self._hooks.callback(self._hook(site, layer, taps).remove)

    def _attention_configs(self, layers: list[int]) -> list[Any]:
        """The configs that choose these layers' attention function, and the mask that fits it."""
        for layer in layers:
            if self.layers[layer].attention is None:
                name = type(self.layers[layer].module).__name__
                raise HookError(f"layer {layer} ({name}) has no attention heads, so it has no pattern")
        holders = (
            module
            for module in self.model.modules()
            if any(
                isinstance(child, nn.ModuleList) and self.layers[0].module in list(child) for child in module.children()
            )
        )
        modules = [*(self.layers[layer].attention for layer in layers), *holders]
        return [module.config for module in modules if hasattr(module, "config")]

    # ------------------------------------------------------------------ the passes of one run

    def _before_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._is_acting():
            return
        cache = kwargs.get("past_key_values")
        if args:
            kwargs = dict(inspect.signature(self.model.forward).bind_partial(*args, **kwargs).arguments)
            kwargs |= kwargs.pop("kwargs", {})
        tokens = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
        self._length = tokens.shape[1] if isinstance(tokens, Tensor) else 0
        self._first = int(cache.get_seq_length()) if cache is not None else 0
        self._fired = set()
        if self.prompt_of is None:
            return
        if self._first == 0:
            self._install(self.prompt_of(kwargs))
        elif self._first != self._next:
            raise InterventionError(
                f"the model was called with a cache of {self._first} tokens that were not seen here\n"
                "  run the prompt inside the same `with` block, so that its visual tokens are known"
            )

    def _after_pass(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._is_acting():
            return
        self.n_passes += 1
        self._next = self._first + self._length
        for site, layer in self._taps:
            if (site, layer) not in self._fired:
                through = "the attention interface of transformers" if site == "pattern" else "its module's forward"
                raise HookError(
                    f"{site} of layer {layer} did not fire, so nothing was read or edited there\n"
                    f"  {type(self.layers[layer].module).__name__} does not go through {through}"
                )

    def _hook(self, site: str, layer: int, taps: list[Tap]) -> Any:
        parts = self.layers[layer]
        modules = {
            "resid_pre": parts.module,
            "z": parts.output_projection,
            "attn_out": parts.attention,
            "mlp_out": parts.mlp,
            "resid_post": parts.module,
        }
        module = modules[site]
        if module is None:
            raise HookError(f"layer {layer} ({type(parts.module).__name__}) has no {site}")

        def tapped(x: Tensor) -> Tensor:
            self._fired.add((site, layer))
            if site != "z":
                return self._through(x, taps)
            return self._through(x.unflatten(-1, (parts.n_heads, parts.d_head)), taps).flatten(-2)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self._is_acting():
                return None
            if args:
                return (tapped(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": tapped(kwargs["hidden_states"])}

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if not self._is_acting():
                return None
            return (tapped(output[0]), *output[1:]) if isinstance(output, tuple) else tapped(output)

        if site in ("resid_pre", "z"):
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)

    # ------------------------------------------------------------------ reading and editing rows

    def _join(self, taps: Sequence[Tap], batch: int, length: int, device: torch.device) -> JoinedRows | None:
        if batch != self._prompt.n_rows:
            raise InterventionError(
                f"the model ran with a batch of {batch}, but the prompt has {self._prompt.n_rows} rows\n"
                "  beam search and several returned sequences are not supported inside reads and interventions"
            )
        key = (*(id(tap.rows) for tap in taps), self._first, length, device)
        if key not in self._joined:
            self._joined[key] = JoinedRows.of([tap.rows for tap in taps], self._first, length, device)
        return self._joined[key]

    def _place(
        self, tap: Tap, rows: Chunk, valid: Tensor, length: int, scores: Callable[[], Tensor] | None = None
    ) -> Place:
        heads = tap.heads if tap.heads is not None else tuple(range(self.layers[tap.layer].n_heads))
        n_seen = self._first + length
        return Place(tap.layer, heads, rows.positions, valid, n_seen, self.memo, tap.owner, scores)

    def _through(self, x: Tensor, taps: list[Tap]) -> Tensor:
        """Pass an activation [batch, row, ...] through the taps of its hook point, in order."""
        batch, length = x.shape[:2]
        copied = False  # the first edit copies, so that nobody else's tensor changes
        for tap in taps:
            joined = self._join([tap], batch, length, x.device)
            if joined is None:
                continue
            rows = joined.rows
            chosen = rows.gather(x)
            part = chosen if tap.heads is None else chosen[:, :, list(tap.heads)]
            result = tap.run(part.clone() if tap.edits else part, self._place(tap, rows, rows.valid, length))
            if not tap.edits:
                self._keep(tap, rows, result, dim=1)
                continue
            if not tap.chooses:
                self.edited[tap.owner, tap.layer] += rows.count * (part.shape[2] if x.ndim == 4 else 1)
            if tap.heads is not None:
                chosen = chosen.clone()
                chosen[:, :, list(tap.heads)] = result.to(x.dtype)
                result = chosen
            if not copied:
                x, copied = x.clone(), True
            rows.scatter_(x, result.to(x.dtype))
        return x

    def attend(self, module: nn.Module, call: AttentionCall, out: Tensor) -> Tensor:
        """Pass the pattern through its taps; an edit reaches `out` [batch, row, head, d_head] in its linear form."""
        layer = self._layer_of.get(id(module))
        taps = self._taps.get(("pattern", layer), []) if layer is not None else []
        if not taps:
            return out
        self._fired.add(("pattern", layer))
        (batch, n_heads, length, _), n_keys = call.query.shape, call.key.shape[2]
        if n_heads != self.layers[layer].n_heads:
            raise HookError(f"layer {layer} has {n_heads} heads, but its adapter counts {self.layers[layer].n_heads}")
        joined = self._join(taps, batch, length, out.device)
        if joined is None:
            return out
        named = {head for tap in taps for head in tap.heads or ()}
        heads = tuple(sorted(named)) if all(tap.heads is not None for tap in taps) else None
        width = joined.rows.index.shape[1]
        step = max(1, CHUNK_ELEMENTS // (batch * (n_heads if heads is None else len(heads)) * n_keys))
        results: list[list[Tensor]] = [[] for _ in taps]
        if torch.is_grad_enabled() and out.requires_grad:
            out = out.clone()  # the kernel saved its own output for the backward pass
        for start in range(0, width, step):
            rows = joined.rows.part(start, start + step)
            original = pattern = call.probabilities(rows, heads)
            for index, tap in enumerate(taps):
                member = joined.members[index]
                valid = rows.valid if member is None else member[:, start : start + step]
                columns = _columns(tap.heads, heads)
                part = pattern if columns is None else pattern[:, columns]
                scores = partial(call.scores, rows, tap.heads)
                result = tap.run(part.clone() if tap.edits else part, self._place(tap, rows, valid, length, scores))
                if not tap.edits:
                    results[index].append(result)
                    continue
                if member is not None:
                    result = torch.where(valid[:, None, :, None], result, part)
                if columns is not None:
                    whole = pattern.clone()
                    whole[:, columns] = result
                    result = whole
                pattern = result
            if pattern is not original:
                call.add_change(out, pattern - original, rows, heads)
        for index, tap in enumerate(taps):
            own, pick = joined.own[index], joined.picks[index]
            if own is None:  # none of its rows is in this pass
                continue
            if tap.edits:
                if not tap.chooses:
                    self.edited[tap.owner, layer] += own.count * (n_heads if tap.heads is None else len(tap.heads))
            else:
                read = torch.cat(results[index], dim=2)
                self._keep(tap, own, read if pick is None else pick.gather(read, dim=2), dim=2)
        return out

    def _keep(self, tap: Tap, rows: Chunk, result: Tensor, dim: int) -> None:
        if tap.name:
            self.kept[tap.name, tap.layer].append((rows, result, dim))


def _columns(wanted: tuple[int, ...] | None, present: tuple[int, ...] | None) -> list[int] | None:
    """Where the wanted heads lie among the present ones; None where they are the same."""
    if wanted == present:
        return None
    return [head if present is None else present.index(head) for head in wanted or ()]
