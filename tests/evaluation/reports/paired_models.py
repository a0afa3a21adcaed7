"""Models of super-resolution and of two tasks of partial images: functions that answer with real images."""

import numpy as np

from jaxdiff.evaluation.features.patches import Patches
from tests.evaluation.models import inputs

TASKS = ("colourise", "inpaint")
PATCHES = Patches(4, 2)


def model_of(generate, examples, condition, **settings):
    """A model with only this condition."""
    return inputs(generate, (condition,), *examples, **settings)


def answering(examples, condition, images):
    """Returns these images for the conditions of the test examples, in any order."""
    known = {given.tobytes(): image for given, image in zip(examples[1][condition], images, strict=True)}
    return lambda conditions, seed, guidance: np.stack(
        [known[given.tobytes()] for given in conditions[condition]]
    )


def noisy(images, seed, std):
    noise = np.random.default_rng(seed).normal(0, std, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)
