"""The generator from Python and from the command line, with a model whose images are known in closed form."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff import sample
from jaxdiff.cli import app as command
from jaxdiff.cli import sampling
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.vector import ClassLabel
from jaxdiff.data import images as image_arrays
from jaxdiff.denoiser import Denoiser
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.process.gaussian import RectifiedFlow, VarianceExploding, VariancePreserving
from jaxdiff.process.prediction import Data, V
from jaxdiff.process.schedule import Cosine
from jaxdiff.sampling.grids.continuous import Karras, Uniform
from jaxdiff.sampling.grids.restart import RePaint
from jaxdiff.sampling.guidance.autoguidance import Autoguidance
from jaxdiff.sampling.guidance.classifier import ClassifierGuidance
from jaxdiff.sampling.guidance.classifier_free import ClassifierFree
from jaxdiff.sampling.guidance.per_condition import PerCondition
from jaxdiff.sampling.recipe import Recipe
from jaxdiff.sampling.samplers.ddim import Ddim

MEANS, NULL, SHAPE = np.linspace(-0.4, 0.4, 5), 0.05, (2, 3, 1)
FLOW, UNIFORM, PLAIN, DATA = RectifiedFlow(), Uniform(), ClassifierFree(), Data()


class NoNoiseLevel(nn.Module):
    """A vector of zeros for every noise level."""

    @nn.compact
    def __call__(self, noise_label):
        return Embeddings(vector=jnp.zeros((noise_label.shape[0], 2)))


class Mean(nn.Module):
    """Predicts the first number of its condition's vector, and `slope` times the noisy image."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        gain, slope = (self.param(name, nn.initializers.ones, ()) for name in ("gain", "slope"))
        return gain * embeddings.vector[:, 0][:, None, None, None] + slope * x


def a_generator(
    guidance=PLAIN,
    grid=UNIFORM,
    process=FLOW,
    *,
    parameterization=DATA,
    gain=1.0,
    slope=0.0,
    classes=5,
    steps=4,
    **changes,
):
    """A model whose images, without a slope, are the means of their classes."""
    conditioner = Conditioner(NoNoiseLevel(), {"label": ClassLabel(classes, 2)})
    table = np.stack([np.resize(MEANS, classes), np.zeros(classes)], axis=1)
    params = {
        "network": {"gain": np.float32(gain), "slope": np.float32(slope)},
        "conditioner": {"parts_label": {"table": table, "null": np.array([[NULL, 0.0]])}},
    }
    recipe = Recipe(Ddim(), grid, guidance, steps, **changes)
    mesh = jax.make_mesh(
        (1, 1, 1),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[:1],
    )
    params = jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), params)
    return Generator(Denoiser(Mean(), conditioner, process, parameterization), params, recipe, SHAPE, mesh)


def constant(means):
    """Images of one colour each."""
    values = np.broadcast_to(np.asarray(means, np.float32)[:, None, None, None], (len(means), *SHAPE))
    return image_arrays.to_uint8(values)


def test_images_follow_their_class_and_guidance_extrapolates():
    generator = a_generator()
    np.testing.assert_array_equal(generator(label=[0, 3]), constant(MEANS[[0, 3]]))
    np.testing.assert_array_equal(generator(2, label=None), constant([NULL, NULL]))
    expected = NULL + 2 * (MEANS[[0, 3]] - NULL)
    np.testing.assert_array_equal(generator(label=[0, 3], guidance=2.0), constant(expected))
    every = a_generator(PerCondition(("label",), (5.0,)))
    np.testing.assert_array_equal(every(label=[0, 3], guidance=2.0), constant(expected))


def test_at_scale_1_the_null_and_at_scale_0_the_class_have_no_effect():
    generator = a_generator()

    def broken(name):
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf + jnp.nan if path[-1].key == name else leaf, generator.params
        )
        return dataclasses.replace(generator, params=params)

    np.testing.assert_array_equal(broken("null")(label=[0, 3]), generator(label=[0, 3]))
    np.testing.assert_array_equal(broken("table")(2, label=None), generator(2, label=None))
    np.testing.assert_array_equal(broken("table")(label=[0, 3], guidance=0.0), constant([NULL, NULL]))


