"""The base of all conditions: a condition turns a user's value into `Embeddings`."""

import json
import pathlib
from typing import Any, ClassVar, Protocol, runtime_checkable

import flax.linen as nn
import numpy as np

from jaxdiff.conditioning.nulls import Null
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError
from jaxdiff.typing import Array, Bool, Data, Images, Keys

Shape = tuple[int, ...]
"""Shape of one example of the data that are diffused, such as (height, width, channels)."""

Values = Any
"""Values of a condition for a batch: an array, or a tree of arrays, each with a leading batch axis."""


@runtime_checkable
class ImageEncoder(Protocol):
    """The codec of a task with the parameters of its networks, for conditions whose image is encoded as data are."""

    def data(self, images: Images, keys: Keys) -> Data:
        """Images as the data that are diffused: sampled from the posterior if the codec does so, and scaled."""
        ...

    def latents(self, images: Images) -> Data:
        """The modes of the autoencoder's posteriors, neither shifted nor scaled."""
        ...


class _Defaults:
    """Attributes of conditions that a subclass may turn into fields.

    They are not in `Condition` itself, whose class variables would come before the required fields of a subclass.
    """

    flag: ClassVar[str | None] = None
    default: ClassVar[Any] = None
    null: ClassVar[Null] = "none"
    drop_rate: ClassVar[float] = 0.0
    replaces_known: ClassVar[bool] = True
    precomputed_by: ClassVar[tuple[str, ...]] = ()


