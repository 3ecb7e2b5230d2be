"""What enters the decoder, or another module, with nothing behind it computed; and a tower whose layers mix no patches.

With the layers of the tower giving back their input, a visual token hears of its own pixels alone: so it is found which
pixels are whose, for every family, from the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..adapters import Adapter
from .streams import stream_into


class _Entered(Exception):  # noqa: N818  (no error: what was wanted is there, and the rest of the pass is not)
    """Ends a pass where a module is entered."""


def given_to(module: nn.Module, model: nn.Module, inputs: Mapping[str, Any], grad: bool = False) -> Tensor | None:
    """The stream that a module of a model is given when it runs first, and nothing behind that computed.

    Args:
        module: the module.
        model: the plain model.
        inputs: what the model takes.
        grad: keep the graph for a backward pass.

    Returns:
        None where the module does not run.
    """
    seen: list[Tensor] = []

    def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _, found = stream_into(args, kwargs)
        assert found is not None
        seen.append(found)
        raise _Entered

    handle = module.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        with torch.set_grad_enabled(grad):
            model(**inputs)
    except _Entered:
        pass
    finally:
        handle.remove()
    return seen[0] if seen else None


def entered(adapter: Adapter, inputs: Mapping[str, Any], grad: bool = False) -> Float[Tensor, "batch position d_model"]:
    """What the first decoder layer of the plain model is given; arguments as of `given_to`."""
    x = given_to(adapter.layers[0].module, adapter.model, inputs, grad)
    assert x is not None
    if x.ndim == 4:  # several residual streams: of each token, or one after the other
        x = x.flatten(2) if x.shape[:2] == inputs["input_ids"].shape else x[0]
    return x


def entered_and_added(
    adapter: Adapter, inputs: Mapping[str, Any], behind: Sequence[int], grad: bool = False
) -> tuple[Float[Tensor, "batch position d_model"], dict[int, Float[Tensor, "batch position d_model"]]]:
    """What the first decoder layer is given, and what the model adds to the stream behind others (deepstack).

    Args:
        adapter: of the model.
        inputs: what the model takes.
        behind: the layers behind which it adds something.
        grad: keep the graph of what is given and added, not that of the layers between.
    """
    if not behind:
        return entered(adapter, inputs, grad), {}
    found, left = dict[int, Tensor](), dict[int, Tensor]()

    def enter(number: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            name, x = stream_into(args, kwargs)
            assert x is not None
            found[number - 1] = x - left[number - 1].to(x.device) if number else x
            if number > max(behind):
                raise _Entered
            return (args, {**kwargs, name: x.detach()}) if name else ((x.detach(), *args[1:]), kwargs)

        return hook

    def leave(number: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
            left[number] = (out[0] if isinstance(out, tuple) else out).detach()
            return (left[number], *out[1:]) if isinstance(out, tuple) else left[number]

        return hook

    with ExitStack() as hooks:
        for number, layer in enumerate(adapter.layers[: max(behind) + 2]):
            hooks.callback(layer.module.register_forward_pre_hook(enter(number), with_kwargs=True, prepend=True).remove)
            hooks.callback(layer.module.register_forward_hook(leave(number)).remove)
        with suppress(_Entered), torch.set_grad_enabled(grad):
            adapter.model(**inputs)
    return found[-1], {layer: found[layer] for layer in behind}


@contextmanager
def tower_off(adapter: Adapter) -> Iterator[set[str]]:
    """Within, layers outside of the decoder give back their input; yields the classes of those that did.

    Lists of modules may be nested (stages of layers); what changes the shape, as downsampling does, stays on.
    """
    switched_off: set[str] = set()

    def back(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        (_, given), first = stream_into(args, kwargs), out[0] if isinstance(out, tuple) else out
        if given is None or not isinstance(first, Tensor) or first.shape != given.shape:
            return None
        switched_off.add(type(module).__name__)
        return (given, *out[1:]) if isinstance(out, tuple) else given

    decoder = {part for layer in adapter.layers for part in layer.module.modules()}
    lists = [module for module in adapter.model.modules() if isinstance(module, nn.ModuleList)]
    layers = {layer: None for members in lists for layer in members if layer not in decoder}
    with ExitStack() as hooks:
        for layer in layers:
            handle = layer.register_forward_hook(back, with_kwargs=True, prepend=True)
            hooks.callback(handle.remove)
        yield switched_off
