"""Per-example diffusion losses, as stateless functions of one batch's predictions."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from jaxdiff.conditioning.conditioner import SPAN
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import expect
from jaxdiff.process import gaussian, prediction
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Parameterization, Prediction
from jaxdiff.process.time_sampling import TimeSampler
from jaxdiff.process.weighting import Flat, Weighting
from jaxdiff.tasks.distances import Distance, Squared
from jaxdiff.tasks.protocols import TaskContext
from jaxdiff.typing import Array, Data, Drops, Fields, Float, Key, Metrics, Output, Params, Times, Weights


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """The denoiser on the examples of a batch, for objectives that call it at other points than ``x_t``.

    Attributes:
      predict: ``(params, x_t, t, until, drop, train) -> Prediction``, with the conditions and the dropout of the batch;
        `until` as in `Denoiser.predict`. A condition that `drop` does not name is not one of the model with these
        parameters, and neither is a span without parameters.
      params: all parameters of the denoiser, which are trained.
      fields: the values of every condition.
      drop: for every condition, the examples that see its null.
      frozen: trees of parameters by the names in `Objective.frozen`.
      step: optimizer steps so far.
      train: whether dropout is on.
      added: what the frozen denoisers lack, see `Objective.added`.
    """

    predict: Callable[[Params, Data, Times, Times | None, Drops, bool], Prediction]
    params: Params
    fields: Fields
    drop: Drops
    frozen: Mapping[str, Params]
    step: Any
    train: bool
    added: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        denoiser: Denoiser,
        params: Params,
        context: TaskContext,
        examples: Mapping[str, Any],
        key: Key[Array, ""],
        objective: "Objective",
        train: bool,
    ) -> "Model":
        """A denoiser with the conditions, the drops and the dropout of a batch, and the frozen ones of an objective."""

        fields, drop = examples["fields"], examples["drop"]

        def predict(
            params: Params, x_t: Data, t: Times, until: Times | None, drop: Drops, train: bool
        ) -> Prediction:
            options = {"until": until, "train": train, "rngs": {"dropout": key}}
            spanless = set() if SPAN in params.get("conditioner", {}) else {SPAN}
            own = denoiser.without(fields.keys() - drop.keys() | spanless)
            arguments = x_t, t, {name: fields[name] for name in drop}, drop
            found: Any = own.apply({"params": params}, *arguments, method="predict", **options)
            return found

        frozen = {name: context.frozen[name] for name in objective.frozen}
        return cls(predict, params, fields, drop, frozen, context.step, train, objective.added)

    def __call__(self, x_t: Data, t: Times, until: Times | None = None) -> Prediction:
        """The prediction of the model that is trained; each call of a step has the same dropout."""
        return self.predict(self.params, x_t, t, until, self.drop, self.train)

    def without_conditions(self, x_t: Data, t: Times) -> Prediction:
        """The prediction of the model that is trained, with the null of every condition."""
        dropped = jax.tree.map(jnp.ones_like, self.drop)
        return self.predict(self.params, x_t, t, None, dropped, self.train)

    def guided(self, name: str, x_t: Data, t: Times, guidance: float | Times) -> Prediction:
        """The prediction of a frozen denoiser with classifier-free guidance, without dropout.

        Args:
          name: of the denoiser.
          x_t, t: noisy data, and their times.
          guidance: the scale, of all examples or of each; the number 1 needs no second call.
        """
        params, own = self.frozen[name], {name: self.drop[name] for name in self.drop.keys() - self.added}
        if isinstance(guidance, float | int) and guidance == 1:
            return self.predict(params, x_t, t, None, own, False)
        both = jax.tree.map(lambda drop: jnp.stack([drop, jnp.ones_like(drop)]), own)
        found = jax.vmap(lambda drop: self.predict(params, x_t, t, None, drop, False))(both)
        scale = gaussian.expand(jnp.asarray(guidance, x_t.dtype), x_t)
        return Prediction(*(pair[1] + scale * (pair[0] - pair[1]) for pair in (found.x_0, found.noise)))


@dataclasses.dataclass(frozen=True, eq=False)
class LossInputs:
    """A noisy batch and the network's output on it.

    Attributes:
      process, parameterization: the noise schedule, and the meaning of the output.
      time_sampler, u: the distribution of times, and the uniform numbers that `t` comes from.
      t: the time of each example.
      x_0, noise, x_t: data, noise, and their mixture, which the network saw.
      output: the network's own output.
      log_variance: the learned log-variance of the error at each time, for a denoiser with `uncertainty`.
      pixel_weights: weights of the squared error of each pixel, with one channel for all; None for 1. See
        `jaxdiff.tasks.masking`.
      model: the denoiser, for objectives that call it again; None where there is none.
      drawn: what the objective's own `draw` has drawn.
    """

    process: Process
    parameterization: Parameterization
    time_sampler: TimeSampler
    u: Times
    t: Times
    x_0: Data
    noise: Data
    x_t: Data
    output: Output
    log_variance: Times | None = None
    pixel_weights: Output | None = None
    model: Model | None = None
    drawn: Mapping[str, Array] = FrozenDict()

    def error(self, space: Parameterization | None = None) -> Data:
        """Output minus target, in the target space of `space` if given, else in the network's own.

        It is multiplied by the root of `pixel_weights`, so that the squared error has these weights.
        """
        value, _ = self.parameterization.split(self.output)
        target = prediction.target(self.parameterization, self.process, self.t, self.x_0, self.noise)
        error = value - target
        if space is not None:
            ratio = prediction.error_ratio(space, self.parameterization, self.process, self.t)
            error = error * gaussian.expand(ratio, error)
        return error if self.pixel_weights is None else error * jnp.sqrt(self.pixel_weights)

    def prediction(self) -> Prediction:
        """The output decoded to predicted data and noise."""
        return prediction.decode(self.parameterization, self.process, self.t, self.x_t, self.output)


@runtime_checkable
class Objective(Protocol):
    """A loss for each example."""

    @property
    def frozen(self) -> Mapping[str, Weights]:
        """Denoisers of the same architecture that are used and not trained, such as a teacher, by name."""
        return {}

    @property
    def added(self) -> frozenset[str]:
        """Names of conditions that the frozen denoisers lack, and `SPAN` for that of the conditioner; all others they
        have as the model that is trained.
        """
        return frozenset()

    def draw(self, key: Key[Array, ""], batch: int) -> Mapping[str, Array]:
        """Random numbers of its own, by name, one row for each example: `LossInputs.drawn`."""
        return {}

    def __call__(self, inputs: LossInputs) -> tuple[Float[Array, "batch"], Metrics]:
        """The losses, and means to log."""
        ...

    def check(self, denoiser: Denoiser, time_sampler: TimeSampler) -> None:
        """Raise `UserError` where the denoiser or the time sampler lacks something that the objective needs."""


@dataclasses.dataclass(frozen=True)
class WeightedError(Objective):
    """``weight * distance(error)``, with the error in the space of the weighting.

    Attributes:
      weighting: the weight by log-SNR, and the space in which the error is measured.
      distance: the size of an error; mean squared error for diffusion models.
    """

    weighting: Weighting = Flat()
    distance: Distance = Squared()

    def __call__(self, inputs: LossInputs) -> tuple[Float[Array, "batch"], Metrics]:
        error = inputs.error(self.weighting.space)
        weights = self.weighting(inputs.process.log_snr(inputs.t))
        return weights * self.distance(error), {"squared_error": jnp.mean(Squared()(error))}


@dataclasses.dataclass(frozen=True)
class UncertaintyWeighted(Objective):
    """``error / exp(u) + u`` with a learned log-variance ``u(sigma)`` (Karras et al. 2024, "EDM2", equation 21).

    At the optimum u is the log of the mean error of its noise level, so that every level counts alike. Needs a
    denoiser with `uncertainty`; combine it with `weighting.Edm`, as in the paper.
    """

    error: Objective = WeightedError()

    @property
    def frozen(self) -> Mapping[str, Weights]:
        return self.error.frozen

    @property
    def added(self) -> frozenset[str]:
        return self.error.added

    def draw(self, key: Key[Array, ""], batch: int) -> Mapping[str, Array]:
        return self.error.draw(key, batch)

    def __call__(self, inputs: LossInputs) -> tuple[Float[Array, "batch"], Metrics]:
        errors, metrics = self.error(inputs)
        u = inputs.log_variance
        assert u is not None  # guaranteed by `check`
        return errors / jnp.exp(u) + u, {**metrics, "weighted_error": jnp.mean(errors)}

    def check(self, denoiser: Denoiser, time_sampler: TimeSampler) -> None:
        expect(denoiser.uncertainty is not None, "denoiser.uncertainty", None, "a module, which this objective trains",
               "use jaxdiff.models.uncertainty:Uncertainty")  # fmt: skip
        self.error.check(denoiser, time_sampler)
