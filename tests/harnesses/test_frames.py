"""Films: so many frames, evenly spaced."""

import numpy as np
import pytest
from PIL import Image

from lmm_lens.errors import PromptError
from lmm_lens.harnesses.frames import frames_of


def frames(n):
    return [Image.new("RGB", (32, 32), (round(255 * i / (n - 1)),) * 3) for i in range(n)]


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    import av

    path = tmp_path_factory.mktemp("films") / "film.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for frame in frames(21):
            out.mux(stream.encode(av.VideoFrame.from_image(frame)))
        out.mux(stream.encode())
    return path


def brightness(found):
    return [np.asarray(frame.convert("L")).mean() for frame in found]


@pytest.mark.parametrize("most", [1, 2, 5, 21, 30])
def test_frames_of_a_film_are_those_that_numpy_spaces(film, most):
    wanted = np.linspace(0, 20, most, dtype=int)  # as lmms-eval's own models do it
    found = brightness(frames_of(film, most))
    assert np.allclose(found, [255 * i / 20 for i in wanted], atol=6)
    assert np.allclose(brightness(frames_of([str(film)], most)), found)


def test_animated_pictures_and_lists_of_frames(tmp_path):
    path = tmp_path / "film.gif"
    first, *rest = frames(9)
    first.save(path, save_all=True, append_images=rest)
    assert np.allclose(brightness(frames_of(path, 3)), [0, 127.5, 255], atol=3)
    assert len(frames_of(frames(4), 2)) == 4  # given as they are to be seen


def test_what_is_no_film_is_refused(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"no film")
    with pytest.raises(PromptError, match=r"'film\.mp4' cannot be decoded as a film"):
        frames_of(tmp_path / "film.mp4", 3)
    with pytest.raises(PromptError):
        frames_of(tmp_path / "missing.mp4", 3)
