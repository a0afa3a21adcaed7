"""Multiply-adds of a traced program, from the shapes of its matrix products and convolutions alone.

Conventions, as in published figures:

- One multiply-add is two floating-point operations. Additions, norms, activations and softmax count 0.
- Convolution taps on padding count; taps between dilated values do not. Any two of tap, input and output position
  determine the third, so a spatial axis costs the smallest product of two of their sizes. Each gradient of a
  convolution then costs as much as the convolution.
- Recomputation (`remat`) counts again, a scan counts its length times, a conditional counts its most expensive branch,
  and a loop of unknown length counts once.
- A product of two matrices, one of which depends on no input, is counted separately: group norm folds channels into
  groups that way, which is no work of the network.

Kernels that hide their products (cuDNN's attention, Pallas) are not counted: trace for the CPU, which has none.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


@dataclasses.dataclass(frozen=True)
class Operations:
    """Multiply-adds of a program.

    Attributes:
      by_dtype: multiply-adds by the dtype of their operands.
      constant: multiply-adds with constant matrices, which `by_dtype` does not include.
    """

    by_dtype: Mapping[str, int]
    constant: int = 0

    @property
    def total(self) -> int:
        return sum(self.by_dtype.values())


def count(program: ClosedJaxpr) -> Operations:
    """Count the multiply-adds of a program traced by `jax.make_jaxpr`."""
    tally: collections.Counter[str] = collections.Counter()
    jaxpr: Any = program.jaxpr
    _walk(jaxpr, [False] * len(jaxpr.invars), tally)
    return Operations({name: tally[name] for name in sorted(tally) if name}, tally[_CONSTANT])


_CONSTANT = ""  # key of products with constant matrices


def _walk(jaxpr: Any, constant: Sequence[bool], tally: collections.Counter) -> list[bool]:
    """Add to `tally`. `constant` marks inputs that are constants; returns the same marks of the outputs."""
    fixed = dict(zip(jaxpr.invars, constant, strict=True))

    def is_constant(atom: Any) -> bool:
        return isinstance(atom, Literal) or fixed.get(atom, True)  # closed-over values are constants

    for eqn in jaxpr.eqns:
        marks = [is_constant(atom) for atom in eqn.invars]
        fixed.update(zip(eqn.outvars, _equation(eqn, marks, tally), strict=True))
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
        constants = eqn.params["num_consts"]  # the other inputs change from step to step
        constant = [flag and i < constants for i, flag in enumerate(constant)]
    results = [False] * len(eqn.outvars)
    for body in bodies:
        inner: collections.Counter[str] = collections.Counter()
        # In calls and scans, the inputs of the body are those of the equation.
        same = len(bodies) == 1 and len(body.invars) == len(constant)
        found = _walk(body, constant if same else [False] * len(body.invars), inner)
        tally.update({name: length * number for name, number in inner.items()})
        if same and len(found) == len(results):
            results = found
    return results


def programs_in(eqn: Any) -> Iterator[Any]:
    """The programs inside an equation: the body of a call or loop, or branches."""
    for value in eqn.params.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _dot(eqn: Any) -> int:
    """Each output element is a sum over the contracted axes."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(eqn: Any) -> int:
    # Lists of axes: batch, channels, spatial axes; of the kernel: outputs, inputs, spatial axes.
    layout = eqn.params["dimension_numbers"]
    inputs, kernel = (atom.aval.shape for atom in eqn.invars)
    outputs = eqn.outvars[0].aval.shape
    space = zip(layout.lhs_spec[2:], layout.rhs_spec[2:], layout.out_spec[2:], strict=True)
    sizes = (sorted((inputs[i], kernel[k], outputs[o])) for i, k, o in space)
    products = math.prod(small * middle for small, middle, _ in sizes)
    # The kernel has the input channels of one group only.
    return outputs[layout.out_spec[0]] * outputs[layout.out_spec[1]] * kernel[layout.rhs_spec[1]] * products
