"""MeanFlow on Gaussian data, where the average velocity has a closed form, and through whole networks."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.guidance_scale import GuidanceScale
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving, diffuse, expand
from jaxdiff.process.labels import StepIndex, Time
from jaxdiff.process.learned import LearnedVariancePreserving
from jaxdiff.process.prediction import Prediction, Velocity, target
from jaxdiff.process.schedule import Cosine
from jaxdiff.process.time_sampling import LogitNormal, Uniform
from jaxdiff.tasks.consistency_models import TEACHER
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.tasks.mean_flow import MeanFlow
from jaxdiff.tasks.objectives import LossInputs, Model, UncertaintyWeighted, WeightedError
from jaxdiff.training.step import Context
from tests.conditioning.texts import a_text
from tests.tasks.test_consistency_models import Nowhere

STD = 0.7
FLOW = RectifiedFlow()
each_process = pytest.mark.parametrize(
    "process", [VarianceExploding(), VariancePreserving(Cosine()), FLOW], ids=str
)
SQUARED = MeanFlow(plain=0.0, power=0.0)


def ratio(process, t):
    return jnp.exp(-process.log_snr(t) / 2)


def exact(process, x_t, t, r, std=STD):
    """The pair whose line from x_t meets the trajectory of N(0, std^2) at r; at r = t the posterior mean.

    In z = x / alpha and rho = sigma / alpha a trajectory keeps ``z / hypot(std, rho)``; noise is its mean slope.
    """
    alpha, sigma = (expand(factor, x_t) for factor in process.signal(t))
    rho, rho_r = (expand(ratio(process, time), x_t) for time in (t, r))
    q, q_r = jnp.hypot(std, rho), jnp.hypot(std, rho_r)
    noise = x_t / alpha * (rho + rho_r) / (q * (q + q_r))
    return Prediction((x_t - sigma * noise) / alpha, noise)


def inputs(process, predict, t, place, x_0, noise, plain=False, fields=(), drop=()):
    """A batch for the model ``predict(x_t, t, r, drop) -> pair``. u is t, and r is ``t * place`` for uniform times."""
    t, place = jnp.asarray(t), jnp.asarray(place)
    x_t = diffuse(process, x_0, noise, t)
    model = Model(
        lambda params, x, t, until, drop, train: predict(x, t, t if until is None else until, drop),
        None, dict(fields), dict(drop), {}, 0, True,
    )  # fmt: skip
    drawn = {"place": place, "plain": jnp.broadcast_to(plain, t.shape), "to_data": jnp.zeros(t.shape, bool)}
    return LossInputs(process, Velocity(), Uniform(), t, t, x_0, noise, x_t, x_t, model=model, drawn=drawn)


T = np.array([0.3, 0.5, 0.7, 0.9])
PLACE = np.array([0.8, 0.1, 0.5, 0.9])


def mean_pairs(process, std=STD):
    """Data and noise that are the posterior means of their x_t: then each example has the velocity of the flow."""
    x_t = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, 2, 1)))
    t = jnp.asarray(T)
    return exact(process, x_t, t, t, std)[:2]


def quadrature(count):
    """Nine pairs of data and noise for each of `count` times, and their weights: exact means of polynomials."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    x_0, noise = (np.tile(v.reshape(-1, 1, 1, 1), (count, 1, 1, 1)) for v in np.meshgrid(STD * nodes, nodes))
    share = np.tile(np.outer(weights, weights).ravel() / weights.sum() ** 2, count)
    return jnp.asarray(x_0), jnp.asarray(noise), jnp.asarray(share)


@each_process
@pytest.mark.parametrize("tangent", ["example", "model"])
def test_at_the_average_velocity_there_is_neither_a_loss_nor_a_gradient(process, tangent):
    objective = dataclasses.replace(SQUARED, tangent=tangent)

    def loss(scale):
        def predict(x, t, r, drop):
            pair = exact(process, x, t, r)
            alpha, sigma = (expand(factor, x) for factor in process.signal(t))
            noise = scale * pair.noise
            return Prediction((x - sigma * noise) / alpha, noise)

        return jnp.sum(objective(inputs(process, predict, T, PLACE, *mean_pairs(process)))[0])

    value, slope = jax.value_and_grad(loss)(1.0)
    np.testing.assert_allclose([value, slope], 0, atol=1e-12)
    assert loss(1.1) > 1e-4


