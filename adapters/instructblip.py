"""InstructBLIP: BLIP-2 whose Q-Former reads the question too."""

from .blip_2 import Blip2


class InstructBlip(Blip2):
    """InstructBLIP on a decoder (Vicuna)."""

    family = "instructblip"
    model_types = ("instructblip",)
