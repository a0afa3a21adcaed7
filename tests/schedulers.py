"""The schedulers of the installed diffusers, in double precision and with given noise."""

import contextlib
import sys
import warnings

import numpy as np
import pytest


def load():
    """The package; skips the test without it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            "diffusers", reason="diffusers is not installed: its schedulers cannot be run"
        )


@contextlib.contextmanager
def in_double_precision(scheduler_class, draws=()):
    """Context in which a scheduler computes in double precision, and draws these arrays in place of noise."""
    torch, draws = pytest.importorskip("torch"), iter(draws)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)  # it computes in float32, whatever it is given
        patch.setattr(np, "float32", np.float64)
        module = sys.modules[scheduler_class.__module__]
        if hasattr(module, "randn_tensor"):
            patch.setattr(module, "randn_tensor", lambda *shape, **options: torch.tensor(next(draws)))
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield torch
        finally:
            torch.set_default_dtype(default)
