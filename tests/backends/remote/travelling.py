# ruff: noqa: RET504  (a trace's block binds names; it cannot return)
"""Functions that travel to the service by source, as a client's own module would; the tests register this module."""

import functools
import math
from typing import Any

import torch


class Scale:
    """A plain class: an instance of it travels with its code."""

    def __init__(self, factor: float) -> None:
        self.factor, self.norms = factor, []

    def __call__(self, value: Any) -> Any:
        self.norms.append(float(value.norm()))
        return value * self.factor


def halved_twice(model: Any, inputs: dict[str, Any], layer: int) -> Any:
    """Two traces, the second using what the first read."""
    module = model.model.language_model.layers[layer]
    with model.trace(**inputs):
        half = module.output * 0.5
        before = model.output.logits
    with model.trace(**inputs):
        module.output = half
        after = model.output.logits
    return before, after


def scaled(model: Any, inputs: dict[str, Any], layer: int, scale: Scale) -> Any:
    module = model.model.language_model.layers[layer]
    with model.trace(**inputs):
        module.output = scale(module.output)
        logits = model.output.logits
    return logits, scale.norms


def steps_and_ids(model: Any, inputs: dict[str, Any], layer: int, new_tokens: int) -> Any:
    steps = []
    with model.generate(max_new_tokens=new_tokens, do_sample=False) as tracer:
        with tracer.invoke(**inputs):
            for _ in tracer.iter[:]:
                steps.append(model.model.language_model.layers[layer].output[:, -1])
        with tracer.invoke():
            ids = tracer.result
    return torch.stack(steps), ids


def attention_off(model: Any, inputs: dict[str, Any], layer: int) -> Any:
    """Read the queries, keys and values that go into attention, and write what comes out of it."""
    attention = model.model.language_model.layers[layer].self_attn.source.attention_interface_1
    with model.trace(**inputs):
        args, settings = attention.inputs
        out, pattern = attention.output
        attention.output = (out * 0, pattern)
        logits = model.output.logits
    return args[1:4], settings["scaling"], out, pattern, logits


def says(text: str) -> str:
    print(text)
    return text.upper()


def times_pi(value: Any) -> Any:
    import math as mathematics

    assert math is mathematics
    return value * mathematics.pi


def refers_to_functools(value: Any) -> Any:
    return functools.reduce(max, value)


def imports_functools(value: Any) -> Any:
    import functools as tools

    return tools.reduce(max, value)


def opens_a_file(name: str) -> str:
    with open(name) as file:
        return file.read()


def weight(model: Any, inputs: dict[str, Any]) -> Any:
    with model.trace(**inputs):
        weight = model.lm_head.weight
    return weight


def configuration(model: Any, inputs: dict[str, Any]) -> Any:
    return model.config.image_token_id


def module_itself(model: Any, inputs: dict[str, Any]) -> Any:
    return model.lm_head._module.in_features


def source_names(model: Any, inputs: dict[str, Any]) -> Any:
    with model.trace(**inputs):
        names = model.model.language_model.layers[0].self_attn.source.names
    return names


def nested_source(model: Any, inputs: dict[str, Any]) -> Any:
    attention = model.model.language_model.layers[0].self_attn.source.attention_interface_1
    with model.trace(**inputs):
        names = attention.source.names
    return names
