"""Optimizers by module: each part moves as with its own optimizer alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.errors import UserError
from jaxdiff.training.optimizer import AdamW, Constant
from jaxdiff.training.per_module import PerModule

RNG = np.random.default_rng(0)
PARAMS = {name: {"kernel": jnp.asarray(RNG.standard_normal((3, 2)))} for name in ("network", "discriminator")}
GRADS = [jax.tree.map(lambda leaf: jnp.asarray(RNG.standard_normal(leaf.shape)), PARAMS) for _ in range(4)]
FIRST, OTHER = AdamW(1e-2, clip_norm=0.1), AdamW(3e-3, Constant(2), b1=0.5, clip_norm=None)


def moved(optimizer, params, grads):
    made = optimizer.make(10)
    state = made.init(params)
    for each in grads:
        updates, state = made.update(each, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_each_part_moves_as_with_its_optimizer_alone():
    found = moved(PerModule(FIRST, {"discriminator": OTHER}), PARAMS, GRADS)
    for name, optimizer in (("network", FIRST), ("discriminator", OTHER)):
        own = [{name: grads[name]} for grads in GRADS]
        expected = moved(optimizer, {name: PARAMS[name]}, own)
        np.testing.assert_allclose(found[name]["kernel"], expected[name]["kernel"], rtol=1e-6)


def test_patterns_must_name_parameters_and_frozen_ones_belong_to_the_first():
    with pytest.raises(UserError, match="others='critic': expected a pattern that names a parameter"):
        PerModule(FIRST, {"critic": OTHER}).make(10).init(PARAMS)
    with pytest.raises(UserError, match=r"others.discriminator.frozen"):
        PerModule(FIRST, {"discriminator": AdamW(frozen=("a",))})
    both = PerModule(AdamW(2e-3, frozen=("network/stem",)), {"discriminator": OTHER})
    assert (both.frozen, both.learning_rate) == (("network/stem",), 2e-3)
