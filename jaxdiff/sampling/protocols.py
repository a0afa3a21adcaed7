"""Protocols of sampling: denoisers, samplers, time grids, guidance and modifiers.

A sampler is one step, and a grid lists the times that the steps visit. Guidance turns a conditional denoiser into a
denoiser, and modifiers change its predictions. All of them are stateless objects that receive each other as arguments;
what changes from step to step is a `SamplerState`.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.noise import noise_like
from jaxdiff.typing import Array, Bool, Data, Drops, Float, Int, Keys, Scalar

DenoiseFn = Callable[[Data, Scalar], Prediction]
"""``(x_t, t) -> prediction``, with one time for the whole batch."""

Denoise = Callable[[Data, Scalar, Any], tuple[Prediction, Any]]
"""``(x_t, t, guidance state) -> (prediction, new guidance state)``: the denoiser as samplers see it. Pure."""

Conditions = Mapping[str, Any]
"""Conditions by name, each a tree of arrays with a leading batch axis. Only the conditional denoiser reads them."""

ConditionalDenoise = Callable[[Data, Scalar, Conditions, Drops], Prediction]
"""``(x_t, t, conditions, drop) -> prediction``; ``drop[name]`` is True for the examples that ignore a condition."""


@runtime_checkable
class FlowMapDenoise(Protocol):
    """A conditional denoiser that can be told where a step ends."""

    def __call__(self, x: Data, t: Scalar, conditions: Conditions, drop: Drops) -> Prediction: ...

    def until(self, t_next: Scalar) -> ConditionalDenoise:
        """The denoiser of a step that ends at `t_next`: the pair that it predicts leads to ``x_t_next``."""
        ...


@dataclasses.dataclass(frozen=True)
class StatefulDenoiser:
    """A conditional denoiser with explicit state, such as features of an earlier call.

    Attributes:
      call: ``(x_t, t, conditions, drop, state) -> (prediction, new state)``.
      init: ``(x, conditions, drop) -> state`` before the first call.
    """

    call: Callable[[Data, Scalar, Conditions, Drops, Any], tuple[Prediction, Any]]
    init: Callable[[Data, Conditions, Drops], Any]


Conditional = ConditionalDenoise | StatefulDenoiser
"""A conditional denoiser with or without state."""


def with_state(denoise: Conditional) -> StatefulDenoiser:
    """A plain function as a denoiser whose state is empty; a `StatefulDenoiser` is returned as it is."""
    if isinstance(denoise, StatefulDenoiser):
        return denoise
    return StatefulDenoiser(lambda *args: (denoise(*args[:-1]), args[-1]), lambda *_: ())


class Encoded(NamedTuple):
    """A condition after embedding, with its unconditional counterpart.

    Attributes:
      cond: the embedded condition.
      uncond: the embedding that replaces it where the condition is dropped: the null, or a negative condition.
      value: the condition before embedding, for code that reads it directly, such as a classifier.
      absent: [batch], True for the examples whose user has given no condition; their `value` is meaningless.
    """

    cond: Any
    uncond: Any
    value: Any = None
    absent: Any = None


class KnownData(NamedTuple):
    """Partially known data, for inpainting.

    Attributes:
      values: clean data [batch, ...]; arbitrary where unknown.
      mask: True where the value is unknown and to be generated; broadcasts against `values`.
      noise: the initial noise, standard normal, of the shape of the values; `Recipe` sets it.
    """

    values: Data
    mask: Bool[Array, "batch ..."]
    noise: Data | None = None


@dataclasses.dataclass(frozen=True)
class GuidedDenoiser:
    """A denoiser with explicit guidance state, as guidance returns it.

    Attributes:
      call: ``(x_t, t, state) -> (prediction, new state)``.
      init: ``x -> state`` before the first call; ``()`` for guidance that keeps no state.
      until: of a flow map: from the time at which a step ends to the denoiser of that step, whose state is of the same
        form. Only `Spanning` samplers ask for it. None for a denoiser that reads one time.
    """

    call: Denoise
    init: Callable[[Data], Any]
    until: Callable[[Scalar], "GuidedDenoiser"] | None = None

    def __call__(self, x: Data, t: Scalar) -> Prediction:
        """The prediction of a first call."""
        return self.call(x, t, self.init(x))[0]

    def wrapped(self, wrap: Callable[["GuidedDenoiser"], "GuidedDenoiser"]) -> "GuidedDenoiser":
        """``wrap(denoiser)``; of a flow map also for each step."""
        until = self.until
        if until is None:
            return wrap(self)
        return dataclasses.replace(wrap(self), until=lambda t_next: wrap(until(t_next)))

    def then(self, change: Callable[[Prediction, Data, Scalar], Prediction]) -> "GuidedDenoiser":
        """The denoiser whose predictions are ``change(prediction, x_t, t)``; the state passes through."""

        def call(x: Data, t: Scalar, state: Any) -> tuple[Prediction, Any]:
            prediction, state = self.call(x, t, state)
            return change(prediction, x, t), state

        return GuidedDenoiser(call, self.init)


def stateless(denoise: DenoiseFn) -> GuidedDenoiser:
    """A plain function as a denoiser without guidance state; a `GuidedDenoiser` is returned as it is."""
    if isinstance(denoise, GuidedDenoiser):
        return denoise
    return GuidedDenoiser(lambda x, t, state: (denoise(x, t), state), lambda x: ())


class SamplerState(NamedTuple):
    """The state of sampling between two steps.

    Attributes:
      x: noisy data at the current time.
      history: what the sampler keeps of earlier steps, for multistep methods.
      guidance: state of the guidance. A sampler passes it to each call of the denoiser and returns the last one.
      max_order: bound on the order of the next step, set by the loop; None for no bound. Multistep samplers follow it.
      draw: standard normal noise for the next step, set by the loop; None to draw it from the step's keys. `Drawing`
        samplers read it.
    """

    x: Data
    history: Any = ()
    guidance: Any = ()
    max_order: Int[Array, ""] | None = None
    draw: Data | None = None

    def fresh(self, keys: Keys) -> Data:
        """The standard normal noise that a step adds."""
        return noise_like(keys, self.x) if self.draw is None else self.draw


class TimePath(NamedTuple):
    """The steps of a sampler, each from time `start` down to `end`.

    Where a step starts above the end of the one before, the data are first diffused up to there with fresh noise, and
    the sampler's history is reset.
    """

    start: Float[Array, "steps"]
    end: Float[Array, "steps"]


@runtime_checkable
class Solver(Protocol):
    """One step from time t to t_next; at t_next there still is noise."""

    def init(self, x: Data) -> SamplerState:
        """The state before the first step."""
        ...

    def step(
        self, denoise: Denoise, process: Process, state: SamplerState, t: Scalar, t_next: Scalar, keys: Keys
    ) -> SamplerState:
        """The state at t_next. `keys` has one key per example, for samplers that add noise."""
        ...


@runtime_checkable
class Sampler(Solver, Protocol):
    """A solver whose steps fall, t_next < t, and that tells the number of its calls."""

    def calls(self, steps: int) -> int:
        """Number of function evaluations (NFE) of `steps` consecutive steps; an upper bound for adaptive solvers."""
        ...


@runtime_checkable
class Drawing(Protocol):
    """A sampler that may add noise, once in each step, and that noise is `SamplerState.fresh`."""

    @property
    def draws(self) -> bool:
        """Whether it adds noise with its present options."""
        ...


def adds_noise(sampler: Solver) -> bool:
    """Whether a sampler adds noise in its steps: it draws, or has a positive amount of noise in one of its fields."""
    amounts = (getattr(sampler, name, 0.0) for name in ("eta", "tau", "churn"))
    return (isinstance(sampler, Drawing) and sampler.draws) or any(amount > 0 for amount in amounts)


@runtime_checkable
class Spanning(Protocol):
    """A sampler of flow maps: it needs the model's prediction for a whole step, not for the time where it begins."""

    @property
    def spans(self) -> bool:
        """Whether each call needs the time at which its step ends."""
        ...


