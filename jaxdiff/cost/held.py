"""Memory that a run holds on each device throughout, in one line: known before anything is compiled."""

from typing import Any

import jax
from jax.sharding import Mesh

from jaxdiff.cost.memory import array_bytes, shard_bytes
from jaxdiff.distributed.mesh import batch_ways
from jaxdiff.experiment import Experiment
from jaxdiff.training.state import abstract_state
from jaxdiff.training.step import Frozen


def of_run(experiment: Experiment, mesh: Mesh, frozen: Frozen) -> str:
    """The bytes of parameters, EMA, optimizer, frozen networks and batch on one device, exactly, in words.

    Args:
      frozen: what the run uses and does not train, on the mesh.
    """
    state = abstract_state(
        experiment.task, experiment.optimizer.make(experiment.steps), mesh, experiment.ema.count,
        experiment.optimizer.frozen, experiment.fault_tolerance.kept_losses,
    )  # fmt: skip
    rows = experiment.batch_size // batch_ways(mesh)
    held = {
        "parameters": shard_bytes(state.params),
        "EMA": shard_bytes((state.ema, state.extra_emas)),
        "optimizer": shard_bytes((state.opt_state, state.step, state.task_state)),
        "frozen": shard_bytes((frozen.networks, frozen.params)),
        "batch": rows * _example_bytes(experiment.data.example()),
    }
    parts = ", ".join(f"{name} {_size(number)}" for name, number in held.items() if number)
    return f"memory per device: {parts}; gradients and activations come on top, see jaxdiff.plan"


def _example_bytes(example: Any) -> int:
    arrays = [leaf for leaf in jax.tree.leaves(example) if hasattr(leaf, "dtype")]
    return sum(array_bytes(array) for array in arrays)


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
