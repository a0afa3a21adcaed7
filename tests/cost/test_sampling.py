"""What one image costs to sample, against recipes that really run with a denoiser that counts."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.cost.sampling import evaluations
from jaxdiff.embeddings import Embeddings
from jaxdiff.process.gaussian import VarianceExploding
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.grids.continuous import Karras
from jaxdiff.sampling.guidance.autoguidance import Autoguidance
from jaxdiff.sampling.guidance.classifier import ClassifierGuidance
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree, Interval
from jaxdiff.sampling.guidance.per_condition import PerCondition
from jaxdiff.sampling.guidance.rules import Projected
from jaxdiff.sampling.protocols import Encoded, GuidedDenoiser
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ddim import Ddim
from jaxdiff.sampling.samplers.dpm_solver import DpmSolver2M
from jaxdiff.sampling.samplers.heun import Heun

VE = VarianceExploding(sigma_min=0.002, sigma_max=80.0)
SHAPE = (4, 4, 1)
NAMES = ("label", "text")


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A density with one product of ``[1, 16] x [16, 3]``."""

    def __call__(self, x, t, conditions):
        return jnp.sum(jnp.sin(x.reshape(x.shape[0], -1) @ jnp.full((16, 3), t)), axis=1)


CASES = {
    "unguided": ({}, 1.0),
    "guided": ({"guidance": ClassifierFree(2.0)}, 2.0),
    "without conditions": ({"guidance": ClassifierFree(0.0)}, 1.0),
    "composed": ({"guidance": PerCondition(NAMES, (1.5, 3.0))}, 3.0),
    "two calls a step": ({"guidance": ClassifierFree(2.0), "sampler": Heun()}, 2.0),
    "in an interval": ({"guidance": ClassifierFree(2.0, interval=Interval(0.3, 5.0))}, None),
    "composed in an interval": ({"guidance": PerCondition(NAMES, (1.5, 3.0), interval=Interval(0.3))}, None),
    "never": ({"guidance": ClassifierFree(2.0, interval=Interval(100.0))}, 1.0),
}


def recipe(**changes):
    parts = {
        "sampler": DpmSolver2M(),
        "guidance": ClassifierFree(1.0),
        "grid": Karras(sigma_min=0.02),
        "steps": 7,
    }
    return Recipe(**{**parts, **changes})


def conditions():
    vector = Embeddings(vector=jnp.zeros((1, 3)))
    return {name: Encoded([vector], [vector], jnp.zeros(1, int), jnp.zeros(1, bool)) for name in NAMES}


def found(made):
    return evaluations(made, VE, SHAPE, conditions)


def shown(made):
    """Images that a denoiser is shown while one is sampled."""
    rows = []

    def denoise(x, t, conditions, drop):
        rows.append(x.shape[0])
        return Prediction(x / 2, x / 2)

    with jax.disable_jit():  # loops and branches then run as they are written
        made(denoise, VE, conditions(), SHAPE, jax.random.split(jax.random.key(0), 1))
    return sum(rows)


@pytest.mark.parametrize(("changes", "expected"), CASES.values(), ids=CASES)
def test_as_many_evaluations_as_a_run_makes(changes, expected):
    made = recipe(**changes)
    plan = found(made)
    assert plan.calls * plan.model == pytest.approx(shown(made))
    assert expected is None or plan.model == expected
    assert plan.guide == 0


def test_a_guide_is_counted_apart():
    plan = found(recipe(guidance=Autoguidance(2.0)))
    assert (plan.model, plan.guide) == (1.0, 1.0)
    assert found(recipe(guidance=Autoguidance(1.0))).guide == 0


def test_a_classifier_and_its_gradient_are_counted():
    plan = found(recipe(modifiers=(ClassifierGuidance(Classifier()),)))
    assert plan.model == 1.0
    assert plan.other.total == 2 * 16 * 3


@dataclasses.dataclass(frozen=True)
class Thrice:
    """A modifier that calls the denoiser three times."""

    def __call__(self, denoise, process, conditions, keys):
        def call(x, t, state):
            def again(last, _):
                return denoise.call(last[0].x_0, t, last[1]), None

            return jax.lax.scan(again, (Prediction(x, x), state), length=3)[0]

        return GuidedDenoiser(call, denoise.init)


def test_guidance_that_remembers_costs_the_same():
    assert (
        found(recipe(guidance=ClassifierFree(2.0, rule=Projected(momentum=-0.5)), sampler=Ddim())).model
        == 2.0
    )


def test_a_modifier_that_asks_in_a_loop_is_counted_as_often():
    assert found(recipe(guidance=ClassifierFree(2.0), modifiers=(Thrice(),))).model == 6.0
