"""Prompts of the bundled model that tests of this folder share."""

from types import SimpleNamespace

import pytest

from lmm_lens.bundled import shapes


@pytest.fixture(scope="session")
def asked(lens):
    """Seven questions of different lengths: as examples, as single prompts, as one left-padded batch."""
    examples = shapes.examples(7, seed=5)
    questions, pictures = [e.question for e in examples], [e.image for e in examples]
    return SimpleNamespace(
        examples=examples,
        singles=[lens.prompt(q, images=p) for q, p in zip(questions, pictures, strict=True)],
        batch=lens.prompt(questions, images=pictures),
    )
