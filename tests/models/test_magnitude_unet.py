"""Properties of the magnitude-preserving U-Net, in addition to its authors' values (tests/interop/test_edm2.py)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import UserError
from jaxdiff.models.magnitude_unet import MagnitudeAttention, MagnitudeBlock, MagnitudeLevel, MagnitudeUNet

LEVELS = (MagnitudeLevel(8, blocks=1), MagnitudeLevel(16, blocks=1, self_attention=True))
NETWORK = MagnitudeUNet(LEVELS, out_channels=2, head_dim=8)
SMALL = MagnitudeUNet((MagnitudeLevel(8, blocks=1),), out_channels=2, middle_attention=False)
QUICK = {"xla_backend_optimization_level": 0}


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def images(channels=2, size=8, seed=0):
    return normal(3, size, size, channels, seed=seed)


GIVEN = Embeddings(vector=normal(3, 12, seed=1))


def shapes(network, x=None, given=GIVEN):
    """The boxed parameters without their values: nothing is compiled."""
    init = functools.partial(network.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), images() if x is None else x, given)["params"]


@functools.cache
def randomised(network, channels=2, gain=0.7):
    """Random weights of any length, and gains away from their initial 0, which would hide all else."""
    rng = np.random.default_rng(2)
    tree = nn.meta.unbox(shapes(network, images(channels)))
    draw = lambda leaf: jnp.asarray(  # noqa: E731
        rng.standard_normal(leaf.shape, np.float32) if leaf.ndim else np.float32(gain)
    )
    return {"params": jax.tree.map(draw, tree)}


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def run(network, params, x, given=GIVEN):
    return network.apply(params, x, given, train=False)


@pytest.mark.slow
def test_output_is_zero_at_initialisation():
    init = jax.jit(functools.partial(SMALL.init, train=False), compiler_options=QUICK)
    params = nn.meta.unbox(init(jax.random.key(0, impl="rbg"), images(), GIVEN))
    assert not np.any(run(SMALL, params, images()))


@pytest.mark.slow
def test_every_parameter_matters():
    def loss(params, x):
        return jnp.sum(jnp.square(NETWORK.apply(params, x, GIVEN, train=False)))

    grads = jax.jit(jax.grad(loss), compiler_options=QUICK)(randomised(NETWORK), images())
    flat = jax.tree_util.tree_leaves_with_path(grads)
    assert not [jax.tree_util.keystr(path) for path, leaf in flat if np.max(np.abs(leaf)) < 1e-6]


@pytest.mark.spread(2)
@pytest.mark.parametrize("encoder", [True, False])
@pytest.mark.parametrize("width", [64, 96])
def test_a_block_keeps_the_variance(encoder, width):
    """For white noise of unit variance, each branch and the block's output have unit variance."""
    block = MagnitudeBlock(width, encoder, head_dim=None)
    x = normal(2, 24, 24, 64)
    vector = normal(2, 32, seed=1)
    init = jax.jit(block.init, compiler_options=QUICK)
    params = nn.meta.unbox(init(jax.random.key(0, impl="rbg"), x, vector))
    out = np.asarray(jax.jit(block.apply, compiler_options=QUICK)(params, x, vector))[:, 2:-2, 2:-2]
    assert np.mean(out**2) == pytest.approx(1, abs=0.05)


def test_attention_is_cosine_attention_of_normalised_values():
    """Equal pixels give one value; the length of queries and keys does not change the logits."""
    attention = MagnitudeAttention(head_dim=8)
    x = jnp.broadcast_to(normal(2, 1, 1, 16), (2, 3, 3, 16))
    weights = {
        "query_key_value": {"weight": normal(1, 1, 16, 48, seed=1)},
        "out": {"weight": normal(1, 1, 16, 16)},
    }
    apply = functools.partial(jax.jit(attention.apply, compiler_options=QUICK), {"params": weights})
    out = apply(x)
    np.testing.assert_allclose(out, jnp.broadcast_to(out[:, :1, :1], out.shape), rtol=1e-5, atol=1e-5)
    varied = normal(2, 3, 3, 16, seed=3)
    np.testing.assert_allclose(apply(5 * varied), apply(varied), rtol=1e-3, atol=1e-3)


def test_no_activation_exceeds_the_clip():
    block = MagnitudeBlock(8, encoder=False, clip=0.5)
    params = randomised(SMALL)["params"]["decoder_0_block_1"]
    x = 100 * images(channels=16)
    apply = jax.jit(
        lambda block: block.apply({"params": params}, x, GIVEN.vector),
        static_argnums=0,
        compiler_options=QUICK,
    )
    out = apply(block)
    assert np.max(np.abs(out)) == 0.5
    free = apply(block.clone(clip=None))
    np.testing.assert_array_equal(out, np.clip(free, -0.5, 0.5))
    assert np.max(np.abs(free)) > 5


