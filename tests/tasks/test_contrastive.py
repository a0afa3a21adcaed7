"""Contrastive learning: the loss against optax, one device against eight, and whole runs."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxdiff import evaluate as evaluation
from jaxdiff.data.arrays import Arrays
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.text import ByteTokenizer, Tokenize
from jaxdiff.distributed import partitioning
from jaxdiff.errors import UserError
from jaxdiff.evaluation.metrics.accuracy import Accuracy
from jaxdiff.evaluation.metrics.retrieval import Retrieval
from jaxdiff.evaluation.predictions import EvaluationOfPredictions
from jaxdiff.evaluation.reports.class_conditional import ImageEvaluation
from jaxdiff.experiment import Experiment
from jaxdiff.generation.generator import Generator
from jaxdiff.generation.predictor import Predictor
from jaxdiff.models.clip_text import ClipTextEncoder
from jaxdiff.models.clip_vision import ClipVisionEncoder
from jaxdiff.models.dual_encoder import DualEncoder, PooledEncoder
from jaxdiff.models.text_encoder import ByteTransformer
from jaxdiff.runs.weights import RunWeights
from jaxdiff.tasks.contrastive import ContrastiveTask, at_most, contrastive_loss
from jaxdiff.tasks.protocols import Predictive
from jaxdiff.train import train
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW
from jaxdiff.training.step import Context, Frozen, Task, make_train_step
from tests.training import toy

TOKENIZER = ByteTokenizer(length=12)
COLOURS = {"red": (230, 40, 40), "green": (40, 190, 60), "blue": (60, 90, 255), "white": (255, 255, 255)}
PLACES = ("top", "low")
TEXTS = [f"{colour} {place}" for colour in COLOURS for place in PLACES]
RANDOM = np.random.default_rng(0)


def pictures(count):
    """Images 8 x 8 with a coloured band in one half, and what they show."""
    index = np.arange(count) % len(TEXTS)
    images = RANDOM.integers(0, 30, (count, 8, 8, 3)).astype(np.uint8)
    for image, number in zip(images, index, strict=True):
        colour, place = TEXTS[number].split()
        row = RANDOM.integers(0, 3) + 4 * (place == "low")
        image[row : row + 2] = COLOURS[colour]
    return images, [TEXTS[number] for number in index]


IMAGES, CAPTIONS = pictures(16)
MANY, NAMES = pictures(64)
BATCH = {"image": jnp.asarray(IMAGES), "text": jnp.asarray(TOKENIZER.encode_batch(CAPTIONS))}


def a_task(**changes):
    image = ClipVisionEncoder(width=16, layers=1, heads=2, image_size=8, patch=4, projection=12)
    text = PooledEncoder(ByteTransformer(width=16, layers=1, words=2, head_dim=8), projection=12)
    return dataclasses.replace(ContrastiveTask(DualEncoder(image, text), TOKENIZER, (8, 8, 3)), **changes)


def an_experiment(**changes):
    data = Pipeline(Arrays(image=MANY, text=np.array(NAMES)), conditions=(Tokenize(TOKENIZER),))
    experiment = Experiment(
        task=a_task(),
        optimizer=AdamW(5e-3),
        ema=Ema(0.8),
        data=data,
        test_data=data,
        evaluation=EvaluationOfPredictions((Retrieval(candidates=16, at=(1, 3)),), n=32),
        steps=80,
        batch_size=16,
        log_every=40,
        sample_every=0,
    )
    return dataclasses.replace(experiment, **changes)


def test_it_is_a_task_that_predicts():
    assert isinstance(a_task(), Task)
    assert isinstance(a_task(), Predictive)


def test_the_loss_is_the_cross_entropy_of_rows_and_columns():
    images, texts = (jax.random.normal(jax.random.key(i), (7, 5)) for i in (0, 1))
    logits, right = 9.0 * images @ texts.T, jnp.arange(7)
    rows, columns = (optax.softmax_cross_entropy_with_integer_labels(x, right) for x in (logits, logits.T))
    np.testing.assert_allclose(
        contrastive_loss(images, texts, jnp.asarray(9.0)), (rows + columns) / 2, rtol=1e-10
    )


def test_the_factor_stays_below_its_bound_and_can_fall():
    most = math.log(100.0)
    for x, upstream, expected in ((5.0, -1.0, 0.0), (5.0, 1.0, 1.0), (1.0, -1.0, -1.0), (1.0, 1.0, 1.0)):
        value, gradient = jax.value_and_grad(lambda x, up=upstream: up * at_most(x, most))(jnp.float32(x))
        assert value == pytest.approx(upstream * min(x, most))
        assert gradient == expected


@pytest.mark.slow
def test_the_factor_starts_at_the_inverse_temperature_and_multiplies_cosines(float32):
    task, key = a_task(max_scale=20.0), jax.random.key(0)
    params = nn.meta.unbox(jax.jit(task.init)(key))

    @jax.jit
    def evaluated(params):
        losses = task.loss(params, Context(), task.draw(BATCH, Context(), key), key, True)
        return losses, task.predict(params, {}, BATCH)

    (_, metrics), _ = evaluated(params)
    assert metrics["scale"] == pytest.approx(1 / 0.07)
    (losses, metrics), found = evaluated({**params, "log_scale": jnp.log(30.0)})
    assert metrics["scale"] == pytest.approx(20.0)
    expected = contrastive_loss(found["image_vector"], found["text_vector"], jnp.float32(20.0))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(found["image_vector"], axis=1), 1.0, rtol=1e-5)


SGD = optax.sgd(1.0)


def one_step(mesh):
    """The loss, and the gradients as the update of plain gradient descent, of one step on a mesh."""
    step, initial, shardings = toy.program(mesh, SGD, 1, a_task())
    state = jax.tree.map(lambda x, where: jax.device_put(x, where, may_alias=False), initial, shardings)
    after, metrics = step(state, jax.device_put(BATCH, partitioning.batch_sharding(mesh)), Frozen())
    return float(metrics["loss"]), jax.tree.map(
        lambda a, b: a - b, initial.params, jax.device_get(after.params)
    )


@pytest.mark.slow
def test_one_device_and_eight_have_one_loss_over_the_global_batch(float32):
    (loss, gradient), (loss_of_eight, gradient_of_eight) = one_step(toy.mesh(1)), one_step(toy.mesh(8))
    assert loss_of_eight == pytest.approx(loss, rel=1e-6)
    norm = optax.tree.norm(gradient)
    difference = optax.tree.norm(jax.tree.map(lambda a, b: a - b, gradient, gradient_of_eight))
    assert norm > 0.1
    assert difference < 1e-6 * norm
    # Eight losses over two pairs each would be smaller: at the start near log(2), not log(16).
    assert loss > math.log(4)


def test_micro_batches_are_refused():
    expected = "accumulation=2: expected 1, since ContrastiveTask compares the examples of a whole batch"
    with pytest.raises(UserError, match=expected):
        an_experiment(accumulation=2)
    with pytest.raises(UserError, match=expected):
        make_train_step(a_task(), optax.sgd(1.0), Ema(0.9), 0, accumulation=2)


def test_misfits_are_refused_before_anything_is_compiled():
    example = {name: np.asarray(values[0]) for name, values in BATCH.items()}
    task = a_task()
    task.check(example, None)
    with pytest.raises(UserError, match=r"config.data='text': expected a field of the examples, got image"):
        task.check({"image": example["image"]}, None)
    with pytest.raises(UserError, match=r"config.task.image_shape=\(8, 8, 3\)"):
        task.check({**example, "image": example["image"][:4]}, None)
    with pytest.raises(UserError, match=r"config.data.text"):
        task.check({**example, "text": example["text"][:5]}, None)
    plain = ClipTextEncoder(width=16, layers=1, heads=2, vocabulary=259, length=12, end=1)
    network = task.network.clone(text=plain)
    with pytest.raises(
        UserError, match=r"config.task.network.text='ClipTextEncoder': expected an encoder with a vector"
    ):
        dataclasses.replace(task, network=network).check(example, None)
    network = task.network.clone(text=plain.clone(pooled=True))
    with pytest.raises(UserError, match="expected vectors of one width"):
        dataclasses.replace(task, network=network).check(example, None)


@pytest.mark.parametrize("lengths", [(3, 2), (0, 0)])
def test_predictions_need_as_many_rows_of_each_field(lengths):
    images, texts = lengths
    fields = {"image": np.zeros((images, 8, 8, 3), np.uint8), "text": np.zeros((texts, 12), np.int32)}
    predictor = Predictor(a_task(), {}, {}, toy.mesh(1))
    with pytest.raises(UserError, match=r"expected one number of rows, above 0, got \{'image': "):
        predictor(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": np.full((2, 12), 100_000, np.int32)}, "text=100000: expected ids from 0 to"),
        ({"text": np.zeros((2, 5), np.int32)}, r"text='?int32\[2, 5\]"),
        (
            {"image": np.zeros((2, 8, 8, 3), np.float32)},
            r"image='float32\[2, 8, 8, 3\]': expected uint8 \[n, ",
        ),
        ({"image": np.zeros((2, 8, 8, 4), np.uint8)}, r"expected uint8 \[n, height, width, 3\]"),
    ],
)
def test_predictions_need_fields_that_the_encoders_read(fields, message):
    with pytest.raises(UserError, match=message):
        Predictor(a_task(), {}, {}, toy.mesh(1))(fields)


def test_evaluations_fit_the_kind_of_task():
    with pytest.raises(UserError, match="expected a task with samples, got ContrastiveTask"):
        an_experiment(evaluation=ImageEvaluation())
    with pytest.raises(UserError, match="metrics='Accuracy': expected metrics of the stream 'test' alone"):
        EvaluationOfPredictions((Accuracy(),))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "clip"
    return folder, train(an_experiment(), str(folder))


@pytest.mark.slow
def test_training_ends_with_retrieval_and_the_command_finds_the_same(run, float32):
    folder, predictor = run
    values = json.loads((folder / "evaluation.json").read_text())["test"]["retrieval"]
    assert values["text_of_image"]["at_1"] > 0.5  # chance: 1/8, since texts repeat
    assert values["groups"] == 2
    (folder / "evaluation.json").unlink()
    stored = json.loads((folder / "config.json").read_text())
    assert stored["data"]["source"]["length"] == 64  # arrays are recorded, not stored
    report = evaluation.evaluate(an_experiment(), Predictor.load(str(folder)), folder)
    assert report.values["test"]["retrieval"] == values
    assert "text of an image is the nearest" in str(report)
    found = predictor({"image": IMAGES, "text": BATCH["text"]})
    alone = predictor({"image": IMAGES[3:4]})
    assert alone.keys() == {"image_vector"}
    np.testing.assert_allclose(alone["image_vector"][0], found["image_vector"][3], atol=1e-5)


@pytest.mark.slow
def test_its_networks_are_frozen_networks_of_others(run, float32):
    folder, predictor = run
    task = predictor.task
    tree = jax.tree.map(jnp.asarray, RunWeights(str(folder), module="image").read())
    pixels = task.draw(BATCH, Context(), jax.random.key(0))["pixels"]
    vectors = jax.jit(task.network.image.apply)({"params": tree}, pixels).vector
    unit = vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, predictor({"image": IMAGES})["image_vector"], atol=1e-5)


@pytest.mark.slow
def test_it_is_not_sampled(run, float32):
    with pytest.raises(UserError, match=r"config.task='ContrastiveTask': expected a task with samples"):
        Generator.load(str(run[0]))
