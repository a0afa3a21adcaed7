"""Attention against its formula, and the kernels that programs for different platforms call."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models import attention
from jaxdiff.models.attention import (
    attend,
    attend_with_counts,
    cudnn_available,
    fused_kernel_takes,
)
from tests.selection import some


def inputs(length=5, tokens=7, dtype="float32"):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, length, 3, 8), (2, tokens, 3, 8), (2, tokens, 3, 8)]
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def formula(query, key, value, mask=None):
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    weights = np.exp(np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1]))
    if mask is not None:
        weights = weights * np.asarray(mask)[:, None, None]
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, value)


def test_attention_is_softmax():
    np.testing.assert_allclose(attend(*inputs()), formula(*inputs()), atol=1e-6)


def test_masked_tokens_have_no_effect():
    mask = jnp.array([[1, 1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1]], bool)
    query, key, value = inputs()
    got = attend(query, key, value, mask)
    np.testing.assert_allclose(got, formula(query, key, value, mask), atol=1e-6)
    hidden = ~mask[:, :, None, None]
    np.testing.assert_array_equal(attend(query, key + 9.0 * hidden, value - 9.0 * hidden, mask), got)


def test_nothing_to_attend_to_gives_zero():
    mask = jnp.array([[False] * 7, [True] * 7])
    out = attend(*inputs(), mask)
    assert jnp.all(out[0] == 0)
    np.testing.assert_allclose(out[1], formula(*inputs())[1], atol=1e-6)


def test_bfloat16_softmax_is_float32():
    """The weights of 4096 equal tokens are 2^-12 each; a bfloat16 sum stops growing at 2^8 of them."""
    query, key = jnp.zeros((1, 1, 1, 8), "bfloat16"), jnp.zeros((1, 4096, 1, 8), "bfloat16")
    value = jnp.ones((1, 4096, 1, 8), "bfloat16")
    np.testing.assert_allclose(attend(query, key, value).astype("float32"), 1.0, atol=2**-7)


@pytest.mark.slow
@pytest.mark.spread(1)
@pytest.mark.parametrize("length", some([4, 5], [5]))
@pytest.mark.parametrize(
    "mask",
    [
        None,
        jnp.array([[1, 0, 1, 0, 0, 1, 0], [0, 1, 1, 1, 1, 1, 1]], bool),
        jnp.array([[0] * 7, [1] * 7], bool),
    ],
)
def test_token_counts_are_equivalent_to_a_mask(length, mask):
    """The inputs of the fused kernel, with XLA's kernel in its place: values and gradients."""
    arrays = inputs(length)

    def counted(*arrays):
        return attend_with_counts(*arrays, mask, implementation="xla")

    np.testing.assert_allclose(counted(*arrays), attend(*arrays, mask), atol=1e-6)
    slopes = [
        jax.grad(lambda *arrays, f=f: jnp.sum(jnp.sin(f(*arrays))), (0, 1, 2))(*arrays)
        for f in (counted, lambda *arrays: attend(*arrays, mask))
    ]
    for got, want in zip(*slopes, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.spread(2)
@pytest.mark.parametrize("scores", [1, 2 * 3 * 7])
@pytest.mark.parametrize("mask", [None, [[1, 0, 1, 0, 0, 1, 0], [0] * 7]])
def test_blocks_of_queries_change_nothing(monkeypatch, scores, mask):
    """Values, gradients and tangents, for blocks that do not divide the queries and blocks of one."""
    monkeypatch.setattr(attention, "SCORES", scores)
    arrays, mask = inputs(length=5), None if mask is None else jnp.array(mask, bool)

    def derivatives(function):
        def total(*arrays):
            return jnp.sum(jnp.sin(function(*arrays)))

        tangents = tuple(jnp.cos(x) for x in arrays)
        return jax.jit(
            lambda *x: (function(*x), jax.grad(total, (0, 1, 2))(*x), jax.jvp(function, x, tangents)[1])
        )(*arrays)

    found = derivatives(lambda *arrays: attend(*arrays, mask))
    whole = derivatives(lambda *arrays: attend_with_counts(*arrays, mask, implementation="xla"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, whole)


@pytest.mark.parametrize("differentiate", [lambda f: f, jax.grad])
def test_blocks_hold_the_scores_of_one_block(differentiate):
    """The program for a CPU needs less memory than all scores, forward and backward; that for a GPU has no loop."""
    shape = jax.ShapeDtypeStruct((1, 4096, 8, 8), jnp.float32)
    traced = jax.jit(differentiate(lambda *arrays: jnp.sum(attend(*arrays)))).trace(shape, shape, shape)
    compiled = traced.lower(lowering_platforms=("cpu",)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 8 * 4096**2 / 4
    assert "while" not in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("dtype", "head_dim", "taken"),
    [("bfloat16", 64, True), ("float16", 128, True), ("float32", 64, False), ("float16", 20, False),
     ("bfloat16", 256, False)],
)  # fmt: skip
def test_the_fused_kernel_takes_half_precision_and_small_heads(dtype, head_dim, taken):
    assert fused_kernel_takes(jnp.dtype(dtype), head_dim) == taken


@pytest.fixture
def cudnn(monkeypatch):
    """A process that can build programs for CUDA, as one with JAX's plugin can."""
    library = types.SimpleNamespace(cudnn_get_version=lambda: 91200)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.cuda_versions", library)
    cudnn_available.cache_clear()
    yield
    cudnn_available.cache_clear()


def lowered(function, length, tokens, masked, platform):
    shapes = [(2, length, 3, 16), (2, tokens, 3, 16), (2, tokens, 3, 16)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    mask = jax.ShapeDtypeStruct((2, tokens), jnp.bool) if masked else None
    fresh = jax.jit(lambda *given: function(*given))  # traced anew, whatever this process could build before
    return fresh.trace(*arrays, mask).lower(lowering_platforms=(platform,)).as_text()


def squares(query, key, value, mask):
    return jnp.sum(jnp.square(attend(query, key, value, mask).astype(jnp.float32)))


@pytest.mark.spread(2)
@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [77, 80, 1])
@pytest.mark.parametrize("length", [64, 49])
def test_the_kernel_follows_from_the_programs_platform(length, tokens, masked):
    """Odd lengths and masks, which JAX's interface to cuDNN refuses, included; the process has no GPU."""
    backward = jax.grad(squares, (0, 1, 2))
    assert "__cudnn$fmhaSoftmax" in lowered(attend, length, tokens, masked, "cuda")
    assert "__cudnn$fmhaSoftmaxBackward" in lowered(backward, length, tokens, masked, "cuda")
    for function in (attend, backward):
        for platform in ("cpu", "tpu"):
            assert "cudnn" not in lowered(function, length, tokens, masked, platform)


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize("masked", [False, True])
def test_programs_for_cuda_have_forward_mode(masked):
    def tangent(query, key, value, mask):
        return jax.jvp(lambda query: attend(query, key, value, mask), (query,), (query,))

    def curvature(query, key, value, mask):
        slope = jax.grad(squares)
        return jax.jvp(lambda query: slope(query, key, value, mask), (query,), (query,))

    assert "__cudnn$fmhaSoftmax" in lowered(tangent, 49, 77, masked, "cuda")
    assert "__cudnn$fmhaSoftmaxBackward" in lowered(curvature, 49, 77, masked, "cuda")


@pytest.mark.spread(1)
@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize("mask", [None, jnp.array([[1, 0, 1, 0, 1, 1, 0], [0] * 7], bool)])
def test_half_precision_derivatives_match_the_formula(mask):
    """On the CPU, in a process that can build programs for CUDA as well."""
    arrays = inputs(dtype="bfloat16")
    exact = [array.astype("float32") for array in arrays]
    moved = jnp.cos(jnp.arange(arrays[0].size).reshape(arrays[0].shape) / 3)

    def tangent(query, key, value):
        out = jax.jvp(lambda query: attend(query, key, value, mask), (query,), (moved.astype(query.dtype),))[
            1
        ]
        return out.astype("float32")

    found, expected = jax.jit(tangent)(*arrays), jax.jit(tangent)(*exact)
    np.testing.assert_allclose(found, expected, atol=2**-6)
    slopes = jax.jit(jax.grad(squares, (0, 1, 2)))
    for got, want in zip(slopes(*arrays, mask), slopes(*exact, mask), strict=True):
        np.testing.assert_allclose(got.astype("float32"), want, atol=2**-4)


def test_a_process_without_cudnn_builds_programs_for_cuda(monkeypatch):
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.cuda_versions", None)
    cudnn_available.cache_clear()
    assert not cudnn_available()
    assert "cudnn" not in lowered(attend, 64, 77, True, "cuda")