class Condition(_Defaults, nn.Module):
    """Condition: a module from values and drop masks to `Embeddings`, with its reading, checking and description.

    A subclass gives `__call__` and `example`. Every other method has a default, and overriding it declares a
    capability: nothing outside looks at the class, or at the name under which the model has the condition.

    The path of a value: a word (`parse`) or JSON (`from_json`) becomes what a Python user gives; `read` makes arrays
    of it; `check` validates them; on the device, `draw` applies random augmentation, `encoded` the task's codec, and
    `__call__` embeds.

    Attributes:
      flag: the flag of `jaxdiff.sample` that gives this kind of condition without naming it: "label", "text" or
        "known".
      default: the value for users and data that give none; None if a value is required.
      null: the kind of null that replaces a dropped condition, see `Null`.
      drop_rate: probability of dropping an example's condition in training, in [0, 1).
      precomputed_by: the fields of the condition that `precompute` depends on; empty if nothing can be precomputed.
      replaces_known: whether `known_pixels` also replace predictions while a sample is made, by `Recipe.inpainting`.
        Otherwise the network completes them by itself.
    """

    def __call__(self, values: Values, drop: Bool[Array, "batch"]) -> Embeddings:
        """Embed the values; where `drop` is True, show the null."""
        raise NotImplementedError

    def precompute(self, values: Values) -> Values:
        """What the condition's encoder makes of values: a tree of arrays that `__call__` accepts in their place.

        Nothing is drawn or dropped. Conditions with `precomputed_by` override it; their `draw` changes nothing.
        """
        raise NotImplementedError

    @nn.nowrap
    def example(self, batch: int, data_shape: Shape | None = None) -> Values:
        """Dummy inputs of `__call__`, of the right shapes and types; the size of an image depends on `data_shape`."""
        raise NotImplementedError

    @nn.nowrap
    def stored_example(self, batch: int, data_shape: Shape | None = None) -> Values:
        """Dummy values as batches hold them and `read` returns them; they differ from `example` by `encoded`."""
        return self.example(batch, data_shape)

    @nn.nowrap
    def check(self, values: Values, name: str = "value") -> None:
        """Raise `UserError` unless these are valid values; `name` is for the message. Not for traced values."""

    @nn.nowrap
    def read(self, value: object, name: str = "value") -> Values:
        """Arrays from a user's value, for one example or for several."""
        return np.asarray(value)

    @nn.nowrap
    def draw(self, values: Values, keys: Keys, train: bool) -> Values:
        """The values with their random augmentation, from a key per example."""
        return values

    @nn.nowrap
    def encoded(self, values: Values, encoder: ImageEncoder, keys: Keys) -> Values:
        """The values of `draw` with their images encoded by the task's codec, from a key per example."""
        return values

    @nn.nowrap
    def unaugmented(self, values: Values) -> Values:
        """The values without what an augmentation adds to them, such as a noise level."""
        return values

    @nn.nowrap
    def with_level(self, value: object, level: float) -> Any:
        """A user's value at a noise level.

        Raises:
          UserError: the condition is not noise-augmented.
        """
        raise UserError(
            f"level={level}: expected a condition with noise augmentation, got {type(self).__name__}. "
            "Fix: leave the level out"
        )

    @nn.nowrap
    def with_noise(self, value: object, noise: np.ndarray) -> Any:
        """A user's value with the standard normal noise of its augmentation.

        Raises:
          UserError: the condition takes no noise.
        """
        raise UserError(
            f"noise=...: expected a condition whose noise can be given, got {type(self).__name__}. "
            "Fix: leave the noise out"
        )

    @property
    def classes(self) -> int | None:
        """Number of classes, if the value is a class label; sampling then goes through all classes by default."""
        return None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, if the value is a class label and they have names."""
        return ()

    @nn.nowrap
    def with_class_names(self, names: tuple[str, ...]) -> "Condition":
        """This condition with names for its classes, if it is a class label with as many."""
        return self

    @nn.nowrap
    def for_images(self, shape: Shape, data_shape: Shape) -> "Condition":
        """This condition for images of this stored shape, which are diffused as data of shape `data_shape`."""
        return self

    @nn.nowrap
    def for_shapes(self) -> "Condition":
        """This condition where only shapes are wanted: its parameters are the same, and it reads no files."""
        return self

    @nn.nowrap
    def for_negative(self) -> "Condition":
        """This condition as it reads what guidance leads away from; its parameters are the same."""
        return self

    @nn.nowrap
    def image_shape(self, data_shape: Shape) -> tuple[int, int, int] | None:
        """(height, width, channels) of the image that goes with data of this shape; None if it is not an image."""
        return None

    @nn.nowrap
    def known_pixels(self, values: Values) -> tuple[np.ndarray, np.ndarray] | None:
        """Images and a mask [..., height, width, 1], True at the pixels to generate; None if no pixel is known.

        A `Generator` returns the other pixels exactly as they are in the images.
        """
        return None

    @nn.nowrap
    def masked(self, value: object, mask: np.ndarray, name: str = "value") -> Any:
        """A user's value in which `mask` [..., height, width, 1] marks the pixels to generate; None if not possible."""
        return None

    @nn.nowrap
    def parse(self, text: str, name: str) -> list[Any]:
        """User's values from a command-line word: one for each image in turn, or a single one for all.

        Args:
          text: JSON, or else a string.
          name: the flag and the condition, for messages.
        """
        return [json_or_text(text, name)]

    @nn.nowrap
    def from_json(self, value: Any, name: str, folder: pathlib.Path) -> Any:
        """A user's value from a JSON value; paths in it are relative to `folder`."""
        return value

    @nn.nowrap
    def to_arrays(self, value: Any, name: str, n: int) -> dict[str, np.ndarray]:
        """A user's value for n images as named arrays, for an output file."""
        return {name: np.asarray(value)}

    @nn.nowrap
    def describe(self, values: Values) -> list[str] | None:
        """A line of text per example, for sample grids; None if there is no short one."""
        array = np.asarray(values)
        if array.ndim != 1 or array.dtype.kind not in "iuUSO":
            return None
        return [
            value.decode(errors="replace") if isinstance(value, bytes) else str(value)
            for value in array.tolist()
        ]

    @nn.nowrap
    def images(self, values: Values) -> np.ndarray | None:
        """Images to show for the values in sample grids, uint8 or floats in [-1, 1]; None if it is not an image."""
        return None


def json_or_text(text: str, name: str) -> Any:
    """The JSON value that a word holds, or the word itself.

    Raises:
      UserError: brackets are nested too deeply; `name` is for the message.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(
            f"{name}={text[:20]}...: expected JSON, got too many nested brackets. Fix: write fewer"
        ) from None
    except ValueError:
        return text
