"""Variational bound: terms in closed form and of guided-diffusion, and their sum."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtr
from scipy.stats import norm

from jaxdiff.errors import UserError
from jaxdiff.likelihood import variational
from jaxdiff.likelihood.variational import NormalDecoder, TanhDecoder, bound, normal_kl, prior_bits, step_bits
from jaxdiff.process.gaussian import RectifiedFlow, Signal, VarianceExploding, VariancePreserving, diffuse
from jaxdiff.process.prediction import LearnedVariance, Prediction, decode
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.noise import noise_like
from tests.oracles import Gaussian, Mixture

GOLDENS = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "likelihood.npz")
STEPS = 1000
PROCESSES = [VariancePreserving(Cosine()), VarianceExploding(), RectifiedFlow()]
LEVELS = np.arange(256) / 127.5 - 1


class Table:
    """A process on the times i / T only, by its cumulative products of alphas."""

    def __init__(self, alphas_cumprod):
        self._square = alphas_cumprod

    def signal(self, t):
        square = self._at(t)
        return Signal(jnp.sqrt(square), jnp.sqrt(1 - square))

    def log_snr(self, t):
        square = self._at(t)
        return jnp.log(square) - jnp.log1p(-square)

    def time(self, log_snr):
        raise NotImplementedError

    def _at(self, t):
        return self._square[jnp.round(t * len(self._square)).astype(int) - 1]


def golden(name: str):
    """Stored images, channels last."""
    return jnp.asarray(np.moveaxis(GOLDENS[name], 1, -1), jnp.float64)


@pytest.fixture(scope="module")
def peer_terms():
    """Per schedule: our terms without and with clipping of the predicted image, and the prior's."""

    @jax.jit
    def terms(alphas_cumprod, x_0, x_t, output, t):
        process = Table(alphas_cumprod)
        free = decode(LearnedVariance(), process, t, x_t, output)
        alpha, sigma = (value.reshape(-1, 1, 1, 1) for value in process.signal(t))
        x = jnp.clip(free.x_0, -1, 1)
        clipped = Prediction(x, (x_t - alpha * x) / sigma, free.variance_fraction)
        both = [step_bits(process, STEPS, t, x_0, x_t, p, decoder=TanhDecoder()) for p in (free, clipped)]
        alpha, sigma = process.signal(jnp.ones((), x_0.dtype))
        nats = normal_kl(alpha * x_0, 2 * jnp.log(sigma), jnp.zeros_like(x_0), jnp.zeros(()))
        return *both, prior_bits(process, x_0), jnp.mean(nats, axis=(1, 2, 3)) / jnp.log(2.0)

    with jax.enable_x64(True):
        t = jnp.asarray((GOLDENS["in/t"] + 1) / STEPS)
        return {
            name: terms(
                jnp.asarray(GOLDENS[f"{name}/alphas_cumprod"]),
                golden("in/x_start"),
                golden(f"{name}/x_t"),
                golden("in/model_out"),
                t,
            )
            for name in ("linear", "cosine")
        }


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_terms_match_guided_diffusion(peer_terms, name):
    free, clipped, prior, prior_of_peer = peer_terms[name]
    assert "guided" in json.loads(str(GOLDENS["meta"]))["peer"]["file"]
    np.testing.assert_allclose(free, GOLDENS[f"{name}/vb/clip0"], rtol=1e-10)
    np.testing.assert_allclose(clipped, GOLDENS[f"{name}/vb/clip1"], rtol=1e-10)
    for loss, factor in [("KL/loss", 1), ("RESCALED_KL/loss", STEPS), ("MSE/vb", 1), ("RESCALED_MSE/vb", 1)]:
        np.testing.assert_allclose(factor * free, GOLDENS[f"{name}/{loss}"], rtol=1e-10)
    np.testing.assert_allclose(prior_of_peer, GOLDENS[f"{name}/prior"], rtol=1e-9, atol=1e-16)
    np.testing.assert_allclose(prior, GOLDENS[f"{name}/prior"], rtol=0, atol=1e-9)


def test_the_divergence_is_the_integral():
    p, q = norm(0.3, 0.7), norm(-0.2, 1.1)
    truth = quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -10, 10, epsabs=1e-13)[0]
    found = normal_kl(*(jnp.asarray(v) for v in (0.3, 2 * np.log(0.7), -0.2, 2 * np.log(1.1))))
    assert float(found) == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_the_prior_is_the_initial_noise_of_sampling(process):
    x_0 = jnp.linspace(-1, 1, 6).reshape(2, 1, 3, 1)
    alpha, sigma = process.signal(jnp.ones(()))
    nats = normal_kl(alpha * x_0, 2 * jnp.log(sigma), 0 * x_0, 2 * jnp.log(sigma))
    np.testing.assert_allclose(
        prior_bits(process, x_0), jnp.mean(nats, axis=(1, 2, 3)) / np.log(2), rtol=1e-10
    )


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    "decoder", [NormalDecoder(), TanhDecoder()], ids=lambda decoder: type(decoder).__name__
)
def test_the_probabilities_of_the_levels_sum_to_one(decoder):
    mean = jnp.asarray([-1.3, -0.2, 0.5, 0.999]).reshape(-1, 1, 1, 1)
    for std in (0.003, 0.05, 1.0):
        x_0 = jnp.broadcast_to(jnp.asarray(LEVELS).reshape(1, -1, 1, 1), (4, 256, 1, 1))
        probability = jnp.exp(decoder(x_0, mean + 0 * x_0, jnp.full((4, 1, 1, 1), std)))
        np.testing.assert_allclose(jnp.sum(probability, axis=(1, 2, 3)), 1, rtol=1e-9)


