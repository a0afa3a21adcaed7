"""What evaluation, generation and cost estimates need of a task: one that makes samples, or one that predicts."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxdiff.codecs.protocol import Codec, Shape
from jaxdiff.denoiser import Denoiser
from jaxdiff.typing import Array, Batch, Float, Key, Params, Times, Weights


@runtime_checkable
class TaskContext(Protocol):
    """The inputs of a task in addition to its trained parameters, see `training.step.Context`."""

    @property
    def frozen(self) -> Mapping[str, Params]: ...

    @property
    def task_state(self) -> Any: ...

    @property
    def step(self) -> Any: ...


@runtime_checkable
class Predictive(Protocol):
    """A task without samples whose network says something about each example: vectors, or classes.

    Attributes:
      frozen: networks that are used and not trained, by name.
    """

    @property
    def frozen(self) -> Mapping[str, Weights]: ...

    def check_fields(self, fields: Mapping[str, np.ndarray]) -> None:
        """Raise `UserError` unless `predict` can read these fields of examples, with one row or more each."""
        ...

    def predict(self, params: Params, frozen: Mapping[str, Params], fields: Batch) -> Mapping[str, Array]:
        """What the network says about the examples of a batch, by name, each [batch, ...].

        Args:
          params: all parameters of the task.
          frozen: trees by the names in `frozen`.
          fields: fields of the examples as they are stored. Without a field, its predictions are left out.
        """
        ...


@runtime_checkable
class Sampleable(Protocol):
    """A task whose trained denoiser is sampled.

    Attributes:
      denoiser: network, conditioner, process and parameterization.
      codec: from stored examples to diffused data and back.
      image_shape, data_shape: the shapes of a stored and of a diffused example.
      data_field: the field of the data that holds the stored examples.
      frozen: networks that are used and not trained, by name.
    """

    @property
    def denoiser(self) -> Denoiser: ...

    @property
    def codec(self) -> Codec: ...

    @property
    def image_shape(self) -> Shape: ...

    @property
    def data_shape(self) -> Shape: ...

    @property
    def data_field(self) -> str: ...

    @property
    def frozen(self) -> Mapping[str, Weights]: ...

    def check_held_out(self, example: Mapping[str, Any], num_classes: int | None) -> None:
        """Raise `UserError` unless test data of such examples can be evaluated, before anything is compiled."""
        ...

    def check_frozen(self, frozen: Mapping[str, Params]) -> None:
        """Raise `UserError` unless the parameters of frozen networks, by name, fit."""
        ...

    def for_shapes(self) -> "Sampleable":
        """This task where only shapes are wanted: it reads no files, and computes other values."""
        ...

    def for_samples(self) -> "Sampleable":
        """This task without the frozen networks that only its loss uses, such as a teacher."""
        ...

    def frozen_shapes(self) -> Mapping[str, Params]:
        """The trees of `frozen` as shapes."""
        ...

    def stored_example(self, count: int) -> Batch:
        """Placeholder of a batch of `count` examples as they are stored."""
        ...

    def full_params(self, params: Params, frozen: Mapping[str, Params]) -> Params:
        """All parameters of the denoiser, from the trained ones and the trees of `frozen`."""
        ...

    def evaluation_loss(
        self,
        params: Params,
        frozen: Mapping[str, Params],
        stored: Array,
        fields: Mapping[str, Any],
        t: Times,
        key: Key[Array, ""],
    ) -> Float[Array, "batch"]:
        """The held-out loss of stored examples [batch, *image_shape] at times t [batch], from all parameters."""
        ...
