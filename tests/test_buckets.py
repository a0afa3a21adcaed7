"""Training on images of many shapes: one program for each, checks before anything is compiled, and exact resumption."""

import dataclasses
import types

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from jaxdiff import config as configs
from jaxdiff.cli import app
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.continuous import Continuous, ImageSize
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.config.overrides import override
from jaxdiff.data.buckets import Buckets
from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import RunFailure, UserError
from jaxdiff.experiment import Experiment
from jaxdiff.models.layers import Conv, Dense
from jaxdiff.process.gaussian import RectifiedFlow
from jaxdiff.process.prediction import Velocity
from jaxdiff.process.time_sampling import Uniform
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.train import train
from jaxdiff.training import loop
from jaxdiff.training.ema import Ema
from jaxdiff.training.optimizer import AdamW
from jaxdiff.training.programs import Programs, repeated
from tests import commands
from tests.commands import DIGITS, TINY
from tests.data.pixels import noise
from tests.training import toy

SIZES = [(14, 40), (16, 16), (60, 20), (16, 18), (24, 70), (30, 31)]
BUCKETS = Buckets(size=16, step=8, max_ratio=4.0)


class Convolution(nn.Module):
    """One convolution, shifted by the vector."""

    @nn.compact
    def __call__(self, x, embeddings, *, train):
        return Conv(1, name="conv")(x) + Dense(1, name="shift")(embeddings.vector)[:, None, None]


def sizes():
    """SDXL's conditions of sizes."""
    return {
        "original_size": ImageSize(width=8, frequencies=4),
        "crop": Continuous(2, width=8, frequencies=4, default=(0.0, 0.0), null="none"),
        "target_size": ImageSize(width=8, frequencies=4),
    }


def a_task():
    denoiser = Denoiser(Convolution(), Conditioner(NoiseLevel(8), sizes()), RectifiedFlow(), Velocity())
    return DenoisingTask(denoiser, Uniform(), (16, 16, 1))


