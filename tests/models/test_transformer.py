"""The transformer of a U-ViT against its formula and PyTorch's, and its dependence on its inputs."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.embeddings import Embeddings, Tokens
from jaxdiff.errors import UserError
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.transformer import Transformer, TransformerBlock, TransformerMiddle
from jaxdiff.models.unet import Level, UNet

QUICK = {"xla_backend_optimization_level": 0}
WIDTH, HEADS, HEAD_DIM = 16, 2, 8
PLAIN = TransformerMiddle(WIDTH, blocks=2, head_dim=HEAD_DIM, expansion=3)
CROSSED = TransformerMiddle(WIDTH, blocks=1, head_dim=HEAD_DIM, expansion=3, cross_attention=True)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def tokens(seed=2):
    return Tokens(draw(3, 5, 6, seed=seed), jnp.arange(5)[None] < jnp.array([[5], [2], [0]]))


def given(seed=2):
    """Sequences, vectors and tokens."""
    return draw(3, 7, WIDTH), draw(3, 12, seed=1), tokens(seed)


def randomised(module, *inputs, **options):
    """Random values for all parameters: zero-initialised layers would hide all others."""
    abstract = jax.eval_shape(functools.partial(module.init, **options), jax.random.key(0), *inputs)
    rng = np.random.default_rng(3)

    def fill(path, leaf):
        start = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(start + rng.standard_normal(leaf.shape, np.float32) / math.sqrt(max(leaf.shape)))

    return jax.tree_util.tree_map_with_path(fill, nn.meta.unbox(abstract))


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def run(module, params, *inputs, **options):
    return module.apply(params, *inputs, **options)


def plain_block(params, x, vector, tokens=None):
    """The block in NumPy and float64, one image, head and query at a time."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    x, vector = np.asarray(x, np.float64), np.asarray(vector, np.float64)

    def layer_norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * params[name]["scale"] + params[name]["bias"]

    def dense(x, name):
        return x @ params[name]["kernel"] + params[name]["bias"]

    def project(x, name, number, head):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        return x @ kernel[:, number, head] + bias[number, head]

    def softmax_mean(query, key, value):
        weights = np.exp(query @ key.T / math.sqrt(HEAD_DIM))
        return (weights / weights.sum(-1, keepdims=True)) @ value

    def merge_heads(per_head, name):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        return sum(out @ kernel[head] for head, out in enumerate(per_head)) + bias

    gelu = np.vectorize(lambda value: value * (1 + math.erf(value / math.sqrt(2))) / 2)
    outputs = []
    for i in range(len(x)):
        h = x[i]
        scale_0, shift_0, scale_1, shift_1 = np.split(dense(vector[i], "modulation"), 4)
        normal = layer_norm(h, "norm_0") * (1 + scale_0) + shift_0
        heads = [
            softmax_mean(*(project(normal, "query_key_value", number, head) for number in range(3)))
            for head in range(HEADS)
        ]
        h = h + merge_heads(heads, "attention_out")
        if tokens is not None:
            seen = np.asarray(tokens.features[i], np.float64)[np.asarray(tokens.mask[i])]
            queries, heads = layer_norm(h, "norm_tokens"), []
            for head in range(HEADS):
                key, value = (project(seen, "key_value", number, head) for number in range(2))
                query = project(queries, "query", 0, head)
                heads.append(softmax_mean(query, key, value) if len(seen) else 0 * query)
            h = h + merge_heads(heads, "cross_out")
        normal = layer_norm(h, "norm_1") * (1 + scale_1) + shift_1
        outputs.append(h + dense(gelu(dense(normal, "expand")), "contract"))
    return np.stack(outputs)


@pytest.mark.parametrize("crossed", [False, True])
def test_a_block_is_its_formula(crossed):
    """Norm, softmax over all pixels, softmax over unmasked tokens, exact GELU; one image has no token."""
    block, (x, vector, tokens) = TransformerBlock(HEAD_DIM, 3, crossed), given()
    params = randomised(block, x, vector, tokens)
    expected = plain_block(params, x, vector, tokens if crossed else None)
    np.testing.assert_allclose(run(block, params, x, vector, tokens), expected, atol=2e-5)


def test_an_unmodulated_block_is_pytorchs():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH, HEADS, 3 * WIDTH, dropout=0.0, activation="gelu", norm_first=True, batch_first=True
    )
    with torch.no_grad():
        for name, value in layer.named_parameters():  # away from zeros and ones
            value.copy_(torch.randn(value.shape) / 4 + float("norm" in name and "weight" in name))
    x, vector, _ = given()
    theirs = {name: jnp.asarray(value.detach().numpy()) for name, value in layer.named_parameters()}

    def dense(name):
        return {"kernel": theirs[f"{name}.weight"].T, "bias": theirs[f"{name}.bias"]}

    def norm(name):
        return {"scale": theirs[f"{name}.weight"], "bias": theirs[f"{name}.bias"]}

    block = TransformerBlock(HEAD_DIM, 3)
    params = {
        "modulation": {"kernel": jnp.zeros((12, 4 * WIDTH)), "bias": jnp.zeros(4 * WIDTH)},
        "norm_0": norm("norm1"),
        "norm_1": norm("norm2"),
        "query_key_value": {
            "kernel": theirs["self_attn.in_proj_weight"].T.reshape(WIDTH, 3, HEADS, HEAD_DIM),
            "bias": theirs["self_attn.in_proj_bias"].reshape(3, HEADS, HEAD_DIM),
        },
        "attention_out": {
            "kernel": theirs["self_attn.out_proj.weight"].T.reshape(HEADS, HEAD_DIM, WIDTH),
            "bias": theirs["self_attn.out_proj.bias"],
        },
        "expand": dense("linear1"),
        "contract": dense("linear2"),
    }
    expected = layer(torch.from_numpy(np.array(x))).detach().numpy()
    np.testing.assert_allclose(run(block, {"params": params}, x, vector, None), expected, atol=2e-5)


