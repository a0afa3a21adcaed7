"""What a denoiser is punished for. An objective judges an `LossInputs` and holds nothing that it is given there."""

import dataclasses
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import require
from jaxdiff.process import gaussian, prediction
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Parameterization, Prediction
from jaxdiff.process.time_sampling import TimeSampler
from jaxdiff.process.weighting import Flat, Weighting
from jaxdiff.tasks.distances import Distance, Squared
from jaxdiff.typing import Array, Features, Float, Images, Metrics, Times


@dataclasses.dataclass(frozen=True, eq=False)
class LossInputs:
    """Noisy images of a batch, and what the network made of them.

    Attributes:
      process, parameterization: what time means, and what the network's output.
      times, u: the law of times, and the uniform numbers that it made `t` of.
      t: the time of each image.
      x_0, noise, x_t: the pair, and the noisy images that the network saw.
      output: the network's own output.
      log_variance: how wrong the model thinks that it is at each time, if it has an `uncertainty`.
    """

    process: Process
    parameterization: Parameterization
    time_sampler: TimeSampler
    u: Times
    t: Times
    x_0: Images
    noise: Images
    x_t: Images
    output: Features
    log_variance: Times | None = None

    def error(self, space: Parameterization | None = None) -> Images:
        """The error of the output, in the target of `space` if one is given."""
        value, _ = self.parameterization.split(self.output)
        target = prediction.target(self.parameterization, self.process, self.t, self.x_0, self.noise)
        error = value - target
        if space is None:
            return error
        ratio = prediction.error_ratio(space, self.parameterization, self.process, self.t)
        return error * gaussian.expand(ratio, error)

    def prediction(self) -> Prediction:
        """The output as the pair that it stands for."""
        return prediction.decode(self.parameterization, self.process, self.t, self.x_t, self.output)


@runtime_checkable
class Objective(Protocol):
    """A loss for each image."""

    def __call__(self, inputs: LossInputs) -> tuple[Float[Array, "batch"], Metrics]:
        """The losses, and means to log."""
        ...

    def check(self, denoiser: Denoiser, time_sampler: TimeSampler) -> None:
        """Raise `UserError` where this model or this law of times does not give what the objective needs."""


@dataclasses.dataclass(frozen=True)
class WeightedError(Objective):
    """``weight * distance(error)``: the error of the network in the space of the weighting.

    Attributes:
      weighting: the weight by log-SNR, and the space in which the error is measured.
      distance: what is made of an image's error; the squared error for diffusion models.
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

    At its best u is the log of the mean error of its noise level, so that every level counts alike. Needs a denoiser
    with an `uncertainty`; pair it with `weighting.Edm`, as in the paper.
    """

    error: Objective = WeightedError()

    def __call__(self, inputs: LossInputs) -> tuple[Float[Array, "batch"], Metrics]:
        errors, metrics = self.error(inputs)
        u = inputs.log_variance
        assert u is not None  # `check` has seen to it
        return errors / jnp.exp(u) + u, {**metrics, "weighted_error": jnp.mean(errors)}

    def check(self, denoiser: Denoiser, time_sampler: TimeSampler) -> None:
        require(denoiser.uncertainty is not None, "denoiser.uncertainty", None, "the objective learns it",
                "give it jaxdiff.models.uncertainty:Uncertainty")  # fmt: skip
        self.error.check(denoiser, times)
