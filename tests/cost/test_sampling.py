"""Planned evaluations per image against runs of the recipes with a counting denoiser."""

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


def planned(one):
    return evaluations(one, VE, SHAPE, conditions)


def counted(one):
    """Batch rows that the denoiser receives while one image is sampled."""
    rows = []

    def denoise(x, t, conditions, drop):
        rows.append(x.shape[0])
        return Prediction(x / 2, x / 2)

    with jax.disable_jit():  # loops and branches then run in Python
        one(denoise, VE, conditions(), SHAPE, jax.random.split(jax.random.key(0), 1))
    return sum(rows)


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "expected"), CASES.values(), ids=CASES)
def test_planned_evaluations_match_a_run(changes, expected):
    one = recipe(**changes)
    plan = planned(one)
    assert plan.calls * plan.model == pytest.approx(counted(one))
    assert expected is None or plan.model == expected
    assert plan.guiding_model == 0


def test_a_guiding_model_is_counted_separately():
    plan = planned(recipe(guidance=Autoguidance(2.0)))
    assert (plan.model, plan.guiding_model) == (1.0, 1.0)
    assert planned(recipe(guidance=Autoguidance(1.0))).guiding_model == 0


def test_a_classifier_and_its_gradient_are_counted():
    plan = planned(recipe(modifiers=(ClassifierGuidance(Classifier()),)))
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


def test_guidance_with_state_costs_the_same():
    assert (
        planned(recipe(guidance=ClassifierFree(2.0, rule=Projected(momentum=-0.5)), sampler=Ddim())).model
        == 2.0
    )


def test_calls_in_a_modifiers_loop_are_counted():
    assert planned(recipe(guidance=ClassifierFree(2.0), modifiers=(Thrice(),))).model == 6.0
