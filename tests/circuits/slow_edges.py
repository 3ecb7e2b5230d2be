"""Edges by hand on the Hugging Face model: every entry has an input of its own in one forward of the whole model.

Written with hooks on the modules by their names in transformers, one prompt, vectors of the stream for every node, and
autograd or one forward an edge for the answer. Nothing of the library is used.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.models import Inputs

Name = tuple[str, int, int]
"""Kind, layer and number of a node or an entry, as in `lmm_lens.circuits.graph`."""
Vectors = dict[Name, Tensor]
Read = Callable[[Name, Tensor], Tensor]
"""What an entry reads in the place of what it would, both [position, d_model]."""


class SlowEdges:
    """One model and a pair of prompts.

    Attributes:
        vectors: of the clean and of the corrupt run, what each node writes, [position, d_model].
        inputs: of both, what each entry reads.
    """

    def __init__(self, model: nn.Module, clean: Inputs, corrupt: Inputs, ids: tuple[int, int]) -> None:
        self.model, self.prompts, self.ids = model, (clean, corrupt), ids
        self.decoder = model.get_decoder()
        self.vectors, self.inputs = [], []
        for prompt in self.prompts:
            seen: Vectors = {}

            def note(entry: Name, x: Tensor, seen: Vectors = seen) -> Tensor:
                seen[entry] = x.detach().clone()
                return x

            with torch.no_grad():
                self.ld(prompt, note)
            self.vectors.append({name: x.detach().clone() for name, x in self.now.items()})
            self.inputs.append(seen)

    @property
    def change(self) -> Vectors:
        """What each node writes, clean minus corrupt."""
        clean, corrupt = self.vectors
        return {name: clean[name] - corrupt[name] for name in clean}

    def ld(self, prompt: Inputs, read: Read, embed: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """The logit difference at the last token.

        Args:
            prompt: what is run.
            read: called for every entry in the order in which they read; `now` has what was written until then.
            embed: of a layer's number and what enters it, [1, position, d_model], what enters it instead.
        """
        self.now: Vectors = {}
        with ExitStack() as stack:
            for index, layer in enumerate(self.decoder.layers):
                self._hook(index, layer, read, embed, stack)
            last = len(self.decoder.layers)

            def final(module: nn.Module, args: tuple) -> tuple:
                return (read(("logits", last, 0), args[0][0])[None],)

            stack.callback(self.decoder.norm.register_forward_pre_hook(final).remove)
            logits = self.model(**prompt, use_cache=False).logits[0, -1]
        return logits[self.ids[0]] - logits[self.ids[1]]

    def _hook(self, index: int, layer: Any, read: Read, embed: Any, stack: ExitStack) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        mlp_norm = getattr(layer, "pre_feedforward_layernorm", None) or layer.post_attention_layernorm
        after = getattr(layer, "post_self_attn_layernorm", None)
        if hasattr(layer, "pre_feedforward_layernorm"):
            after = layer.post_attention_layernorm
        n_heads = attention.o_proj.in_features // attention.head_dim
        at: dict[str, Tensor] = {}

        def enter(module: nn.Module, args: tuple, kwargs: dict) -> Any:
            x = args[0] if embed is None else embed(index, args[0])
            if index == 0:
                self.now["embed", -1, 0] = x[0]
            elif (x[0] - at_end[index - 1]).abs().max() > 1e-9:
                self.now["deepstack", index - 1, 0] = x[0] - at_end[index - 1]
            at["hidden"] = x[0]
            return (x, *args[1:]), kwargs

        def project(kind: str, norm: nn.Module) -> Any:
            def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
                size = attention.head_dim
                parts = []
                for head in range(output.shape[-1] // size):
                    x = read((kind, index, head), at["hidden"])
                    parts.append(module._original(norm(x))[:, head * size : (head + 1) * size])
                return torch.cat(parts, -1)[None]

            return hook

        def attended(module: nn.Module, args: tuple) -> None:
            at["z"] = args[0][0]

        def wrote(module: nn.Module, args: tuple, output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else output
            scale = 1.0 if after is None else after(out)[0] / out[0]
            for head in range(n_heads):
                own = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
                self.now["head", index, head] = at["z"][:, own] @ attention.o_proj.weight[:, own].T * scale

        def mid(module: nn.Module, args: tuple) -> None:
            at["mid"] = args[0].reshape(at["hidden"].shape)

        def feed(module: nn.Module, args: tuple) -> tuple:
            at["fed"] = at["mid"]
            return (mlp_norm(read(("mlp", index, 0), at["mid"])).reshape(args[0].shape),)

        def leave(module: nn.Module, args: tuple, output: Any) -> None:
            out = (output[0] if isinstance(output, tuple) else output).reshape(1, *at["hidden"].shape)[0]
            self.now["mlp", index, 0] = out - at["fed"]
            at_end[index] = out

        at_end = self.__dict__.setdefault("_at_end", {})
        stack.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
        for kind in "qkv":
            module = getattr(attention, f"{kind}_proj")
            module._original = lambda x, module=module: nn.functional.linear(x, module.weight, module.bias)
            hook = module.register_forward_hook(project(kind, layer.input_layernorm))
            stack.callback(hook.remove)
            stack.callback(module.__dict__.pop, "_original")
        stack.callback(attention.o_proj.register_forward_pre_hook(attended).remove)
        stack.callback(attention.register_forward_hook(wrote).remove)
        stack.callback(mlp_norm.register_forward_pre_hook(mid).remove)
        stack.callback(mlp.register_forward_pre_hook(feed).remove)
        stack.callback(layer.register_forward_hook(leave).remove)

    # ------------------------------------------------------------------ what is asked

    def gradients(self, share: float = 1.0) -> Vectors:
        """The gradient of every entry's own input, at a point between the corrupt (0) and the clean (1) embeddings."""
        change, probes = self.change, dict[Name, Tensor]()

        def embed(layer: int, x: Tensor) -> Tensor:
            added = change.get(("embed", -1, 0) if layer == 0 else ("deepstack", layer - 1, 0))
            return x if added is None else x + (share - 1) * added

        def read(entry: Name, x: Tensor) -> Tensor:
            probes[entry] = torch.zeros_like(x, requires_grad=True)
            return x + probes[entry]

        total = self.ld(self.prompts[0], read, embed)
        found = torch.autograd.grad(total, list(probes.values()))
        return dict(zip(probes, found, strict=True))

    def scores(self, nodes: Any, entries: Any, masks: Any, shares: Any = (1.0,)) -> Tensor:
        """The score of every pair of a node and an entry at every span, [node, entry, span], edge or not."""
        change, found = self.change, 0
        for share in shares:
            gradients = self.gradients(share)
            written = torch.stack([change[tuple(node)] for node in nodes])
            wanted = torch.stack([gradients[tuple(entry)[:3]] for entry in entries])
            products = torch.einsum("npd,epd->nep", written, wanted)
            found = found + torch.einsum("nep,sp->nes", products, masks.to(products.dtype)) / len(shares)
        return found

    def without(self, node: Name, entry: Name, mask: Tensor) -> float:
        """What the logit difference loses when one edge carries the corrupt value at some tokens."""
        change = self.change[node]

        def read(name: Name, x: Tensor) -> Tensor:
            return x - change * mask[:, None] if name == entry else x

        with torch.no_grad():
            return float(self.ld(self.prompts[0], lambda name, x: x) - self.ld(self.prompts[0], read))

    def patched(self, keep: Callable[[Name, Name], Tensor]) -> float:
        """The logit difference where edges not kept carry the corrupt value.

        Args:
            keep: of a node and an entry, at which tokens their edge is kept, Bool[position].
        """
        _, corrupt = self.vectors

        def read(entry: Name, x: Tensor) -> Tensor:
            x = self.inputs[1][entry].clone()
            for node, now in self.now.items():
                x += (now - corrupt[node]) * keep(node, entry)[:, None]
            return x

        with torch.no_grad():
            return float(self.ld(self.prompts[0], read))
