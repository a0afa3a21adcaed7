"""The steps of the DPM-Solver family against their papers' algorithms, written out in x and the half-log-SNR."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import config
from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.prediction import Prediction
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver1, DpmSolver2M, DpmSolver3M
from jaxdiff.sampling.samplers.dpm_solver_single import (
    DpmSolver2,
    DpmSolver2S,
    DpmSolver3,
    DpmSolverSde,
    correlation,
)
from jaxdiff.sampling.samplers.exponential import node, psi
from tests.sampling.solving import walk

PROCESSES = [VariancePreserving(Cosine()), VarianceExploding(), RectifiedFlow()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=str)
TIMES = np.array([0.7, 0.55, 0.45, 0.2])


class Levels:
    """alpha, sigma and lambda of a process in numpy, and a nonlinear denoiser for which no solver is exact."""

    def __init__(self, process):
        self.process = process

    def at(self, t):
        alpha, sigma = (float(value) for value in self.process.signal(jnp.asarray(t)))
        return alpha, sigma, math.log(alpha / sigma)

    def between(self, t, t_next, r):
        """The time after the fraction r of the step in lambda."""
        (_, _, first), (_, _, last) = self.at(t), self.at(t_next)
        return float(self.process.time(jnp.asarray(2 * (first + r * (last - first)))))

    def x_0(self, x, t):
        alpha, sigma, _ = self.at(t)
        return np.tanh(x / math.hypot(alpha, sigma)) * alpha

    def noise(self, x, t):
        alpha, sigma, _ = self.at(t)
        return (x - alpha * self.x_0(x, t)) / sigma

    def denoise(self, x, t):
        alpha, sigma = self.process.signal(t)
        x_0 = jnp.tanh(x / jnp.hypot(alpha, sigma)) * alpha
        return Prediction(x_0, (x - alpha * x_0) / sigma)


def start(size=()):
    return np.random.default_rng(5).normal(size=(*size, 2, 2, 2, 1))


def ours(sampler, process, times=TIMES, noise=()):
    return walk(sampler, Levels(process).denoise, process, times, start(), noise)


@each_process
@pytest.mark.parametrize("r", [0.3, 0.5, 1.0])
def test_dpm_solver_2(r, process):
    """Lu et al. 2022a, algorithm 4."""
    at, x, (t, t_next) = Levels(process), start(), map(float, TIMES[:2])
    (alpha, _, first), (alpha_n, sigma_n, last) = at.at(t), at.at(t_next)
    h, s = last - first, at.between(t, t_next, r)
    alpha_s, sigma_s, _ = at.at(s)
    u = alpha_s / alpha * x - sigma_s * np.expm1(r * h) * at.noise(x, t)
    change = at.noise(u, s) - at.noise(x, t)
    expected = alpha_n / alpha * x - sigma_n * np.expm1(h) * (at.noise(x, t) + change / (2 * r))
    np.testing.assert_allclose(ours(DpmSolver2(r), process)[1], expected, rtol=1e-9)


@each_process
@pytest.mark.parametrize("r", [0.3, 0.5, 1.0])
def test_dpm_solver_plus_plus_2s(r, process):
    """Lu et al. 2022b, algorithm 1."""
    at, x, (t, t_next) = Levels(process), start(), map(float, TIMES[:2])
    (_, sigma, first), (alpha_n, sigma_n, last) = at.at(t), at.at(t_next)
    h, s = last - first, at.between(t, t_next, r)
    alpha_s, sigma_s, _ = at.at(s)
    u = sigma_s / sigma * x - alpha_s * np.expm1(-r * h) * at.x_0(x, t)
    both = (1 - 1 / (2 * r)) * at.x_0(x, t) + at.x_0(u, s) / (2 * r)
    expected = sigma_n / sigma * x - alpha_n * np.expm1(-h) * both
    np.testing.assert_allclose(ours(DpmSolver2S(r), process)[1], expected, rtol=1e-9)


@each_process
@pytest.mark.parametrize("r", [1 / 3, 0.5])
def test_dpm_solver_3(r, process):
    """Lu et al. 2022a, algorithm 5, with r_2 = 2/3."""
    at, x, (t, t_next) = Levels(process), start(), map(float, TIMES[:2])
    (alpha, _, first), (alpha_n, sigma_n, last) = at.at(t), at.at(t_next)
    h, r_2 = last - first, 2 / 3
    s, s_2 = at.between(t, t_next, r), at.between(t, t_next, r_2)
    (alpha_s, sigma_s, _), (alpha_s2, sigma_s2, _) = at.at(s), at.at(s_2)
    u = alpha_s / alpha * x - sigma_s * np.expm1(r * h) * at.noise(x, t)
    d_1 = at.noise(u, s) - at.noise(x, t)
    u_2 = alpha_s2 / alpha * x - sigma_s2 * np.expm1(r_2 * h) * at.noise(x, t)
    u_2 = u_2 - sigma_s2 * r_2 / r * (np.expm1(r_2 * h) / (r_2 * h) - 1) * d_1
    d_2 = at.noise(u_2, s_2) - at.noise(x, t)
    expected = alpha_n / alpha * x - sigma_n * np.expm1(h) * at.noise(x, t)
    expected = expected - sigma_n / r_2 * (np.expm1(h) / h - 1) * d_2
    np.testing.assert_allclose(ours(DpmSolver3(r), process)[1], expected, rtol=1e-9)


@each_process
@pytest.mark.parametrize("integrand", ["x_0", "noise"])
def test_the_first_step_is_ddim_and_the_second_extrapolates(integrand, process):
    ddim = ours(Ddim(), process)
    at = Levels(process)
    slope = getattr(at, integrand)(ddim[1], TIMES[1]) - getattr(at, integrand)(start(), TIMES[0])
    (_, _, a), (_, _, b), (alpha, sigma, c) = (at.at(t) for t in TIMES[:3])
    last, h = b - a, c - b
    gain = alpha * -np.expm1(-h) if integrand == "x_0" else -sigma * np.expm1(h)
    ahead = gain * h / (2 * last) * slope
    for sampler, more in ((DpmSolver1(integrand=integrand), 0.0), (DpmSolver2M(integrand=integrand), ahead)):
        found = ours(sampler, process)
        np.testing.assert_allclose(found[1], ddim[1], rtol=1e-12)
        np.testing.assert_allclose(found[2], ddim[2] + more, rtol=1e-9)


@each_process
@pytest.mark.parametrize("integrand", ["x_0", "noise"])
def test_3m_corrects_its_first_step_by_a_linear_integral(integrand, process):
    """Two steps of 3M are those of 2M (heun) after the first is corrected by the line through both predictions."""
    at, (t, t_1, t_2) = Levels(process), map(float, TIMES[:3])
    (_, _, a), (alpha, sigma, b), (alpha_2, sigma_2, c) = at.at(t), at.at(t_1), at.at(t_2)
    x_1, last, h = ours(Ddim(), process)[1], b - a, c - b
    now, before = (getattr(at, integrand)(x, s) for x, s in ((x_1, t_1), (start(), t)))
    line = np.linspace(0, 1, 20001)
    if integrand == "x_0":
        mended = x_1 + alpha * np.trapezoid(np.exp(-last * (1 - line)) * line * last, line) * (now - before)
        expected = sigma_2 / sigma * mended - alpha_2 * np.expm1(-h) * now
        expected += (
            alpha_2 * np.trapezoid(np.exp(-h * (1 - line)) * line * h, line) * h / last * (now - before)
        )
    else:
        mended = x_1 - sigma * np.trapezoid(np.exp(last * (1 - line)) * line * last, line) * (now - before)
        expected = alpha_2 / alpha * mended - sigma_2 * np.expm1(h) * now
        expected -= (
            sigma_2 * np.trapezoid(np.exp(h * (1 - line)) * line * h, line) * h / last * (now - before)
        )
    np.testing.assert_allclose(ours(DpmSolver3M(integrand=integrand), process)[2], expected, rtol=1e-6)


def test_draws_of_dpm_solver_sde_belong_to_one_path():
    """The noise at t_next is the bridge's from the noise at s to x_0, and new noise for the rest."""
    process, (t, t_next) = VarianceExploding(), jnp.asarray(TIMES[:2])
    s = node(process, t, t_next, (process.log_snr(t_next) - process.log_snr(t)) / 2, 0.5)
    level, level_s, level_next = (float(process.signal(time).sigma) for time in (t, s, t_next))
    at_s, at_next = (b * math.sqrt(1 - (b / level) ** 2) for b in (level_s, level_next))
    np.testing.assert_allclose(
        correlation(process, t, s, t_next), (level_next / level_s) ** 2 * at_s / at_next
    )
    drawn = start((2,))
    still, first, second, both = (
        ours(DpmSolverSde(), process, TIMES[:2], noise * drawn)[-1]
        for noise in (
            np.zeros((2, 1, 1, 1, 1)),
            *np.eye(2).reshape(2, 2, 1, 1, 1, 1),
            np.ones((2, 1, 1, 1, 1)),
        )
    )
    np.testing.assert_allclose(both - first, second - still, rtol=1e-9)
    spread = math.sqrt(1 - float(correlation(process, t, s, t_next)) ** 2) * at_next
    np.testing.assert_allclose(second - still, spread * drawn[1], rtol=1e-9)