@each_process
@pytest.mark.parametrize("tangent", ["example", "model"])
def test_the_expected_gradient_vanishes_at_the_average_velocity_only(process, tangent):
    """Of data that are N(0, STD^2), in the noise that the model predicts for r below t."""
    x_0, noise, share = quadrature(1)
    t, place = jnp.full(9, 0.7), jnp.full(9, 0.4)
    objective = dataclasses.replace(SQUARED, tangent=tangent)

    def loss(offset):
        def predict(x, t, r, drop):
            pair = exact(process, x, t, r)
            alpha, sigma = (expand(factor, x) for factor in process.signal(t))
            noise = pair.noise + expand(jnp.where(r < t, offset, 0.0), x) * x / alpha
            return Prediction((x - sigma * noise) / alpha, noise)

        return jnp.sum(share * objective(inputs(process, predict, t, place, x_0, noise))[0])

    slope = jax.grad(loss)
    scale = abs(slope(0.1))
    np.testing.assert_allclose(slope(0.0), 0, atol=1e-9 * scale)
    assert slope(0.1) * slope(-0.1) < 0


@pytest.mark.parametrize("tangent", ["example", "model"])
def test_what_is_left_of_the_loss_is_the_variance_of_the_velocity(tangent):
    """Given x_t it is ``STD^2 / s_t^2`` with ``s = hypot((1 - t) STD, t)``.

    Along the velocity of an example x_r moves too, by the factor ``s_r / s_t``.
    """
    (x_0, noise, share), t, r = quadrature(1), 0.7, 0.28
    seen = inputs(
        FLOW,
        lambda x, t, r, drop: exact(FLOW, x, t, r),
        jnp.full(9, t),
        jnp.full(9, r / t),
        x_0,
        noise,
    )
    found = jnp.sum(share * dataclasses.replace(SQUARED, tangent=tangent)(seen)[0])
    s_t, s_r = (np.hypot((1 - time) * STD, time) for time in (t, r))
    factor = {"example": s_r / s_t, "model": 1.0}[tangent]
    np.testing.assert_allclose(found, (factor * STD / s_t) ** 2, rtol=1e-9)


def test_training_from_nothing_reaches_the_average_velocity():
    """One number per example; the model is x times a polynomial of t and r."""
    nodes = 0.5 + 0.5 * np.cos(np.pi * (np.arange(8) + 0.5) / 8)
    grid = np.array([(t, r / t) for t in nodes for r in nodes if r <= t])
    t, place = (jnp.repeat(jnp.asarray(column), 9) for column in grid.T)
    x_0, noise, share = quadrature(len(grid))
    degrees = [(i, j) for i in range(6) for j in range(6)]

    def predict(weights, x, t, r):
        terms = [jnp.cos(i * jnp.arccos(0.999 * (2 * t - 1))) * jnp.cos(j * jnp.arccos(0.999 * (2 * r - 1)))
                 for i, j in degrees]  # fmt: skip
        u = x * expand(jnp.stack(terms, -1) @ weights, x)
        return Prediction(x - expand(t, x) * u, x + expand(1 - t, x) * u)

    def loss(weights):
        seen = inputs(FLOW, lambda x, t, r, drop: predict(weights, x, t, r), t, place, x_0, noise)
        return jnp.sum(share * SQUARED(seen)[0]) / len(grid)

    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 1500))

    @jax.jit
    def trained(weights):
        def step(carry, _):
            weights, state = carry
            updates, state = optimizer.update(jax.grad(loss)(weights), state)
            return (optax.apply_updates(weights, updates), state), None

        return jax.lax.scan(step, (weights, optimizer.init(weights)), length=1500)[0][0]

    weights = trained(jnp.zeros(len(degrees)))
    one = jnp.ones((1, 1, 1, 1))
    end = predict(weights, one, jnp.ones(1), jnp.zeros(1)).x_0
    np.testing.assert_allclose(end, STD, atol=0.02)  # one call: noise of variance 1 becomes data of STD
    half = predict(weights, one, jnp.ones(1), jnp.full(1, 0.5))
    np.testing.assert_allclose(
        0.5 * half.x_0 + 0.5 * half.noise, np.hypot(0.5 * STD, 0.5) * np.ones((1, 1, 1, 1)), atol=0.02
    )


