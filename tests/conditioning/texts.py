"""A small text condition with random parameters, and what it gives a network for four captions."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning.text import Text
from jaxdiff.data.text import ByteTokenizer
from jaxdiff.models.text_encoder import ByteTransformer

QUICK = {"xla_backend_optimization_level": 0}
WIDTH, LENGTH, VECTOR = 16, 12, 24


def a_text(length=LENGTH, vector_width=VECTOR, null="learned", drop_rate=0.1, width=WIDTH, **encoder):
    transformer = ByteTransformer(width, **{"layers": 2, "head_dim": 8, "expansion": 3} | encoder)
    return Text(ByteTokenizer(length), transformer, vector_width, drop_rate, null)


TEXT = a_text()
CAPTIONS = ["a red 3", "", "\u4e09\U0001f680", "der 3 a"]  # the first and the last have the same bytes
IDS = TEXT.read(CAPTIONS)
SIZES = np.array([8, 1, 8, 8])  # of tokens, ends included
SHOWN, DROPPED = jnp.zeros(4, bool), jnp.array([True, False, True, True])


def randomised(module, *inputs, seed=3, **options):
    """Random values for all parameters: zero-initialised layers would hide all others."""
    abstract = jax.eval_shape(functools.partial(module.init, **options), jax.random.key(0), *inputs)
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        start, spread = (1.0, 0.3) if path[-1].key == "scale" else (0.0, 0.5)
        return jnp.asarray(start + spread * rng.standard_normal(leaf.shape, np.float32))

    return jax.tree_util.tree_map_with_path(fill, nn.meta.unbox(abstract))


PARAMS = randomised(TEXT, jnp.asarray(IDS), SHOWN)


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def run(part, params, ids, drop):
    return part.apply(params, ids, drop)


class Seen(NamedTuple):
    tokens: np.ndarray
    mask: np.ndarray
    vector: np.ndarray | None


def embed(ids=IDS, drop=SHOWN, part=TEXT, params=PARAMS):
    """The input of a network."""
    found = run(part, params, jnp.asarray(ids), drop)
    vector = None if found.vector is None else np.asarray(found.vector)
    return Seen(np.asarray(found.tokens.features), np.asarray(found.tokens.mask), vector)


def changed(**leaves):
    return {"params": PARAMS["params"] | leaves}


def assert_same_bits(one, other):
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_array_equal(one.tokens[one.mask], other.tokens[one.mask])
    np.testing.assert_array_equal(one.vector, other.vector)
