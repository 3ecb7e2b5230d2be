"""What tells one prompt from another in a checkpoint."""

import torch

from lmm_lens.runs.checkpoint import digest
from tests.support.remote_code.cases import case


def test_pictures_in_lists_and_dictionaries_tell_prompts_apart():
    for name, given in (("Vila", "media"), ("MiniCPMV", "pixel_values")):
        each = case(name)
        one, inputs = each.lens.prompt(inputs=each.inputs_of(1)), each.inputs_of(1)
        assert digest(one) == digest(each.lens.prompt(inputs=each.inputs_of(1)))
        pictures = inputs[given]["image"] if name == "Vila" else inputs[given][0]
        pictures[1] = torch.zeros_like(pictures[1])
        assert digest(one) != digest(each.lens.prompt(inputs=inputs))
