"""Low-rank changes of kernels against formulas, and against PEFT as it runs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.models.layers import Conv, Dense, FromHeads, GroupNorm, ToHeads
from jaxdiff.models.lora import KERNELS, Lora
from jaxdiff.trees import paths

RANK = 3


class Network(nn.Module):
    """A layer of each kind."""

    @nn.compact
    def __call__(self, x):
        h = GroupNorm(1, 1, name="norm")(Conv(6, name="conv")(x)).reshape(x.shape[0], -1, 6)
        query, key, value = ToHeads(3, 2, 4, name="query_key_value")(h)
        h = FromHeads(6, zero=False, name="out")(query + key * value)
        return Dense(5, name="dense")(h)


X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 3)), jnp.float32)
EVERY = ("conv", "query_key_value", "out", "dense")


def boxed():
    return Network().init(jax.random.key(0), X)["params"]


def random_factors(lora, seed=1):
    """Factors in which every number matters."""
    factors = lora.init(boxed(), jax.random.key(0))
    leaves, tree = jax.tree.flatten(factors)
    rng = np.random.default_rng(seed)
    drawn = [jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, drawn)


def run(params):
    return np.asarray(Network().apply({"params": params}, X))


def torch_matrix(kernel, inputs):
    """[out, in] of a kernel whose last axes are outputs."""
    return np.asarray(kernel).reshape(int(np.prod(kernel.shape[: len(inputs)])), -1).T


@pytest.mark.slow
def test_the_change_is_alpha_over_rank_times_the_product():
    lora = Lora(RANK, alpha=6.0, targets=EVERY, scale=0.5)
    params, factors = nn.meta.unbox(boxed()), random_factors(lora)
    changed = paths(lora.merged(params, factors))
    before = paths(params)
    for name in ("dense", "out", "conv"):
        own = factors[name]["kernel"]
        down = np.asarray(own["down"]).reshape(-1, RANK)
        change = 0.5 * 6.0 / RANK * down @ np.asarray(own["up"])
        shape = before[f"{name}/kernel"].shape
        found = np.asarray(changed[f"{name}/kernel"] - before[f"{name}/kernel"])
        np.testing.assert_allclose(found, change.reshape(shape), rtol=1e-4, atol=1e-5)
    own = factors["query_key_value"]["kernel"]
    for i in range(3):  # queries, keys and values have factors of their own
        change = np.asarray(own["down"][i]) @ np.asarray(own["up"][i]).reshape(RANK, -1)
        found = (changed["query_key_value/kernel"] - before["query_key_value/kernel"])[:, i]
        np.testing.assert_allclose(np.asarray(found).reshape(6, -1), change, rtol=1e-4, atol=1e-5)
    others = [path for path in before if not path.endswith("kernel")]
    for path in others:
        np.testing.assert_array_equal(changed[path], before[path])


@pytest.mark.parametrize("dora", [False, True])
def test_training_starts_from_the_model_itself(dora):
    lora = Lora(RANK, targets=EVERY, dora=dora)
    params = nn.meta.unbox(boxed())
    changed = lora.merged(params, lora.init(boxed(), jax.random.key(3)))
    for path, kernel in paths(params).items():
        np.testing.assert_allclose(paths(changed)[path], kernel, rtol=1e-6 if dora else 0)


def test_at_scale_0_every_bit_is_that_of_the_model():
    lora = Lora(RANK, targets=EVERY, scale=0.0)
    params = nn.meta.unbox(boxed())
    np.testing.assert_array_equal(run(lora.merged(params, random_factors(lora))), run(params))


def test_changed_kernels_in_the_layers_own_type_train_the_same_bit_by_bit():
    """And kernels that are held in half precision are those of float32, as far as half precision can hold them."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), nn.meta.unbox(boxed()))

    def gradients(dtype, params):
        lora = Lora(RANK, targets=("dense",), dtype=dtype)

        def loss(factors):
            kernel = lora.merged(params, factors, train=True)["dense"]
            assert kernel["kernel"].dtype == dtype
            return jnp.sum(
                jnp.sin(Dense(5, dtype="bfloat16").apply({"params": kernel}, X @ jnp.ones((3, 6))))
            )

        return jax.grad(loss)(random_factors(lora))

    wide = gradients("float32", half)
    held = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), half)
    for found in (gradients("bfloat16", half), gradients("bfloat16", held), gradients("float32", held)):
        for path, gradient in paths(wide).items():
            np.testing.assert_array_equal(paths(found)[path], gradient)


@pytest.mark.slow
def test_gradients_reach_up_first_and_then_down():
    lora = Lora(RANK, targets=EVERY)
    params, factors = nn.meta.unbox(boxed()), lora.init(boxed(), jax.random.key(0))

    def loss(factors):
        return jnp.sum(jnp.square(Network().apply({"params": lora.merged(params, factors)}, X)))

    first = paths(jax.grad(loss)(factors))
    assert all(np.any(grad != 0) == path.endswith("up") for path, grad in first.items())
    second = paths(jax.grad(loss)(random_factors(lora)))
    assert all(np.any(grad != 0) for grad in second.values())