def test_from_pure_noise_the_path_has_one_draw():
    flow = RectifiedFlow()
    times = jnp.asarray([1.0, 0.6])
    drawn = start((2,))
    found, expected = (ours(sampler, flow, times, drawn)[-1] for sampler in (DpmSolverSde(), Ddim(1.0)))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "sampler", [DpmSolver2(), DpmSolver2S(), DpmSolverSde(eta=0.0), DpmSolver3()], ids=str
)
def test_from_pure_noise_every_later_call_is_where_the_step_ends(sampler):
    """No time lies between infinite noise and the next one, and a second call at pure noise adds no information."""
    asked = []

    def denoise(x, t):
        asked.append(float(t))
        return Prediction(jnp.tanh(x), x - jnp.tanh(x))

    walk(sampler, denoise, RectifiedFlow(), [1.0, 0.6], start(), np.zeros((2, 1, 1, 1, 1)))
    np.testing.assert_allclose(asked, [1.0] + [0.6] * (sampler.calls(1) - 1), rtol=1e-12)


@pytest.mark.parametrize("sampler", [DpmSolver1(1.0), DpmSolver2M(1.0), DpmSolver3M(1.0)], ids=str)
def test_from_pure_noise_all_noise_is_drawn_again(sampler):
    times, drawn = jnp.asarray([1.0, 0.6]), start((1,))
    found, expected = (ours(one, RectifiedFlow(), times, drawn)[-1] for one in (sampler, Ddim(1.0)))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def exact_psi(k, z):
    """``z phi_k(z) = z int_0^1 exp((1 - u) z) u^(k - 1) / (k - 1)! du`` by Gauss's rule."""
    nodes, shares = np.polynomial.legendre.leggauss(60)
    u = (nodes + 1) / 2
    return z * np.sum(shares / 2 * np.exp((1 - u) * z) * u ** (k - 1) / math.factorial(k - 1))