@each_process
@pytest.mark.parametrize("kappa", [None, 0.0, 0.6])
@pytest.mark.parametrize("scales", [False, True])
def test_guidance_is_learned_where_conditions_are_shown(process, kappa, scales):
    """If examples have the velocity of their class, the field of classifier-free guidance has no loss."""
    scale = jnp.asarray([2.5, 1.5, 4.0, 2.5]) if scales else jnp.full(4, 2.5)
    dropped = jnp.asarray([False, True, False, True])
    objective = MeanFlow(
        plain=1.0, power=0.0, kappa=kappa, **({"scales": "w"} if scales else {"guidance": 2.5})
    )

    def predict(x, t, r, drop):
        shown, null = (exact(process, x, t, r, std) for std in (0.4, 0.9))
        guided = jax.tree.map(lambda a, b: b + expand(scale, x) * (a - b), shown, null)
        return jax.tree.map(lambda a, b: jnp.where(drop["label"][:, None, None, None], b, a), guided, null)

    x_t = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, 2, 1)))
    t = jnp.asarray(T)
    own = [exact(process, x_t, t, t, std) for std in (0.4, 0.9)]
    x_0, noise = (
        jnp.where(dropped[:, None, None, None], b, a)
        for a, b in zip(*(pair[:2] for pair in own), strict=True)
    )
    seen = inputs(process, predict, T, PLACE, x_0, noise, True, {"w": scale}, {"label": dropped})
    np.testing.assert_allclose(objective(seen)[0], 0, atol=1e-12)
    off = dataclasses.replace(objective, scales=None, guidance=1.5)
    assert off(seen)[0][0] > 1e-4
    np.testing.assert_allclose(off(seen)[0][dropped], 0, atol=1e-12)


@each_process
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("to_data", [0.0, 1.0])
def test_of_a_teacher_the_flow_map_is_learned_from_any_examples(process, guidance, to_data):
    """The teacher is exact, and predicts the same with and without a condition."""
    objective = MeanFlow(plain=0.0, power=0.0, teacher=Nowhere(), guidance=guidance, to_data=to_data)
    x_0, noise = (jnp.asarray(v) for v in np.random.default_rng(3).standard_normal((2, 4, 3, 2, 1)))

    def loss(scale):
        def predict(x, t, r, drop):
            pair = exact(process, x, t, r)
            alpha, sigma = (expand(factor, x) for factor in process.signal(t))
            off = expand(jnp.where(r < t, scale, 1.0), x)
            noise = off * pair.noise
            return Prediction((x - sigma * noise) / alpha, noise)

        seen = inputs(process, predict, T, PLACE, x_0, noise, drop={"label": jnp.zeros(4, bool)})
        frozen = {TEACHER: None}  # its own prediction is the model's at r = t
        drawn = {**objective.draw(jax.random.key(0), 4), "plain": jnp.zeros(4, bool)}
        drawn["place"] = jnp.asarray(PLACE)
        seen = dataclasses.replace(seen, model=dataclasses.replace(seen.model, frozen=frozen), drawn=drawn)
        return jnp.sum(objective(seen)[0])

    value, slope = jax.value_and_grad(loss)(1.0)
    np.testing.assert_allclose([value, slope], 0, atol=1e-9)
    assert loss(1.1) > 1e-4


def test_the_guided_velocity_of_the_teacher_takes_the_place_of_the_examples():
    shown, null = (
        exact(FLOW, jnp.ones((4, 1, 1, 1)), jnp.asarray(T), jnp.asarray(T), std) for std in (0.4, 0.9)
    )

    def predict(x, t, r, drop):
        return jax.tree.map(
            lambda a, b: jnp.where(drop["label"][:, None, None, None], b, a),
            *(exact(FLOW, x, t, t, std) for std in (0.4, 0.9)),
        )

    guided = [b + 2.5 * (a - b) for a, b in zip(shown[:2], null[:2], strict=True)]
    objective = MeanFlow(plain=1.0, power=0.0, teacher=Nowhere(), guidance=2.5)
    x_0 = noise = jnp.ones((4, 1, 1, 1))  # so that x_t is 1 at all times
    seen = inputs(FLOW, predict, T, PLACE, x_0, noise, True, drop={"label": jnp.zeros(4, bool)})
    seen = dataclasses.replace(seen, model=dataclasses.replace(seen.model, frozen={TEACHER: None}))
    own = shown.noise - shown.x_0
    np.testing.assert_allclose(
        objective(seen)[0], jnp.square(own - (guided[1] - guided[0])).ravel(), rtol=1e-9
    )