def test_the_decoder_is_the_discretised_normal_with_accurate_tails():
    x_0 = jnp.asarray(LEVELS).reshape(1, -1, 1, 1)
    std = 0.3
    edges = np.concatenate([[-np.inf], (LEVELS[1:] + LEVELS[:-1]) / 2, [np.inf]])
    truth = np.diff(ndtr((edges - 0.1) / std))
    found = NormalDecoder()(x_0, jnp.full_like(x_0, 0.1), jnp.full((1, 1, 1, 1), std)).ravel()
    np.testing.assert_allclose(jnp.exp(found), truth, rtol=1e-9)
    # 50 standard deviations away the probability is no double any more, but its logarithm is.
    near = -50.0 + 1 / 255 / 0.01
    tail = quad(lambda z: np.exp(near**2 / 2 - z**2 / 2), near - 2 / 255 / 0.01, near)[0]
    for sign in (1, -1):
        x_0 = jnp.full((1, 1, 1, 1), sign * LEVELS[64])
        far = NormalDecoder()(x_0, x_0 + sign * 0.5, jnp.full((1, 1, 1, 1), 0.01))
        truth = np.log(tail) - near**2 / 2 - np.log(2 * np.pi) / 2
        assert float(far.squeeze()) == pytest.approx(truth, rel=1e-7)


@pytest.mark.spread(1)
@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_vlb_terms_closed_form(process):
    """Every step of the exact denoiser of Gaussian data, with q by Bayes' rule from q(x_t | x_s) and q(x_s | x_0)."""
    steps, mean, std = 8, 0.2, 0.5
    data = Gaussian(jnp.asarray(mean).reshape(1, 1, 1, 1), jnp.asarray(std).reshape(1, 1, 1, 1))
    x_0, noise = jax.random.normal(jax.random.key(0), (2, steps, 1, 3, 1), jnp.float64)
    x_0 = jnp.clip(x_0, -3, 3) * 0.3
    t = jnp.arange(1, steps + 1) / steps
    x_t = diffuse(process, x_0, noise, t)
    x_hat = jax.vmap(lambda x, t: data.denoiser(process)(x[None], t).x_0[0])(x_t, t)
    alpha, sigma = (np.asarray(v).reshape(-1, 1, 1, 1) for v in process.signal(t))
    pair = Prediction(x_hat, (x_t - alpha * x_hat) / sigma)

    alpha_s, sigma_s, alpha_t, sigma_t = alpha[:-1], sigma[:-1], alpha[1:], sigma[1:]
    a = alpha_t / alpha_s
    added = sigma_t**2 - a**2 * sigma_s**2
    variance = 1 / (1 / sigma_s**2 + a**2 / added)
    centre = variance * (alpha_s * x_0[1:] / sigma_s**2 + a * x_t[1:] / added)
    guess = variance * (alpha_s * x_hat[1:] / sigma_s**2 + a * x_t[1:] / added)
    for fraction, learned in [(0.0, False), (1.0, False), (0.3, True)]:
        wide = variance ** (1 - fraction) * added**fraction
        nats = (np.log(wide / variance) - 1 + (variance + (centre - guess) ** 2) / wide) / 2
        prediction = pair._replace(variance_fraction=jnp.full_like(x_0, fraction)) if learned else pair
        other = 9.0 if learned else fraction  # what is learned comes first
        run = jax.jit(lambda p, other=other: step_bits(process, steps, t, x_0, x_t, p, other))
        found = run(prediction)
        np.testing.assert_allclose(found[1:], np.mean(nats, (1, 2, 3)) / np.log(2), rtol=1e-8)
        # A fixed variance is the smaller one at the first step, whatever it is elsewhere.
        first = variance[0] ** (1 - fraction) * sigma[0] ** (2 * fraction) if learned else variance[0]
        decoded = NormalDecoder()(x_0[:1], x_hat[:1], jnp.asarray(np.sqrt(first)).reshape(1, 1, 1, 1))
        np.testing.assert_allclose(found[0], -np.mean(decoded) / np.log(2), rtol=1e-8)
        if not fraction:  # only the image's error counts (Kingma et al. 2021, equation 14)
            snr = (alpha / sigma) ** 2
            truth = (snr[:-1] - snr[1:]) / 2 * np.square(x_0 - x_hat)[1:]
            np.testing.assert_allclose(found[1:], np.mean(truth, axis=(1, 2, 3)) / np.log(2), rtol=1e-7)


