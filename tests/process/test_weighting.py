import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.process import prediction, weighting
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.prediction import Data, Noise, V, Velocity, error_ratio
from jaxdiff.process.schedule import Cosine

VP = VariancePreserving(Cosine())


def on_output(weight, parameterization, process, t):
    """The weight of a squared error of the network's own output."""
    ratio = error_ratio(weight.space, parameterization, process, t)
    return np.asarray(weight(process.log_snr(t))) * np.square(ratio)


def times():
    return jnp.asarray(np.linspace(0.01, 0.99, 201))


def test_flat_counts_the_output_as_it_is():
    assert weighting.Flat().space is None
    np.testing.assert_array_equal(weighting.Flat()(jnp.array([-9.0, 9.0])), 1)


@pytest.mark.parametrize(
    ("parameterization", "formula"),
    [
        (Data(), lambda snr: np.minimum(snr, 5)),
        (Noise(), lambda snr: np.minimum(snr, 5) / snr),
        (V(), lambda snr: np.minimum(snr, 5) / (snr + 1)),
    ],
)
def test_min_snr_is_the_papers_for_every_target(parameterization, formula):
    found = on_output(weighting.MinSnr(5.0), parameterization, VP, times())
    np.testing.assert_allclose(found, formula(np.exp(VP.log_snr(times()))), rtol=1e-9)


@pytest.mark.parametrize("process", [VP, VarianceExploding(), RectifiedFlow()], ids=str)
@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_edm_weight_makes_the_edm_output_count_as_it_is(process, sigma_data):
    weight = weighting.Edm(sigma_data)
    np.testing.assert_allclose(on_output(weight, prediction.Edm(sigma_data), process, times()), 1, rtol=1e-9)
    s = np.exp(-np.asarray(process.log_snr(times())) / 2)
    formula = (s**2 + sigma_data**2) / (s * sigma_data) ** 2
    np.testing.assert_allclose(weight(process.log_snr(times())), formula, rtol=1e-9)


def test_sigmoid_is_a_bias_of_the_noise_error():
    found = on_output(weighting.Sigmoid(-2.0), Noise(), VP, times())
    np.testing.assert_allclose(found, 1 / (1 + np.exp(2 + np.asarray(VP.log_snr(times())))), rtol=1e-9)


def test_the_error_of_a_flow_velocity_in_noise_space():
    """noise = x_t + (1 - t) velocity."""
    np.testing.assert_allclose(
        error_ratio(Noise(), Velocity(), RectifiedFlow(), times()), 1 - np.asarray(times()), rtol=1e-9
    )


@pytest.mark.parametrize("weight", [weighting.MinSnr(), weighting.Edm(), weighting.Sigmoid()], ids=str)
def test_no_weight_is_nan_at_the_ends(weight, float32):
    ends = jnp.asarray(np.repeat([0.0, 1.0, 0.5], 67), jnp.float32)
    for parameterization in (Data(), Noise(), V(), Velocity(), prediction.Edm()):
        assert np.all(np.isfinite(on_output(weight, parameterization, RectifiedFlow(), ends)))