def test_negative_conditions_replace_the_null():
    generator = a_generator(ClassifierFree(2.0))
    found = generator(label=[1, 2], negative={"label": [3, 0]})
    np.testing.assert_array_equal(found, constant(2 * MEANS[[1, 2]] - MEANS[[3, 0]]))
    found = generator(2, label=None, negative={"label": 3})
    np.testing.assert_array_equal(found, constant([2 * NULL - MEANS[3]] * 2))
    found = generator(label=[1], negative={"label": None})
    np.testing.assert_array_equal(found, generator(label=[1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"negative": {"label": 3}, "guidance": 1.0}, "negative=.*no negative conditions"),
        ({"negative": {"label": 7}}, "label=7: expected a class from 0 to 4"),
        ({"negative": {"text": "x"}}, "text='x': expected a condition of the model"),
        ({"negative": {"label": [1, 2, 3]}}, "label: expected 2 values, one per image, got 3"),
        ({"known": np.zeros(SHAPE, np.uint8)}, "mask=None.*together with a mask"),
        ({"mask": np.ones(SHAPE, bool)}, "known=None.*together with a mask"),
        (
            {"known": np.zeros((3, *SHAPE), np.uint8), "mask": np.ones((2, 3), bool)},
            r"known=uint8\[3, 2, 3, 1\]",
        ),
        ({"known": np.zeros(SHAPE), "mask": np.ones((2, 3), bool)}, r"known=float64.*expected uint8"),
        ({"known": np.zeros(SHAPE, np.uint8), "mask": np.ones((3, 2), bool)}, r"mask='bool\[3, 2, 1\]'"),
        ({"known": np.zeros(SHAPE, np.uint8), "mask": np.ones((2, 3))}, r"mask='float64\[2, 3, 1\]'"),
        ({"noise": np.zeros((2, 3, 2, 1))}, r"noise=float64\[2, 3, 2, 1\]: expected floats \[2, 2, 3, 1\]"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_invalid_arguments_raise(arguments, message):
    with pytest.raises(UserError, match=message):
        a_generator(ClassifierFree(2.0))(label=[1, 2], **arguments)


def test_autoguidance_with_a_guiding_model_of_another_network_and_process():
    """At level 3 and with noise of ones, ``x / alpha`` is 3 for every process; the guiding model predicts a tenth."""
    generator = a_generator(Autoguidance(1.5), Karras(0.1, 3.0), steps=1)
    weak = a_generator(process=VarianceExploding(), gain=0.5, slope=0.1, classes=9)
    found = generator.guided_by(weak)(label=[1, 4], noise=np.ones(SHAPE, np.float32))
    main, bad = MEANS[[1, 4]], 0.5 * MEANS[[1, 4]] + 0.3
    np.testing.assert_allclose(found, constant(main + 0.5 * (main - bad)).astype(int), atol=1)
    assert np.all(found != generator.guided_by(generator)(label=[1, 4]))


def test_a_missing_or_unsuitable_guiding_model_is_refused():
    generator = a_generator(Autoguidance(1.5))
    with pytest.raises(UserError, match="guiding_model=None: expected a guiding model"):
        generator(label=[1])
    with pytest.raises(UserError, match="guiding_model=None"):
        generator.check()
    np.testing.assert_array_equal(generator(label=[1], guidance=1.0), constant(MEANS[[1]]))
    with pytest.raises(UserError, match=r"guiding_model=\(4, 4, 1\): expected images of \(2, 3, 1\)"):
        generator.guided_by(dataclasses.replace(a_generator(), image_shape=(4, 4, 1)))
    text = Denoiser(Mean(), Conditioner(NoNoiseLevel(), {"text": ClassLabel(5, 2)}), FLOW, Data())
    with pytest.raises(UserError, match="guiding_model='text': expected a model whose conditions are label"):
        generator.guided_by(dataclasses.replace(a_generator(), denoiser=text))
    with pytest.raises(UserError, match="expected no second model"):
        a_generator(ClassifierFree(2.0)).guided_by(a_generator())(label=[1])
    with pytest.raises(UserError, match="label=4: expected a class from 0 to 2"):
        generator.guided_by(a_generator(classes=3))(label=[4])
    generator.guided_by(a_generator()).check()


@pytest.mark.spread(1)
@pytest.mark.parametrize("grid", [UNIFORM, RePaint(UNIFORM, 1, 2)], ids=["plain", "RePaint"])
def test_known_pixels_of_all_256_levels_are_kept_exactly(grid):
    generator = a_generator(grid=grid)
    mask = np.array([[True, False, False], [False, False, True]])
    known = np.zeros((64, *SHAPE), np.uint8)
    known[:, ~mask] = np.arange(256, dtype=np.uint8).reshape(64, 4, 1)
    found = generator(label=2, known=known, mask=mask)
    kept = np.broadcast_to(~mask[..., None], found.shape)
    np.testing.assert_array_equal(found[kept], known[kept])
    np.testing.assert_array_equal(found[~kept], constant(MEANS[[2]])[0, 0, 0, 0])
    one = generator(3, label=2, known=known[5], mask=np.broadcast_to(mask[None, ..., None], (3, *SHAPE)))
    np.testing.assert_array_equal(one, found[[5, 5, 5]])


@pytest.mark.slow
def test_an_image_is_inverted_to_the_noise_that_generates_it():
    """A network with v = 0.1 x + mean: images differ like their noise, which fixed-point iterations recover."""
    process, grid = VariancePreserving(Cosine()), Karras(0.005, 5.0)
    generator = a_generator(ClassifierFree(1.5), grid, process, slope=0.1, steps=6, parameterization=V())
    noise = 0.3 * np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    generated = generator(label=[0, 4], noise=noise)
    found = generator.invert(generated, label=[0, 4], iterations=20)
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, noise, atol=0.02
    )  # a level of uint8 is 0.008, and the inverse begins at 0.005
    again = generator(label=[0, 4], noise=found)
    assert np.abs(again.astype(int) - generated).max() <= 1
    rough, other = (
        generator.invert(generated, label=[0, 4], **arguments)
        for arguments in ({}, {"guidance": 1.0, "iterations": 20})
    )
    assert np.abs(rough - noise).max() > 0.05
    assert np.abs(other - noise).max() > 0.05
    with pytest.raises(UserError, match=r"sampling.grid=RePaint"):
        a_generator(grid=RePaint(UNIFORM, 1, 2)).invert(generated, label=[0, 4])


def test_an_image_does_not_depend_on_its_batch():
    generator = a_generator(ClassifierFree(2.0), Karras(0.05, 5.0), slope=0.2)
    arguments = {
        "label": [0, 1, 2, 3, 4],
        "negative": {"label": [4, 3, 2, 1, 0]},
        "seed": 7,
        "known": np.arange(30, dtype=np.uint8).reshape(5, *SHAPE),
        "mask": np.eye(2, 3, dtype=bool),
    }
    together = generator(**arguments)
    np.testing.assert_array_equal(dataclasses.replace(generator, batch_size=2)(**arguments), together)
    assert len({image.tobytes() for image in together}) == 5


def test_a_call_continues_another_at_a_later_image():
    generator = a_generator(ClassifierFree(2.0), Karras(0.05, 5.0), slope=0.2)
    labels = np.arange(5)
    together = generator(label=labels, seed=7)
    parts = [generator(label=labels[:3], seed=7), generator(label=labels[3:], seed=7, first=3)]
    np.testing.assert_array_equal(np.concatenate(parts), together)


@dataclasses.dataclass(frozen=True)
class Label:
    """A log-density whose gradient is the class, if given."""

    def __call__(self, x, t, conditions):
        label = conditions["label"]
        value = jnp.where(label.absent, 0, label.value).astype(x.dtype)
        return value * jnp.sum(x, axis=(1, 2, 3))


def test_a_classifier_receives_the_conditions():
    """The image moves by ``sigma^2 / alpha`` times the gradient; at level 1, time 1/2, that is half the class."""
    generator = a_generator(grid=Karras(0.5, 1.0), steps=1, modifiers=(ClassifierGuidance(Label()),))
    np.testing.assert_array_equal(generator(label=[0, 1]), constant([MEANS[0], MEANS[1] + 0.5]))
    np.testing.assert_array_equal(generator(1, label=None), constant([NULL]))


@pytest.fixture
def call(tmp_path):
    """Runs `jaxdiff.sample` on the model above; returns the images, and the options with which it is loaded."""
    options = {}

    def load(workdir, **given):
        options.update(given)
        return a_generator(ClassifierFree(2.0))

    def run(*words):
        out = tmp_path / "out.npz"
        sampling.run(sample.parse(["--workdir", "run", "--out", str(out), "--overwrite", *words]), load)
        return np.load(out)["images"], options

    return run


def test_the_command_passes_on_all_flags_of_the_generator(call, tmp_path):
    images, options = call("--label", "1", "--negative", "label=3", "--guiding-model", "runs/weak:500")
    np.testing.assert_array_equal(images, constant([2 * MEANS[1] - MEANS[3]]))
    assert options["guiding_model"] == ("runs/weak", 500)
    assert call("--label", "1", "--guide", "runs/weak")[1]["guiding_model"] == "runs/weak"
    assert call("--label", "1")[1]["guiding_model"] is None
    known, mask = np.arange(6, dtype=np.uint8).reshape(2, 3), np.array([[255, 0, 0], [127, 128, 0]], np.uint8)
    Image.fromarray(known).save(tmp_path / "known.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    pair = ("--known", str(tmp_path / "known.png"), "--mask", str(tmp_path / "mask.png"))
    images, _ = call("--n", "4", "--label", "1", "--guidance", "1", *pair)
    generated = constant(MEANS[[1]])[0, 0, 0, 0]
    np.testing.assert_array_equal(images[..., 0], [[[generated, 1, 2], [3, generated, 5]]] * 4)


def test_a_mistake_in_an_image_or_a_flag_is_reported(call, tmp_path):
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("not an image")
    cases = {
        (
            "--known",
            str(tmp_path / "large.png"),
            "--mask",
            str(tmp_path / "large.png"),
        ): "3x2 pixels, got 5x4",
        ("--mask", str(tmp_path / "text.png")): "--mask=.*text.png: expected an image, got other data",
        ("--known", str(tmp_path / "absent.png")): "--known=.*No such file",
        ("--negative", "label"): "--negative='label': expected NAME=VALUE",
        ("--negative", "label=x"): "--negative label=x: expected classes",
    }
    for words, message in cases.items():
        with pytest.raises(UserError, match=message):
            call("--label", "1", *words)


@pytest.mark.parametrize(
    ("text", "run"),
    [
        ("runs/weak", "runs/weak"),
        ("runs/weak:500", ("runs/weak", 500)),
        ("gs://runs/a", "gs://runs/a"),
    ],
)
def test_a_run_is_a_folder_and_perhaps_a_step(text, run):
    assert command.run_and_step(text) == run
