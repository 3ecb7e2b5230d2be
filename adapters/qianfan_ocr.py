"""Qianfan-OCR: InternVL's layout, pictures only."""

from __future__ import annotations

from .internvl import InternVL


class QianfanOCR(InternVL):
    """Qianfan-OCR. Its processor has a token of its own for a picture that is still to be expanded."""

    family = "qianfan_ocr"
    model_types = ("qianfan_ocr",)
    takes_videos = False

    @property
    def image_slot(self) -> str | None:
        return getattr(self.processor, "image_placeholder_token", None) or super().image_slot
