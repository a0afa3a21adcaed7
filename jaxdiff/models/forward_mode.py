"""Forward-mode derivatives for functions that have a reverse mode only, such as fused kernels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Function = Callable[[tuple, Any], Any]


def with_forward_mode(function: Function, reference: Function) -> Function:
    """`function`, with the tangents of `reference`; both take (differentiable arrays, other arrays) to one array.

    Gradients run the backward pass of `function`. All other derivatives are those of `reference`, which must compute
    the same function: tangents, and derivatives of the backward pass.
    """

    @jax.custom_jvp
    def value(arrays: tuple, others: Any) -> Any:
        return function(arrays, others)

    @value.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple:
        forward, backward = _passes(
            function, reference
        )  # anew for each call, whose pullback has its own structure
        out, residuals = forward(*primals)
        return out, _linear(
            lambda given, tangents: _push(reference, *given[0], tangents),
            lambda given, cotangent: backward(*given, cotangent),
            (primals, residuals),
            tangents[0],
        )

    return value


def _passes(function: Function, reference: Function) -> tuple[Callable, Callable]:
    """The forward and the backward pass of `function`, with derivatives by `reference`."""
    structure: list[Any] = []

    @jax.custom_jvp
    def forward(arrays: tuple, others: Any) -> tuple:
        """The value, and what the backward pass needs."""
        out, pullback = jax.vjp(lambda *inner: function(inner, others), *arrays)
        residuals, tree = jax.tree.flatten(pullback)
        structure.append(tree)
        return out, tuple(residuals)

    @forward.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple:
        out, residuals = forward(*primals)
        still = jax.tree.map(_no_tangent, residuals)  # `backward` has no derivative with respect to them
        return (out, residuals), (_push(reference, *primals, tangents[0]), still)

    @jax.custom_jvp
    def backward(primals: tuple, residuals: tuple, cotangent: Any) -> tuple:
        return jax.tree.unflatten(structure[-1], residuals)(cotangent)

    @backward.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple:
        (arrays, others), _, cotangent = primals

        def pull(arrays: tuple, cotangent: Any) -> tuple:
            return jax.vjp(lambda *inner: reference(inner, others), *arrays)[1](cotangent)

        moved = jax.jvp(pull, (arrays, cotangent), (tangents[0][0], tangents[2]))[1]
        return backward(*primals), moved

    return forward, backward


def _push(reference: Function, arrays: tuple, others: Any, tangents: tuple) -> Any:
    return jax.jvp(lambda *inner: reference(inner, others), arrays, tangents)[1]


def _no_tangent(x: Any) -> Any:
    return (
        jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.zeros(x.shape, jax.dtypes.float0)
    )


def _linear(apply: Callable, transpose: Callable, residuals: Any, tangents: Any) -> Any:
    """``apply(residuals, tangents)``, linear in the tangents; its transpose is ``transpose(residuals, cotangent)``."""
    fixed, fixed_tree = jax.tree.flatten(residuals)
    moving, moving_tree = jax.tree.flatten(tangents)

    def flat(*arrays: Any) -> Any:
        first = jax.tree.unflatten(fixed_tree, arrays[: len(fixed)])
        return apply(first, jax.tree.unflatten(moving_tree, arrays[len(fixed) :]))

    def flat_transpose(*arrays: Any) -> list:
        first = jax.tree.unflatten(fixed_tree, arrays[: len(fixed)])
        return jax.tree.leaves(transpose(first, arrays[len(fixed)]))

    return _linear_p.bind(*fixed, *moving, apply=flat, transpose=flat_transpose, count=len(fixed))


_linear_p = Primitive("linear_with_transpose")


@_linear_p.def_impl
def _run(*arrays: Any, apply: Callable, **_: Any) -> Any:
    return apply(*arrays)


@_linear_p.def_abstract_eval
def _shape(*arrays: Any, apply: Callable, **_: Any) -> Any:
    out = jax.eval_shape(apply, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays))
    return jax.core.ShapedArray(out.shape, out.dtype)


def _jvp(primals: tuple, tangents: tuple, *, apply: Callable, **_: Any) -> tuple:
    return jax.jvp(apply, primals, tuple(map(ad.instantiate_zeros, tangents)))


def _transpose(cotangent: Any, *arrays: Any, transpose: Callable, count: int, **_: Any) -> list:
    return [None] * count + transpose(*arrays[:count], ad.instantiate_zeros(cotangent))


def _batch(arrays: tuple, axes: tuple, *, apply: Callable, transpose: Callable, count: int) -> tuple:
    size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    arrays = tuple(
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(arrays, axes, strict=True)
    )
    many = {"apply": jax.vmap(apply), "transpose": jax.vmap(transpose)}
    return _linear_p.bind(*arrays, **many, count=count), 0


ad.primitive_jvps[_linear_p] = _jvp
ad.primitive_transposes[_linear_p] = _transpose
batching.primitive_batchers[_linear_p] = _batch
mlir.register_lowering(_linear_p, mlir.lower_fun(_run, multiple_results=False))
