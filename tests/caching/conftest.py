"""The files of a small experiment, and caches of it."""

import pytest

from jaxdiff.caching.making import Request, make
from tests.caching.model import built, quiet, write_files


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder with images and weights that no test changes."""
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


@pytest.fixture
def own(tmp_path):
    """A folder with images and weights of a test's own, and a cache of them."""
    write_files(tmp_path)
    make(built(tmp_path), Request(str(tmp_path / "cache")), quiet)
    return tmp_path