def spans(sampler: Solver) -> bool:
    """Whether this is a sampler of flow maps."""
    return isinstance(sampler, Spanning) and sampler.spans


@runtime_checkable
class Grid(Protocol):
    """The times that a sampler visits, decreasing from noise. The end, clean data, is not among them."""

    def __call__(self, process: Process, steps: int) -> Float[Array, "times"] | TimePath: ...


@runtime_checkable
class Guidance(Protocol):
    """Turns a conditional denoiser and the conditions of a batch into a denoiser.

    `keys`, one per example, serve guidance that draws random numbers. `guiding_model` is a second model, which sees the
    same noisy data and times.
    """

    def __call__(
        self,
        denoise: Conditional,
        process: Process,
        conditions: Conditions,
        keys: Keys,
        guiding_model: Conditional | None = None,
    ) -> GuidedDenoiser: ...

    @property
    def scale(self) -> float:
        """The guidance scale."""
        ...

    def with_scale(self, scale: float) -> "Guidance":
        """The same guidance at another scale; 1 is the conditional model."""
        ...


@runtime_checkable
class Numeric(Protocol):
    """A guidance with numbers that can be arguments of a compiled program, which then serves all of their values."""

    @property
    def numbers(self) -> Mapping[str, Any]:
        """The numbers by name, without those on whose value it depends which models are called."""
        ...

    def with_numbers(self, numbers: Mapping[str, Any]) -> "Guidance":
        """The same guidance with other numbers of these names, which are not checked.

        Inside a program they are arrays. None stands for each where a guidance says which program it needs.
        """
        ...


@runtime_checkable
class Dropping(Protocol):
    """A guidance that shows the model the nulls of some conditions."""

    def dropped(self, names: Collection[str]) -> frozenset[str]:
        """The conditions that it drops, of a model with conditions of these names."""
        ...


@runtime_checkable
class Modifier(Protocol):
    """Changes the predictions of a denoiser, or wraps it."""

    def __call__(
        self, denoise: GuidedDenoiser, process: Process, conditions: Conditions, keys: Keys
    ) -> GuidedDenoiser: ...


@runtime_checkable
class Inpainting(Protocol):
    """Wraps a denoiser so that samples agree with the known part of the data."""

    def data_mask(self, mask: Bool[Array, "batch height width _"], shape: tuple[int, ...]) -> Array:
        """A mask of pixels as one of smaller data of this shape, [batch, rows, columns, 1]."""
        ...

    def start(self, x: Data, diffused: Data, mask: Bool[Array, "batch ..."]) -> Data:
        """The data at the first time: of noise x, and of the known data diffused to that time."""
        ...

    def from_data(self) -> "Inpainting":
        """This method for samples that start from noisy data, not from noise alone."""
        ...

    def __call__(self, denoise: GuidedDenoiser, process: Process, known: KnownData) -> GuidedDenoiser: ...
