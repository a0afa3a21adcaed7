"""Rules that combine two predictions, against their papers' formulas written in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.process.gaussian import RectifiedFlow, VariancePreserving
from jaxdiff.process.prediction import Noise, Prediction, V, target
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree, Interval
from jaxdiff.sampling.guidance.rules import CfgPlusPlus, Extrapolate, Projected, Rescale
from jaxdiff.sampling.loop import sample
from jaxdiff.sampling.samplers.ddim import Ddim
from tests import schedulers as peers
from tests.oracles import predict_from_data

FLOW, T = RectifiedFlow(), 0.6
SHAPE = (3, 2, 2, 2)
X, COND, UNCOND = np.random.default_rng(0).normal(size=(3, *SHAPE)) * [[[[[1.0, 3.0]]]]]
KEYS = jax.random.split(jax.random.key(0), 3)
MOMENTUM = Projected(0.3, 2.0, -0.5)
RULES = [Extrapolate(), Rescale(0.4), Rescale(0.4, "v"), CfgPlusPlus(), Projected(0.3, 2.0), MOMENTUM]


def pair(x_0):
    return predict_from_data(FLOW, jnp.asarray(X), jnp.asarray(T), jnp.asarray(x_0))


def apply(rule, scale, cond=COND, uncond=UNCOND, state=None):
    state = rule.init(jnp.asarray(X)) if state is None else state
    return rule(state, scale, pair(cond), pair(uncond), FLOW.signal(jnp.asarray(T)))


def norm(x):
    return np.sqrt(np.sum(np.square(x), axis=(1, 2, 3), keepdims=True))


def makes_x(found):
    np.testing.assert_allclose(0.4 * found.x_0 + 0.6 * found.noise, X, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescaling_brings_the_contrast_of_each_image_back(phi):
    cond, uncond = 0.05 * COND, 0.05 * UNCOND
    found, _ = apply(Rescale(phi), 4.0, cond, uncond)
    guided = uncond + 4.0 * (cond - uncond)
    std, std_cond = (np.std(x, axis=(1, 2, 3)) for x in (guided, cond))
    np.testing.assert_allclose(np.std(found.x_0, axis=(1, 2, 3)), phi * std_cond + (1 - phi) * std, rtol=1e-9)
    ratio = np.asarray(found.x_0) / guided  # one factor per image, whose shape is unchanged
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1, :1], SHAPE), rtol=1e-9)
    makes_x(found)


@pytest.mark.parametrize("phi", [0.3, 1.0])
@pytest.mark.parametrize("space", ["noise", "v"])
@pytest.mark.parametrize("process", [FLOW, VariancePreserving(Cosine())], ids=str)
def test_rescaling_the_output_of_a_network_is_diffusers(space, phi, process):
    """Its `rescale_noise_cfg` of what the network predicts: noise, or v."""
    peers.load()
    torch = pytest.importorskip("torch")
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    t, kind = jnp.asarray(T), {"noise": Noise(), "v": V()}[space]
    cond, uncond = (predict_from_data(process, jnp.asarray(X), t, jnp.asarray(x)) for x in (COND, UNCOND))
    outputs = [np.asarray(target(kind, process, t, pair.x_0, pair.noise)) for pair in (cond, uncond)]
    to, away = (torch.tensor(np.moveaxis(output, -1, 1)) for output in outputs)
    expected = np.moveaxis(rescale_noise_cfg(away + 4.0 * (to - away), to, phi).numpy(), 1, -1)
    found, _ = Rescale(phi, space)((), 4.0, cond, uncond, process.signal(t))
    np.testing.assert_allclose(
        target(kind, process, t, found.x_0, found.noise), expected, rtol=1e-9, atol=1e-9
    )
    alpha, sigma = process.signal(t)
    np.testing.assert_allclose(alpha * found.x_0 + sigma * found.noise, X, rtol=1e-9, atol=1e-9)


def test_pure_noise_has_no_predicted_noise_to_rescale():
    signal, pairs = (
        FLOW.signal(jnp.ones(())),
        [Prediction(jnp.asarray(x), jnp.asarray(X)) for x in (COND, UNCOND)],
    )
    found, _ = Rescale(1.0, "noise")((), 4.0, *pairs, signal)
    np.testing.assert_allclose(found.x_0, UNCOND + 4.0 * (COND - UNCOND), rtol=1e-9)
    np.testing.assert_allclose(found.noise, X, rtol=1e-9)


def test_an_unknown_space_is_refused():
    with pytest.raises(UserError, match="space='image': expected one of"):
        Rescale(space="image")


def test_an_image_of_one_colour_has_no_contrast_to_rescale():
    found, _ = apply(Rescale(1.0), 4.0, jnp.ones(SHAPE), jnp.full(SHAPE, 0.5))
    np.testing.assert_allclose(found.x_0, 2.5, rtol=1e-12)


def test_projection_is_algorithm_1_of_the_paper_call_after_call():
    rule, state, running = Projected(0.3, 2.0, -0.5), None, 0.0
    rng = np.random.default_rng(1)
    for factor in (1.0, 0.1, 3.0):  # differences above and below the norm
        cond, uncond = (factor * rng.normal(size=SHAPE) for _ in range(2))
        found, state = apply(rule, 4.0, jnp.asarray(cond), jnp.asarray(uncond), state)
        running = (cond - uncond) + -0.5 * running
        away = running * np.minimum(1.0, 2.0 / norm(running))
        unit = cond / norm(cond)
        parallel = np.sum(away * unit, axis=(1, 2, 3), keepdims=True) * unit
        np.testing.assert_allclose(found.x_0, cond + 3.0 * (away - parallel + 0.3 * parallel), rtol=1e-9)
        makes_x(found)


def test_without_its_three_parts_projection_is_extrapolation():
    found, _ = apply(Projected(eta=1.0), 4.0)
    np.testing.assert_allclose(found.x_0, UNCOND + 4.0 * (COND - UNCOND), rtol=1e-9)
    found, _ = apply(Projected(eta=0.0), 4.0)
    change = np.sum((found.x_0 - COND) * COND, axis=(1, 2, 3))
    np.testing.assert_allclose(change, 0.0, atol=1e-9)


def test_zero_differences_and_zero_images_give_no_nan():
    for rule in (Projected(0.0, 2.0), MOMENTUM):
        found, _ = apply(rule, 4.0, jnp.zeros(SHAPE), jnp.zeros(SHAPE))
        np.testing.assert_array_equal(found.x_0, 0.0)


def test_cfg_plus_plus_has_the_guided_image_and_unconditional_noise():
    found, _ = apply(CfgPlusPlus(), 0.6)
    np.testing.assert_allclose(found.x_0, UNCOND + 0.6 * (COND - UNCOND), rtol=1e-9)
    np.testing.assert_array_equal(found.noise, pair(UNCOND).noise)
    for wrong in (-0.1, 1.1):
        with pytest.raises(UserError, match=r"scale=.*CFG"):
            ClassifierFree(wrong, CfgPlusPlus())


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rule_treats_images_independently(rule):
    together, _ = apply(rule, 0.8)
    one = [jax.tree.map(lambda value: value[1:2], pair(x)) for x in (COND, UNCOND)]
    alone, _ = rule(rule.init(jnp.asarray(X[1:2])), 0.8, *one, FLOW.signal(jnp.asarray(T)))
    np.testing.assert_allclose(together.x_0[1:2], alone.x_0, rtol=1e-12)
    np.testing.assert_allclose(together.noise[1:2], alone.noise, rtol=1e-12)


def model(calls):
    def denoise(x, t, conditions, drop):
        calls.append([int(value) for value in drop["c"]])
        return Prediction(*jax.tree.map(lambda a, b: jnp.where(drop["c"][:, None, None, None], a, b),
                                        *(_rows(pair(x_0), x.shape[0]) for x_0 in (UNCOND, COND))))  # fmt: skip

    return denoise


def _rows(prediction, batch):
    return tuple(jnp.repeat(value, batch // 3, axis=0) for value in prediction[:2])


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_a_rule_receives_only_the_predictions_that_it_needs(rule, scale):
    """If one prediction is enough, it equals the result of the rule."""
    calls = []
    guided = ClassifierFree(scale, rule)(model(calls), FLOW, {"c": jnp.zeros(3)}, KEYS)
    x, t = jnp.asarray(X), jnp.asarray(T)
    found = guided(x, t)
    expected, _ = apply(rule, scale)
    np.testing.assert_allclose(found.x_0, expected.x_0, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.noise, expected.noise, rtol=1e-9, atol=1e-12)
    plain = [0, 0, 0] if scale == 1 else [1, 1, 1]
    one = (
        scale == 0 if isinstance(rule, CfgPlusPlus) else scale == 1 or (scale == 0 and rule == Extrapolate())
    )
    assert calls == [plain if one else [0, 1] * 3]


def test_momentum_carries_over_steps_and_is_unchanged_outside_the_interval():
    """With a constant difference d, the k-th sum is d (1 - beta^k) / (1 - beta)."""
    rule = Projected(eta=1.0, momentum=-0.5)

    def denoise(x, t, conditions, drop):
        away = jnp.where(drop["c"], 0.0, 1.0)[:, None, None, None]
        return Prediction(away + 0 * x, 0 * x)

    def images(interval, times):
        """The predicted image of the last call."""
        guided = ClassifierFree(3.0, rule, interval)(denoise, FLOW, {"c": jnp.zeros(3)}, KEYS)
        return sample(Ddim(), guided, FLOW, jnp.asarray(times), jnp.asarray(X), KEYS)

    def after(calls):
        return 1 + 2 * (1 - (-0.5) ** calls) / 1.5

    np.testing.assert_allclose(images(None, [0.9, 0.8, 0.7, 0.6]), after(4), rtol=1e-9)
    levels = Interval(0.5, 2.0)  # times 1/3 to 2/3
    np.testing.assert_allclose(images(levels, [0.9, 0.8, 0.6, 0.5]), after(2), rtol=1e-9)
    np.testing.assert_allclose(images(levels, [0.9, 0.8, 0.6, 0.2]), 1.0, rtol=1e-9)


@pytest.mark.parametrize("wrong", [{"norm": 0.0}, {"momentum": 1.0}, {"momentum": -1.0}])
def test_invalid_projections_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Projected(**wrong)
    with pytest.raises(UserError, match="phi"):
        Rescale(1.5)
