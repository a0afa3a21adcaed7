"""Models with known defects, which evaluations have to detect: functions that return real images."""

import dataclasses

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


@dataclasses.dataclass(frozen=True)
class Space:
    """A feature space of any name: the pixels as float32 vectors. It states its profile and a hash, as networks do."""

    name: str = "a space"
    profile: str = "adm-tf"
    hash: str = "sha256:0123456789abcdef"

    def __call__(self, images):
        return images.reshape(len(images), -1).astype(np.float32) / 255


def score(metric, samples, labels=None, fields=None, size=64, **real):
    """The values of a metric of these samples; `real` has the images of its other streams, or (images, labels)."""
    state = metric.init()
    for stream in ("train", "test"):
        if stream in real and stream in metric.streams:
            images = real[stream] if isinstance(real[stream], tuple) else (real[stream],)
            for batch in batches(stream, *images, size=size):
                state = metric.update(state, batch)
            state = metric.finish(state, stream)
    for batch in batches("samples", samples, labels, size):
        if fields is not None:
            chosen = {name: values[batch.positions] for name, values in fields.items()}
            batch = dataclasses.replace(batch, fields={**batch.fields, **chosen})
        state = metric.update(state, batch)
    return metric.compute(state)
