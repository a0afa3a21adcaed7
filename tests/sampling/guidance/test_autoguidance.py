"""Guidance by a worse model, against its formula and the closed form of its ODE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import VarianceExploding
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.guidance.autoguidance import Autoguidance
from jaxdiff.sampling.guidance.classifier_free import Interval
from jaxdiff.sampling.loop import integrate
from jaxdiff.sampling.samplers.heun import Heun
from tests.oracles import Counting
from tests.sampling.guidance.models import FLOW, KEYS, a_batch, model, oracle


def wide(x, t, fields, drop):
    """A bad version of `model`: the same means, inflated variance."""
    return oracle(jnp.where(drop["mean"], 0.0, fields["mean"])[:, None, None, None], jnp.asarray(0.8))(x, t)


def test_autoguidance_extrapolates_from_the_guiding_model():
    x, fields, t = a_batch()
    none = {"mean": jnp.zeros(3, bool)}
    main, bad = model(x, t, fields, none), wide(x, t, fields, none)
    counted = Counting(model), Counting(wide)
    found = Autoguidance(2.5)(counted[0], FLOW, fields, KEYS, counted[1])(x, t)
    np.testing.assert_allclose(found.x_0, main.x_0 + 1.5 * (main.x_0 - bad.x_0), rtol=1e-9)
    np.testing.assert_allclose(found.noise, main.noise + 1.5 * (main.noise - bad.noise), rtol=1e-9)
    assert [model.calls for model in counted] == [1, 1]


def throws(*arguments):
    raise AssertionError("this model was not to be called")


def test_autoguidance_calls_the_guiding_model_in_its_interval_only():
    x, fields, t = a_batch()
    plain = model(x, t, fields, {"mean": jnp.zeros(3, bool)})
    with jax.disable_jit():
        for guidance in (Autoguidance(1.0), Autoguidance(3.0, interval=Interval(0.0, 0.1))):
            found = guidance(model, FLOW, fields, KEYS, throws)(x, t)
            np.testing.assert_array_equal(found.x_0, plain.x_0)
    found = Autoguidance(1.0)(model, FLOW, fields, KEYS)(x, t)
    np.testing.assert_array_equal(found.x_0, plain.x_0)
    with pytest.raises(UserError, match=r"guiding_model=None: expected a guiding model"):
        Autoguidance(2.0)(model, FLOW, fields, KEYS)


def test_autoguidance_of_gaussians_has_the_closed_form_of_its_ode():
    process, grid, scale = VarianceExploding(), Karras(0.05, 10.0), 2.0

    def centred(std):
        return lambda x, t, fields, drop: oracle(jnp.zeros(()), jnp.asarray(std), process)(x, t)

    x = jnp.ones((1, 1, 1, 1))
    denoise = Autoguidance(scale)(centred(0.5), process, {}, KEYS[:1], centred(0.9))
    found = integrate(Heun(), denoise, process, grid(process, 400), x, KEYS[:1])
    slope = ((0.5**2 + 0.05**2) / (0.5**2 + 100)) ** (scale / 2)
    slope *= ((0.9**2 + 0.05**2) / (0.9**2 + 100)) ** ((1 - scale) / 2)
    np.testing.assert_allclose(found, slope, rtol=2e-3)
