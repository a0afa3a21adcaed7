"""What a training step keeps in the memory of one device, from shapes alone."""

import dataclasses
import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal

from jaxdiff.cost.operations import programs_in
from jaxdiff.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
      parameters, average, optimizer: the state, exactly, as it is split over the mesh; all averages that are kept.
      batch: the examples of a step and of the next, with what is drawn for them.
      gradients: split as the parameters are; twice where micro-batches are summed.
      activations: what one micro-batch keeps for its backward pass.
      gathered: the largest weight made whole with its gradient, where FSDP splits weights.
      update: new values that wait until all of them are known to be finite, when the activations are gone.
    """

    parameters: int
    average: int
    optimizer: int
    batch: int
    gradients: int
    activations: int
    gathered: int
    update: int

    @property
    def total(self) -> int:
        """At the peak: in the backward pass, or in the update after it."""
        lasting = self.parameters + self.average + self.optimizer + self.batch + self.gradients
        return lasting + max(self.activations + self.gathered, self.update)


def of_step(state: TrainState, examples: int, activations: int, accumulation: int) -> Memory:
    """The memory of a training step.

    Args:
      state: `jax.ShapeDtypeStruct`s with the shardings of `abstract_state`.
      examples: bytes of the examples on a device.
      activations: `live_bytes` of a micro-batch on a device.
      accumulation: micro-batches in a step.
    """
    parameters = shard_bytes(state.params)
    whole = max((array_bytes(leaf) for leaf in jax.tree.leaves(state.params)), default=0)
    split = parameters < sum(map(array_bytes, jax.tree.leaves(state.params)))
    return Memory(
        parameters=parameters,
        average=shard_bytes((state.ema, state.others)),
        optimizer=shard_bytes((state.opt_state, state.step, state.memory)),
        batch=examples,
        gradients=parameters * (2 if accumulation > 1 else 1),
        activations=activations,
        gathered=2 * whole if split else 0,
        # XLA keeps between none of the proposed state and all of it; docs/plan.md has the measurements.
        update=2 * parameters,
    )


def live_bytes(program: ClosedJaxpr) -> int:
    """The most bytes that are alive at once while a program runs, besides its inputs and outputs.

    Each array lives from the equation that makes it to the last that reads it, as `jax.make_jaxpr` orders them. XLA
    fuses elementwise equations, and never stores much of what is counted here.
    """
    jaxpr: Any = program.jaxpr
    return _peak(jaxpr, _arrays(jaxpr.outvars))


def array_bytes(array: Any) -> int:
    return math.prod(array.shape) * array.dtype.itemsize


def shard_bytes(tree: Any) -> int:
    """Bytes on one device of arrays, or shapes, with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _peak(jaxpr: Any, free: set[Any]) -> int:
    """`free` are arrays that count nothing: someone else has counted them."""
    free = free | {*jaxpr.invars, *jaxpr.constvars}
    last = {atom: i for i, eqn in enumerate(jaxpr.eqns) for atom in _arrays(eqn.invars)}
    last |= dict.fromkeys(_arrays(jaxpr.outvars), len(jaxpr.eqns))
    live = peak = 0
    for i, eqn in enumerate(jaxpr.eqns):
        before, live = live, live + _bytes_of({*eqn.outvars} - free)
        # A loop has room for all its results from the start; a call makes its results inside.
        around = live if eqn.primitive.name == "scan" else before
        inside = max((_peak(body, _free_inside(eqn, body, free)) for body in programs_in(eqn)), default=0)
        peak = max(peak, live, around + inside)
        ended = {atom for atom in _arrays(eqn.invars) if last[atom] == i}
        ended |= {atom for atom in eqn.outvars if atom not in last}
        live -= _bytes_of(ended - free)
    return peak


def _free_inside(eqn: Any, body: Any, free: set[Any]) -> set[Any]:
    """The results of a body that are results of the equation, and free there."""
    if len(body.outvars) != len(eqn.outvars):
        return set()
    pairs = zip(eqn.outvars, body.outvars, strict=True)
    return _arrays(inner for outer, inner in pairs if outer in free)


def _bytes_of(atoms: set[Any]) -> int:
    return sum(array_bytes(atom.aval) for atom in atoms)


def _arrays(atoms: Any) -> set[Any]:
    return {atom for atom in atoms if not isinstance(atom, Literal)}
