"""Adams methods: the predicted noise as a polynomial through this prediction and the last ones, integrated exactly.

In ``x / alpha`` and ``s = sigma / alpha`` the probability flow is ``d(x / alpha) / ds = noise`` for every process. The
methods differ in the coordinate in which the noise is taken to be a polynomial. Each step is one call. The first steps
are of lower orders; that of the first one reduces the global order to two, with the small error of one step.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import one_of
from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.base import SingleCall
from jaxdiff.sampling.protocols import SamplerState
from jaxdiff.sampling.samplers.exponential import finite, length
from jaxdiff.sampling.samplers.multistep import (
    Past,
    combine,
    empty,
    exponential_moments,
    integrals,
    reciprocals,
)
from jaxdiff.typing import Array, Data, Float, Keys, Scalar

COORDINATES = ("log_rho", "t")
QUADRATURE = 20  # points, for float64 on steps to a tenth of the noise level


@dataclasses.dataclass(frozen=True)
class _Adams(SingleCall):
    """The step of all Adams methods.

    Attributes:
      order: number of predictions that the polynomial goes through, 1 to 4.
    """

    order: int = 4

    def __post_init__(self):
        one_of(self, "order", (1, 2, 3, 4))

    def init(self, x: Data) -> SamplerState:
        return SamplerState(x, empty(x, self.order - 1))

    def update(
        self,
        prediction: Prediction,
        process: Process,
        state: SamplerState,
        t: Scalar,
        t_next: Scalar,
        keys: Keys,
    ) -> SamplerState:
        x_0, noise, _ = prediction
        alpha, sigma = process.signal(t_next)
        past = state.history.limited(state.max_order)
        x = alpha * x_0 + sigma * noise + self._change(process, t, t_next, past, noise)
        return SamplerState(x, state.history.and_now(noise, self._length(process, t, t_next)))

    def _change(self, process: Process, t: Scalar, t_next: Scalar, past: Past, noise: Data) -> Data:
        """The contribution of earlier predictions to the first-order step."""
        r = reciprocals(self._length(process, t, t_next), past.lengths)
        return combine(integrals(r, self._moments(process, t, t_next)), past.values, noise)

    def _length(self, process: Process, t: Scalar, t_next: Scalar) -> Scalar:
        """The length of a step in the coordinate of the polynomial."""
        raise NotImplementedError

    def _moments(self, process: Process, t: Scalar, t_next: Scalar) -> list[Scalar]:
        """The integrals of ``alpha_next tau^k ds`` over a step, where tau runs with the coordinate from 0 to 1."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Lms(_Adams):
    """LMS: a polynomial in the noise level s. k-diffusion's `lms`, and "rhoAB-DEIS" of Zhang & Chen 2023."""

    def _length(self, process: Process, t: Scalar, t_next: Scalar) -> Scalar:
        return level(process, t) - level(process, t_next)

    def _moments(self, process: Process, t: Scalar, t_next: Scalar) -> list[Scalar]:
        return [stretch(process, t, t_next) / (k + 1) for k in range(self.order)]


@dataclasses.dataclass(frozen=True)
class AdamsBashforth(_Adams):
    """iPNDM: fixed coefficients 3/2, -1/2 and so on, as if all steps had one length.

    PNDM without its own first steps, as Zhang & Chen 2023 compare with. Where the step length changes it is of second
    order, whatever its `order`. A prediction from pure noise counts like any other.
    """

    def _length(self, process: Process, t: Scalar, t_next: Scalar) -> Scalar:
        return jnp.ones_like(t)

    def _change(self, process: Process, t: Scalar, t_next: Scalar, past: Past, noise: Data) -> Data:
        return stretch(process, t, t_next) * mean_change(past, noise)


@dataclasses.dataclass(frozen=True)
class Deis(_Adams):
    """DEIS: a polynomial in the log-SNR or in time.

    Zhang & Chen 2023, "Fast Sampling of Diffusion Models with Exponential Integrator", there "AB-DEIS".

    Attributes:
      coordinate: "log_rho", the logarithm of s, as in diffusers; or "t", the process's own time, "tAB-DEIS". Only the
        latter depends on how the process spreads time over noise levels. A polynomial in s itself is `Lms`.
    """

    order: int = 3
    coordinate: str = "log_rho"

    def __post_init__(self):
        super().__post_init__()
        one_of(self, "coordinate", COORDINATES)

    def _length(self, process: Process, t: Scalar, t_next: Scalar) -> Scalar:
        return t - t_next if self.coordinate == "t" else length(process, t, t_next)

    def _moments(self, process: Process, t: Scalar, t_next: Scalar) -> list[Scalar]:
        h, signal = finite(length(process, t, t_next)), process.signal(t_next)
        if self.coordinate == "log_rho":
            return exponential_moments("noise", signal, h, self.order)
        nodes, weights = (jnp.asarray(value, t.dtype) for value in _gauss_legendre())
        log_snr = process.log_snr(t_next) - 2 * h * (1 - nodes)
        tau = (t - process.time(log_snr)) / (t - t_next)
        ds = -signal.sigma * h * jnp.exp(h * (1 - nodes)) * weights
        return [jnp.sum(ds * tau**k) for k in range(self.order)]


def mean_change(past: Past, noise: Data) -> Data:
    """The mean of the polynomial over a step minus the noise at its start, for steps of length 1."""
    r = reciprocals(jnp.ones((), noise.dtype), past.lengths)
    moments = [jnp.asarray(1 / (k + 1), noise.dtype) for k in range(len(r) + 1)]
    return combine(integrals(r, moments), past.values, noise)


def level(process: Process, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The noise level s, infinite at pure noise."""
    return jnp.exp(-process.log_snr(t) / 2)


def stretch(process: Process, t: Scalar, t_next: Scalar) -> Scalar:
    """``alpha_next (s_next - s)``: the factor of the noise in a step; 0 from pure noise."""
    return -process.signal(t_next).alpha * finite(level(process, t) - level(process, t_next))


@functools.cache
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(QUADRATURE)
    return (nodes + 1) / 2, weights / 2
