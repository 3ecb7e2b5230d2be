"""Replays: the decoder layers of one plain forward run again with something changed, and nothing else computed anew.

1. `recording` keeps what one forward gave each layer, and the keys and values of its attention.
2. `variants` says what is changed, `hidden` which keys rows lose by it, and `window` which rows of the sequence can
   differ for it: the rest is taken from the recording, exactly.
3. `engine` runs the layers from the first change on, for many variants in one batch, with `merged_attention` over the
   recorded keys and each variant's own.
4. `forwards` is given changes, each a variant and the intervention that it stands for, and gives logits; it compares
   with the model itself, before anybody trusts a number.

All of it is exact mathematics, not an approximation; logits differ from a full forward by the rounding of another
order of summation.
"""

from .change import Change
from .check import UnfitError
from .engine import Replay
from .recording import Recording, record
from .variants import Edit, Hidden, Variant

__all__ = ["Change", "Edit", "Hidden", "Recording", "Replay", "UnfitError", "Variant", "record"]
