"""An edit that breaks, to see what is left behind."""

from lmm_lens import Intervention
from lmm_lens.core.taps import Tap
from lmm_lens.prompts.rows import bind_rows


class Fails(Intervention):
    """An edit whose function raises."""

    def __init__(self, site):
        self.site = site

    def taps(self, prompt, shape):
        def run(x, context):
            raise RuntimeError("the user's own mistake")

        return [Tap(self.site, shape.n_layers - 1, bind_rows("all", prompt), run, edits=True)]
