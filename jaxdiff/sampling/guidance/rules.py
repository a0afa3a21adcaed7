"""How two predictions become the guided one: rules for `ClassifierFree` and `Autoguidance`.

All of them work on the predicted images, which mean the same whatever the network outputs, and whose contrast and
saturation are what too much guidance spoils.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.process.gaussian import Signal
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.modifiers.thresholding import with_image
from jaxdiff.typing import Array, Float, Images

PIXELS = (1, 2, 3)


@runtime_checkable
class Rule(Protocol):
    """From the prediction that is wanted, `given`, and the one to get away from, `null`, to one beyond both."""

    @property
    def remembers(self) -> bool:
        """Whether it learns from call to call."""
        return False

    def init(self, x: Images) -> Any:
        """What it knows before the first call."""
        return ()

    def check(self, scale: float) -> None:
        """Raise `UserError` for a scale that the rule has no meaning for."""

    def alone(self, scale: float) -> int | None:
        """The only prediction that is needed at this scale, and all of the result: 0 is `given`, 1 is `null`."""
        return 0 if scale == 1 else None

    def __call__(
        self, history: Any, scale: float, given: Prediction, null: Prediction, signal: Signal
    ) -> tuple[Prediction, Any]:
        """The guided prediction and the new history. `signal` is that of the noisy images."""
        ...


@dataclasses.dataclass(frozen=True)
class Extrapolate(Rule):
    """``null + scale (given - null)`` (Ho & Salimans 2022, equation 6)."""

    def alone(self, scale: float) -> int | None:
        return {1.0: 0, 0.0: 1}.get(scale)

    def __call__(
        self, history: Any, scale: float, given: Prediction, null: Prediction, signal: Signal
    ) -> tuple[Prediction, Any]:
        x_0, noise = (
            away + scale * (to - away) for to, away in ((given.x_0, null.x_0), (given.noise, null.noise))
        )
        return Prediction(x_0, noise), history


@dataclasses.dataclass(frozen=True)
class Rescale(Rule):
    """The guided image with its standard deviation brought back to that of `given` (Lin et al. 2023, equations 14-16).

    The paper does this to the output of a network for v, we to the predicted image of each sample: its standard
    deviation is the contrast that guidance inflates, and so the result is the same for every parameterization.

    Attributes:
      phi: how much of the way, from 0 for `Extrapolate` to 1.
    """

    phi: float = 0.7

    def __post_init__(self):
        require(0 <= self.phi <= 1, "phi", self.phi, "it is a share", "give 0 to 1; the paper has 0.7")

    def __call__(
        self, history: Any, scale: float, given: Prediction, null: Prediction, signal: Signal
    ) -> tuple[Prediction, Any]:
        guided, _ = Extrapolate()((), scale, given, null, signal)
        wanted, found = (jnp.std(pair.x_0, PIXELS, keepdims=True) for pair in (given, guided))
        # An image of one colour, such as the best guess at pure noise may be, has no contrast to correct.
        factor = jnp.where(found > 0, wanted / jnp.where(found > 0, found, 1.0), 1.0)
        return with_image(guided, (self.phi * factor + 1 - self.phi) * guided.x_0, signal), history


@dataclasses.dataclass(frozen=True)
class CfgPlusPlus(Rule):
    """The guided image with the noise of `null` (Chung et al. 2024, "CFG++", algorithm 2).

    The pair does not make up ``x_t``. It is meant for samplers that diffuse the pair anew, such as `Ddim`. Scales are
    0 to 1, the paper's lambda; 1 is not off, but the conditional image with the other noise.
    """

    def check(self, scale: float) -> None:
        require(0 <= scale <= 1, "scale", scale, "CFG++ interpolates", "give 0 to 1; the paper has 0.6")

    def alone(self, scale: float) -> int | None:
        return 1 if scale == 0 else None

    def __call__(
        self, history: Any, scale: float, given: Prediction, null: Prediction, signal: Signal
    ) -> tuple[Prediction, Any]:
        return Prediction(null.x_0 + scale * (given.x_0 - null.x_0), null.noise), history


@dataclasses.dataclass(frozen=True)
class Projected(Rule):
    """``given + (scale - 1) d``: the difference ``d = given - null``, tamed in three ways ("APG", Sadat et al. 2024).

    All three act on predicted images, each on its own (algorithm 1): a running sum with momentum, a bound on the norm,
    and less of the part that is parallel to the given image, which is what saturates colours. With the defaults of
    `momentum` and `norm` and ``eta = 1`` it is `Extrapolate`.

    Attributes:
      eta: the share of the parallel part that is kept; 0 in the paper.
      norm: r, the largest norm of the difference; None for no bound. It depends on the size of the images: the paper
        has 2.5 for EDM2 and 15 for Stable Diffusion XL.
      momentum: beta, how much of the earlier sum is added; -0.75 and -0.5 there. The sum is over calls of the denoiser,
        which are the steps of a sampler of one call each.
    """

    eta: float = 0.0
    norm: float | None = None
    momentum: float = 0.0

    def __post_init__(self):
        require(self.norm is None or self.norm > 0, "norm", self.norm, "it is a norm", "try 2.5, or None")
        require(-1 < self.momentum < 1, "momentum", self.momentum, "the sum would grow", "try -0.5")

    @property
    def remembers(self) -> bool:
        return self.momentum != 0

    def init(self, x: Images) -> Any:
        return jnp.zeros_like(x)

    def __call__(
        self, history: Any, scale: float, given: Prediction, null: Prediction, signal: Signal
    ) -> tuple[Prediction, Any]:
        away = given.x_0 - null.x_0
        if self.remembers:
            history = (away + self.momentum * history).astype(history.dtype)
            away = history
        if self.norm is not None:
            away = away * jnp.minimum(1.0, _over(self.norm, _norm(away)))
        direction = given.x_0 * _over(1.0, _norm(given.x_0))
        parallel = jnp.sum(away * direction, PIXELS, keepdims=True) * direction
        x_0 = given.x_0 + (scale - 1) * (away + (self.eta - 1) * parallel)
        return with_image(given, x_0, signal), history


def _norm(x: Images) -> Float[Array, "batch 1 1 1"]:
    return jnp.sqrt(jnp.sum(jnp.square(x), PIXELS, keepdims=True))


def _over(numerator: float, norm: Float[Array, "batch 1 1 1"]) -> Float[Array, "batch 1 1 1"]:
    """The quotient; where the norm is 0 nothing is multiplied by it but zeros."""
    return numerator / jnp.where(norm > 0, norm, 1.0)
