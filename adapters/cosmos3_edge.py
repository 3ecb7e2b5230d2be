"""Cosmos 3 Edge: Qwen3-VL's layout, pictures only: its processor fails on videos unless asked for their metadata."""

from .qwen3_vl import Qwen3VL


class Cosmos3Edge(Qwen3VL):
    """Cosmos 3 Edge. Tensors of videos, processed with `return_metadata=True`, are laid out."""

    family = "cosmos3_edge"
    model_types = ("cosmos3_edge",)
    takes_videos = False
