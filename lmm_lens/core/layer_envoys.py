"""One decoder layer as nnsight serves it, with what is known of its attention: goes to servers with a job."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class LayerEnvoys:
    """One decoder layer's envoys, the labels of two operations of its attention, and numbers about it.

    Attributes:
        layer: its number.
        n_heads, d_head: of its attention; 0 where it has none.
        sites: the hook points it has.
        module: envoy of the layer.
        attention, output_projection, mlp: envoys of these; None where it has none.
        attention_call: label of the operation of the attention's forward that calls the attention function; "": none.
        cache_update: label of the one that gives keys and values, (key, value); "": none.
        values: where there is no cache, label of the assignment of the values; "": none.
        scaling, is_causal: of the call, where it does not say.
        is_cross: whether the keys are not the sequence's.
        from_weights: read the eager weights that the call returns, not the queries and keys it is given. It is for
            servers where the arguments of a call are out of reach: NDIF runs the block in a process of its own, and
            would send the whole attention module along with them.
        keeps_weights: let the call return the weights as edited, for blocks that read them afterwards.
        entries: on a server, all operations that use the residual stream as it enters the layer, in order: the envoy
            in whose source one is, its label, and which end of it is the stream, "input" or "output". Elsewhere none,
            and the stream is the layer's own input.
        packed: where the layer attends part by part, labels of the assignments of queries, keys, values, of the lengths
            of the parts, and of the output; (): it does not.
    """

    def __init__(
        self,
        layer: int,
        n_heads: int,
        d_head: int,
        sites: tuple[str, ...],
        module: Any,
        attention: Any = None,
        output_projection: Any = None,
        mlp: Any = None,
        attention_call: str = "",
        cache_update: str = "",
        scaling: float = 1.0,
        is_causal: bool = True,
        is_cross: bool = False,
        from_weights: bool = False,
        keeps_weights: bool = False,
        entries: tuple[tuple[Any, str, str], ...] = (),
        values: str = "",
        packed: tuple[str, ...] = (),
    ) -> None:
        self.layer, self.n_heads, self.d_head, self.sites = layer, n_heads, d_head, sites
        self.module, self.attention, self.output_projection, self.mlp = module, attention, output_projection, mlp
        self.attention_call, self.cache_update = attention_call, cache_update
        self.scaling, self.is_causal, self.is_cross = scaling, is_causal, is_cross
        self.from_weights, self.keeps_weights, self.entries = from_weights, keeps_weights, entries
        self.values, self.packed = values, packed

    def keeping_weights(self) -> LayerEnvoys:
        """The same layer, whose call returns the weights as edited."""
        kept = object.__new__(LayerEnvoys)
        kept.__dict__.update(self.__dict__)
        kept.keeps_weights = True
        return kept

    def entering(self) -> Tensor:
        """The residual stream as it enters the layer, from inside a trace."""
        stream: Tensor
        if not self.entries:
            stream = self.module.input
        else:
            envoy, label, end = self.entries[0]
            operation = getattr(envoy.source, label)
            stream = operation.input if end == "input" else operation.output
        return stream

    def enter(self, stream: Tensor) -> None:
        """Put another stream in its place, everywhere where the layer uses it."""
        if not self.entries:
            self.module.input = stream
        for envoy, label, end in self.entries:
            operation = getattr(envoy.source, label)
            if end == "input":
                operation.input = stream
            else:
                operation.output = stream

    def with_output(self, site: str) -> Any:
        """The envoy whose output is the hook point."""
        return {"attn_out": self.attention, "mlp_out": self.mlp, "resid_post": self.module}[site]

    def __repr__(self) -> str:
        return f"LayerEnvoys({self.layer}, {', '.join(self.sites)})"
