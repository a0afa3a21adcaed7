"""Properties of every U-Net: initial output, inputs, options."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import UserError
from jaxdiff.models.blocks import ResidualBlock, ResidualMiddle
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.pixel_attention import AttentionBlock, PixelAttention
from jaxdiff.models.resampling import from_patches, resample, to_patches
from jaxdiff.models.unet import Level, UNet

PIXELS, TOKENS = PixelAttention(head_dim=8), PixelAttention(False, True, head_dim=8)
BOTH = PixelAttention(cross_attention=True, head_dim=8)
LEVELS = (Level(8, blocks=1), Level(16, blocks=1, attention=BOTH))
NETWORK = UNet(LEVELS, out_channels=2, middle=ResidualMiddle(BOTH))
SMALL = UNet((Level(8, blocks=1),), out_channels=2, middle=ResidualMiddle(None))
ONE = UNet((Level(8, blocks=1, attention=BOTH),), out_channels=2, middle=ResidualMiddle(BOTH))
QUICK = {"xla_backend_optimization_level": 0}  # compiles in half the time
PLAIN = UNet((Level(8, blocks=1), Level(16, blocks=1)), out_channels=2, middle=ResidualMiddle(PIXELS))


def images(batch=3, size=8, channels=2, seed=0):
    return jax.random.normal(jax.random.key(seed), (batch, size, size, channels))


def embeddings(batch=3, tokens=True, seed=1):
    key_vector, key_tokens = jax.random.split(jax.random.key(seed))
    features = jax.random.normal(key_tokens, (batch, 5, 6))
    mask = jnp.arange(5)[None] < jnp.arange(1, batch + 1)[:, None] + 1
    vector = jax.random.normal(key_vector, (batch, 12))
    return Embeddings(vector, Tokens(features, mask) if tokens else None)


def shapes(network, x, given):
    """The boxed parameters without their values: nothing is compiled."""
    return jax.eval_shape(functools.partial(network.init, train=False), jax.random.key(0), x, given)


@functools.cache
def randomised(network, tokens=True, channels=2):
    """Random values for all parameters: zero-initialised layers would hide all others."""
    rng = np.random.default_rng(2)

    def draw(path, leaf):
        start = 1.0 if path[-1].key == "scale" else 0.0
        fan_in = max(1, leaf.size // leaf.shape[-1])
        return jnp.asarray(start + rng.standard_normal(leaf.shape, np.float32) / np.sqrt(fan_in))

    tree = shapes(network, images(channels=channels), embeddings(tokens=tokens))
    return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(tree))


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def run(network, params, x, embeddings):
    return network.apply(params, x, embeddings, train=False)


def modules(network, tokens=True):
    """Paths of all parameters, from shapes alone."""
    tree = shapes(network, images(), embeddings(tokens=tokens))
    flat = jax.tree_util.tree_leaves_with_path(nn.meta.unbox(tree)["params"])
    return {"/".join(key.key for key in path): leaf.shape for path, leaf in flat}


@pytest.mark.slow
def test_output_is_zero_at_initialisation():
    # XLA compiles this generator four times as fast as threefry.
    key = jax.random.key(0, impl="rbg")
    params = jax.jit(functools.partial(ONE.init, train=False))(key, images(), embeddings())
    assert jnp.all(run(ONE, nn.meta.unbox(params), images(), embeddings()) == 0)


def test_blocks_are_initially_their_skip():
    x, vector = images(channels=8), embeddings().vector
    residual, attention = ResidualBlock(8), AttentionBlock(2)
    key = jax.random.key(0, impl="rbg")
    params = nn.meta.unbox(jax.jit(residual.init)(key, x, vector))
    np.testing.assert_array_equal(jax.jit(residual.apply)(params, x, vector), x)
    params = nn.meta.unbox(jax.jit(attention.init)(key, x))
    np.testing.assert_array_equal(jax.jit(attention.apply)(params, x), x)


@pytest.mark.slow
def test_every_parameter_matters():
    """A parameter with a zero gradient would be unused."""

    def loss(params, x, given):
        return jnp.sum(jnp.square(NETWORK.apply(params, x, given, train=False)))

    grads = jax.jit(jax.grad(loss), compiler_options=QUICK)(randomised(NETWORK), images(), embeddings())
    dead = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if np.max(np.abs(leaf)) < 1e-7 and "query" not in jax.tree_util.keystr(path)
    ]
    assert not dead


@pytest.mark.spread(1)
@pytest.mark.parametrize("slot", ["vector", "tokens"])
def test_the_output_depends_on_the_condition(slot):
    params, given = randomised(NETWORK), embeddings()
    other = given.replace(**{slot: getattr(embeddings(seed=5), slot)})
    outputs = run(NETWORK, params, images(), given), run(NETWORK, params, images(), other)
    assert jnp.max(jnp.abs(outputs[0] - outputs[1])) > 1e-2


def test_the_batch_can_be_permuted():
    order = np.array([2, 0, 1])
    params, x, given = randomised(NETWORK), images(), embeddings()
    shuffled = run(NETWORK, params, x[order], jax.tree.map(lambda leaf: leaf[order], given))
    np.testing.assert_allclose(shuffled, run(NETWORK, params, x, given)[order], atol=1e-5)


def test_masked_tokens_are_not_read():
    params, given = randomised(NETWORK), embeddings()
    tokens = given.tokens
    poisoned = jnp.where(tokens.mask[..., None], tokens.features, 1e3)
    other = given.replace(tokens=Tokens(poisoned, tokens.mask))
    np.testing.assert_array_equal(
        run(NETWORK, params, images(), given), run(NETWORK, params, images(), other)
    )


@pytest.mark.slow
def test_spatial_conditions_are_joined_to_the_image():
    x, given = images(channels=3), embeddings(tokens=False)
    params = randomised(SMALL, tokens=False, channels=3)
    split = given.replace(spatial=x[..., 2:])
    assert shapes(SMALL, x[..., :2], split)["params"]["stem"]["kernel"].value.shape[2] == 3
    np.testing.assert_array_equal(run(SMALL, params, x[..., :2], split), run(SMALL, params, x, given))


@pytest.mark.slow
def test_remat_changes_neither_parameters_nor_loss():
    assert modules(NETWORK) == modules(NETWORK.clone(remat=True))
    network = SMALL.clone(levels=(Level(8, blocks=1, dropout=0.3),))
    params, x, given = randomised(network, tokens=False), images(), embeddings(tokens=False)

    def loss(network, params):
        rngs = {"dropout": jax.random.key(7)}
        return jnp.mean(jnp.square(network.apply(params, x, given, train=True, rngs=rngs)))

    run_loss = jax.jit(jax.value_and_grad(loss, 1), static_argnums=0, compiler_options=QUICK)
    value, grads = run_loss(network, params)
    value_again, grads_again = run_loss(network.clone(remat=True), params)
    # Not bitwise: XLA may fuse the recomputed sums in another order.
    np.testing.assert_allclose(value_again, value, rtol=1e-6)
    for got, want in zip(jax.tree.leaves(grads_again), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_dropout_acts_in_training_only():
    network = SMALL.clone(levels=(Level(8, blocks=1, dropout=0.5),))
    params = randomised(network, tokens=False)
    x, given = images(), embeddings(tokens=False)
    apply = jax.jit(
        lambda key, train: network.apply(params, x, given, train=train, rngs={"dropout": key}),
        static_argnums=1,
    )
    one, two = jax.random.key(0), jax.random.key(1)
    assert jnp.any(apply(one, True) != apply(two, True))
    np.testing.assert_array_equal(apply(one, False), apply(two, False))


@pytest.mark.slow
def test_bfloat16_stays_near_float32():
    params, x, given = randomised(NETWORK), images(), embeddings()
    exact = run(NETWORK, params, x, given)
    half = run(NETWORK.clone(dtype="bfloat16"), params, x, given)
    assert half.dtype == jnp.float32
    # About 20 roundings of 2^-9 in a row, adding like a random walk.
    assert jnp.linalg.norm(half - exact) < 20 * 2**-9 * jnp.linalg.norm(exact)
    assert jnp.any(half != exact)


def test_parameters_are_float32_with_named_axes():
    tree = shapes(NETWORK.clone(dtype="bfloat16"), images(), embeddings())
    boxes = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    assert all(isinstance(box, nn.LogicallyPartitioned) for box in boxes)
    assert all(box.value.dtype == jnp.float32 and len(box.names) == box.value.ndim for box in boxes)


@pytest.mark.spread(2)
@pytest.mark.parametrize(
    ("change", "added"),
    [
        ({"attention": PIXELS}, {f"{block}/self_attention" for block in
                                    ("encoder_0_block_0", "decoder_0_block_0", "decoder_0_block_1")}),
        ({"blocks": 2}, {f"{block}/residual" for block in ("encoder_0_block_1", "decoder_0_block_2")}),
        ({"dropout": 0.5}, set()),
    ],
)  # fmt: skip
def test_an_option_of_a_level_acts_on_that_level(change, added):
    changed = PLAIN.clone(levels=(dataclasses.replace(PLAIN.levels[0], **change), PLAIN.levels[1]))
    before, after = modules(PLAIN, tokens=False), modules(changed, tokens=False)
    assert before.keys() <= after.keys()
    new = {"/".join(path.split("/")[:2]) for path in after.keys() - before.keys()}
    # A longer decoder meets its skips at other blocks, whose inputs may have other widths.
    assert {path for path in new if not path.endswith("skip")} == added


def test_cross_attention_needs_no_self_attention():
    crossed = PLAIN.clone(levels=(dataclasses.replace(PLAIN.levels[0], attention=TOKENS), PLAIN.levels[1]))
    new = modules(crossed).keys() - modules(PLAIN, tokens=False).keys()
    assert new
    assert all("_0_block_" in path and "/cross_attention/" in path for path in new)


def test_options_of_the_network():
    before = modules(PLAIN, tokens=False)
    flat = modules(PLAIN.clone(middle=ResidualMiddle(None)), tokens=False)
    assert {path for path in before if "middle_block_0/self_attention" in path} == before.keys() - flat.keys()
    network = PLAIN.clone(resampling="conv")
    plain = modules(network, tokens=False)
    assert plain["down_0/conv/kernel"] == (3, 3, 8, 8)
    assert plain["up_1/conv/kernel"] == (3, 3, 16, 16)
    assert all(path.startswith(("down_0/", "up_1/")) for path in before.keys() ^ plain.keys())
    params = randomised(network, tokens=False)
    assert run(network, params, images(), embeddings(tokens=False)).shape == images().shape


@pytest.mark.slow
def test_patches_are_the_same_network_on_squares():
    inside = PLAIN.clone(out_channels=8)
    x, given = images(), embeddings(tokens=False)
    params = randomised(inside, tokens=False, channels=8)
    found = run(PLAIN.clone(patch=2), params, x, given)
    np.testing.assert_array_equal(found, from_patches(run(inside, params, to_patches(x, 2), given), 2))
    with pytest.raises(UserError, match=r"image_shape=\(6, 6\).*multiples of 4"):
        shapes(PLAIN.clone(patch=2), images(size=6), given)


@pytest.mark.slow
def test_coordinates_are_two_more_channels():
    with_them = PLAIN.clone(coordinates=True)
    x, given = images(), embeddings(tokens=False)
    params = randomised(with_them, tokens=False)
    middles = (np.arange(8) + 0.5) / 8 * 2 - 1
    where = np.broadcast_to(np.stack(np.meshgrid(middles, middles, indexing="ij"), axis=-1), (3, 8, 8, 2))
    found = run(with_them, params, x, given)
    shown = given.replace(spatial=jnp.asarray(where, jnp.float32))
    np.testing.assert_allclose(found, run(PLAIN, params, x, shown), atol=1e-5)
    assert np.abs(found - run(with_them, params, x[:, ::-1], given)[:, ::-1]).max() > 0.1


def test_down_is_the_mean_and_the_left_inverse_of_up():
    x = images()
    np.testing.assert_allclose(resample(resample(x, "up"), "down"), x, atol=1e-6)
    np.testing.assert_allclose(resample(x, "down")[0, 1, 2], x[0, 2:4, 4:6].mean((0, 1)), atol=1e-6)
    np.testing.assert_array_equal(resample(x, "up"), np.repeat(np.repeat(x, 2, 1), 2, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNet((), 1), "levels=.*at least one level"),
        (lambda: PLAIN.clone(levels=(Level(8), Level(20))), r"levels\[1\].width=20.*head_dim=8"),
        (lambda: PLAIN.clone(levels=(Level(20, attention=PIXELS), Level(8))), r"levels\[0\].width=20"),
        (lambda: PLAIN.clone(dtype="bf16"), "dtype='bf16'"),
        (lambda: PLAIN.clone(out_channels=0), "out_channels=0"),
        (lambda: PLAIN.clone(patch=0), "patch=0"),
        (lambda: PLAIN.clone(stem_width=0), "stem_width=0"),
        (lambda: PixelAttention(False, False), "self_attention=False"),
        (lambda: PixelAttention(heads=2), "heads=2.*head_dim=32"),
        (lambda: BlockOptions(eps=0.0), "eps=0.0"),
        (lambda: Level(0), "width=0"),
        (lambda: Level(8, blocks=-1), "blocks=-1"),
        (lambda: Level(8, dropout=1.0), "dropout=1.0"),
    ],
)
def test_impossible_networks(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_impossible_inputs():
    with pytest.raises(UserError, match=r"image_shape=\(7, 7\).*multiples of 2"):
        shapes(NETWORK, images(size=7), embeddings())
    with pytest.raises(UserError, match="cross-attention, because a condition gives tokens"):
        shapes(PLAIN, images(), embeddings())
    with pytest.raises(UserError, match="a condition that gives tokens"):
        shapes(NETWORK, images(), embeddings(tokens=False))
    with pytest.raises(UserError, match=r"spatial=\(4, 4\)"):
        shapes(NETWORK, images(), embeddings().replace(spatial=images(size=4)))
    with pytest.raises(UserError, match="vector="):
        shapes(NETWORK, images(), embeddings().replace(vector=None))
