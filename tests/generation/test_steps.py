"""Steps that are observed while samples are made: how many, what is shown, and that samples stay the same."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxdiff.cli.progress import progress
from jaxdiff.codecs.latent import Latent
from jaxdiff.data import images as image_arrays
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.errors import UserError
from jaxdiff.generation.handover import Handover
from jaxdiff.generation.steps import OnStep
from jaxdiff.interop.safetensors_files import write_safetensors
from jaxdiff.runs.weights import FileWeights
from jaxdiff.sampling.samplers.heun import Heun
from tests.generation.latent_models import CODEC, Shown, a_latent_generator, frozen
from tests.generation.test_generator import MEANS, SHAPE, a_generator

NOISE = np.random.default_rng(0).standard_normal((5, *SHAPE)).astype(np.float32)
LABELS = [0, 1, 2, 3, 4]
MATRIX = np.random.default_rng(1).normal(0, 0.2, (4, 3)).astype(np.float32)


class Record:
    """Keeps what it is called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, step, of, images):
        self.calls.append((step, of, images))

    @property
    def steps(self):
        return [(step, of) for step, of, _ in self.calls]


def sampled(generator, every=1, preview=None, **options):
    record = Record()
    return generator(on_step=OnStep(record, every, preview), **options), record


def test_each_step_shows_the_predicted_data_and_changes_no_sample():
    generator = a_generator(slope=0.3)
    images, record = sampled(generator, label=LABELS, noise=NOISE)
    np.testing.assert_array_equal(images, generator(label=LABELS, noise=NOISE))
    assert record.steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    first = image_arrays.to_uint8(MEANS[:, None, None, None] + 0.3 * NOISE)  # pure noise at time 1
    np.testing.assert_array_equal(record.calls[0][2], first)
    np.testing.assert_array_equal(record.calls[-1][2], images)


def test_every_second_step_and_the_last_of_each_batch():
    generator = dataclasses.replace(a_generator(steps=5), batch_size=2)
    images, record = sampled(generator, every=2, label=LABELS)
    assert record.steps == [
        (2, 15),
        (4, 15),
        (5, 15),
        (7, 15),
        (9, 15),
        (10, 15),
        (12, 15),
        (14, 15),
        (15, 15),
    ]
    assert [len(shown) for *_, shown in record.calls] == [2, 2, 2, 2, 2, 2, 1, 1, 1]
    np.testing.assert_array_equal(np.concatenate([record.calls[i][2] for i in (2, 5, 8)]), images)


def test_a_sampler_of_two_calls_has_one_report_for_each_step():
    plain = a_generator(slope=0.3)
    generator = dataclasses.replace(plain, recipe=dataclasses.replace(plain.recipe, sampler=Heun()))
    images, record = sampled(generator, label=LABELS, noise=NOISE)
    assert record.steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    np.testing.assert_array_equal(images, generator(label=LABELS, noise=NOISE))


def test_eight_devices_report_whole_batches():
    generator = dataclasses.replace(a_generator(slope=0.3), mesh=MeshShape(data=4, tensor=2).make())
    images, record = sampled(generator, label=LABELS, noise=NOISE)
    assert record.steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    np.testing.assert_array_equal(record.calls[-1][2], images)


@dataclasses.dataclass(frozen=True)
class LinearCodec(Latent):
    """Two pixels along each latent, whose colours are linear in it."""

    def decode(self, frozen, x_0):
        return jnp.repeat(jnp.repeat(x_0 @ MATRIX + 0.1, 2, axis=1), 2, axis=2)


def test_latents_are_shown_in_the_colours_of_their_decoder():
    codec = LinearCodec(CODEC.network, CODEC.weights)
    generator = a_latent_generator({}, Shown(), codec=codec)
    generator = dataclasses.replace(generator, denoiser=generator.denoiser.clone(network=Half()))
    noise = np.random.default_rng(2).standard_normal((2, 4, 6, 4)).astype(np.float32)
    images, record = sampled(generator, n=2, noise=noise)
    shown = record.calls[-1][2]
    assert shown.shape == (2, 4, 6, 3)
    assert np.ptp(shown) > 20
    np.testing.assert_allclose(shown.astype(int), images[:, ::2, ::2], atol=1)


@pytest.mark.slow
def test_steps_of_a_base_model_and_its_refiner_are_counted_together():
    generator, record = a_latent_generator({}, Shown(), steps=4), Record()
    noise = np.random.default_rng(2).standard_normal((3, 4, 6, 4)).astype(np.float32)
    generator = dataclasses.replace(generator, batch_size=2)
    pair = Handover(generator, generator, fraction=0.5)
    images = pair(noise=noise, on_step=OnStep(record))
    np.testing.assert_array_equal(images, pair(3, noise=noise))
    assert record.steps == [(step, 8) for step in range(1, 9)]
    assert [len(shown) for *_, shown in record.calls] == [2, 2, 1, 1, 2, 2, 1, 1]


class Half(Shown):
    """Predicts half of the noisy data."""

    def __call__(self, x, embeddings, *, train):
        return x / 2


@pytest.mark.slow
def test_a_second_codec_makes_previews(tmp_path):
    write_safetensors(
        tmp_path / "tiny.safetensors",
        flatten_dict(jax.tree.map(np.asarray, frozen()["autoencoder"]), sep="/"),
    )
    preview = dataclasses.replace(CODEC, weights=FileWeights(str(tmp_path / "tiny.safetensors")))
    generator = a_latent_generator({}, Half())
    images, record = sampled(generator, 2, preview, n=3)
    np.testing.assert_array_equal(record.calls[-1][2], images)
    assert record.steps == [(2, 2)]


def test_an_error_of_the_function_ends_the_calls_and_is_raised():
    calls = []

    def fail(step, of, images):
        calls.append(step)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        a_generator()(label=LABELS, on_step=OnStep(fail))
    assert calls == [1]


def test_steps_are_counted_from_1():
    with pytest.raises(UserError, match=r"every=0: .* Fix: "):
        OnStep(print, every=0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_a_line_that_is_redrawn_and_a_pipe_shows_nothing():
    assert progress(io.StringIO()) is None
    terminal = Terminal()
    a_generator()(label=LABELS, on_step=progress(terminal))
    *_, last = terminal.getvalue().split("\r")
    assert terminal.getvalue().count("\r") == 4
    assert last == f"step 4 of 4 [{'#' * 30}]\n"
