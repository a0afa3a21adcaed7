"""Code that reads hostile files is also tried as it runs without the tests' type checks."""

import jaxtyping
import pytest

from jaxdiff.interop.tensors import read_tensors
from tests.interop import hostile
from tests.interop.published import archive, mapping, tensor, text


@pytest.fixture
def untyped():
    """No checks of types at calls: they would refuse what the code must refuse itself, and hide it if it does not."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def nothing_runs(tmp_path):
    """Python reports whatever it imports, compiles, executes or opens for writing. In no test is there any."""
    (tmp_path / "warm").write_bytes(archive(mapping(text("w"), tensor())))
    dict(read_tensors(tmp_path / "warm").tensors)
    hostile.seen.clear()
    yield
    assert not hostile.seen