def test_a_warm_up_begins_with_flow_matching_and_ends_with_the_whole_derivative():
    x_0, noise = mean_pairs(FLOW)

    def losses(step, **options):
        def predict(x, t, r, drop):
            return Prediction(x - expand(t, x) * 0.3 * x, x + expand(1 - t, x) * 0.3 * x)

        seen = inputs(FLOW, predict, T, PLACE, x_0, noise)
        seen = dataclasses.replace(seen, model=dataclasses.replace(seen.model, step=step))
        error = dataclasses.replace(SQUARED, **options)
        return error(seen)[0]

    whole = losses(0)
    plain = jnp.mean(jnp.square(0.3 * diffuse(FLOW, x_0, noise, jnp.asarray(T)) - (noise - x_0)), (1, 2, 3))
    np.testing.assert_allclose(losses(0, warmup_steps=10), plain, rtol=1e-9)
    np.testing.assert_allclose(losses(10, warmup_steps=10), whole, rtol=1e-9)
    np.testing.assert_allclose(losses(99, warmup_steps=10), whole, rtol=1e-9)
    assert np.all(np.abs(losses(5, warmup_steps=10) - whole) > 1e-6)


def test_the_adaptive_weight_is_a_constant_for_the_gradient():
    x_0, noise = mean_pairs(FLOW)

    def losses(scale, objective):
        def predict(x, t, r, drop):
            return Prediction(x - expand(t, x) * scale * x, x + expand(1 - t, x) * scale * x)

        return objective(inputs(FLOW, predict, T, PLACE, x_0, noise))[0]

    plain, slope = jax.jvp(lambda scale: losses(scale, SQUARED), (0.3,), (1.0,))
    weighted = dataclasses.replace(SQUARED, power=0.8, c=0.1)
    found, found_slope = jax.jvp(lambda scale: losses(scale, weighted), (0.3,), (1.0,))
    np.testing.assert_allclose(found, plain / (plain + 0.1) ** 0.8, rtol=1e-12)
    np.testing.assert_allclose(found_slope, slope / (plain + 0.1) ** 0.8, rtol=1e-12)


TIMES = LogitNormal(-0.4, 1.0)


def ends(objective, u):
    """The times t and r of a batch, as the model sees them."""
    seen = []

    def predict(x, t, r, drop):
        seen.append(r)
        return Prediction(x, x)

    t, x = TIMES.quantile(u, FLOW), jnp.zeros((len(u), 1, 1, 1))
    batch = inputs(FLOW, predict, t, t, x, x)
    drawn = objective.draw(jax.random.key(0), len(u))
    with jax.disable_jit():
        objective(dataclasses.replace(batch, time_sampler=TIMES, u=u, drawn=drawn))
    return np.asarray(t), np.asarray(jax.lax.stop_gradient(seen[-1]))


def test_r_is_the_smaller_of_two_draws_where_t_is_the_larger():
    count = 20_000
    pair = jax.random.uniform(jax.random.key(1), (2, count))
    t, r = ends(MeanFlow(plain=0.0), jnp.max(pair, axis=0))
    assert np.all(r <= t)
    smaller = np.asarray(TIMES.quantile(jnp.min(pair, axis=0), FLOW))
    for level in (
        0.1,
        0.5,
        0.9,
    ):  # a share of n independent examples has a standard error below 0.5 / sqrt(n)
        assert abs(np.mean(r < np.quantile(smaller, level)) - level) < 4 * 0.5 / np.sqrt(count)
    # And r depends on t as the smaller number does on the larger.
    expected = np.corrcoef(t, smaller)[0, 1]
    assert abs(np.corrcoef(t, r)[0, 1] - expected) < 0.03


def test_a_share_of_the_steps_goes_to_the_data():
    u = jax.random.uniform(jax.random.key(1), (20_000,))
    t, r = ends(MeanFlow(plain=0.5, to_data=0.4), u)
    assert abs(np.mean(r == t) - 0.5) < 4 * 0.5 / np.sqrt(20_000)
    assert abs(np.mean(r == 0) - 0.5 * 0.4) < 4 * 0.4 / np.sqrt(20_000)


