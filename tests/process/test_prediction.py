import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving, diffuse
from jaxdiff.process.labels import LogSigma, StepIndex
from jaxdiff.process.prediction import (
    Data,
    Edm,
    LearnedVariance,
    Noise,
    Score,
    V,
    Velocity,
    decode,
    error_ratio,
    target,
)
from jaxdiff.process.schedule import Cosine, Linear
from jaxdiff.process.table import ScaledLinearBetas, Table
from jaxdiff.process.transition import forward, posterior_std, reverse_log_variance

PROCESSES = [
    VariancePreserving(Linear()),
    VariancePreserving(Cosine()),
    VarianceExploding(),
    RectifiedFlow(),
]
PARAMETERIZATIONS = [Noise(), Data(), V(), Velocity(), Score(), Score(scaled=True), Edm(0.5), Edm(1.3)]
T = np.array([0.02, 0.2, 0.5, 0.8, 0.98])

each_process = pytest.mark.parametrize("process", PROCESSES, ids=str)
each_parameterization = pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=str)


def a_pair():
    x_0, noise = np.random.default_rng(1).normal(size=(2, len(T), 2, 3, 2))
    return jnp.asarray(x_0), jnp.asarray(noise)


@pytest.mark.spread(5)
@each_process
@each_parameterization
def test_decode_inverts_target(process, parameterization):
    x_0, noise = a_pair()
    t = jnp.asarray(T)
    x_t = diffuse(process, x_0, noise, t)
    found = decode(parameterization, process, t, x_t, target(parameterization, process, t, x_0, noise))
    np.testing.assert_allclose(found.x_0, x_0, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(found.noise, noise, rtol=1e-7, atol=1e-7)


@each_parameterization
def test_a_flow_is_exact_and_finite_at_its_ends(parameterization):
    x_0, noise = a_pair()
    t, flow = jnp.array([0.0, 1.0, 0.0, 1.0, 0.5]), RectifiedFlow()
    x_t = diffuse(flow, x_0, noise, t)
    wrong = target(parameterization, flow, t, x_0, noise) + 0.3
    found = decode(parameterization, flow, t, x_t, wrong)
    np.testing.assert_array_equal(found.x_0[0], x_0[0])
    np.testing.assert_array_equal(found.noise[1], noise[1])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    gradient = jax.grad(lambda output: sum(map(jnp.sum, decode(parameterization, flow, t, x_t, output)[:2])))
    assert np.all(np.isfinite(gradient(wrong)))


@each_parameterization
def test_decode_returns_the_clean_input_of_a_vp_process(parameterization):
    x_0, noise = a_pair()
    found = decode(parameterization, VariancePreserving(Linear()), jnp.zeros(len(T)), x_0, noise)
    np.testing.assert_array_equal(found.x_0, x_0)
    assert np.all(np.isfinite(found.noise))


def test_targets_match_the_papers():
    x_0, noise = a_pair()
    t, vp, flow = jnp.asarray(T), VariancePreserving(Cosine()), RectifiedFlow()
    alpha, sigma = (np.asarray(value)[:, None, None, None] for value in vp.signal(t))
    np.testing.assert_array_equal(target(Noise(), vp, t, x_0, noise), noise)
    np.testing.assert_array_equal(target(Data(), vp, t, x_0, noise), x_0)
    np.testing.assert_allclose(target(V(), vp, t, x_0, noise), alpha * noise - sigma * x_0, rtol=1e-12)
    np.testing.assert_allclose(target(Velocity(), flow, t, x_0, noise), noise - x_0, rtol=1e-12)
    np.testing.assert_allclose(target(Edm(1.0), vp, t, x_0, noise), sigma * x_0 - alpha * noise, rtol=1e-7)


@each_process
def test_velocity_is_the_slope_of_the_path(process):
    x_0, noise = a_pair()
    t, h = jnp.asarray(T), 1e-6
    slope = (diffuse(process, x_0, noise, t + h) - diffuse(process, x_0, noise, t - h)) / (2 * h)
    np.testing.assert_allclose(target(Velocity(), process, t, x_0, noise), slope, rtol=1e-6, atol=1e-6)


@each_process
@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_edm_is_table_1_of_the_paper(process, sigma_data):
    x_0, noise = a_pair()
    t, edm = jnp.asarray(T), Edm(sigma_data)
    x_t = diffuse(process, x_0, noise, t)
    alpha, sigma = (np.asarray(value)[:, None, None, None] for value in process.signal(t))
    s = sigma / alpha
    c_skip = sigma_data**2 / (s**2 + sigma_data**2)
    c_out = s * sigma_data / np.sqrt(s**2 + sigma_data**2)
    c_in = 1 / np.sqrt(s**2 + sigma_data**2)
    x, label = edm.network_input(process, x_t, t)
    np.testing.assert_allclose(x, c_in / alpha * np.asarray(x_t), rtol=1e-9)
    np.testing.assert_allclose(label, np.log(s)[:, 0, 0, 0] / 4, rtol=1e-9, atol=1e-9)
    output = jnp.asarray(np.random.default_rng(2).normal(size=x_0.shape))
    expected = c_skip / alpha * np.asarray(x_t) + c_out * np.asarray(output)
    np.testing.assert_allclose(decode(edm, process, t, x_t, output).x_0, expected, rtol=1e-9, atol=1e-9)
    # Input and target have unit variance if the data's is sigma_data^2 (a and b weigh independent parts).
    np.testing.assert_allclose(c_in**2 * (sigma_data**2 + s**2), 1, rtol=1e-12)
    a, b = map(np.asarray, edm.row(process, t))
    np.testing.assert_allclose((a * sigma_data) ** 2 + b**2, 1, rtol=1e-9)


def test_edm_labels_are_finite_at_both_ends():
    x, label = Edm().network_input(RectifiedFlow(), jnp.ones((2, 1, 1, 1)), jnp.array([0.0, 1.0]))
    assert np.all(np.isfinite(x))
    assert np.all(np.isfinite(label))


@pytest.mark.parametrize(
    "parameterization", [one for one in PARAMETERIZATIONS if not isinstance(one, Edm)], ids=str
)
def test_other_networks_see_the_image_and_ddpm_time(parameterization):
    x_t, t = jnp.ones((2, 1, 1, 1)), jnp.array([0.0, 0.5])
    x, label = parameterization.network_input(RectifiedFlow(), x_t, t)
    np.testing.assert_array_equal(x, x_t)
    np.testing.assert_array_equal(label, [0, 500])


@pytest.mark.spread(5)
@each_process
@each_parameterization
def test_error_ratio_is_the_sensitivity_of_other_targets(process, parameterization):
    x_0, noise = a_pair()
    t = jnp.asarray(T)
    x_t = diffuse(process, x_0, noise, t)
    output = target(parameterization, process, t, x_0, noise)
    moved = decode(parameterization, process, t, x_t, output + 1.0)
    for space in PARAMETERIZATIONS:
        change = target(space, process, t, moved.x_0, moved.noise) - target(space, process, t, x_0, noise)
        ratio = np.asarray(error_ratio(space, parameterization, process, t))[:, None, None, None]
        np.testing.assert_allclose(change, np.broadcast_to(ratio, change.shape), rtol=1e-6, atol=1e-6)


@each_process
def test_score_is_the_gradient_of_the_log_density(process):
    """Of ``x_t`` given the image, whose mean over images is the score of ``x_t`` (Vincent 2011)."""
    x_0, noise = a_pair()
    t = jnp.asarray(T)
    alpha, sigma = (value[:, None, None, None] for value in process.signal(t))

    def log_density(x_t):
        return -jnp.sum(((x_t - alpha * x_0) / sigma) ** 2) / 2

    score = jax.grad(log_density)(diffuse(process, x_0, noise, t))
    np.testing.assert_allclose(target(Score(), process, t, x_0, noise), score, rtol=1e-8)


@pytest.mark.parametrize("mean", [Noise(), V(), Edm()], ids=str)
def test_learned_variance_is_the_second_half_of_the_channels(mean):
    """The target is that of `mean` alone; -1, 0 and 1 are the lower bound, the middle and the upper bound."""
    x_0, noise = a_pair()
    process, t = VariancePreserving(Cosine()), jnp.asarray(T)
    x_t = diffuse(process, x_0, noise, t)
    both, first = LearnedVariance(mean), target(mean, process, t, x_0, noise)
    np.testing.assert_array_equal(target(both, process, t, x_0, noise), first)
    for v, fraction in ((-1.0, 0.0), (0.0, 0.5), (1.0, 1.0), (1.4, 1.2)):
        output = jnp.concatenate([first, jnp.full_like(first, v)], axis=-1)
        found = decode(both, process, t, x_t, output)
        np.testing.assert_allclose(found.x_0, x_0, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(found.noise, noise, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(found.variance_fraction, np.full(x_0.shape, fraction), rtol=1e-12)
    # As the paper has it, between the logarithms of the two variances (Nichol & Dhariwal 2021, equation 15).
    s = t - 0.01
    log_variance = reverse_log_variance(process, s, t, found.variance_fraction)[:, 0, 0, 0]
    low, high = 2 * np.log(posterior_std(process, s, t)), 2 * np.log(forward(process, s, t).sigma)
    np.testing.assert_allclose(log_variance, 1.2 * high - 0.2 * low, rtol=1e-9)
    plain = decode(mean, process, t, x_t, first)
    assert plain.variance_fraction is None


@pytest.mark.parametrize("mean", [Noise(StepIndex(250)), Edm(0.7, LogSigma(1.0))], ids=str)
def test_learned_variance_has_the_inputs_of_its_mean(mean):
    x_t, t = jnp.ones((2, 1, 1, 1)), jnp.array([0.1, 0.5])
    both = LearnedVariance(mean)
    assert both.label == mean.label
    for ours, theirs in zip(
        both.network_input(RectifiedFlow(), x_t, t), mean.network_input(RectifiedFlow(), x_t, t), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(both.row(RectifiedFlow(), t), mean.row(RectifiedFlow(), t))


@pytest.mark.spread(3)
@each_parameterization
def test_at_zero_terminal_snr_decode_returns_the_noise(parameterization):
    """From pure noise, a noise network determines no image: x_0 is 0, never NaN."""
    x_0, noise = a_pair()
    process, t = VariancePreserving(Table(ScaledLinearBetas(), zero_terminal_snr=True)), jnp.ones(len(T))
    x_t = diffuse(process, x_0, noise, t)
    np.testing.assert_array_equal(x_t, noise)
    found = decode(parameterization, process, t, x_t, 0.3 * x_0)
    np.testing.assert_array_equal(found.noise, noise)
    assert np.all(np.isfinite(found.x_0))
    if isinstance(parameterization, Noise | Score):
        np.testing.assert_array_equal(found.x_0, 0)
    elif isinstance(parameterization, V):
        np.testing.assert_allclose(found.x_0, -0.3 * x_0, rtol=1e-12)


def test_arithmetic_is_float32_for_any_network_dtype(float32):
    x_t, output = jnp.ones((1, 2, 2, 1), jnp.bfloat16), jnp.full((1, 2, 2, 2), 0.3, jnp.bfloat16)
    found = decode(LearnedVariance(V()), VariancePreserving(Cosine()), jnp.array([0.3]), x_t, output)
    assert found.x_0.dtype == found.noise.dtype == jnp.float32
    assert found.variance_fraction.dtype == jnp.float32


@pytest.mark.parametrize(
    "parameterization", [*PARAMETERIZATIONS, LearnedVariance(V()), V(StepIndex())], ids=str
)
def test_configs_build_the_same_object(parameterization):
    block = describe(parameterization)
    assert build(block) == build(from_json(to_json(block))) == parameterization


def test_a_standard_deviation_of_zero_is_refused():
    with pytest.raises(UserError, match="sigma_data=0"):
        Edm(0.0)
