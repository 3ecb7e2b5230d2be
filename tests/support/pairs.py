"""A clean and a corrupt prompt: the same words, another picture."""

from lmm_lens import Read
from tests.support.cases import case
from tests.support.models import another

RESIDUAL = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
EVERYTHING = [*RESIDUAL, "z", "pattern"]


class Pair:
    """A family, its prompt, and what the same words with another picture computed.

    Attributes:
        clean: the run of the other picture, every site read.
        values: the same from the reference, by site and layer.
    """

    def __init__(self, name):
        self.case = case(name)
        other = another(self.case.inputs)
        floats = {key: value for key, value in other.items() if value.is_floating_point()}
        self.clean_inputs = {**self.case.inputs, **floats}
        self.lens, self.prompt = self.case.lens, self.case.prompt
        sites = [Read(site, self.case.layers_of(site)) for site in EVERYTHING]
        self.clean = self.lens.run(self.lens.prompt(inputs=self.clean_inputs), read=sites)
        self.reference = self.case.reference
        self.clean_logits = self.reference.run(self.clean_inputs)
        self.values = {
            site: {layer: self.reference.read(site, layer) for layer in self.case.layers_of(site)}
            for site in EVERYTHING
        }
        assert (self.clean_logits - self.case.logits).abs().max() > 1e-2