Z = np.array([-12.0, -1.001, -0.999, -0.3, -1e-3, -1e-7, 1e-9, 1e-5, 0.02, 0.5, 0.999, 1.001, 3.0, 12.0])


def test_psi():
    exact = [[exact_psi(k, z) for z in Z] for k in (1, 2, 3)]
    np.testing.assert_allclose(psi(jnp.asarray(Z), 3), exact, rtol=1e-13)


def test_psi_keeps_its_digits_in_single_precision(float32):
    exact = [[exact_psi(k, z) for z in Z.astype(np.float32).astype(float)] for k in (1, 2, 3)]
    np.testing.assert_allclose(psi(jnp.asarray(Z, jnp.float32), 3), exact, rtol=2e-6)


def test_psi_at_infinity():
    np.testing.assert_array_equal(psi(jnp.asarray(-np.inf), 3), [-1, -1, -0.5])


ALL = [
    DpmSolver1(0.5), DpmSolver2M(1.0, "noise", "heun"), DpmSolver3M(compat=True), DpmSolver2(0.3, 0.5),
    DpmSolver2S(0.7, 1.0), DpmSolverSde(0.4, 0.3), DpmSolver3(0.5),
]  # fmt: skip


@pytest.mark.parametrize("part", ALL, ids=str)
def test_it_is_a_config_block(part):
    assert config.build(config.from_json(config.to_json(config.describe(part)))) == part


@pytest.mark.spread(5)
@pytest.mark.parametrize("sampler", ALL, ids=str)
def test_single_precision_is_enough(sampler, float32):
    """Steps of 1e-4 in log-SNR lose no digit, and the images stay float32."""
    process = VariancePreserving(Cosine())
    times = process.time(jnp.linspace(0.0, 1e-3, 6))
    x, drawn = jnp.asarray(start(), jnp.float32), jnp.asarray(start((10,)), jnp.float32)
    *_, found = walk(sampler, Levels(process).denoise, process, times, x, drawn)
    assert found.dtype == np.float32
    assert np.abs(found - x).max() < 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DpmSolver1(-0.1), r"eta=-0\.1"),
        (lambda: DpmSolver1(integrand="data"), "integrand='data'"),
        (lambda: DpmSolver3M(integrand="data"), "integrand='data'"),
        (lambda: DpmSolver2M(rule="euler"), "rule='euler'"),
        (lambda: DpmSolver2M(eta=-1.0), r"eta=-1\.0"),
        (lambda: DpmSolver2(r=0.0), r"r=0\.0"),
        (lambda: DpmSolver2S(r=1.1), r"r=1\.1"),
        (lambda: DpmSolver2S(eta=1.1), r"eta=1\.1"),
        (lambda: DpmSolver3(r=0.0), r"r=0\.0"),
        (lambda: DpmSolver3(r=1.2), r"r=1\.2"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
