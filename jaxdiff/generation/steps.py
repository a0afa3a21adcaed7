"""What happens while samples are made: a function that is called after each step, with previews of the samples.

>>> generator(text="a horse", on_step=OnStep(lambda step, of, images: show(images), every=5))
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from jaxdiff.codecs.protocol import Codec, Shape
from jaxdiff.data.images import to_uint8
from jaxdiff.errors import positive
from jaxdiff.typing import Array, Float, Params

FLAT, SIDE = 256, 4
"""Flat pictures from which colours of latents are learned, and their height and width in latents."""


@dataclasses.dataclass(frozen=True)
class OnStep:
    """A function that is called after every k-th step of sampling.

    Attributes:
      function: called with the number of steps done, the number of all steps, and uint8 previews [n, height, width,
        channels] of the clean data that the model predicts in this step. Several batches count as one after another.
      every: k. The function is also called after the last step.
      preview: a codec with the same data that makes the previews, such as `Latent` with `AutoencoderTiny`. None for a
        linear map of latents to colours, a pixel for each latent; data that are images are shown as they are.
      images: whether to make previews; without, the function receives None in their place.
    """

    function: Callable[[int, int, Any], object]
    every: int = 1
    preview: Codec | None = None
    images: bool = True

    def __post_init__(self):
        positive(self, "every")


def part_of(on_step: OnStep, before: int, steps: int) -> OnStep:
    """The function for one of several models that sample in turn, with the numbers of all together.

    Args:
      before: number of steps of the models before this one.
      steps: number of steps of all models.
    """

    def function(step: int, of: int, images: Any) -> None:
        on_step.function(before + step, steps, images)

    return dataclasses.replace(on_step, function=function)


@dataclasses.dataclass(frozen=True)
class Observed:
    """The static part of an `OnStep`; equal for all functions, so that another one needs no compilation.

    Attributes:
      every, preview, images: as in `OnStep`.
      steps: number of all steps.
      ordered: whether reports come in order; JAX cannot do so on several devices, where late ones are left out.
    """

    every: int
    preview: Codec | None
    images: bool
    steps: int
    ordered: bool

    def observe(self, params: Mapping[str, Params], listener: Any) -> Callable[[Array, Array], None]:
        """The function of a step's number and predicted data that a sampling loop calls, inside jit.

        Args:
          params: networks of the preview's codec, by name.
          listener: number of the listener, see `listening`.
        """

        def report(step: Array, x_0: Array) -> None:
            shown = x_0 if self.preview is None else self.preview.decode(params, x_0)
            shown = shown if self.images else x_0.ravel()[:1]  # comes only when the step is done
            io_callback(_deliver, None, listener, step + 1, shown, ordered=self.ordered)

        def observe(step: Array, x_0: Array) -> None:
            wanted = ((step + 1) % self.every == 0) | (step + 1 == self.steps)
            jax.lax.cond(wanted, report, lambda step, x_0: None, step, x_0)

        return observe


_listeners: dict[int, Callable[[int, np.ndarray], None]] = {}
_numbers = itertools.count()


def _deliver(listener: Any, step: Any, shown: Any) -> None:
    _listeners[int(listener)](int(step), np.asarray(shown))


class Listener:
    """Calls a function once for each step, with uint8 images; its first error is kept, and ends the calls.

    Attributes:
      batch, batches: number of the present batch, and of all batches.
      samples: of the present batch, without padding.
    """

    def __init__(self, on_step: OnStep, steps: int, colours: Float[Array, "channels_1 3"] | None):
        self.on_step, self.steps = on_step, steps
        self.colours = None if colours is None else np.asarray(colours)
        self.batch, self.batches, self.samples, self.last = 0, 1, 0, 0
        self.error: BaseException | None = None

    def begin(self, batch: int, batches: int, samples: int) -> None:
        """Start of a batch."""
        self.batch, self.batches, self.samples, self.last = batch, batches, samples, 0

    def __call__(self, step: int, shown: np.ndarray) -> None:
        # A sampler may call the model several times in a step: the first is at the data of the step itself.
        if step <= self.last or self.error is not None:
            return
        self.last = step
        done, of = self.batch * self.steps + step, self.batches * self.steps
        try:
            self.on_step.function(done, of, self._images(shown) if self.on_step.images else None)
        except BaseException as error:  # raised again outside the program, which cannot pass it on
            self.error = error

    def _images(self, shown: np.ndarray) -> np.ndarray:
        pixels = np.nan_to_num(shown[: self.samples])
        if self.colours is not None:
            pixels = pixels @ self.colours[:-1] + self.colours[-1]
        return to_uint8(pixels)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[np.uint32]:
    """The number under which compiled programs find a listener. An error of its function is raised at the end."""
    number = next(_numbers) % 2**32
    _listeners[number] = listener
    try:
        yield np.uint32(number)
        jax.effects_barrier()
    finally:
        del _listeners[number]
    if listener.error is not None:
        raise listener.error


def colours(codec: Any, frozen: Mapping[str, Params], data_shape: Shape) -> Float[Array, "channels_1 3"]:
    """The linear map from latents to colours that is nearest to a codec's decoder on flat random latents.

    Returns:
      A row for each channel of the latents, and a last one that is added.
    """
    x = jax.random.normal(jax.random.key(0), (FLAT, 1, 1, data_shape[-1]))
    decode = jax.jit(lambda x: codec.decode(frozen, x).mean(axis=(1, 2)))
    parts = [
        decode(jnp.broadcast_to(each, (len(each), SIDE, SIDE, data_shape[-1]))) for each in jnp.split(x, 8)
    ]
    rows = jnp.concatenate([x[:, 0, 0], jnp.ones((FLAT, 1))], axis=1)
    return jnp.linalg.lstsq(rows, jnp.concatenate(parts))[0]