@pytest.mark.spread(2)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_weights_and_the_gradients_are_pefts(kind, dora):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 4, 6) if kind == "conv" else (4, 6)).astype(np.float32)
    names = [None, None, "channels_in", "channels_out"][-kernel.ndim :]
    params = {"layer": {"kernel": nn.LogicallyPartitioned(jnp.asarray(kernel), tuple(names))}}
    lora = Lora(RANK, alpha=2.0, targets=("layer",), dora=dora)
    factors = lora.init(params, jax.random.key(0))["layer"]["kernel"]
    factors = {
        name: jnp.asarray(rng.uniform(0.5, 1.5, array.shape), jnp.float32) for name, array in factors.items()
    }
    layer = (
        torch.nn.Conv2d(4, 6, 3, padding=1, bias=False)
        if kind == "conv"
        else torch.nn.Linear(4, 6, bias=False)
    )
    order = (3, 2, 0, 1) if kind == "conv" else (1, 0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(kernel.transpose(order)))
    settings = peft.LoraConfig(r=RANK, lora_alpha=2.0, target_modules=["0"], use_dora=dora)
    model = peft.get_peft_model(torch.nn.Sequential(layer), settings)
    theirs = dict(model.named_parameters())
    end = "base_model.model.0.lora_{}.default.weight"
    down, up = (np.asarray(factors[name]) for name in ("down", "up"))
    with torch.no_grad():
        theirs[end.format("A")].copy_(torch.tensor(down.transpose(order)))
        theirs[end.format("B")].copy_(torch.tensor(up.T.reshape(theirs[end.format("B")].shape)))
        if dora:
            norm = np.linalg.norm(kernel.reshape(-1, 6), axis=0) * np.asarray(factors["magnitude"]).ravel()
            vector = theirs[end.format("magnitude_vector")]
            vector.copy_(torch.tensor(norm.reshape(vector.shape)))
    x = rng.standard_normal((2, 5, 5, 4) if kind == "conv" else (2, 4)).astype(np.float32)
    given = torch.tensor(x.transpose(0, 3, 1, 2) if kind == "conv" else x)
    out = model(given)
    (out**2).sum().backward()

    def apply(factors):
        merged = lora.changed("layer/kernel", jnp.asarray(kernel), factors)
        if kind == "linear":
            return x @ merged
        return jax.lax.conv_general_dilated(
            x, merged, (1, 1), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    expected = out.detach().numpy()
    expected = expected.transpose(0, 2, 3, 1) if kind == "conv" else expected
    np.testing.assert_allclose(apply(factors), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    grads = jax.grad(lambda factors: jnp.sum(jnp.square(apply(factors))))(factors)
    for name, letter in (("down", "A"), ("up", "B")):
        grad = theirs[end.format(letter)].grad.numpy()
        found = np.asarray(grads[name])
        found = found.transpose(order) if name == "down" else found.T.reshape(grad.shape)
        np.testing.assert_allclose(found, grad, rtol=1e-3, atol=1e-4 * np.abs(grad).max())


def test_patterns_choose_kernels():
    lora = Lora(2, targets=("query_*", "conv"))
    assert set(lora.chosen(boxed())) == {"conv/kernel", "query_key_value/kernel"}
    assert {path.rpartition("/")[0] for path in paths(lora.init(boxed(), jax.random.key(0)))} == {
        "conv/kernel", "query_key_value/kernel",
    }  # fmt: skip
    with pytest.raises(
        UserError, match="targets='norm': expected a pattern that names a kernel, got no match"
    ):
        Lora(2, targets=("norm",)).chosen(boxed())
    with pytest.raises(UserError, match="rank"):
        Lora(0)
    with pytest.raises(UserError, match="scale"):
        Lora(2, scale=float("nan"))


def test_factors_of_another_model_are_refused():
    lora = Lora(2, targets=("dense",))
    factors = lora.init(boxed(), jax.random.key(0))
    with pytest.raises(UserError, match="lora=dense/kernel: expected a kernel of the model"):
        lora.merged({"other": {"kernel": jnp.zeros((6, 5))}}, factors)
    with pytest.raises(UserError, match=r"got \(6, 4\)"):
        lora.merged({"dense": {"kernel": jnp.zeros((6, 4))}}, factors)


def test_every_kind_of_kernel_has_factors_of_its_own_shape():
    """The kind is found from the factors alone."""
    assert len(
        {tuple(map(len, each.product.partition("->")[0].split(","))) for each in KERNELS.values()}
    ) == len(KERNELS)
