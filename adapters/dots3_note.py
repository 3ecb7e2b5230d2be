"""dots.note: the Qwen layout, one run a picture, for which its chat template writes what stands around it."""

from .grid_thw import GridThw


class Dots3Note(GridThw):
    """dots.note with pictures."""

    family = "dots3_note"
    model_types = ("dots3_note",)
    takes_videos = False
    openers = closers = opener_settings = closer_settings = ()
