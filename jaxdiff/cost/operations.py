"""Multiply-adds of a traced program, from the shapes of its matrix products and convolutions alone.

Conventions, those of published figures:

- one multiply-add is two floating-point operations; additions, norms, activations and softmax count nothing;
- taps of a convolution that fall on padding count, taps that fall between dilated values do not. Two of tap, input and
  output say which the third is, so that an axis of space costs the smallest product of two of their numbers. The
  gradients of a convolution then cost exactly what it costs;
- what is computed again (`remat`) counts again, a scan its length times, branches as much as the dearest of them, and a
  loop of unknown length once;
- a product of two matrices, one of which depends on no input, is none of the network's work: group norm folds channels
  into groups that way. Such products are counted apart.

Kernels that hide their products (cuDNN's attention, Pallas) are not seen: trace for the CPU, where there are none.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


@dataclasses.dataclass(frozen=True)
class Operations:
    """What a program multiplies and adds.

    Attributes:
      by_dtype: multiply-adds by the type of their operands.
      constant: multiply-adds of matrices with constant ones, which `by_dtype` leaves out.
    """

    by_dtype: Mapping[str, int]
    constant: int = 0

    @property
    def total(self) -> int:
        return sum(self.by_dtype.values())


def count(program: ClosedJaxpr) -> Operations:
    """The multiply-adds of a program that `jax.make_jaxpr` has traced."""
    tally: collections.Counter[str] = collections.Counter()
    jaxpr: Any = program.jaxpr
    _walk(jaxpr, [False] * len(jaxpr.invars), tally)
    return Operations({name: tally[name] for name in sorted(tally) if name}, tally[_CONSTANT])


_CONSTANT = ""  # the name under which products with constant matrices are tallied


def _walk(jaxpr: Any, constant: Sequence[bool], tally: collections.Counter) -> list[bool]:
    """Add to `tally`. `constant` says which inputs depend on nothing; returns the same of the outputs."""
    fixed = dict(zip(jaxpr.invars, constant, strict=True))

    def is_constant(atom: Any) -> bool:
        return isinstance(atom, Literal) or fixed.get(atom, True)  # what is closed over depends on nothing

    for eqn in jaxpr.eqns:
        given = [is_constant(atom) for atom in eqn.invars]
        fixed.update(zip(eqn.outvars, _equation(eqn, given, tally), strict=True))
    return [is_constant(atom) for atom in jaxpr.outvars]


def _equation(eqn: Any, constant: list[bool], tally: collections.Counter) -> list[bool]:
    if eqn.primitive.name == "dot_general":
        matrices = all(len(atom.aval.shape) == 2 for atom in eqn.invars)
        name = _CONSTANT if matrices and any(constant) else eqn.invars[0].aval.dtype.name
        tally[name] += _dot(eqn)
    elif eqn.primitive.name == "conv_general_dilated":
        tally[eqn.invars[0].aval.dtype.name] += _convolution(eqn)
    bodies = list(programs_in(eqn))
    if not bodies:
        return [all(constant)] * len(eqn.outvars)
    if eqn.primitive.name == "cond":
        tallies = [collections.Counter() for _ in bodies]
        for body, branch in zip(bodies, tallies, strict=True):
            _walk(body, constant[1:], branch)
        tally.update(max(tallies, key=lambda branch: branch.total()))
        return [False] * len(eqn.outvars)
    length = 1
    if eqn.primitive.name == "scan":
        length = eqn.params["length"]
        constants = eqn.params["num_consts"]  # all else changes from step to step
        constant = [flag and i < constants for i, flag in enumerate(constant)]
    results = [False] * len(eqn.outvars)
    for body in bodies:
        inner: collections.Counter[str] = collections.Counter()
        # Of a call, whose inputs are the equation's, and of a scan.
        same = len(bodies) == 1 and len(body.invars) == len(constant)
        found = _walk(body, constant if same else [False] * len(body.invars), inner)
        tally.update({name: length * number for name, number in inner.items()})
        if same and len(found) == len(results):
            results = found
    return results


def programs_in(eqn: Any) -> Iterator[Any]:
    """The programs inside an equation: of a call, a loop or branches."""
    for value in eqn.params.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _dot(eqn: Any) -> int:
    """Every output is a sum over the contracted axes."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(eqn: Any) -> int:
    # Each a list of axes: batch, channels, space; of the kernel outputs, inputs, space.
    layout = eqn.params["dimension_numbers"]
    inputs, kernel = (atom.aval.shape for atom in eqn.invars)
    outputs = eqn.outvars[0].aval.shape
    space = zip(layout.lhs_spec[2:], layout.rhs_spec[2:], layout.out_spec[2:], strict=True)
    sizes = (sorted((inputs[i], kernel[k], outputs[o])) for i, k, o in space)
    products = math.prod(small * middle for small, middle, _ in sizes)
    # The kernel's input channels are those of one group already.
    return outputs[layout.out_spec[0]] * outputs[layout.out_spec[1]] * kernel[layout.rhs_spec[1]] * products
