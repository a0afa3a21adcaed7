"""Models with known defects, which evaluations have to detect: functions that return real images."""

import numpy as np

from jaxdiff.evaluation.examples import InMemory
from jaxdiff.evaluation.metric import Batch
from jaxdiff.evaluation.protocols import EvaluationInputs


def inputs(generate, conditions, train, test, guidance=1.0, batch_size=10_000, **settings):
    """Evaluation inputs of a model that generates all images at once: ``generate(conditions, seed, guidance)``."""

    def batch(given, seed, scale, first):
        assert first == 0
        return generate(given, seed, scale)

    label = "label" if "label" in train else None
    return EvaluationInputs(
        batch, conditions, guidance, InMemory(train), InMemory(test), label, batch_size, **settings
    )


def batches(stream, images, labels=None, size=None, **further):
    """A set of images as batches of one stream."""
    n, size = len(images), size or len(images)
    labels = np.zeros(n, int) if labels is None else labels
    for first in range(0, n, size):
        part = slice(first, min(first + size, n))
        more = {name: values[part] for name, values in further.items()}
        fields = {"image": images[part]}
        yield Batch(stream, images[part], fields, labels[part], np.arange(n)[part], **more)
