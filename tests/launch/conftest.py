"""Fake programs of clusters."""

import pytest

from tests.launch.tools import Tools


@pytest.fixture
def tools(tmp_path):
    return Tools(tmp_path)
