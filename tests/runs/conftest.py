"""Trained runs to start from."""

import pytest

from jaxdiff.train import train
from tests.runs import digits
from tests.runs.fine_tuning import MAP, a_config, store


@pytest.fixture(scope="session")
def old(tmp_path_factory):
    """The folder of a trained run, its experiment, its parameters and their average."""
    folder = tmp_path_factory.mktemp("old")
    return folder, *store(a_config(MAP), folder)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of a run on digits, and its generator."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    return folder, train(digits.config(4), str(folder), source=digits.SOURCE)
