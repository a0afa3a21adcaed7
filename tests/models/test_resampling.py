"""Resampling by 2 against other resizers, convolutions, and EDM's blocks."""

import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.interop.mapping import SAME, Entry, conv, dense, from_heads, heads, norm, to_params
from jaxdiff.models import resampling
from jaxdiff.models.blocks import ResidualBlock
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.pixel_attention import AttentionBlock
from jaxdiff.models.progressive import ResidualInput
from jaxdiff.models.resampling import border, from_patches, to_patches

STORED = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "edm_blocks.npz")
FIR, BOX = (1.0, 3.0, 3.0, 1.0), (1.0, 1.0)
TAPS = [BOX, FIR, (1.0, 2.0, 3.0, 3.0, 2.0, 1.0), (1.0, 2.0)]
each_filter = pytest.mark.parametrize("taps", TAPS, ids=str)
each_symmetric_filter = pytest.mark.parametrize("taps", TAPS[:3], ids=str)
QUICK = {"xla_backend_optimization_level": 0}
resample = jax.jit(resampling.resample, static_argnums=(1, 2), compiler_options=QUICK)
decimate = jax.jit(resampling.decimate, static_argnums=1, compiler_options=QUICK)


def images(*size, channels=3, seed=0):
    x = np.random.default_rng(seed).standard_normal((2, *(size or (8, 6)), channels), np.float32)
    return jnp.asarray(x)


def depthwise(x, taps, stride, padding, dilation=1):
    """Each channel convolved with the normalised outer product of the taps."""
    kernel = np.outer(taps, taps).astype(np.float32) / sum(taps) ** 2
    kernel = np.broadcast_to(kernel[:, :, None, None], (*kernel.shape, 1, x.shape[-1]))
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [padding] * 2, (dilation, dilation), feature_group_count=x.shape[-1],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


@each_filter
def test_down_is_a_strided_convolution(taps):
    x, padded = images(), images(9, 12)
    np.testing.assert_allclose(resample(x, "down", taps), depthwise(x, taps, 2, border(taps)), atol=1e-6)
    np.testing.assert_allclose(decimate(padded, taps), depthwise(padded, taps, 2, (0, 0)), atol=1e-6)


@each_symmetric_filter
def test_up_is_a_convolution_with_zeros_between_the_pixels(taps):
    """As in StyleGAN2: a factor of 4 makes up for the inserted zeros."""
    x, reach = images(), len(taps) // 2
    expected = 4 * depthwise(x, taps, 1, (reach, reach), dilation=2)
    np.testing.assert_allclose(resample(x, "up", taps), expected, atol=1e-6)


@each_filter
def test_up_is_four_times_the_adjoint_of_down(taps):
    """``<up(x), y> = 4 <x, down(y)>`` for all images x and y, so the gradient of either is the other."""
    x = images(4, 3)
    adjoint = jax.jit(
        lambda x: jax.linear_transpose(lambda y: resampling.resample(y, "down", taps), images())(x)[0],
        compiler_options=QUICK,
    )
    np.testing.assert_allclose(resample(x, "up", taps), 4 * adjoint(x), atol=1e-6)


def test_two_equal_taps_repeat_pixels_and_take_means():
    x = images()
    np.testing.assert_array_equal(resample(x, "up"), jax.image.resize(x, (2, 16, 12, 3), "nearest"))
    means = x.reshape(2, 4, 2, 3, 2, 3).mean((2, 4))
    np.testing.assert_allclose(resample(x, "down"), means, atol=1e-6)
    assert resampling.resample(x, "none", FIR) is x


@pytest.mark.parametrize(("how", "size"), [("up", (16, 12)), ("down", (4, 3))])
def test_four_taps_are_linear_interpolation_inside(how, size):
    """Upsampling takes 3/4 of the nearest pixel and 1/4 of the next; downsampling uses the antialiased triangle."""
    linear = jax.image.resize(images(), (2, *size, 3), "linear", antialias=True)
    found = resample(images(), how, FIR)
    np.testing.assert_allclose(found[:, 1:-1, 1:-1], linear[:, 1:-1, 1:-1], atol=1e-6)
    assert np.abs(found - linear).max() > 0.1  # beyond the border of ours there are zeros, of theirs nothing


@each_symmetric_filter
@pytest.mark.parametrize("how", ["down", "up"])
def test_a_constant_image_stays_constant_inside(how, taps):
    reach = len(taps) // 2
    y = resample(jnp.full((1, 16, 16, 1), 2.5), how, taps)
    assert y.shape == (1, *((8, 8) if how == "down" else (32, 32)), 1)
    np.testing.assert_allclose(y[:, reach:-reach, reach:-reach], 2.5, rtol=1e-6)


