"""Training of a small U-Net on a few handwritten digits."""

import numpy as np
from ml_collections import ConfigDict
from sklearn.datasets import load_digits

from jaxdiff.cli import app
from jaxdiff.config import spec
from jaxdiff.data.arrays import Arrays
from jaxdiff.generation.generator import Generator
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.unet import Level, UNet
from tests.commands import DIGITS, TINY

IMAGES = (load_digits().images[:64, ..., None] * 15.9).astype(np.uint8)
LABELS = load_digits().target[:64]
SOURCE = Arrays(image=IMAGES, label=LABELS)


def config(steps: int, *changes: tuple[str, str]) -> ConfigDict:
    """configs/digits.py with a network that compiles in seconds; `changes` are paths of fields and new values."""
    words = [tuple(word.removeprefix("--config.").split("=")) for word in TINY]
    fixed = [("steps", str(steps)), ("checkpoint_every", "2"), ("evaluation", "None"), ("test_data", "None")]
    found = app.load_config(DIGITS, [*words, *fixed])
    middle = spec(ResidualMiddle, attention=None)
    found.task.denoiser.network = spec(
        UNet, levels=(spec(Level, width=16, blocks=1),), out_channels=1, middle=middle, coordinates=True
    )
    for path, text in changes:
        app.override(found, path, text)
    return found


def sample(generator: Generator, **given: np.ndarray) -> np.ndarray:
    """Samples of three classes, always with the same noise."""
    return generator(label=[1, 2, 3], seed=0, **given)
