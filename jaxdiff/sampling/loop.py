"""The sampling loop: from noise to images, one step of a sampler after the other.

The denoiser is an argument, any function of noisy images and a time. A sampler is one step; a grid says which
times the steps visit; guidance makes a denoiser out of a conditional one, and modifiers change what it says.
None of them holds another.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state

from jaxdiff.errors import UserError
from jaxdiff.process import transition
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.typing import Array, Bool, Drops, Float, Images, Keys, Scalar

DenoiseFn = Callable[[Images, Scalar], Prediction]
"""(images, one time for all of them) -> prediction."""

Conditions = Mapping[str, Any]
"""Conditions by name, each a tree of arrays with a leading batch axis, handed through to the conditional denoiser."""

ConditionalDenoise = Callable[[Images, Scalar, Conditions, Drops], Prediction]
"""(images, one time for all of them, conditions, for each condition which images are to ignore it) -> prediction."""

RISE = 2**31 - 2  # folded into the key of a step for the noise that takes its image up to where it begins


class Encoded(NamedTuple):
    """A condition as the model has embedded it, beside the null that it shows instead where it is dropped.

    `value` is the condition before that, for those who read it themselves, such as a classifier; it means nothing for
    images that are `absent`, whose user has given no condition.
    """

    given: Any
    null: Any
    value: Any = None
    absent: Any = None


class Known(NamedTuple):
    """Images of which a part is given: the pixels where `mask` is True are to be made, the others are to be kept."""

    images: Images
    mask: Bool[Array, "batch height width #channels"]


class StatefulDenoiser(NamedTuple):
    """A denoiser that learns from call to call: ``call(history, images, time) -> (prediction, history)``.

    ``init(images)`` is what it knows before the first call.
    """

    call: Callable[[Any, Images, Scalar], tuple[Prediction, Any]]
    init: Callable[[Images], Any]


class SamplerState(NamedTuple):
    """Where a sampler is: the images, and what it remembers of earlier steps."""

    x: Images
    history: Any = ()


class TimePath(NamedTuple):
    """The steps of a sampler, each from a time `start` down to `end`.

    Where a step starts above the end of the one before it, the images are first diffused up to there with fresh
    noise, and what the sampler remembered is forgotten.
    """

    start: Float[Array, "steps"]
    end: Float[Array, "steps"]


@runtime_checkable
class Sampler(Protocol):
    """One step from time t to t_next < t, where there still is noise at t_next."""

    def calls(self, steps: int) -> int:
        """Calls of the denoiser in so many steps on end; the most there can be, where that depends on the data."""
        ...

    def init(self, x: Images) -> SamplerState: ...

    def step(
        self, denoise: DenoiseFn, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState: ...


@runtime_checkable
class Grid(Protocol):
    """The times that a sampler visits, falling from noise. The end, clean data, is not among them."""

    def __call__(self, process: Process, steps: int) -> Float[Array, "times"] | TimePath: ...


@runtime_checkable
class Guidance(Protocol):
    """Makes a denoiser out of a conditional one and the conditions of a batch.

    `keys`, one for each image, are for guidance that draws; `guide` is another model to be guided by, for the same
    noisy images and times.
    """

    def __call__(
        self,
        denoise: ConditionalDenoise,
        process: Process,
        conditions: Conditions,
        keys: Keys,
        guide: ConditionalDenoise | None = None,
    ) -> DenoiseFn | StatefulDenoiser: ...

    @property
    def scale(self) -> float:
        """By what number its strength is known."""
        ...

    def with_scale(self, scale: float) -> "Guidance":
        """The same at another strength, where 1 is the conditional model."""
        ...


@runtime_checkable
class Modifier(Protocol):
    """Makes a denoiser out of another one."""

    def __call__(
        self, denoise: DenoiseFn, process: Process, conditions: Conditions, keys: Keys
    ) -> DenoiseFn: ...


@runtime_checkable
class Inpainting(Protocol):
    """Makes a denoiser that keeps to what is known of the images, and fills in the rest."""

    def __call__(self, denoise: DenoiseFn, process: Process, known: Known) -> DenoiseFn: ...


def sample(
    sampler: Sampler,
    denoise: DenoiseFn | StatefulDenoiser,
    process: Process,
    times: Float[Array, "times"] | TimePath,
    x: Images,
    keys: Keys,
) -> Images:
    """Clean images from noisy ones at the first time. The last step is the jump to the predicted image."""
    denoise = _remembering(denoise)
    x, history = _walk(sampler, denoise, process, times, x, keys)
    prediction, _ = denoise.call(history, x, ends(times)[1].astype(x.dtype))
    return prediction.x_0


def integrate(
    sampler: Sampler,
    denoise: DenoiseFn | StatefulDenoiser,
    process: Process,
    times: Float[Array, "times"] | TimePath,
    x: Images,
    keys: Keys,
) -> Images:
    """Noisy images at the last time from noisy images at the first."""
    return _walk(sampler, _remembering(denoise), process, times, x, keys)[0]


def modify(
    denoise: DenoiseFn | StatefulDenoiser, modifier: Callable[[DenoiseFn], DenoiseFn]
) -> DenoiseFn | StatefulDenoiser:
    """`modifier` of a denoiser, whether that remembers or not."""
    if not isinstance(denoise, StatefulDenoiser):
        return modifier(denoise)

    def call(history: Any, x: Images, t: Scalar) -> tuple[Prediction, Any]:
        recorder = _Recorder(denoise.call, history)
        prediction = modifier(recorder)(x, t)
        return prediction, recorder.history

    return StatefulDenoiser(call, denoise.init)


def noise_like(keys: Keys, x: Images) -> Images:
    """Standard normal images in float32, each drawn from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], jnp.float32))(keys)


