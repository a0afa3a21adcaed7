"""Training from a cache takes the steps of training from images: the same draws, drops, losses and gradients."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.caching.making import Request, make
from jaxdiff.caching.reading import training_data
from jaxdiff.codecs.posterior import Posterior
from jaxdiff.config import build
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.runs.weights import load
from jaxdiff.train import train
from jaxdiff.training.step import Context
from tests.caching.model import a_config
from tests.selection import some

NULLS = ("empty", "zero", "learned")


@pytest.fixture(scope="module")
def made(files, tmp_path_factory):
    """An experiment, its cache, its frozen networks, and the folder with their record."""

    @functools.cache
    def make_one(null="empty", **options):
        experiment = build(a_config(files, null))
        folder = tmp_path_factory.mktemp("cache")
        make(experiment, Request(str(folder / "cache"), **options), lambda done, count: None)
        frozen = load(experiment.task.frozen, experiment.mesh.make(), folder, record=True)
        return with_cache(experiment, folder / "cache"), frozen, folder

    return make_one


def with_cache(experiment, folder):
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, encoded=str(folder)))


def batches(pipeline, count=3, seed=5):
    found = pipeline.batches(8, seed)
    return [next(found) for _ in range(count)]


@functools.partial(jax.jit, static_argnums=0)
def step(task, params, frozen, batch):
    """What is drawn, and the losses with their gradients, as in a step of training."""
    context, key = Context(frozen=frozen, task_state=task.init_task_state()), jax.random.key(3)
    examples = task.draw(batch, context, key)

    def loss(params):
        losses, _ = task.loss(params, context, examples, key, True)
        return jnp.mean(losses), losses

    return examples, jax.value_and_grad(loss, has_aux=True)(params)


def assert_close(found, expected, tolerance=1e-5):
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, tolerance, tolerance), found, expected
    )


@pytest.mark.slow
@pytest.mark.parametrize("null", some(NULLS, ("empty",)))
def test_a_step_from_a_cache_is_the_step_from_images(made, null):
    """With flips, one caption of two, and dropped captions: the choices are the same, bit for bit."""
    experiment, frozen, folder = made(null)
    task, cached = experiment.task, training_data(experiment, folder)
    params = jax.tree.map(lambda leaf: leaf + 0.1, jax.jit(task.init)(jax.random.key(0)))
    drops = []
    for raw, encoded in zip(batches(experiment.data), batches(cached), strict=True):
        assert isinstance(encoded["image"], Posterior)
        assert isinstance(encoded["text"], Embeddings)
        assert encoded.keys() == raw.keys()
        for name in ("index", "label"):
            np.testing.assert_array_equal(encoded[name], raw[name])
        (drawn, losses), (expected, expected_losses) = (
            step(task, params, frozen, each) for each in (encoded, raw)
        )
        assert_close(drawn["x_0"], expected["x_0"])
        for name in ("noise", "u", "drop"):
            jax.tree.map(np.testing.assert_array_equal, drawn[name], expected[name])
        assert_close(losses, expected_losses)
        drops.append(np.asarray(drawn["drop"]["text"]))
    assert 0 < np.mean(drops) < 1


@pytest.mark.slow
def test_every_result_of_a_flip_and_of_captions_is_read(made):
    """Each image is seen as it is and mirrored, and with each of its captions."""
    experiment, frozen, folder = made()
    task, cached = experiment.task, training_data(experiment, folder)
    raw = experiment.data.source.open()
    images = jnp.asarray(np.stack([raw[0]["image"], raw[0]["image"][:, ::-1]]))
    expected = task.codec.precompute(frozen, images).mean
    seen = [batch for batch in batches(cached, 40) if 0 in batch["index"]]
    rows = [(batch, list(batch["index"]).index(0)) for batch in seen]
    nearest = {
        int(np.argmin([np.abs(batch["image"].mean[row] - each).max() for each in expected]))
        for batch, row in rows
    }
    texts = {batch["text"].tokens.features[row].tobytes() for batch, row in rows}
    assert nearest == {0, 1}
    assert len(texts) == 2


def test_a_posterior_stays_random(made):
    """The latents of a cached image differ with the key, as those of the image do."""
    experiment, frozen, folder = made()
    codec = experiment.task.codec
    (batch,) = batches(training_data(experiment, folder), 1)
    posterior = jax.tree.map(jnp.asarray, batch["image"])
    keys = [jax.random.split(jax.random.key(i), 8) for i in (0, 1)]
    one, other = (codec.encode(frozen, posterior, each) for each in keys)
    mode = dataclasses.replace(codec, posterior="mode").encode(frozen, posterior, keys[0])
    assert np.all(one != other)
    np.testing.assert_array_equal(mode, codec.scaled(posterior.mean))


def test_half_precision_is_close(made):
    exact, frozen, folder = made()
    half, _, half_folder = made(dtype="float16")
    ours, theirs = (batches(training_data(*each), 1)[0] for each in ((half, half_folder), (exact, folder)))
    assert ours["image"].mean.dtype == ours["text"].tokens.features.dtype == np.float16
    assert ours["text"].tokens.mask.dtype == bool
    keys = jax.random.split(jax.random.key(0), 8)
    posteriors = (jax.tree.map(jnp.asarray, each["image"]) for each in (ours, theirs))
    x_0, expected = (exact.task.codec.encode(frozen, each, keys) for each in posteriors)
    assert x_0.dtype == np.float32
    assert_close(x_0, expected, 5e-3)


def test_labels_are_those_of_the_runs_class_table(made):
    experiment, _, folder = made()
    ours = experiment.with_classes(("class_1", "class_0"))
    found, expected, plain = (
        batches(each, 1)[0]["label"] for each in (training_data(ours, folder), ours.data, experiment.data)
    )
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, 1 - plain)


@pytest.mark.slow
def test_latents_alone_leave_texts_to_be_encoded(made):
    experiment, frozen, folder = made(fields=("image",))
    task = experiment.task
    params = jax.jit(task.init)(jax.random.key(0))
    (raw,), (encoded,) = batches(experiment.data, 1), batches(training_data(experiment, folder), 1)
    np.testing.assert_array_equal(encoded["text"], raw["text"])
    assert_close(step(task, params, frozen, encoded)[1], step(task, params, frozen, raw)[1])


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_is_the_same_with_a_cache_and_continues_without_it(made, tmp_path):
    """Samples are made by the text encoder itself: a caption and a negative one that no cache holds."""
    experiment = made()[0]
    raw = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, encoded=None))
    ours, theirs = (
        train(each, str(tmp_path / name)) for name, each in (("cached", experiment), ("raw", raw))
    )
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "raw"), rel=1e-5)
    assert isinstance(ours, Generator)
    assert isinstance(theirs, Generator)
    options = {"text": "unseen", "negative": {"text": "bad"}, "seed": 0}
    found, expected = (each(2, **options).astype(int) for each in (ours, theirs))
    assert np.abs(found - expected).max() <= 1
    assert np.any(found != ours(2, text="unseen", seed=0))
    train(dataclasses.replace(raw, steps=5), str(tmp_path / "cached"))
    assert len(losses(tmp_path / "cached")) == 5


def test_an_incomplete_cache_is_refused(made, tmp_path):
    experiment, _, folder = made()
    source = folder / "cache"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cache.json").write_bytes((source / "cache.json").read_bytes())
    for path, got in ((tmp_path / "cache", "got 0 of them"), (tmp_path / "none", "got no cache.json there")):
        with pytest.raises(UserError, match=rf"config.data.encoded='?{path}'?: .*{got}.*jaxdiff.cache"):
            training_data(with_cache(experiment, path), folder)


def test_test_data_are_never_read_from_a_cache(made):
    experiment = made()[0]
    with pytest.raises(UserError, match=r"test_data\.encoded=.*: expected None"):
        dataclasses.replace(experiment, test_data=experiment.data)