def test_a_share_of_the_examples_is_flow_matching():
    u = jax.random.uniform(jax.random.key(1), (20_000,))
    t, r = ends(MeanFlow(plain=0.75), u)
    assert abs(np.mean(r == t) - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 20_000)


# Through whole networks.

LABEL, SPAN = ClassLabel(3, 12), NoiseLevel(12)
CONDITIONER = Conditioner(NoiseLevel(12), {"label": LABEL}, span=SPAN)


def denoiser(network, conditioner=CONDITIONER, process=FLOW, parameterization=None):
    return Denoiser(network, conditioner, process, parameterization or Velocity(Time(2.0)))


NETWORK = UNet((Level(8, 1, dropout=0.3),), 1, middle=ResidualMiddle(None), dtype="float64")


def setting(denoiser, objective, fields, image=(4, 4, 1)):
    """A task, random parameters, and the examples of a batch of four."""
    task = DenoisingTask(denoiser, Uniform(), image, objective)
    shapes = nn.meta.unbox(jax.eval_shape(lambda: task.init(jax.random.key(0))))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    values = [jnp.asarray(0.3 * rng.standard_normal(leaf.shape) + (leaf.ndim == 1)) for leaf in leaves]
    batch = {"image": rng.integers(0, 256, (4, *image), np.uint8), **fields}
    batch = jax.tree.map(jnp.asarray, batch)
    context = Context()
    return task, jax.tree.unflatten(tree, values), task.draw(batch, context, jax.random.key(2))


LABELS = {"label": np.array([0, 1, 2, 1])}


