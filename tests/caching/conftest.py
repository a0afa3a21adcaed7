"""The files of a small experiment, and caches of it."""

import pytest

from tests.caching.model import write_files


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder with images and weights that no test changes."""
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder
