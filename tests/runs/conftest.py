"""A trained run to start from."""

import pytest

from tests.runs.fine_tuning import MAP, a_config, store


@pytest.fixture(scope="session")
def old(tmp_path_factory):
    """The folder of a trained run, its experiment, its parameters and their average."""
    folder = tmp_path_factory.mktemp("old")
    return folder, *store(a_config(MAP), folder)
