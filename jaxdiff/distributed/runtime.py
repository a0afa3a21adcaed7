"""Process start-up: settings that JAX needs before it initialises its devices."""

import ctypes
import importlib.util
import os
import pathlib
import re
from typing import Any

import jax
import jaxlib

from jaxdiff.errors import UserError, expect

CACHE = "~/.cache/jaxdiff"
AUTODETECT = "JAXDIFF_DISTRIBUTED"
CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type"
CONVOLUTIONS_KNOWN = ("0.10.2",)
"""Versions of jaxlib that have the flag `CONVOLUTIONS` of XLA:CPU. Others may abort at an unknown flag."""
PLATFORMS = "JAX_PLATFORMS"
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of mallopt(3) of the GNU C library."""
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def start(cpu_devices: int | None = None, compile_cache: str | None = None) -> None:
    """Set up CPU devices, the compilation cache, and the connection to other processes.

    Environment variables that JAX itself reads take precedence (JAX_NUM_CPU_DEVICES, XLA_FLAGS,
    JAX_COMPILATION_CACHE_DIR). A run over several processes needs JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID together, or JAXDIFF_DISTRIBUTED=1 where JAX detects these itself (TPU pods, SLURM, MPI).

    Args:
      cpu_devices: number of CPU devices; None for JAX's default of one. Two are a few per cent faster on two cores.
        But XLA's collectives between CPU devices use the thread pool of the computation, and on a busy machine they
        were observed to block each other and abort. No effect on accelerators.
      compile_cache: directory of the compilation cache; None for ``~/.cache/jaxdiff``; empty for no cache.

    Raises:
      UserError: only some of the three variables of a distributed run are set, or they are not numbers; or the
        platform of JAX_PLATFORMS is not there.
    """
    if not _has_accelerators():
        keep_memory()
    _choose_convolutions()
    _count_cpu_devices(cpu_devices)
    _cache_programs(CACHE if compile_cache is None else compile_cache)
    _join_processes()
    devices()


def devices() -> list[Any]:
    """All devices of the platform that JAX uses.

    Raises:
      UserError: JAX_PLATFORMS names an absent platform; the message lists the present ones.
    """
    try:
        return jax.devices()
    except (AssertionError, RuntimeError) as error:
        wanted = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        if not wanted:
            raise
        jax.config.update("jax_platforms", None)
        found = ", ".join(dict.fromkeys(device.platform for device in jax.devices()))
        raise UserError(
            f"{PLATFORMS}={wanted}: expected a platform with devices, got none. Fix: use {PLATFORMS}={found}, leave it "
            "out, or install the jaxlib of this platform and its driver"
        ) from error


def keep_memory() -> None:
    """Make this process keep the memory that XLA:CPU frees after each program, where the C library is GNU's.

    Otherwise large blocks go back to the system, which clears every page when the next step takes them again: a
    training step takes a quarter less time without that (docs/performance.md). To be called before JAX starts threads.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # large blocks are parts of the heap
        mallopt(M_TRIM_THRESHOLD, -1)  # which never shrinks
        mallopt(M_ARENA_MAX, 1)  # and which all threads share


def _has_accelerators() -> bool:
    """Whether JAX may use other devices than CPUs."""
    plugins = any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))
    return plugins and os.environ.get(PLATFORMS) != "cpu"


def _choose_convolutions() -> None:
    """Make XLA:CPU use its own convolutions: a training step takes 10 to 20 % less time (docs/performance.md)."""
    flags = os.environ.get("XLA_FLAGS", "")
    if jaxlib.__version__ in CONVOLUTIONS_KNOWN and CONVOLUTIONS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {CONVOLUTIONS}=-individual_convolution".strip()


def _count_cpu_devices(count: int | None) -> None:
    forced = "JAX_NUM_CPU_DEVICES" in os.environ or "xla_force_host_platform" in os.environ.get(
        "XLA_FLAGS", ""
    )
    if count is not None and not forced:
        jax.config.update("jax_num_cpu_devices", count)


def _cache_programs(directory: str) -> None:
    if not directory or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(directory).expanduser().resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _join_processes() -> None:
    if jax.distributed.is_initialized():
        return
    if os.environ.get(AUTODETECT, "0") not in ("", "0"):
        jax.distributed.initialize()
        return
    found = {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)}
    if not found:
        return
    for name in (ADDRESS, COUNT, INDEX):
        fix = f"set {ADDRESS}, {COUNT} and {INDEX}, or {AUTODETECT}=1 to let JAX detect them"
        expect(name in found, name, None, f"a value, as {', '.join(found)} is set", fix)
    for name in (COUNT, INDEX):
        expect(
            re.fullmatch("[0-9]+", found[name]) is not None,
            name,
            found[name],
            "an integer >= 0",
            f"set {name} to one",
        )
    index, count = int(found[INDEX]), int(found[COUNT])
    expect(index < count, INDEX, index, f"less than {COUNT}={count}", "number the processes from 0")
    jax.distributed.initialize(found[ADDRESS], count, index)