@pytest.mark.parametrize("how", ["down", "up"])
def test_bfloat16_is_rounded_a_few_times_only(how):
    x = images().astype("bfloat16")
    found, exact = resample(x, how, FIR), resample(x.astype("float32"), how, FIR)
    assert found.dtype == jnp.bfloat16
    # Along either axis two sums, two products and their sum, each off by 2^-9 of its size at most.
    assert np.abs(found.astype("float32") - exact).max() <= 10 * 2**-9 * np.abs(x.astype("float32")).max()


def nhwc(name):
    return jnp.asarray(STORED[name].transpose(0, 2, 3, 1))


@pytest.mark.parametrize("how", ["down", "up"])
def test_resampling_is_edms(how):
    np.testing.assert_allclose(resample(nhwc("in/x"), how, FIR), nhwc(f"out/conv_k0_{how}"), atol=1e-5)


@pytest.mark.parametrize(("name", "taps"), [("conv_fused_down", FIR), ("conv_fused_down_box", BOX)])
def test_the_input_path_matches_edms_downsampling_convolution(name, taps):
    found = run(ResidualInput(16, taps), conv("conv", name), name, nhwc("in/x"))
    np.testing.assert_allclose(found, nhwc(f"out/{name}"), atol=1e-5)


SONG = BlockOptions(
    eps=1e-6, modulation="shift", skip_scale=math.sqrt(0.5), resample_taps=FIR, project_resampled=True
)
BLOCKS = {  # options, width, attention heads, resampling
    "heads4": (BlockOptions(), 64, 4, "none"),
    "down_fir": (SONG, 32, 2, "down"),
    "up_fir": (SONG, 32, 0, "up"),
    "up_box": (BlockOptions(), 48, 3, "up"),
    "down_box": (BlockOptions(), 32, 0, "down"),
}


class WholeBlock(nn.Module):
    """A residual block and its attention, whether it resamples or not."""

    options: BlockOptions
    width: int
    heads: int
    resample: str

    @nn.compact
    def __call__(self, x, vector):
        x = ResidualBlock(self.width, self.options, resample=self.resample, name="residual")(x, vector)
        return AttentionBlock(self.heads, self.options, name="self_attention")(x) if self.heads else x


def block_entries(name):
    residual = {
        "norm_0": norm,
        "conv_0": conv,
        "modulation": dense,
        "norm_1": norm,
        "conv_1": conv,
        "skip": conv,
    }
    for ours, kind in residual.items():
        yield from kind(
            f"residual/{ours}", f"{name}.{'affine' if ours == 'modulation' else ours.replace('_', '')}"
        )
    yield from norm("self_attention/norm", f"{name}.norm2")
    for leaf, ours, layout in (
        ("weight", "query_key_value/kernel", heads("HC3", axes=2)),
        ("bias", "query_key_value/bias", heads("HC3")),
    ):
        yield Entry(f"self_attention/{ours}", (f"{name}.qkv.{leaf}",), layout)
    yield Entry("self_attention/out/kernel", (f"{name}.proj.weight",), from_heads(axes=2))
    yield Entry("self_attention/out/bias", (f"{name}.proj.bias",), SAME)


def run(module, entries, name, *inputs):
    """The output of a module with the stored parameters of this name."""
    tensors = {
        key.removeprefix("param/"): STORED[key] for key in STORED.files if key.startswith(f"param/{name}.")
    }
    own = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))["params"]
    params = to_params(entries, tensors, own, ("resample_filter",))
    return jax.jit(module.apply, compiler_options=QUICK)({"params": params}, *inputs)


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_edms(name):
    found = run(
        WholeBlock(*BLOCKS[name]), block_entries(name), name, nhwc("in/x"), jnp.asarray(STORED["in/emb"])
    )
    np.testing.assert_allclose(found, nhwc(f"out/{name}"), atol=1e-5)


@pytest.mark.parametrize("taps", [(), (1.0,), (1.0, 2.0, 1.0), (1.0, -1.0)])
def test_filters_that_cannot_halve_are_refused(taps):
    with pytest.raises(UserError, match="resample_taps="):
        BlockOptions(resample_taps=taps)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_patches_are_squares_and_go_back(side):
    x = np.random.default_rng(0).normal(size=(2, 2 * side, 3 * side, 4)).astype(np.float32)
    found = np.asarray(to_patches(jnp.asarray(x), side))
    for row in range(2):
        for column in range(3):
            square = x[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            np.testing.assert_array_equal(found[:, row, column], square.reshape(2, -1))
    np.testing.assert_array_equal(from_patches(jnp.asarray(found), side), x)
