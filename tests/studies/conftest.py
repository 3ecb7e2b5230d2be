"""One study of heads and one of sinks, small, that several tests look at."""

import pytest

from lmm_lens import Lens
from lmm_lens.studies import heads, sinks
from tests.studies.small import DATA, HEADS, SINKS, TEXT


@pytest.fixture(scope="session")
def plain():
    return Lens.demo("plain")


@pytest.fixture(scope="session")
def head_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("heads")


@pytest.fixture(scope="session")
def head_study(lens, head_folder):
    return heads({"planted": lens}, DATA, text=TEXT, settings=HEADS, folder=head_folder)


@pytest.fixture(scope="session")
def sink_study(lens, plain):
    return sinks({"planted": lens, "plain": lambda: plain}, DATA, settings=SINKS)
