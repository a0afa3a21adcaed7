import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import config as configs
from jaxdiff.errors import UserError
from jaxdiff.process import prediction, weighting
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.prediction import Data, Noise, V, Velocity, error_ratio
from jaxdiff.process.schedule import Cosine
from jaxdiff.process.time_sampling import Uniform

VP = VariancePreserving(Cosine())
ALL = [
    weighting.Flat(),
    weighting.Flat(V()),
    weighting.Snr(),
    weighting.TruncatedSnr(),
    weighting.MinSnr(),
    weighting.SoftMinSnr(),
    weighting.Debiased(),
    weighting.P2(),
    weighting.Edm(),
    weighting.Sigmoid(),
]


def on_output(weight, parameterization, process, t):
    """The weight of a squared error of the network's own output."""
    ratio = error_ratio(weight.space or parameterization, parameterization, process, t)
    return np.asarray(weight(process.log_snr(t))) * np.square(ratio)


def times():
    return jnp.asarray(np.linspace(0.01, 0.99, 201))


def snr():
    return np.exp(np.asarray(VP.log_snr(times())))


def test_flat_is_the_plain_error_of_the_output():
    assert weighting.Flat().space is None
    np.testing.assert_array_equal(weighting.Flat()(jnp.array([-9.0, 9.0])), 1)


@pytest.mark.spread(5)
@pytest.mark.parametrize(
    ("weight", "same", "factor"),
    [
        (weighting.Flat(Noise()), weighting.Snr(), lambda snr: 1),
        (weighting.Flat(prediction.Edm(0.7)), weighting.Edm(0.7), lambda snr: 1),
        (weighting.Flat(Data()), weighting.Snr(), lambda snr: 1 / snr),
        (weighting.Flat(V()), weighting.Flat(Data()), lambda snr: snr + 1),
        (weighting.TruncatedSnr(), weighting.Flat(Data()), lambda snr: np.maximum(snr, 1)),
        (weighting.Debiased(), weighting.Flat(Noise()), lambda snr: 1 / np.sqrt(snr)),
        (weighting.P2(2.0, 0.5), weighting.Flat(Noise()), lambda snr: 1 / np.sqrt(2 + snr)),
        (weighting.P2(1.0, 1.0), weighting.Flat(Noise()), lambda snr: 1 / (1 + snr)),
        (weighting.SoftMinSnr(4.0), weighting.Flat(Data()), lambda snr: 4 * snr / (snr + 4)),
    ],
    ids=lambda value: str(value) if dataclasses.is_dataclass(value) else "factor",
)
@pytest.mark.parametrize("parameterization", [Data(), Noise(), V(), prediction.Edm()], ids=str)
def test_each_weight_is_its_papers_times_a_plain_error(weight, same, factor, parameterization):
    plain = on_output(same, parameterization, VP, times())
    found = on_output(weight, parameterization, VP, times())
    np.testing.assert_allclose(found, factor(snr()) * plain, rtol=1e-8)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_soft_min_snr_is_k_diffusions_on_the_edm_output(sigma_data):
    """There the loss is a mean squared error of EDM's output times this weight of s = sigma / alpha."""
    s = 1 / np.sqrt(snr())
    found = on_output(weighting.SoftMinSnr(sigma_data**-2), prediction.Edm(sigma_data), VP, times())
    np.testing.assert_allclose(found, (s * sigma_data) ** 2 / (s**2 + sigma_data**2) ** 2, rtol=1e-8)


def test_weight_per_log_snr_is_the_weight_times_the_density():
    """Kingma & Gao 2023: under uniform times the noise error of log-SNR l counts weight(l) / |d log-SNR / dt|."""
    weight, edges = weighting.Sigmoid(1.0), np.linspace(-6.1, 5.9, 13)
    t = np.asarray(Uniform().quantile(jnp.asarray((np.arange(200_000) + 0.5) / 200_000), VP))
    log_snr = np.asarray(VP.log_snr(jnp.asarray(t)))
    counted = np.histogram(log_snr, edges, weights=np.asarray(weight(jnp.asarray(log_snr))) / len(t))[0]
    grid = jnp.asarray(np.linspace(-6.1, 5.9, 12 * 200 + 1))
    rate = jax.vmap(jax.grad(VP.log_snr))(VP.time(grid))
    integrand = np.asarray(weight(grid) / -rate).reshape(-1)
    expected = [np.trapezoid(integrand[i * 200 : (i + 1) * 200 + 1], dx=1 / 200) for i in range(12)]
    np.testing.assert_allclose(counted, expected, rtol=2e-3)


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
def test_the_edm_weight_is_a_plain_error_of_the_edm_output(process, sigma_data):
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


@pytest.mark.parametrize("weight", ALL, ids=str)
def test_no_weight_is_nan_at_the_ends(weight, float32):
    ends = jnp.asarray(np.repeat([0.0, 1.0, 0.5], 67), jnp.float32)
    for parameterization in (Data(), Noise(), V(), Velocity(), prediction.Edm()):
        assert np.all(np.isfinite(on_output(weight, parameterization, RectifiedFlow(), ends)))


@pytest.mark.parametrize("weight", ALL, ids=str)
def test_weightings_survive_json(weight):
    block = configs.from_json(configs.to_json(configs.describe(weight)))
    assert configs.build(block, packages=("jaxdiff",)) == weight


@pytest.mark.parametrize(
    "make",
    [
        lambda: weighting.MinSnr(0.0),
        lambda: weighting.SoftMinSnr(-1.0),
        lambda: weighting.P2(k=0.0),
        lambda: weighting.P2(gamma=-0.5),
        lambda: weighting.Edm(0.0),
    ],
)
def test_impossible_weights_are_refused(make):
    with pytest.raises(UserError, match="Fix"):
        make()
