"""Pictures as files, and errors as users read them."""

import io

import numpy as np
import pytest
from PIL import Image

from lmm_lens.errors import PromptError


def saved(image, kind="PNG", **options) -> bytes:
    """The file of a picture, given as a PIL image or as an array."""
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def refused(message, ask) -> str:
    """The text of the error, in three lines at most, none of them endless."""
    with pytest.raises(PromptError, match=message) as caught:
        ask()
    assert len(str(caught.value).splitlines()) <= 3
    assert max(map(len, str(caught.value).splitlines())) < 400
    return str(caught.value)
