"""A picture, its file in memory, and what a refusal of one looks like."""

import io

import numpy as np
import pytest
from PIL import Image

from lmm_lens.errors import PromptError

COLOURS = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PICTURE = Image.fromarray(COLOURS)


def saved(image=PICTURE, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def refused(message, ask):
    with pytest.raises(PromptError, match=message) as caught:
        ask()
    assert len(str(caught.value).splitlines()) <= 3
    assert max(map(len, str(caught.value).splitlines())) < 400
    return str(caught.value)
