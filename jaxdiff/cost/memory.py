"""Memory of a training step on one device, from shapes alone."""

import dataclasses
import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal

from jaxdiff.cost.operations import programs_in
from jaxdiff.training.rounding import wide
from jaxdiff.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
      parameters: trained parameters, exactly, as split over the mesh.
      ema: all averages of the parameters, exactly.
      optimizer: optimizer state, step and task state, exactly.
      batch: examples of this step and of the next, with their noise and times.
      gradients: split like the parameters; with accumulation also the sum over micro-batches, in float32.
      activations: values that one micro-batch keeps for its backward pass.
      gathered: the largest weight, gathered, with its gradient; 0 unless FSDP splits weights.
      update: new values that wait for the check that all are finite, after the activations are freed.
      frozen: networks that are used and not trained, and untrained parameters, exactly, as split over the mesh.
      drawing: values that the draw of a step needs, before the others: those of an autoencoder that encodes images.
    """

    parameters: int
    ema: int
    optimizer: int
    batch: int
    gradients: int
    activations: int
    gathered: int
    update: int
    frozen: int = 0
    drawing: int = 0

    @property
    def total(self) -> int:
        """Bytes at the peak: in the draw, in the backward pass or in the update after it."""
        return self.lasting + max(self.drawing, self.activations + self.gathered, self.update)

    @property
    def lasting(self) -> int:
        """Bytes that are held throughout a step."""
        return self.parameters + self.ema + self.optimizer + self.batch + self.gradients + self.frozen


def of_step(
    state: TrainState,
    examples: int,
    activations: int,
    accumulation: int,
    frozen: Any = (),
    drawing: int = 0,
) -> Memory:
    """The memory of a training step.

    Args:
      state: `jax.ShapeDtypeStruct`s with shardings, as `abstract_state` returns.
      examples: bytes of the examples on a device.
      activations: `live_bytes` of a micro-batch on a device.
      accumulation: number of micro-batches in a step.
      frozen: arrays that are used and not trained, with shardings.
      drawing: `live_bytes` of the draw of a step on a device.
    """
    parameters = shard_bytes(state.params)
    largest = max((array_bytes(leaf) for leaf in jax.tree.leaves(state.params)), default=0)
    split = parameters < sum(map(array_bytes, jax.tree.leaves(state.params)))
    return Memory(
        parameters=parameters,
        ema=shard_bytes((state.ema, state.extra_emas)),
        optimizer=shard_bytes((state.opt_state, state.step, state.task_state)),
        batch=examples,
        gradients=parameters + (_wide_bytes(state.params) if accumulation > 1 else 0),
        activations=activations,
        gathered=2 * largest if split else 0,
        # XLA keeps between none and all of the proposed state; docs/plan.md has the measurements.
        update=parameters + shard_bytes(state.ema),
        frozen=shard_bytes(frozen),
        drawing=drawing,
    )


def live_bytes(program: ClosedJaxpr) -> int:
    """Peak bytes of live intermediate arrays of a program, without its inputs and outputs.

    Each array lives from the equation that computes it to the last one that reads it, in the order of
    `jax.make_jaxpr`. XLA fuses elementwise equations and never stores many of the arrays counted here.
    """
    jaxpr: Any = program.jaxpr
    return _peak(jaxpr, _arrays(jaxpr.outvars))


def of_sample(weights: Any, *programs: tuple[int, ClosedJaxpr]) -> int:
    """Peak bytes of making one sample: all weights, and the largest of programs that run one after another.

    Args:
      weights: parameters of all networks.
      *programs: each for one image, and the number of images in its batch.
    """
    return tree_bytes(weights) + max(images * live_bytes(program) for images, program in programs)


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(map(array_bytes, jax.tree.leaves(tree)))


def array_bytes(array: Any) -> int:
    return math.prod(array.shape) * array.dtype.itemsize


def shard_bytes(tree: Any) -> int:
    """Bytes on one device of arrays or shapes that have shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _wide_bytes(tree: Any) -> int:
    """`shard_bytes` of the same arrays, those in half precision as float32."""
    leaves = jax.tree.leaves(tree)
    return sum(shard_bytes(leaf) // leaf.dtype.itemsize * wide(leaf.dtype).itemsize for leaf in leaves)


def _peak(jaxpr: Any, free: set[Any]) -> int:
    """Peak bytes of a program; `free`: arrays already counted by the caller."""
    free = free | {*jaxpr.invars, *jaxpr.constvars}
    last = {atom: i for i, eqn in enumerate(jaxpr.eqns) for atom in _arrays(eqn.invars)}
    last |= dict.fromkeys(_arrays(jaxpr.outvars), len(jaxpr.eqns))
    live = peak = 0
    for i, eqn in enumerate(jaxpr.eqns):
        before, live = live, live + _bytes_of({*eqn.outvars} - free)
        # A loop allocates all its results at the start; a call allocates them inside.
        around = live if eqn.primitive.name == "scan" else before
        inside = max((_peak(body, _free_inside(eqn, body, free)) for body in programs_in(eqn)), default=0)
        peak = max(peak, live, around + inside)
        ended = {atom for atom in _arrays(eqn.invars) if last[atom] == i}
        ended |= {atom for atom in eqn.outvars if atom not in last}
        live -= _bytes_of(ended - free)
    return peak


def _free_inside(eqn: Any, body: Any, free: set[Any]) -> set[Any]:
    """Outputs of a body that are free outputs of the equation."""
    if len(body.outvars) != len(eqn.outvars):
        return set()
    pairs = zip(eqn.outvars, body.outvars, strict=True)
    return _arrays(inner for outer, inner in pairs if outer in free)


def _bytes_of(atoms: set[Any]) -> int:
    return sum(array_bytes(atom.aval) for atom in atoms)


def _arrays(atoms: Any) -> set[Any]:
    return {atom for atom in atoms if not isinstance(atom, Literal)}
