"""Edges of a vision tower by hand on the Hugging Face model: every entry has an input of its own in one whole forward.

For towers of CLIP's, SigLIP's, InternViT's and Qwen-VL's build, with hooks on modules by name. Nothing of the library
is used.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.models import Inputs

Name = tuple[str, int, int]
Read = Callable[[Name, Tensor], Tensor]


def one_row(x: Tensor) -> Tensor:
    """A packed sequence, [token, width], as one row."""
    return x if x.ndim == 3 else x[None]


class SlowTower:
    """One model, the layers of its tower that are used, and a pair of prompts.

    What leaves the layers `reads` (the last by default) is read by the projector.

    Attributes:
        vectors: of the clean and of the corrupt run, what each node writes, [row, token, d_model].
        inputs: of both, what each entry reads.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: list[Any],
        clean: Inputs,
        corrupt: Inputs,
        ids: tuple[int, int],
        reads: tuple[int, ...] = (),
    ) -> None:
        self.model, self.layers, self.prompts, self.ids = model, layers, (clean, corrupt), ids
        self.reads = reads or (len(layers) - 1,)
        self.vectors, self.inputs = [], []
        for prompt in self.prompts:
            seen: dict[Name, Tensor] = {}

            def note(entry: Name, x: Tensor, seen: dict[Name, Tensor] = seen) -> Tensor:
                seen[entry] = x.detach().clone()
                return x

            with torch.no_grad():
                self.ld(prompt, note)
            self.vectors.append({name: x.detach().clone() for name, x in self.now.items()})
            self.inputs.append(seen)

    @property
    def change(self) -> dict[Name, Tensor]:
        """What each node writes, clean minus corrupt."""
        clean, corrupt = self.vectors
        return {name: clean[name] - corrupt[name] for name in clean}

    def ld(self, prompt: Inputs, read: Read, embed: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The logit difference at the last token; `embed` changes what enters the first layer."""
        self.now: dict[Name, Tensor] = {}
        self.left: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for index, layer in enumerate(self.layers):
                self._hook(index, layer, read, embed, stack)
            logits = self.model(**prompt, use_cache=False).logits[0, -1]
        return logits[self.ids[0]] - logits[self.ids[1]]

    def _hook(self, index: int, layer: Any, read: Read, embed: Any, stack: ExitStack) -> None:
        at: dict[str, Tensor] = {}
        scales = torch.ones(()), torch.ones(())
        if hasattr(layer, "lambda_1"):
            attention, projection = layer.attention, layer.attention.projection_layer
            first, second, scales = layer.layernorm_before, layer.layernorm_after, (layer.lambda_1, layer.lambda_2)
        elif hasattr(layer, "attn"):
            attention, projection, first, second = layer.attn, layer.attn.proj, layer.norm1, layer.norm2
        else:
            attention, projection = layer.self_attn, layer.self_attn.out_proj
            first, second = layer.layer_norm1, layer.layer_norm2
        size = attention.head_dim

        def enter(module: nn.Module, args: tuple) -> tuple:
            given = self.left.pop(index - 1, args[0])  # the projector alone reads what was put in its place
            x = one_row(given) if embed is None or index else embed(one_row(given))
            if index == 0:
                self.now["embed", -1, 0] = x
            at["hidden"] = x
            return (x.reshape(args[0].shape), *args[1:])

        def project(kinds: str) -> Any:
            def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
                parts, width = [], output.shape[-1] // len(kinds)
                for place, kind in enumerate(kinds):
                    for head in range(width // size):
                        x = first(read((kind, index, head), at["hidden"]))
                        own = slice(place * width + head * size, place * width + (head + 1) * size)
                        bias = None if module.bias is None else module.bias[own]
                        parts.append(nn.functional.linear(x, module.weight[own], bias))
                return torch.cat(parts, -1).reshape(output.shape)

            return hook

        def attended(module: nn.Module, args: tuple) -> None:
            z = one_row(args[0])
            for head in range(z.shape[-1] // size):
                own = slice(head * size, (head + 1) * size)
                self.now["head", index, head] = z[..., own] @ module.weight[:, own].T * scales[0]

        def feed(module: nn.Module, args: tuple) -> tuple:
            at["fed"] = True
            return (second(read(("mlp", index, 0), at["mid"])).reshape(args[0].shape),)

        def mid(module: nn.Module, args: tuple) -> None:
            if "fed" not in at:
                at["mid"] = one_row(args[0])

        def wrote(module: nn.Module, args: tuple, output: Tensor) -> None:
            self.now["mlp", index, 0] = one_row(output) * scales[1]

        def leave(module: nn.Module, args: tuple, output: Any) -> Any:
            if index not in self.reads:
                return None
            out = output[0] if isinstance(output, tuple) else output
            self.left[index] = out
            out = read(("logits", index + 1, 0), one_row(out)).reshape(out.shape)
            return (out, *output[1:]) if isinstance(output, tuple) else out

        stack.callback(layer.register_forward_pre_hook(enter).remove)
        for kinds, name in (("qkv", "qkv"), ("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj")):
            if hasattr(attention, name):
                stack.callback(getattr(attention, name).register_forward_hook(project(kinds)).remove)
        stack.callback(projection.register_forward_pre_hook(attended).remove)
        stack.callback(second.register_forward_pre_hook(mid).remove)
        stack.callback(layer.mlp.register_forward_pre_hook(feed).remove)
        stack.callback(layer.mlp.register_forward_hook(wrote).remove)
        stack.callback(layer.register_forward_hook(leave, prepend=True).remove)

    # ------------------------------------------------------------------ what is asked

    def scores(self, nodes: Any, entries: Any, masks: Tensor, shares: Any = (1.0,)) -> Tensor:
        """The score of every pair of a node and an entry at every span [span, row, token]: [node, entry, span]."""
        change, found = self.change, 0
        for share in shares:
            probes: dict[Name, Tensor] = {}

            def read(entry: Name, x: Tensor, probes: dict[Name, Tensor] = probes) -> Tensor:
                probes[entry] = torch.zeros_like(x, requires_grad=True)
                return x + probes[entry]

            total = self.ld(self.prompts[0], read, lambda x, share=share: x + (share - 1) * change["embed", -1, 0])
            slopes = dict(zip(probes, torch.autograd.grad(total, list(probes.values())), strict=True))
            written = torch.stack([change[tuple(node)] for node in nodes])
            wanted = torch.stack([slopes[tuple(entry)[:3]] for entry in entries])
            found = found + torch.einsum("nrpd,erpd,srp->nes", written, wanted, masks.double()) / len(shares)
        return found

    def without(self, node: Name, entry: Name, mask: Tensor) -> float:
        """What the logit difference loses when one edge carries the corrupt value at some tokens."""
        change = self.change[node]

        def read(name: Name, x: Tensor) -> Tensor:
            return x - change * mask[..., None] if name == entry else x

        with torch.no_grad():
            return float(self.ld(self.prompts[0], lambda name, x: x) - self.ld(self.prompts[0], read))

    def patched(self, keep: Callable[[Name, Name], Tensor]) -> float:
        """The logit difference where edges of the tower that are not kept carry the corrupt value."""
        _, corrupt = self.vectors

        def read(entry: Name, x: Tensor) -> Tensor:
            x = self.inputs[1][entry].clone()
            for node, now in self.now.items():
                x += (now - corrupt[node]) * keep(node, entry)[..., None]
            return x

        with torch.no_grad():
            return float(self.ld(self.prompts[0], read))
