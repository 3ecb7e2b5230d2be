"""The models, opened once; their language model comes out of the package that `make emoji` installs."""

import pytest

from lmm_lens import Lens
from lmm_lens.bundled import emoji


@pytest.fixture(scope="session")
def lens() -> Lens:
    return Lens.demo("emoji")


@pytest.fixture(scope="session")
def asked() -> list[emoji.Example]:
    return emoji.examples(12, kinds=("name", "background", "count"), seed=5)


@pytest.fixture(scope="session")
def prompt(lens, asked):
    """Four of them in a padded batch."""
    return lens.prompt([each.question for each in asked[:4]], images=[each.image for each in asked[:4]])
