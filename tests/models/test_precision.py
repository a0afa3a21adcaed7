"""Effects of bfloat16 and rematerialisation: bounds that follow from eight bits, and parts that stay float32."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.denoiser import Denoiser
from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.layers import GroupNorm, LayerNorm
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.transformer import TransformerMiddle
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.prediction import V
from jaxdiff.process.schedule import Cosine
from jaxdiff.process.time_sampling import Uniform
from jaxdiff.sampling.noise import noise_like
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.training.step import Context

QUICK = {"xla_backend_optimization_level": 0}
NETWORK = UNet(
    (Level(8, blocks=1, attention=PixelAttention(head_dim=8), dropout=0.2),),
    out_channels=2,
    middle=TransformerMiddle(16, blocks=1, head_dim=8, cross_attention=True, dropout=0.2),
)
ROUNDING = 2.0**-9  # of a number with eight bits, relative to it, at most


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    x, target, features, vector = (
        jnp.asarray(rng.standard_normal(shape, np.float32))
        for shape in ((3, 8, 8, 2), (3, 8, 8, 2), (3, 5, 6), (3, 12))
    )
    mask = jnp.arange(5)[None] < jnp.array([[5], [3], [1]])
    return x, target, Embeddings(vector, Tokens(features, mask))


@functools.cache
def randomised():
    """Random values for all parameters: zero-initialised layers would hide all others."""
    x, _, given = inputs()
    init = functools.partial(NETWORK.init, train=False)
    rng = np.random.default_rng(2)

    def fill(path, leaf):
        start = 1.0 if path[-1].key == "scale" else 0.0
        fan_in = max(1, leaf.size // leaf.shape[-1])
        return jnp.asarray(start + rng.standard_normal(leaf.shape, np.float32) / np.sqrt(fan_in))

    return jax.tree_util.tree_map_with_path(
        fill, nn.meta.unbox(jax.eval_shape(init, jax.random.key(0), x, given))
    )


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def learn(network, params, x, target, given, seed=0):
    """The loss, the output, and the gradient, with dropout."""

    def loss(params):
        output = network.apply(params, x, given, train=True, rngs={"dropout": jax.random.key(seed)})
        return jnp.mean(jnp.square(output - target)), output

    (value, output), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return value, output, gradient


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


def distance(found, expected):
    """The norm of the difference, relative to the norm of the expected values."""
    return np.linalg.norm(flat(found) - flat(expected)) / np.linalg.norm(flat(expected))


@pytest.mark.slow
def test_remat_changes_float32_by_its_last_bits_at_most():
    """The same operations, dropout included; XLA fuses them otherwise, so that they are rounded otherwise.

    One unit in the last place is 2^-23: what is allowed is four, over the whole gradient.
    """
    kept = learn(NETWORK, randomised(), *inputs())
    recomputed = learn(NETWORK.clone(remat=True), randomised(), *inputs())
    for found, expected in zip(recomputed, kept, strict=True):
        assert distance(found, expected) <= 4 * 2.0**-23
    _, output, _ = learn(NETWORK, randomised(), *inputs(), seed=1)
    assert distance(output, kept[1]) > 0.01  # dropout did act


@pytest.mark.slow
def test_bfloat16_stays_as_near_to_float32_as_its_roundings_allow():
    """Roundings are independent and add up like a random walk: L in a row are off by ``0.42 sqrt(L) 2^-9`` in RMS.

    A rounding errs by anything up to 2^-9 of the power of two below a number, which is 0.42 of 2^-9 of it in RMS. It is
    a bound for layers that amplify no error; sums of branches make it smaller. The angle between gradients is
    ``error^2 / 2`` short of a cosine of 1, and they come from as many roundings again on the way back.
    """
    stem, residual, attention, mlp = 3, 7, 8, 7  # what is rounded: inputs, kernels, products, norms, sums
    ends_of_the_transformer = 7
    roundings = stem + 3 * residual + 5 * attention + mlp + ends_of_the_transformer
    bound = 0.42 * math.sqrt(roundings) * ROUNDING
    for seed in range(3):
        _, exact, gradient = learn(NETWORK, randomised(), *inputs(seed))
        _, output, half_gradient = learn(NETWORK.clone(dtype="bfloat16"), randomised(), *inputs(seed))
        assert output.dtype == jnp.float32
        a, b = flat(gradient), flat(half_gradient)
        cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        assert ROUNDING / 4 < distance(output, exact) <= bound  # it is no float32 in disguise either
        assert 1 - cosine <= bound**2


def test_all_convolutions_but_the_last_compute_in_bfloat16():
    x, _, given = inputs()
    network = NETWORK.clone(dtype="bfloat16")
    apply = jax.jit(lambda params: network.apply(params, x, given, train=False))
    lines = apply.lower(randomised()).as_text().splitlines()
    single = ["f32" in line.replace("bf16", "") for line in lines if "stablehlo.convolution" in line]
    assert single == [False] * 7 + [True]


@pytest.mark.slow
def test_draws_updates_and_state_are_float32_in_a_bfloat16_model():
    """Noise in bfloat16 would have another distribution, and parameters in bfloat16 would lose small updates."""
    network = UNet(
        (Level(8, blocks=1),),
        out_channels=2,
        middle=ResidualMiddle(PixelAttention(head_dim=8)),
        dtype="bfloat16",
    )
    conditioner = Conditioner(NoiseLevel(16, frequencies=4), {"label": ClassLabel(3, 16)})
    model = Denoiser(network, conditioner, VariancePreserving(Cosine()), V())
    task = DenoisingTask(model, Uniform(), (8, 8, 2))
    key = jax.random.key(0)
    params = nn.meta.unbox(jax.eval_shape(task.init, key))
    x, *_ = inputs()
    examples = task.draw({"image": x, "label": jnp.array([0, 1, 2])}, Context(), key)

    def learn(params, examples):
        return jax.value_and_grad(
            lambda params: jnp.mean(task.loss(params, Context(), examples, key, True)[0])
        )(params)

    def predict(params, examples):
        x, t, fields, drop = (examples[name] for name in ("x_0", "u", "fields", "drop"))
        return model.apply({"params": params}, x, t, fields, drop, method="predict")

    made = jax.eval_shape(learn, params, examples), jax.eval_shape(predict, params, examples)
    for tree in (params, made, *(examples[name] for name in ("x_0", "noise", "u", "importance"))):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    half = jnp.zeros((2, 8, 8, 2), "bfloat16")
    for noise in (examples["noise"], noise_like(jax.random.split(key, 2), half)):
        assert noise.dtype == jnp.float32
        assert np.mean(noise == noise.astype("bfloat16").astype("float32")) < 0.01


@pytest.mark.parametrize("norm", [GroupNorm(groups=2, silu=False), LayerNorm()], ids=["group", "layer"])
def test_norms_of_a_large_mean(norm):
    """Their statistics are float32, and sums of squares of differences from the mean."""
    numbers = np.random.default_rng(0).standard_normal((2, 64, 16))

    def error(x):
        """Of the normalised values, which are of size 1."""
        groups = np.asarray(x, np.float64)
        if isinstance(norm, GroupNorm):
            groups = groups.reshape(2, 64, 2, 8).swapaxes(1, 2)
        axes = (2, 3) if isinstance(norm, GroupNorm) else (2,)
        normal = groups - groups.mean(axes, keepdims=True)
        normal = normal / np.sqrt(np.square(normal).mean(axes, keepdims=True) + 1e-5)
        normal = normal.swapaxes(1, 2).reshape(2, 64, 16) if isinstance(norm, GroupNorm) else normal
        params = {"params": {"scale": jnp.ones(16), "bias": jnp.zeros(16)}}
        found = jax.jit(norm.apply, compiler_options=QUICK)(params, x)
        assert found.dtype == x.dtype
        return np.abs(np.asarray(found, np.float64) - normal).max()

    # On the grid of bfloat16 near 256, which are multiples of 2; the result is rounded once, at a size of up to 4.
    assert error(jnp.asarray(256 + 16 * numbers, "bfloat16")) <= 4 * ROUNDING
    # The mean of numbers near 4096 is known to 2^-12; the mean of their squares only to 1, their variance.
    assert error(jnp.asarray(4096 + numbers, "float32")) <= 2.0**-10
