"""What has to be said to JAX before it first looks for devices."""

import os
import pathlib

import jax
import jaxlib

from jaxdiff.errors import require

CACHE = "~/.cache/jaxdiff"
AUTODETECT = "JAXDIFF_DISTRIBUTED"
CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type"
CONVOLUTIONS_KNOWN = ("0.10.2",)
"""A flag of XLA:CPU, and the versions of jaxlib that know it: another one may abort at a flag that it does not know."""
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def start(cpu_devices: int | None = None, compile_cache: str | None = None) -> None:
    """Prepare the process: CPU devices, the cache of compiled programs, and the other hosts, if any.

    The environment wins where JAX itself reads it (JAX_NUM_CPU_DEVICES, XLA_FLAGS,
    JAX_COMPILATION_CACHE_DIR). Runs over several processes are asked for by JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID together, or, where JAX can find these out by itself (TPU pods,
    SLURM, MPI), by JAXDIFF_DISTRIBUTED=1.

    Args:
      cpu_devices: devices that the CPU shall act as; None leaves it at JAX's one. Two are a few per cent faster
        on two cores, but XLA's collectives between CPU devices share one thread pool with the computation, and on a
        busy machine they have been seen to starve each other and abort. Without effect on accelerators.
      compile_cache: directory; None: ``~/.cache/jaxdiff``; empty: no cache.

    Raises:
      UserError: some, but not all, of the three variables of a distributed run are set, or they are not
        numbers.
    """
    _choose_convolutions()
    _count_cpu_devices(cpu_devices)
    _cache_programs(CACHE if compile_cache is None else compile_cache)
    _join_processes()


def _choose_convolutions() -> None:
    """Let XLA:CPU use its own convolutions: a training step is a tenth to a fifth shorter (docs/performance.md)."""
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
    given = {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)}
    if not given:
        return
    for name in (ADDRESS, COUNT, INDEX):
        fix = f"set {ADDRESS}, {COUNT} and {INDEX}, or {AUTODETECT}=1 to let JAX find them"
        require(name in given, name, None, f"it is missing, and {', '.join(given)} is set", fix)
    for name in (COUNT, INDEX):
        require(given[name].isdigit(), name, given[name], "a whole number is expected", f"set {name} to one")
    index, count = int(given[INDEX]), int(given[COUNT])
    require(index < count, INDEX, index, f"{COUNT} is {count}", "number the processes from 0")
    jax.distributed.initialize(given[ADDRESS], count, index)
