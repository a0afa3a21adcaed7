"""Bits per dimension of held-out images: their choice, their keys, and the entry of the report."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.config import build, describe, from_json, spec, to_json
from jaxdiff.config.overrides import override
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.errors import UserError
from jaxdiff.evaluation.denoising_loss import bits
from jaxdiff.evaluation.examples import InMemory
from jaxdiff.evaluation.metrics.bits_per_dim import OdeLikelihood, VariationalBound, measure
from jaxdiff.evaluation.reports.class_conditional import ImageEvaluation
from jaxdiff.likelihood.flow import ExactDivergence, Heun, Hutchinson
from jaxdiff.likelihood.variational import TanhDecoder, bound
from jaxdiff.process.gaussian import VarianceExploding
from jaxdiff.sampling.protocols import TimePath
from tests.evaluation.models import inputs
from tests.oracles import Gaussian

PROCESS = VarianceExploding()
STD = 0.2
MEANS = (-0.5, 0.5)
METHODS = [
    OdeLikelihood(steps=24, divergence=ExactDivergence(), n=6, batch_size=4),
    VariationalBound(steps=600, batch_size=11),
]


@dataclasses.dataclass(frozen=True)
class Back:
    """A grid that revisits a time."""

    def __call__(self, process, steps):
        return TimePath(jnp.asarray([1.0, 0.8]), jnp.asarray([0.5, 0.4]))


class TwoClasses:
    """A model whose images are N(MEANS[label], STD^2), with the interface of `Denoiser`."""

    conditioner = types.SimpleNamespace(
        conditions={"label": None},
        none_dropped=lambda n: {"label": jnp.zeros(n, bool)},
        draw=lambda fields, keys, train: fields,
        read=lambda name, values: values,
    )

    def apply(self, variables, *arguments, method):
        if method == "encode":
            return arguments[0]
        x, times, fields = arguments
        mean = variables["params"][fields["label"]].reshape(-1, 1, 1, 1)
        return Gaussian(mean, jnp.full_like(mean, STD)).denoiser(PROCESS)(x, times[0])

    def process_of(self, params):
        return PROCESS


def examples(count: int = 11) -> dict:
    labels = np.arange(count) % 2
    noise = np.random.default_rng(0).normal(size=(count, 3, 4, 1))
    x = np.asarray(MEANS)[labels].reshape(-1, 1, 1, 1) + STD * noise
    return {"image": np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8), "label": labels}


def run(likelihood, found=None):
    data, mesh = InMemory(found or examples()), MeshShape().make()
    return bits(likelihood, TwoClasses(), jnp.asarray(MEANS), data, mesh)


def truth(found, chosen) -> float:
    """Bits of the images under the model's own density, which hardly changes over a level."""
    x = found["image"][chosen] / 127.5 - 1
    z = (x - np.asarray(MEANS)[found["label"][chosen]].reshape(-1, 1, 1, 1)) / STD
    return float(np.mean(z**2 / 2 + np.log(STD * np.sqrt(2 * np.pi)) - np.log(2 / 255)) / np.log(2))


@pytest.mark.spread(1)
@pytest.mark.parametrize("likelihood", METHODS, ids=lambda likelihood: type(likelihood).__name__)
def test_both_measure_the_density_of_the_model_under_the_true_label(likelihood):
    found = examples()
    entry = run(likelihood)
    chosen = np.random.default_rng(0).permutation(11)[: entry["n"]]
    assert entry["n"] == (likelihood.n or 11)
    low, high = (-0.01, 0.01) if isinstance(likelihood, OdeLikelihood) else (0.0, 0.6)  # one is a bound
    assert low < entry["bits_per_dim"] - truth(found, chosen) < high
    wrong = run(likelihood, {**found, "label": 1 - found["label"]})
    assert wrong["bits_per_dim"] > entry["bits_per_dim"] + 5


def test_a_bound_takes_its_settings_and_the_levels():
    likelihood = VariationalBound(steps=4, fraction=1.0, decoder=TanhDecoder())
    model = Gaussian(jnp.zeros((1, 1, 1, 1)), jnp.ones((1, 1, 1, 1))).denoiser(PROCESS)
    levels = jnp.asarray([0, 51, 255], jnp.uint8).reshape(3, 1, 1, 1)
    keys = jax.random.split(jax.random.key(0), 3)
    x_0 = jnp.asarray([-1.0, -0.6, 1.0]).reshape(3, 1, 1, 1)
    expected = bound(model, PROCESS, 4, x_0, keys, 1.0, TanhDecoder()).total
    np.testing.assert_allclose(likelihood(model, PROCESS, levels, keys), expected, rtol=1e-5)