@pytest.mark.slow
def test_vdm_loss_is_entropy():
    """The bound of the best model of a few levels: above their entropy, falling with T towards it."""
    process = VarianceExploding(5e-4, 300.0)
    weights, atoms = np.array([0.1, 0.4, 0.3, 0.2]), LEVELS[[0, 60, 61, 255]]
    entropy = -np.sum(weights * np.log2(weights))
    model = Mixture(jnp.asarray(weights), jnp.asarray(atoms)[:, None], jnp.zeros(4)).denoiser(process)
    nodes, spacing = np.linspace(-8, 8, 161, retstep=True)
    x_0 = jnp.asarray(np.repeat(atoms, len(nodes))).reshape(-1, 1, 1, 1)
    noise = jnp.asarray(np.tile(nodes, len(atoms))).reshape(x_0.shape)
    probability = jnp.asarray(np.outer(weights, norm.pdf(nodes) * spacing).ravel())

    def expected(steps: int) -> float:
        """The mean of the bound over images and noise, by quadrature."""

        def term(t):
            x_t = diffuse(process, x_0, noise, t)
            times = jnp.broadcast_to(t, x_0.shape[:1])
            return jnp.sum(probability * step_bits(process, steps, times, x_0, x_t, model(x_t, t)))

        terms = jax.lax.map(term, jnp.arange(1, steps + 1) / steps, batch_size=64)
        return float(jnp.sum(terms) + jnp.sum(probability * prior_bits(process, x_0)))

    bounds = np.array([expected(steps) for steps in (64, 128, 256, 512)])
    assert (bounds > entropy).all()
    gaps = bounds - entropy
    np.testing.assert_allclose(gaps[1:] / gaps[:-1], 0.5, atol=0.05)
    assert 2 * bounds[3] - bounds[2] == pytest.approx(entropy, abs=2e-3)


def test_the_bound_is_its_terms_at_the_noise_of_each_images_key():
    process, steps = VariancePreserving(Cosine()), 4
    model = Gaussian(jnp.full((1, 1, 1, 1), 0.1), jnp.full((1, 1, 1, 1), 0.6)).denoiser(process)
    x_0 = jnp.asarray(LEVELS[[0, 3, 200, 255, 17, 90]]).reshape(3, 1, 2, 1)
    keys = jax.random.split(jax.random.key(3), 3)
    found = jax.jit(lambda x, keys: bound(model, process, steps, x, keys, 1.0))(x_0, keys)
    term = jax.jit(lambda t, x_t, p: step_bits(process, steps, jnp.broadcast_to(t, 3), x_0, x_t, p, 1.0))
    for i in range(1, steps + 1):
        noise = noise_like(jax.vmap(jax.random.fold_in, (0, None))(keys, i), x_0)
        t = jnp.asarray(i / steps)
        x_t = diffuse(process, x_0, noise, t)
        prediction = model(x_t, t)
        np.testing.assert_allclose(found.terms[:, i - 1], term(t, x_t, prediction), rtol=1e-10)
        for name, error in [("x_0", prediction.x_0 - x_0), ("noise", prediction.noise - noise)]:
            truth = jnp.mean(jnp.square(error), axis=(1, 2, 3))
            np.testing.assert_allclose(getattr(found, f"{name}_error")[:, i - 1], truth, rtol=1e-10)
    for values in (found.terms, found.x_0_error, found.noise_error):
        assert values.shape == (3, steps)
    np.testing.assert_allclose(found.prior, prior_bits(process, x_0))
    np.testing.assert_allclose(found.total, found.prior + found.terms.sum(axis=1))


@pytest.mark.slow
def test_a_bad_model_has_finite_gradients_in_single_precision(float32):
    """Branches that are not selected, such as the decoder after the first step, must not make gradients NaN."""
    process, steps = VarianceExploding(), 1000
    x_0 = jnp.asarray([-1.0, 1.0, 0.0, 0.5], jnp.float32).reshape(4, 1, 1, 1)
    t = jnp.asarray([1, 2, 700, 1000]) / steps

    def loss(x, fraction):
        x_t = diffuse(process, x_0, jnp.ones_like(x_0), t)
        prediction = Prediction(x, x_t - x, fraction)
        return jnp.sum(step_bits(process, steps, t, x_0, x_t, prediction))

    grads = jax.grad(loss, (0, 1))(x_0 + 3, jnp.full_like(x_0, -0.5))
    assert all(np.isfinite(grad).all() and (np.asarray(grad)[:3] != 0).all() for grad in grads)


def test_one_step_is_an_error():
    x = jnp.zeros((1, 1, 1, 1))
    with pytest.raises(UserError, match="steps=1"):
        variational.step_bits(PROCESSES[0], 1, jnp.ones(1), x, x, Prediction(x, x))
