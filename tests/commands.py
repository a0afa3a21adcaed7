"""Run jaxdiff's commands as a user does, in separate processes."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = str(ROOT / "configs" / "digits.py")

# configs/digits.py with a network that compiles and runs in seconds.
TINY = (
    "--config.task.denoiser.network.levels[0].width=16",
    "--config.task.denoiser.network.levels[0].blocks=0",
    "--config.task.denoiser.network.levels[1].width=32",
    "--config.task.denoiser.network.levels[1].blocks=0",
    "--config.task.denoiser.network.middle.attention=None",
    "--config.task.denoiser.conditioner.conditions.label.width=32",
    "--config.task.denoiser.conditioner.noise.width=32",
    "--config.batch_size=32",
    "--config.optimizer.schedule.warmup_steps=2",
    "--config.sample_every=0",
    "--config.evaluation.n=50",
    "--config.sampling.steps=4",
)


def environment(devices: int | None = None, **extra: str) -> dict[str, str]:
    """The environment of this process, with a forced number of CPU devices (None: the command's default)."""
    env = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    if devices is not None:
        env["JAX_NUM_CPU_DEVICES"] = str(devices)
    return env | extra


def start(
    module: str, *arguments: str, devices: int | None = None, at: pathlib.Path = ROOT, **extra: str
) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", f"jaxdiff.{module}", *arguments],
        env=environment(devices, **extra), cwd=at, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(
    module: str,
    *arguments: str,
    devices: int | None = None,
    code: int = 0,
    at: pathlib.Path = ROOT,
    **extra: str,
) -> tuple[str, str]:
    """Run a command in the folder `at`, check its exit status, and return its output and errors."""
    process = start(module, *arguments, devices=devices, at=at, **extra)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"status {process.returncode}\n{out}\n{err}"
    return out, err


def metrics(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def arrays(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path: step, parameters, averages, optimizer state."""
    import jax
    import orbax.checkpoint as ocp

    found = list((workdir / "checkpoints" / str(step)).rglob("_METADATA"))
    assert len(found) == 1, found
    with ocp.PyTreeCheckpointer() as reader:
        folder = found[0].parent.resolve()
        kinds = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(folder).item_metadata.tree
        )
        tree = reader.restore(folder, restore_args=kinds)
    return {str(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def digest(workdir: pathlib.Path, step: int) -> str:
    """SHA-256 of `arrays`."""
    total = hashlib.sha256()
    for path, leaf in sorted(arrays(workdir, step).items()):
        total.update(path.encode())
        total.update(leaf.tobytes())
    return total.hexdigest()
