"""Fixtures for hostile files: without the tests' type checks, and with a watch for foreign code."""

import jaxtyping
import pytest

from jaxdiff.interop.tensors import read_tensors
from tests.interop import hostile
from tests.interop.published import archive, mapping, tensor, text


@pytest.fixture
def untyped():
    """Disables type checks at calls: they would refuse values that the code itself must refuse."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def nothing_runs(tmp_path):
    """Fails if Python imports, compiles or executes anything, or opens a file for writing, during the test."""
    (tmp_path / "warm").write_bytes(archive(mapping(text("w"), tensor())))
    dict(read_tensors(tmp_path / "warm").tensors)
    hostile.seen.clear()
    yield
    assert not hostile.seen