@pytest.mark.parametrize("tangent", ["example", "model"])
def test_where_r_is_t_it_is_flow_matching_in_value_and_gradient(tangent):
    """Also with dropout, which is the same in all calls of a step."""
    objective = MeanFlow(plain=1.0, power=0.0, tangent=tangent)
    task, params, examples = setting(denoiser(NETWORK), objective, LABELS)
    matching = dataclasses.replace(task, objective=WeightedError())

    def value_and_slope(task):
        def mean(params):
            return jnp.mean(task.loss(params, Context(), examples, jax.random.key(3), True)[0])

        return jax.jit(jax.value_and_grad(mean))(params)

    (value, slope), (expected, expected_slope) = value_and_slope(task), value_and_slope(matching)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for found, wanted in zip(jax.tree.leaves(slope), jax.tree.leaves(expected_slope), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert any(np.abs(leaf).max() > 1e-2 for leaf in jax.tree.leaves(expected_slope))


def test_other_draws_of_a_batch_do_not_depend_on_the_objective():
    task, *_ = setting(denoiser(NETWORK), MeanFlow(), LABELS)
    batch = jax.tree.map(jnp.asarray, {"image": np.zeros((4, 4, 4, 1), np.uint8), **LABELS})
    other = dataclasses.replace(task, objective=WeightedError())
    ours, theirs = (each.draw(batch, Context(), jax.random.key(5)) for each in (task, other))
    drawn = ours.pop("objective")
    assert set(drawn) == {"plain", "place", "to_data"}
    weighted = UncertaintyWeighted(MeanFlow()).draw(jax.random.key(1), 4)
    jax.tree.map(np.testing.assert_array_equal, weighted, MeanFlow().draw(jax.random.key(1), 4))
    assert not theirs.pop("objective")
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


TEXT = a_text(length=4, vector_width=12)
BOTH = Level(8, 1, PixelAttention(cross_attention=True, head_dim=4))


def test_the_derivative_through_a_network_with_text_and_a_label_is_that_of_finite_differences():
    """Without a constant in the loss: the loss of each example follows from the change of x_r along (v, 0, 1)."""
    network = UNet((BOTH,), 1, middle=ResidualMiddle(None), dtype="float64")
    conditioner = Conditioner(NoiseLevel(12), {"label": LABEL, "text": TEXT}, span=SPAN)
    model = denoiser(network, conditioner)
    task, params, examples = setting(model, SQUARED, {**LABELS, "text": TEXT.read(["a", "b", "", "c"])})
    losses, _ = jax.jit(lambda: task.loss(params, Context(), examples, jax.random.key(0), False))()

    t, r = examples["u"], examples["u"] * examples["objective"]["place"]
    v = target(Velocity(), FLOW, t, examples["x_0"], examples["noise"])
    x_t = diffuse(FLOW, examples["x_0"], examples["noise"], t)

    @jax.jit
    def end(h):
        arguments = (x_t + h * v, t + h, examples["fields"], examples["drop"])
        pair = model.apply({"params": params}, *arguments, method="predict", until=r)
        return diffuse(FLOW, pair.x_0, pair.noise, r)

    h = 5e-3  # large, because the vector's layers compute in float32
    drift = (end(-2 * h) - 8 * end(-h) + 8 * end(h) - end(2 * h)) / (12 * h)
    np.testing.assert_allclose(losses, jnp.mean(jnp.square(drift), axis=(1, 2, 3)), rtol=1e-3)


def scaled(low):
    """A conditioner with a label and a scale of guidance."""
    scale = GuidanceScale(width=12, low=low, high=4.0)
    return Conditioner(NoiseLevel(12), {"label": LABEL, "w": scale}, span=SPAN)


def check(objective, conditioner=CONDITIONER, process=FLOW, label=None):
    model = denoiser(NETWORK, conditioner, process)
    model = model if label is None else model.clone(parameterization=Velocity(label=label))
    DenoisingTask(model, Uniform(), (4, 4, 1), objective)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeanFlow(plain=1.5), "plain=1.5: expected a number in"),
        (lambda: MeanFlow(guidance=0.5), "guidance=0.5: expected a number in"),
        (lambda: MeanFlow(guidance=float("nan")), "guidance=nan"),
        (lambda: MeanFlow(kappa=1.0), "kappa=1.0"),
        (lambda: MeanFlow(tangent="both"), "tangent='both': expected one of 'example', 'model'"),
        (lambda: MeanFlow(power=-1.0), "power=-1.0"),
        (lambda: MeanFlow(c=0.0), "c=0.0"),
        (lambda: MeanFlow(to_data=1.5), "to_data=1.5"),
        (lambda: MeanFlow(warmup_steps=-1), "warmup_steps=-1"),
        (
            lambda: MeanFlow(teacher=Nowhere(), kappa=0.5),
            "teacher=.*: expected the velocity of the teacher alone",
        ),
        (lambda: MeanFlow(teacher=Nowhere(), tangent="model"), "teacher=.*the velocity of the teacher alone"),
        (lambda: Conditioner(NoiseLevel(12), {"span": LABEL}, span=SPAN), r"conditions\.span='span'"),
        (lambda: MeanFlow(guidance=2.0, scales="w"), "guidance=2.0: expected 1 with scales"),
        (lambda: check(MeanFlow(), Conditioner(NoiseLevel(12))), "denoiser.conditioner.span=None"),
        (lambda: check(MeanFlow(scales="label")), "objective.scales='label'"),
        (lambda: check(MeanFlow(scales="w"), scaled(low=0.5)), "objective.scales='w': .* of 1 or more"),
        (
            lambda: check(MeanFlow(guidance=2.0), Conditioner(NoiseLevel(12), span=SPAN)),
            "objective.guidance=2.0: expected a model with a condition that can be dropped",
        ),
        (
            lambda: check(MeanFlow(), label=StepIndex(10, rounded=True)),
            "denoiser.parameterization.label=StepIndex.*: expected a label that changes smoothly",
        ),
        (
            lambda: check(MeanFlow(), process=LearnedVariancePreserving()),
            "denoiser.process='LearnedVariancePreserving': expected a fixed process",
        ),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert ". Fix: " in str(error.value)


def test_the_scale_of_each_example_is_seen_by_the_network_and_by_the_objective():
    """An example's loss is that of a fixed guidance with its scale, and with its scale only."""
    model = denoiser(NETWORK, scaled(low=1.0))
    task, params, examples = setting(model, MeanFlow(scales="w", power=0.0), LABELS)
    scales = np.asarray(examples["fields"]["w"])
    assert len(set(scales.tolist())) == 4
    assert scales.min() >= 1
    assert scales.max() <= 4
    fixed = dataclasses.replace(task, objective=MeanFlow(guidance=float(scales[0]), power=0.0))
    ours, theirs = (
        jax.jit(lambda each=each: each.loss(params, Context(), examples, jax.random.key(0), False)[0])()
        for each in (task, fixed)
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    assert abs(ours[1] - theirs[1]) > 1e-6