def test_any_batch_size_measures_the_same_images():
    sizes = []

    def squares(index):
        sizes.append(len(index))
        return index.astype(np.float32) ** 2

    for n in (None, 7):
        entries = [measure(OdeLikelihood(n=n, batch_size=size, seed=3), squares, 10) for size in (1, 3, 100)]
        assert entries[0] == entries[1] == entries[2]
        values = np.random.default_rng(3).permutation(10)[:n].astype(float) ** 2
        assert entries[0]["bits_per_dim"] == pytest.approx(values.mean())
        assert entries[0]["standard_error"] == pytest.approx(values.std(ddof=1) / len(values) ** 0.5)
        assert entries[0]["n"] == len(values)
    assert set(sizes) == {1, 3, 10, 7}
    assert measure(OdeLikelihood(n=1), squares, 10)["standard_error"] is None


def test_more_images_than_the_set_has_is_an_error():
    with pytest.raises(UserError, match="n=12: expected at most 11"):
        run(OdeLikelihood(n=12))


def test_a_figure_that_is_not_finite_is_named():
    likelihood = OdeLikelihood(n=4)
    bad = int(np.random.default_rng(0).permutation(10)[2])
    with pytest.raises(UserError, match=f"not finite for test image {bad}"):
        measure(likelihood, lambda index: np.where(index == bad, np.nan, 1.0), 10)


def test_a_path_that_returns_to_noise_is_refused():
    with pytest.raises(UserError, match="grid=Back"):
        run(OdeLikelihood(grid=Back()))


def test_the_report_states_bits_and_conditions(digits):
    entry = measure(
        OdeLikelihood(steps=32, divergence=Hutchinson(5), integrator=Heun(), n=9, seed=4),
        lambda i: 3.1 + 0 * i,
        297,
    )
    likelihood = OdeLikelihood(n=9)
    train, test = ({"image": images, "label": labels} for images, labels in digits)
    requested = []
    model = inputs(
        lambda conditions, seed, guidance: train["image"][:60],
        ("label",), train, test, 2.0, bits=lambda how: requested.append(how) or entry,
    )  # fmt: skip
    report = ImageEvaluation(n=60, likelihood=likelihood)(model)
    assert requested == [likelihood]
    stated = json.loads(json.dumps(report.values))["likelihood"]
    assert {name: stated[name] for name in entry} == entry
    assert stated["test"] == report.values["real"]["conditions"]["test"]
    assert (stated["n"], stated["seed"]) == (9, 4)
    for word in ("32 times", "Heun()", "Hutchinson(probes=5, distribution='rademacher')"):
        assert word in stated["method"]
    text = str(report)
    (row,) = [line for line in text.splitlines() if line.startswith("bits/dim of test images")]
    assert row.split()[-3:] == ["-", "3.100", "-"]  # guided samples have no density
    assert "9 test images, seed 4" in text
    without = ImageEvaluation(n=60)(model)
    assert without.values["likelihood"] is None
    assert "bits" not in str(without)


@pytest.mark.parametrize("part", [OdeLikelihood(), VariationalBound(), *METHODS], ids=repr)
def test_a_likelihood_is_a_config_block(part):
    assert build(from_json(to_json(describe(part))), ("jaxdiff",)) == part
    assert str(part.steps) in part.name


def test_the_command_line_selects_it():
    config = spec(ImageEvaluation)
    override(config, "likelihood", "jaxdiff.evaluation.metrics.bits_per_dim:VariationalBound(steps=250)")
    assert build(config).likelihood == VariationalBound(steps=250)
    override(config, "likelihood", "jaxdiff.evaluation.metrics.bits_per_dim:OdeLikelihood")
    override(config, "likelihood.n", "40")
    override(config, "likelihood.divergence", "jaxdiff.likelihood.flow:ExactDivergence")
    assert build(config).likelihood == OdeLikelihood(n=40, divergence=ExactDivergence())


@pytest.mark.parametrize("kind", [OdeLikelihood, VariationalBound])
@pytest.mark.parametrize("arguments", [{"steps": 1}, {"n": 0}, {"batch_size": 0}, {"seed": -1}])
def test_impossible_settings_are_errors(kind, arguments):
    with pytest.raises(UserError, match=f"{next(iter(arguments))}="):
        kind(**arguments)


def test_a_variance_outside_its_bounds_is_an_error():
    with pytest.raises(UserError, match=r"fraction=1.5"):
        VariationalBound(fraction=1.5)
