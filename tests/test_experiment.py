"""Inconsistent experiments are errors before anything is compiled."""

import pathlib

import pytest

from jaxdiff import config as configs
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.noisy import NoiseAugmented
from jaxdiff.conditioning.text import Text
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.data.conditions import Degrade
from jaxdiff.data.degradations import Downsample
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.data.text import ByteTokenizer, Tokenize
from jaxdiff.data.transforms import RandomCrop
from jaxdiff.errors import UserError
from jaxdiff.models.text_encoder import ByteTransformer
from jaxdiff.process.gaussian import RectifiedFlow

DIGITS = str(pathlib.Path(__file__).parents[1] / "configs" / "digits.py")
LOW = configs.spec(ImageCondition, channels=3, factor=4.0)
NOISY = configs.spec(
    NoiseAugmented, part=LOW, noise=configs.spec(NoiseLevel, width=128), process=configs.spec(RectifiedFlow)
)
TOKENIZER = configs.spec(ByteTokenizer, length=96)
TEXT = configs.spec(Text, tokenizer=TOKENIZER, encoder=configs.spec(ByteTransformer, width=64, layers=1))
SMALLER = configs.spec(Degrade, field="low_res", degradation=configs.spec(Downsample, factor=4))


def experiment(source, parts, conditions=(), transforms=(), shape=(32, 32, 3)):
    config = configs.load(DIGITS)
    config.task.denoiser.conditioner.conditions = parts
    config.task.image_shape = shape
    config.data = configs.spec(Pipeline, source=source, conditions=conditions, transforms=transforms)
    config.test_data = config.data
    return configs.build(config)


PHOTOS = configs.spec(Tfds, name="photos/32")
SCENES = configs.spec(Tfds, name="scenes", label_key=None, text_key="caption")


def check(experiment):
    experiment.check_devices(1)
    experiment.check_data()


@pytest.mark.parametrize(
    "fits",
    [
        lambda: experiment(PHOTOS, {"low_res": LOW}, (SMALLER,)),
        lambda: experiment(PHOTOS, {"low_res": NOISY}, (SMALLER,)),
        pytest.param(
            lambda: experiment(
                SCENES, {"text": TEXT}, (configs.spec(Tokenize, tokenizer=TOKENIZER),), shape=(24, 24, 3)
            ),
            marks=pytest.mark.slow,
        ),
        lambda: experiment(PHOTOS, {}, (), (configs.spec(RandomCrop, size=16),), (16, 16, 3)),
    ],
    ids=["low resolution", "with noise", "text", "crops of a larger picture"],
)
def test_consistent_experiments_are_accepted(fits):
    check(fits())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: experiment(PHOTOS, {"low_res": LOW}),
            "config.data: expected examples with the condition low_res",
        ),
        (lambda: experiment(SCENES, {"text": TEXT}, shape=(24, 24, 3)), "text="),
        (lambda: experiment(PHOTOS, {}, shape=(16, 16, 3)), r"config.task.image_shape=\(16, 16, 3\)"),
    ],
    ids=["a field is missing", "text is no ids", "another size"],
)
def test_inconsistent_experiments_are_errors(wrong, message):
    with pytest.raises(UserError, match=message):
        check(wrong())