def test_a_channel_of_ones_replaces_biases():
    """Without biases, a network of convolutions would map zeros to zeros."""
    assert shapes(NETWORK)["stem"]["weight"].value.shape == (3, 3, 3, 8)
    assert np.max(np.abs(run(NETWORK, randomised(NETWORK), 0 * images()))) > 0.1


@pytest.mark.parametrize("what", ["image", "vector"])
def test_the_output_depends_on(what):
    params, x = randomised(NETWORK), images()
    other = run(
        NETWORK, params, *((images(seed=9),) if what == "image" else (x, Embeddings(normal(3, 12, seed=9))))
    )
    assert np.max(np.abs(other - run(NETWORK, params, x))) > 0.1


def test_spatial_conditions_are_joined_to_the_image():
    x, params = images(channels=3), randomised(SMALL, channels=3)
    split = GIVEN.replace(spatial=x[..., 2:])
    np.testing.assert_array_equal(run(SMALL, params, x[..., :2], split), run(SMALL, params, x))


@pytest.mark.slow
def test_remat_changes_neither_parameters_nor_gradients():
    network = SMALL.clone(levels=(MagnitudeLevel(8, blocks=1, dropout=0.3),))
    again = network.clone(remat=True)
    assert jax.tree.map(jnp.shape, nn.meta.unbox(shapes(again))) == jax.tree.map(
        jnp.shape, nn.meta.unbox(shapes(network))
    )

    x = images()

    def loss(network, params):
        rngs = {"dropout": jax.random.key(7, impl="rbg")}
        return jnp.mean(jnp.square(network.apply(params, x, GIVEN, train=True, rngs=rngs)))

    grad = jax.jit(jax.grad(loss, 1), static_argnums=0, compiler_options=QUICK)
    for got, want in zip(
        *(jax.tree.leaves(grad(one, randomised(network))) for one in (again, network)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)


def test_dropout_acts_in_training_only():
    network = SMALL.clone(levels=(MagnitudeLevel(8, blocks=1, dropout=0.5),))
    params, x = randomised(network), images()
    apply = jax.jit(
        lambda key, train: network.apply(params, x, GIVEN, train=train, rngs={"dropout": key}),
        static_argnums=1,
        compiler_options=QUICK,
    )
    one, two = jax.random.key(0), jax.random.key(1)
    assert np.any(apply(one, True) != apply(two, True))
    np.testing.assert_array_equal(apply(one, False), apply(two, False))


@pytest.mark.slow
def test_bfloat16_stays_near_float32():
    params, x = randomised(NETWORK), images()
    exact, half = run(NETWORK, params, x), run(NETWORK.clone(dtype="bfloat16"), params, x)
    assert half.dtype == jnp.float32
    assert 0 < np.linalg.norm(half - exact) < 20 * 2**-9 * np.linalg.norm(exact)


def test_parameters_are_float32_with_named_axes():
    tree = shapes(NETWORK.clone(dtype="bfloat16"))
    boxes = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    assert all(isinstance(box, nn.LogicallyPartitioned) for box in boxes)
    assert all(box.value.dtype == jnp.float32 and len(box.names) == box.value.ndim for box in boxes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NETWORK.clone(levels=()), "levels=.*at least one level"),
        (lambda: NETWORK.clone(levels=(MagnitudeLevel(8), MagnitudeLevel(20))), r"levels\[1\].width=20.*head_dim=8"),
        (lambda: NETWORK.clone(levels=(MagnitudeLevel(20, self_attention=True),)), r"levels\[0\].width=20"),
        (lambda: NETWORK.clone(resample_taps=(1.0, 2.0, 1.0)), "resample_taps="),
        (lambda: NETWORK.clone(out_channels=0), "out_channels=0"),
        (lambda: NETWORK.clone(head_dim=0), "head_dim=0"),
        (lambda: NETWORK.clone(residual_balance=1.0), "residual_balance=1.0"),
        (lambda: NETWORK.clone(attention_balance=0.0), "attention_balance=0.0"),
        (lambda: NETWORK.clone(concat_balance=2.0), "concat_balance=2.0"),
        (lambda: NETWORK.clone(clip=0.0), "clip=0.0"),
        (lambda: NETWORK.clone(dtype="bf16"), "dtype='bf16'"),
        (lambda: shapes(NETWORK, images(size=7)), r"image_shape=\(7, 7\).*multiples of 2"),
        (lambda: shapes(NETWORK, given=Embeddings()), "vector="),
        (lambda: shapes(NETWORK, given=GIVEN.replace(spatial=images(size=4))), r"spatial=\(4, 4\)"),
        (lambda: shapes(NETWORK, given=GIVEN.replace(
            tokens=Tokens(normal(3, 5, 6), jnp.ones((3, 5), bool)))), "tokens: .*no cross-attention"),
    ],
)  # fmt: skip
def test_impossible_settings_are_errors(make, message):
    with pytest.raises(UserError, match=message):
        make()
