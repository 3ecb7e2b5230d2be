"""Janus, when it reads pictures: a square between a begin and an end token."""

from .deepseek_vl import DeepseekVL


class Janus(DeepseekVL):
    """Janus and Janus-Pro. The pictures it writes are tokens of another vocabulary, no visual tokens."""

    family = "janus"
    model_types = ("janus",)

    @property
    def marker_ids(self) -> frozenset[int]:
        return self.ids_of(*(getattr(self.processor, name, "") for name in ("image_start_token", "image_end_token")))