def pixels(size=4, seed=0):
    return draw(3, size, size, 10, seed=seed), draw(3, 12, seed=1), tokens()


def test_it_starts_as_the_identity():
    module, (x, vector, tokens) = Transformer(CROSSED), pixels()
    init = jax.jit(functools.partial(module.init), compiler_options=QUICK)
    params = nn.meta.unbox(init(jax.random.key(0, impl="rbg"), x, vector, tokens))
    np.testing.assert_array_equal(run(module, params, x, vector, tokens), x)
    block, sequence = TransformerBlock(HEAD_DIM, 3, cross_attention=True), draw(3, 16, WIDTH, seed=4)
    found = run(block, {"params": params["params"]["block_0"]}, sequence, vector, tokens)
    np.testing.assert_array_equal(found, sequence)


def test_every_parameter_matters():
    module, inputs = Transformer(CROSSED), pixels()
    params = randomised(module, *inputs)

    @functools.partial(jax.jit, compiler_options=QUICK)
    @jax.grad
    def slopes(params):
        return jnp.sum(jnp.square(module.apply(params, *inputs)))

    leaves = jax.tree_util.tree_leaves_with_path(slopes(params))
    dead = [jax.tree_util.keystr(path) for path, leaf in leaves if np.abs(leaf).max() < 1e-6]
    assert not dead


def test_positions_are_known_from_position_embeddings_only():
    module, (x, vector, tokens) = Transformer(CROSSED), pixels()
    params = randomised(module, x, vector, tokens)
    order = np.random.default_rng(5).permutation(16)

    def moved(images):
        return images.reshape(3, 16, -1)[:, order].reshape(images.shape)

    def changes(params):
        after = run(module, params, moved(x), vector, tokens)
        return np.abs(after - moved(run(module, params, x, vector, tokens))).max()

    assert changes(params) > 0.1
    without = {"params": {**params["params"], "places": 0 * params["params"]["places"]}}
    assert changes(without) < 1e-5


def test_an_image_depends_on_its_own_inputs_only():
    module, (x, vector, tokens) = Transformer(CROSSED), pixels()
    params = randomised(module, x, vector, tokens)
    before = run(module, params, x, vector, tokens)
    features, mask = tokens.features, tokens.mask
    hidden = jnp.where(mask[..., None], features, 1e3)  # tokens that are not there may be anything
    np.testing.assert_array_equal(run(module, params, x, vector, Tokens(hidden, mask)), before)
    for other in (
        (x.at[1].add(1.0), vector, tokens),
        (x, vector.at[1].add(1.0), tokens),
        (x, vector, Tokens(features.at[1, 0].add(1.0), mask)),
        (x, vector, Tokens(features, mask.at[1, 0].set(False))),
    ):
        difference = np.abs(run(module, params, *other) - before).max(axis=(1, 2, 3))
        assert difference[1] > 1e-3
        np.testing.assert_array_equal(difference[[0, 2]], 0)


def test_dropout_acts_in_training_only():
    level = TransformerMiddle(WIDTH, blocks=1, head_dim=HEAD_DIM, dropout=0.5)
    module, inputs = Transformer(level), pixels()
    params = randomised(module, *inputs)

    def training(seed):
        return run(module.clone(train=True), params, *inputs, rngs={"dropout": jax.random.key(seed)})

    still = run(module, params, *inputs)
    np.testing.assert_array_equal(training(0), training(0))
    assert jnp.any(training(0) != training(1))
    assert jnp.any(training(0) != still)
    plain = Transformer(TransformerMiddle(WIDTH, blocks=1, head_dim=HEAD_DIM))
    np.testing.assert_array_equal(run(plain.clone(train=True), params, *inputs), still)


def test_it_replaces_the_middle_blocks():
    levels = (Level(8, blocks=1), Level(16, blocks=1))
    plain = UNet(levels, out_channels=2, middle=ResidualMiddle(PixelAttention(head_dim=8)))
    network = plain.clone(middle=CROSSED)
    x, embeddings = draw(3, 8, 8, 2), Embeddings(draw(3, 12, seed=1), tokens())

    def names(network, embeddings):
        found = jax.eval_shape(functools.partial(network.init, train=False), jax.random.key(0), x, embeddings)
        return set(found["params"])

    without = embeddings.replace(tokens=None)
    assert names(network, embeddings) - names(plain, without) == {"middle"}
    assert names(plain, without) - names(network, embeddings) == {"middle_block_0", "middle_block_1"}
    with pytest.raises(UserError, match="a condition that gives tokens"):
        names(network, without)
    with pytest.raises(UserError, match="cross-attention, because a condition gives tokens"):
        names(plain.clone(middle=PLAIN), embeddings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width=0"),
        ({"blocks": 0}, "blocks=0"),
        ({"head_dim": 0}, "head_dim=0"),
        ({"head_dim": 5}, "width=16.*head_dim=5"),
        ({"expansion": 0}, "expansion=0"),
        ({"dropout": 1.0}, r"dropout=1\.0"),
        ({"dropout": -0.1}, r"dropout=-0\.1"),
    ],
)
def test_impossible_settings_are_errors(change, message):
    with pytest.raises(UserError, match=f"{message}.*Fix: "):
        TransformerMiddle(**{"width": 16, "blocks": 1, "head_dim": 8} | change)
