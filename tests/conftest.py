"""Eight CPU devices for every test, quick compilation, no silent broadcasting between ranks, and float64 where formulas
are checked."""

import collections
import gc
import importlib.metadata
import os
import pathlib
import tempfile

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Most programs run once or twice, here and in commands that tests start: optimizing takes longer than running them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if importlib.metadata.version("jaxlib").startswith(
    "0.10."
):  # XLA ends a process at a flag that it does not know
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", flags)
# Workers and commands compile many programs again that another one has compiled: training steps of the same config.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    programs = tempfile.TemporaryDirectory(prefix="jaxdiff-programs-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import pytest

from jaxdiff.distributed import runtime

runtime.keep_memory()

jax.config.update("jax_num_cpu_devices", int(os.environ["JAX_NUM_CPU_DEVICES"]))
jax.config.update("jax_numpy_rank_promotion", "raise")

# Traces are millions of objects that stay in caches: looking through them for garbage takes a tenth of the time.
gc.set_threshold(100_000, 50, 100)

TESTS = pathlib.Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Whole commands first, so that none runs alone at the end. Of `spread` tests, the sets between are slow."""
    items.sort(key=lambda item: item.path.parent != TESTS)
    cases = collections.defaultdict(list)
    for item in items:
        if (spread := item.get_closest_marker("spread")) and not item.get_closest_marker("slow"):
            cases[item.path, item.originalname, *spread.args].append(item)
    for (_, _, count), group in cases.items():
        last = len(group) - 1  # often the most demanding one
        quick = {last - round(position * last / max(count - 1, 1)) for position in range(count)}
        for position, item in enumerate(group):
            if position not in quick:
                item.add_marker("slow")


FORMULAS = [TESTS / name for name in ("likelihood", "process", "sampling", "tasks")]
"""Folders whose tests run in double precision, where rounding hides nothing."""


@pytest.fixture(autouse=True)
def formulas(request):
    """Double precision unless a test requests `float32`."""
    formula = any(folder in request.path.parents for folder in FORMULAS)
    exact = formula and "float32" not in request.fixturenames
    with jax.enable_x64(exact or jax.config.jax_enable_x64):
        yield


@pytest.fixture
def float32():
    """Request this fixture to test in single precision."""
