"""Guidance rules: how two predictions are combined by `ClassifierFree` and `Autoguidance`.

All of them work on the predicted x_0, which means the same whatever the network outputs. Too much guidance spoils its
contrast and saturation.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp

from jaxdiff.errors import between, expect, one_of, positive
from jaxdiff.process.gaussian import Signal
from jaxdiff.process.per_example import data_axes
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.modifiers.thresholding import with_x_0
from jaxdiff.typing import Array, Data, Float, Scalar

PerExample = Float[Array, "batch *ones"]
"""One number per example, with axes of length 1 that broadcast against the data."""

Scale = float | Scalar
"""A guidance scale: an array where it is an argument of a compiled program."""


@runtime_checkable
class Rule(Protocol):
    """Combines the prediction to move towards, `cond`, with the one to move away from, `uncond`.

    A rule may keep state from call to call: `init` then returns a tree of arrays.
    """

    def init(self, x: Data) -> Any:
        """The state before the first call; ``()`` for a rule without state."""
        return ()

    def check(self, scale: float) -> None:
        """Raise a `UserError` for a scale at which the rule is meaningless."""

    def alone(self, scale: float) -> int | None:
        """The only prediction that this scale needs, which is the result: 0 is `cond`, 1 is `uncond`; None for both."""
        return 0 if scale == 1 else None

    def __call__(
        self, state: Any, scale: Scale, cond: Prediction, uncond: Prediction, signal: Signal
    ) -> tuple[Prediction, Any]:
        """The guided prediction and the new state. `signal` is that of the noisy data."""
        ...


@dataclasses.dataclass(frozen=True)
class Extrapolate(Rule):
    """``uncond + scale (cond - uncond)`` (Ho & Salimans 2022, equation 6)."""

    def alone(self, scale: float) -> int | None:
        return {1.0: 0, 0.0: 1}.get(scale)

    def __call__(
        self, state: Any, scale: Scale, cond: Prediction, uncond: Prediction, signal: Signal
    ) -> tuple[Prediction, Any]:
        x_0, noise = (
            away + scale * (to - away) for to, away in ((cond.x_0, uncond.x_0), (cond.noise, uncond.noise))
        )
        return Prediction(x_0, noise), state


@dataclasses.dataclass(frozen=True)
class Rescale(Rule):
    """CFG rescale: gives guided predictions the standard deviation of conditional ones (Lin et al. 2023, eqs. 14-16).

    It is that of each example: the contrast, which guidance inflates.

    Attributes:
      phi: interpolation from 0, `Extrapolate`, to 1, fully rescaled. 0.7 in the paper.
      space: what is rescaled. "x_0" means the same for every network. The paper and diffusers rescale the output of
        the network: "v" for v-prediction, "noise" for noise prediction.
    """

    phi: float = 0.7
    space: str = "x_0"

    def __post_init__(self):
        between(self, "phi", 0.0, 1.0)
        one_of(self, "space", ("x_0", "noise", "v"))

    def __call__(
        self, state: Any, scale: Scale, cond: Prediction, uncond: Prediction, signal: Signal
    ) -> tuple[Prediction, Any]:
        guided, _ = Extrapolate()((), scale, cond, uncond, signal)
        a, b = {"x_0": (1.0, 0.0), "noise": (0.0, 1.0), "v": (-signal.sigma, signal.alpha)}[self.space]
        wanted, value = (a * pair.x_0 + b * pair.noise for pair in (cond, guided))
        target, current = (jnp.std(each, data_axes(each), keepdims=True) for each in (wanted, value))
        # Constant data, such as the best guess at pure noise may be, have no contrast to correct.
        factor = jnp.where(current > 0, target / jnp.where(current > 0, current, 1.0), 1.0)
        # A change of a x_0 + b noise at the same x_t, see `jaxdiff.process.prediction`; none where it changes nothing.
        determinant = a * signal.sigma - b * signal.alpha
        change = self.phi * (factor - 1) * value / jnp.where(determinant == 0, jnp.inf, determinant)
        x_0, noise = guided.x_0 + signal.sigma * change, guided.noise - signal.alpha * change
        return guided._replace(x_0=x_0, noise=noise), state


@dataclasses.dataclass(frozen=True)
class CfgPlusPlus(Rule):
    """CFG++: the guided x_0 with the unconditional noise (Chung et al. 2024, algorithm 2).

    The pair does not add up to ``x_t``. It is meant for samplers that diffuse the pair anew, such as `Ddim`. Scales
    are 0 to 1, the paper's lambda; 1 is not off, but the conditional x_0 with the unconditional noise.
    """

    def check(self, scale: float) -> None:
        expect(
            0 <= scale <= 1,
            "scale",
            scale,
            "a number in [0, 1] for CFG++",
            "choose one there; the paper has 0.6",
        )

    def alone(self, scale: float) -> int | None:
        return 1 if scale == 0 else None

    def __call__(
        self, state: Any, scale: Scale, cond: Prediction, uncond: Prediction, signal: Signal
    ) -> tuple[Prediction, Any]:
        return Prediction(uncond.x_0 + scale * (cond.x_0 - uncond.x_0), uncond.noise), state


@dataclasses.dataclass(frozen=True)
class Projected(Rule):
    """APG: ``cond + (scale - 1) d``, with the difference ``d = cond - uncond`` changed in three ways (Sadat et al.
    2024).

    All three act on the predicted x_0 of each example (algorithm 1): a running sum with momentum, a bound on the norm,
    and a smaller component parallel to the conditional x_0, which is the one that saturates colours. With the defaults
    of `momentum` and `norm` and ``eta = 1`` it is `Extrapolate`.

    Attributes:
      eta: the fraction of the parallel component that is kept; 0 in the paper.
      norm: r, the largest norm of the difference; None for no bound. It depends on the size of the data: the paper has
        2.5 for EDM2 and 15 for Stable Diffusion XL.
      momentum: beta, the factor of the earlier sum; -0.75 and -0.5 there. The sum is over calls of the denoiser, which
        are the steps of a sampler of one call each.
    """

    eta: float = 0.0
    norm: float | None = None
    momentum: float = 0.0

    def __post_init__(self):
        positive(self, "norm")
        between(self, "momentum", -1.0, 1.0, open_low=True, open_high=True)

    def init(self, x: Data) -> Any:
        return jnp.zeros_like(x) if self.momentum != 0 else ()

    def __call__(
        self, state: Any, scale: Scale, cond: Prediction, uncond: Prediction, signal: Signal
    ) -> tuple[Prediction, Any]:
        away = cond.x_0 - uncond.x_0
        if self.momentum != 0:
            state = (away + self.momentum * state).astype(state.dtype)
            away = state
        if self.norm is not None:
            away = away * jnp.minimum(1.0, _over(self.norm, _norm(away)))
        direction = cond.x_0 * _over(1.0, _norm(cond.x_0))
        parallel = jnp.sum(away * direction, data_axes(away), keepdims=True) * direction
        x_0 = cond.x_0 + (scale - 1) * (away + (self.eta - 1) * parallel)
        return with_x_0(cond, x_0, signal), state


def _norm(x: Data) -> PerExample:
    return jnp.sqrt(jnp.sum(jnp.square(x), data_axes(x), keepdims=True))


def _over(numerator: float, norm: PerExample) -> PerExample:
    """The quotient; arbitrary where the norm is 0, since there it multiplies zeros only."""
    return numerator / jnp.where(norm > 0, norm, 1.0)