def _walk(
    sampler: Sampler,
    denoise: StatefulDenoiser,
    process: Process,
    times: Float[Array, "times"] | TimePath,
    x: Images,
    keys: Keys,
) -> tuple[Images, Any]:
    """Images at the last time, and what the denoiser remembers."""
    rises = isinstance(times, TimePath)
    start, end = (value.astype(x.dtype) for value in as_path(times))
    origin = jnp.concatenate([start[:1], end[:-1]])  # where the images are when a step begins

    def step(carry: tuple[SamplerState, Any], inputs: tuple) -> tuple[tuple[SamplerState, Any], None]:
        state, history = carry
        index, t_origin, t, t_next = inputs
        step_keys = fold_in(keys, index)
        if rises:
            state = _rise(sampler, process, state, t_origin, t, fold_in(step_keys, RISE))
        recorder = _Recorder(denoise.call, history)
        state = sampler.step(recorder, process, state, t, t_next, step_keys)
        return (state, recorder.history), None

    first = (sampler.init(x), denoise.init(x))
    (state, history), _ = jax.lax.scan(step, first, (jnp.arange(len(start)), origin, start, end))
    return state.x, history


def _rise(
    sampler: Sampler, process: Process, state: SamplerState, s: Scalar, t: Scalar, keys: Keys
) -> SamplerState:
    """The images diffused from s to t, and a fresh history; the state itself where t is s."""
    alpha, sigma = transition.forward(process, s, t)
    x = alpha * state.x + sigma * noise_like(keys, state.x)
    risen = SamplerState(x, sampler.init(x).history)
    return jax.tree.map(lambda new, old: jnp.where(t > s, new, old), risen, state)


class _Recorder:
    """A remembering denoiser during one step: an ordinary `DenoiseFn` that keeps its history.

    What is learned inside a loop, branch or gradient of the caller's own cannot be carried out of it.
    """

    def __init__(self, call: Callable[[Any, Images, Scalar], tuple[Prediction, Any]], history: Any):
        self._call, self.history, self._trace = call, history, get_opaque_trace_state()

    def __call__(self, x: Images, t: Scalar) -> Prediction:
        if jax.tree.leaves(self.history) and get_opaque_trace_state() != self._trace:
            raise UserError(
                "sampling.guidance=: it remembers from call to call, and a sampler or modifier of this recipe calls it "
                "inside a loop, branch or gradient of its own. Fix: take another, or guidance without a history"
            )
        prediction, self.history = self._call(self.history, x, t)
        return prediction


def _remembering(denoise: DenoiseFn | StatefulDenoiser) -> StatefulDenoiser:
    if isinstance(denoise, StatefulDenoiser):
        return denoise
    return StatefulDenoiser(lambda history, x, t: (denoise(x, t), history), lambda x: ())


def as_path(times: Float[Array, "times"] | TimePath) -> TimePath:
    return times if isinstance(times, TimePath) else TimePath(times[:-1], times[1:])


def ends(times: Float[Array, "times"] | TimePath) -> tuple[Scalar, Scalar]:
    """The first and the last time."""
    return (times.start[0], times.end[-1]) if isinstance(times, TimePath) else (times[0], times[-1])


def fold_in(keys: Keys, number: Any) -> Keys:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
