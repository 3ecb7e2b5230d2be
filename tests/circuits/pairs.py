"""A family in fp64, a pair of prompts that differ in the picture, and their edges by hand."""

import copy
from functools import cache
from types import SimpleNamespace

import torch

from lmm_lens import Lens
from tests.circuits.slow_edges import SlowEdges
from tests.support.by_hand import repainted
from tests.support.cases import case


@cache
def exact(name, n_layers=3):
    """The lens, both prompts, the answers that tell them apart, and the slow way; of the first layers alone."""
    chosen = case(name)
    model = copy.deepcopy(chosen.model).double()
    decoder = model.get_decoder()
    decoder.layers = decoder.layers[:n_layers]
    clean, corrupt = (
        {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
        for inputs in (chosen.inputs, repainted(chosen.inputs))
    )
    with torch.no_grad():
        apart = model(**clean).logits[0, -1] - model(**corrupt).logits[0, -1]
    ids = int(apart.argmax()), int(apart.argmin())
    lens = Lens(model)
    prompts = [lens.prompt(inputs=inputs) for inputs in (clean, corrupt)]
    slow = SlowEdges(model, clean, corrupt, ids)
    return SimpleNamespace(
        lens=lens, prompts=prompts, ids=ids, slow=slow, answers={"answer": ids[0], "against": ids[1]}
    )


def masks_of(it, graph):
    """The tokens of each span, Bool[span, position], from the prompt's masks alone."""
    prompt, found = it.prompts[0], []
    bos, last = prompt.mask("bos")[0], prompt.mask("last")[0]
    early = ~prompt.mask("after_image")[0]
    for span in graph.spans:
        mask = prompt.mask("text")[0] & early if span == "before_image" else prompt.mask(span)[0]
        mask = mask if span in ("last", "all") else mask & ~last
        found.append(mask if span in ("bos", "all") else mask & ~bos)
    return torch.stack(found)
