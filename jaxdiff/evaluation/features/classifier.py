"""Features of a small classifier that is trained on the data set at hand, which need no published weights.

Figures in this space compare models of one data set. They are no FID, and compare with no published figure. A
classifier sees what tells classes apart, and may miss the rest.
"""

import dataclasses
import functools
import json
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float32, Integer, UInt8

from jaxdiff.errors import UserError, expect, positive
from jaxdiff.evaluation.features.network import Network, check_images
from jaxdiff.evaluation.features.weights import check_sha256, checked_hash
from jaxdiff.interop.safetensors_files import write_safetensors
from jaxdiff.interop.tensors import Checkpoint, read_tensors
from jaxdiff.models.conv_classifier import ConvClassifier
from jaxdiff.typing import Array, Images, Params

OPTIONS = "classifier"
"""The entry of a file's metadata with the sizes of the network."""


@dataclasses.dataclass(frozen=True)
class ClassifierFeatures:
    """The vectors before the classes of a classifier of `train_classifier`. It is also a `Classifier`.

    Attributes:
      weights: a file of `train_classifier`.
      sha256: the SHA-256 that the file must have, or its first digits.
      batch_size: number of images at once.
    """

    places: ClassVar[tuple[str, ...]] = ("weights",)
    profile: ClassVar[str] = "as stored"

    weights: str
    sha256: str | None = None
    batch_size: int = 256

    def __post_init__(self):
        check_sha256(self.sha256)
        positive(self, "batch_size")

    @property
    def name(self) -> str:
        return "features of a classifier trained on this data set"

    @property
    def dim(self) -> int:
        """The length of the vectors."""
        return self._loaded[0].features

    @property
    def hash(self) -> str:
        """SHA-256 of the file."""
        return self._loaded[1].hash

    def __call__(self, images: UInt8[np.ndarray, "n height width channels"]) -> Float32[np.ndarray, "n dim"]:
        """The vector of each image.

        Raises:
          UserError: the file cannot be read or is another one.
        """
        return self._outputs(images)[0]

    def predict(self, images: UInt8[np.ndarray, "n height width channels"]) -> Integer[np.ndarray, "n"]:
        """The class of each image."""
        return np.argmax(self._outputs(images)[1], axis=1)

    def _outputs(self, images: np.ndarray) -> Any:
        check_images(images)
        return self._loaded[1](images, batch_size=self.batch_size)

    @property
    def _loaded(self) -> tuple[ConvClassifier, Network]:
        return _load(self.weights, self.sha256)


def train_classifier(
    images: UInt8[np.ndarray, "n height width channels"],
    labels: Integer[np.ndarray, "n"],
    path: str,
    classifier: ConvClassifier | None = None,
    steps: int = 1000,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> ClassifierFeatures:
    """Train a classifier on real images, and write it to a safetensors file.

    Args:
      images: of a training set.
      labels: their classes, from 0.
      path: of the new file.
      classifier: the network; one of the default sizes if None.
      steps: of Adam, with a learning rate that falls to zero as a cosine.

    Raises:
      UserError: there are fewer than two classes, or more than the network has.
    """
    check_images(images)
    least = int(labels.min(initial=0))
    expect(least == 0, "labels", least, "classes from 0", "number them so")
    count = int(labels.max(initial=0)) + 1
    classifier = classifier or ConvClassifier(max(count, 1))
    several = 2 <= count <= classifier.classes
    expect(several, "labels", count, f"2 to {classifier.classes} classes", "give the labels of the images")
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    train = functools.partial(_train, classifier, optimizer, steps, batch_size)
    params = jax.jit(train)(jax.random.key(seed), images, labels)
    tensors = {name: np.asarray(array) for name, array in flatten_dict(params, sep=".").items()}
    fields = {name: getattr(classifier, name) for name in ("classes", "width", "levels", "features")}
    write_safetensors(path, tensors, {OPTIONS: json.dumps(fields)})
    return ClassifierFeatures(path)


def _train(
    classifier: ConvClassifier,
    optimizer: Any,
    steps: int,
    batch_size: int,
    key: Any,
    images: Any,
    labels: Any,
) -> Params:
    first, second = jax.random.split(key)

    def loss(params: Params, rows: Array) -> Array:
        logits: Any = classifier.apply({"params": params}, _symmetric(images[rows]))[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

    def step(state: Any, key: Any) -> tuple[Any, None]:
        params, moments = state
        gradient = jax.grad(loss)(params, jax.random.randint(key, (batch_size,), 0, len(images)))
        change, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, change), moments), None

    params = nn.meta.unbox(classifier.init(first, _symmetric(images[:1])))["params"]
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(second, steps))
    return params


def _symmetric(images: UInt8[Array, "n height width channels"]) -> Images:
    """Values in [-1, 1]."""
    return images / 127.5 - 1


@functools.lru_cache(maxsize=2)
def _load(weights: str, sha256: str | None) -> tuple[ConvClassifier, Network]:
    found = checked_hash(weights, sha256)
    whole = read_tensors(weights)
    classifier = _classifier(whole, weights)
    arrays = {name.replace(".", "/"): np.array(array) for name, array in whole.tensors.items()}

    def outputs(params: Params, images: UInt8[Array, "n height width channels"]) -> Any:
        return classifier.apply({"params": params}, _symmetric(images))

    return classifier, Network(outputs, unflatten_dict(arrays, sep="/"), found)


def _classifier(whole: Checkpoint, weights: str) -> ConvClassifier:
    if OPTIONS not in whole.metadata:
        raise UserError(
            f"weights={weights!r}: expected a classifier, got another file of weights. Fix: give a file of "
            "train_classifier"
        )
    return ConvClassifier(**json.loads(whole.metadata[OPTIONS]))