@pytest.fixture
def photos(tmp_path):
    """A folder of images of three kinds of shape: wide, square and tall."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, size in enumerate(SIZES):
        Image.fromarray(noise(*size, seed=i)).save(folder / f"{i}.png")
    return folder


def pipeline(photos):
    source = ImageFolder(str(photos), None, label=None, channels=1)
    return Pipeline(source, buckets=dataclasses.replace(BUCKETS, position="random"))


def run(photos, workdir, steps):
    data = pipeline(photos)
    settings = types.SimpleNamespace(
        steps=steps, log_every=1, checkpoint_every=2, keep=2, keep_also=None, accumulation=1, seed=0
    )
    return loop.run(
        a_task(), lambda start: data.batches(2, 0, start), settings, optimizer=toy.ADAM, ema=Ema(), mesh=toy.mesh(1),
        workdir=workdir, prototypes=data.prototypes(2),
    )  # fmt: skip


@pytest.fixture
def programs(monkeypatch):
    """The programs of each run."""
    made = []
    monkeypatch.setattr(loop, "Programs", lambda *parts: made.append(Programs(*parts)) or made[-1])
    return made


@pytest.mark.slow
def test_a_network_learns_from_all_shapes_and_continues_exactly(photos, tmp_path, programs):
    straight = run(photos, tmp_path / "straight", 9)
    run(photos, tmp_path / "parts", 4)
    parts = run(photos, tmp_path / "parts", 9)
    assert toy.sha(straight) == toy.sha(parts)
    losses = [[row["loss"] for row in commands.metrics(tmp_path / name)] for name in ("straight", "parts")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 9
    assert np.all(np.isfinite(losses[0]))
    assert list(map(len, programs)) == [3, 3, 3]


@pytest.mark.slow
def test_all_programs_are_compiled_before_the_first_step(photos, tmp_path, monkeypatch):
    seen = []

    class Watched(Programs):
        def __call__(self, state, batch, frozen):
            seen.append(len(self))
            return super().__call__(state, batch, frozen)

    monkeypatch.setattr(loop, "Programs", Watched)
    run(photos, tmp_path, 5)
    assert seen == [3] * 5


def test_the_conditions_are_those_of_each_image(photos):
    """The numbers of a batch reach the conditioner, and are not the defaults of the nominal size."""
    task, batch = a_task(), next(pipeline(photos).batches(2, 0))
    drawn = task.denoiser.conditioner.draw(batch, jax.random.split(jax.random.key(0), 2), train=True)
    for name in sizes():
        np.testing.assert_array_equal(drawn[name], batch[name])
    for size, index in zip(batch["original_size"], batch["index"], strict=True):
        assert tuple(size) == SIZES[index]
    assert (batch["target_size"] == batch["image"].shape[1:3]).all()


def test_a_prototype_is_a_batch_of_its_bucket_in_shape_and_type(photos):
    data = pipeline(photos)
    made = {}
    for example in data.prototypes(4):
        batch = repeated(example, 4)
        made[batch["image"].shape] = {name: (value.shape, value.dtype) for name, value in batch.items()}
    assert len(made) == 3
    for _, batch in zip(range(12), data.batches(4, 0), strict=False):
        assert made[batch["image"].shape] == {
            name: (value.shape, value.dtype) for name, value in batch.items()
        }


def config(photos, *changes):
    """configs/digits.py with a U-Net of two levels, on images in three buckets."""
    words = [tuple(word.removeprefix("--config.").split("=", 1)) for word in TINY]
    found = app.load_config(DIGITS, [(path, text) for path, text in words if "label" not in path])
    found.task.denoiser.conditioner.conditions = {
        name: configs.describe(each) for name, each in sizes().items()
    }
    for name in sizes():
        found.task.denoiser.conditioner.conditions[name].width = 32
    found.task.image_shape = (16, 16, 1)
    found.data = configs.describe(
        Pipeline(ImageFolder(str(photos), None, label=None, channels=1), buckets=BUCKETS)
    )
    overrides = [("test_data", "None"), ("evaluation", "None"), ("batch_size", "8"), ("steps", "6"),
                 ("log_every", "1"), ("checkpoint_every", "2"), *changes]  # fmt: skip
    for path, text in overrides:
        override(found, path, text)
    return found


def test_data_and_task_that_fit_are_accepted(photos):
    configs.build(config(photos)).check_data()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([("data.buckets.size", "32")], r"config\.data\.buckets\.size=32: expected the sides of config\.task"),
        ([("data.buckets.step", "1")],
         r"config\.data\.buckets\.step=1: expected sides that the model can divide, got multiples of 1 \(image_shape"),
        ([("data.source.size", "16")], r"expected images of many shapes, got all of 16 x 16.*source\.size=None"),
        ([("data.buckets", "None")], r"config\.task\.image_shape=\(16, 16, 1\): expected the shape of the examples"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_compiled(photos, changes, words):
    with pytest.raises(UserError, match=words):
        configs.build(config(photos, *changes)).check_data()


def test_a_run_says_what_buckets_do_and_names_a_program_for_each(
    photos, tmp_path, capsys, caplog, monkeypatch
):
    seen = []

    def begin(*parts, prototypes, **options):
        seen.extend(prototypes)
        raise RunFailure("enough")

    monkeypatch.setattr(loop, "run", begin)
    experiment = Experiment(
        a_task(), AdamW(0.01), Ema(0.9), pipeline(photos), steps=1, batch_size=8, sample_every=0
    )
    with pytest.raises(RunFailure, match="enough"):
        train(experiment, str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert "buckets: 3 shapes from 8 x 32 to 32 x 8, 6 of 6 images" in said
    assert "one program of the step for each shape is compiled first" in said
    assert "3 have fewer images (6 in all) than a batch of 8, in which they repeat" in caplog.text
    assert [example["image"].shape for example in seen] == [(8, 32, 1), (16, 16, 1), (32, 8, 1)]
