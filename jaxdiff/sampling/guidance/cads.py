"""Diversity by noise on the conditions."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.process.gaussian import Process, expand
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.loop import (
    ConditionalDenoise,
    Conditions,
    DenoiseFn,
    Encoded,
    Guidance,
    StatefulDenoiser,
    fold_in,
)
from jaxdiff.typing import Array, Float, Images, Keys, Scalar

NOISE = 2**31 - 3  # folded into an image's key, apart from the numbers of steps and those of the loop


@dataclasses.dataclass(frozen=True)
class Cads:
    """Another guidance with conditions that are noisy early and clean late (Sadat et al. 2024, "CADS", algorithm 1).

    ``sqrt(gamma) y + noise_scale sqrt(1 - gamma) n`` stands for each embedded condition y, where gamma falls linearly
    from 1 at time tau_1 to 0 at tau_2 (equations 4 and 5). The null stays as it is. The noise n is fresh at each time,
    and a function of the image's key and the time.

    Attributes:
      guidance: what is done with the conditions.
      tau_1, tau_2: times; up to tau_1 conditions are clean, from tau_2 on there is nothing but noise.
      noise_scale: s, 0.025 to 0.25 in the paper.
      rescale: psi, how far the mean and standard deviation of a condition are brought back to what they were
        (equation 6), from 0 to 1.
    """

    guidance: Guidance
    tau_1: float = 0.6
    tau_2: float = 0.9
    noise_scale: float = 0.1
    rescale: float = 1.0

    def __post_init__(self):
        require(
            self.tau_1 < self.tau_2, "tau_2", self.tau_2, f"it is not above tau_1={self.tau_1}", "raise it"
        )
        require(
            self.noise_scale >= 0, "noise_scale", self.noise_scale, "it is a standard deviation", "try 0.1"
        )
        require(0 <= self.rescale <= 1, "rescale", self.rescale, "it is a share", "give 0 to 1")

    def __call__(
        self,
        denoise: ConditionalDenoise,
        process: Process,
        conditions: Conditions,
        keys: Keys,
        guide: ConditionalDenoise | None = None,
    ) -> DenoiseFn | StatefulDenoiser:
        def at(t: Scalar) -> DenoiseFn | StatefulDenoiser:
            return self.guidance(denoise, process, self._noisy(conditions, t, keys), keys, guide)

        clean = self.guidance(denoise, process, conditions, keys, guide)
        if isinstance(clean, StatefulDenoiser):
            return StatefulDenoiser(lambda history, x, t: at(t).call(history, x, t), clean.init)

        def denoised(x: Images, t: Scalar) -> Prediction:
            return at(t)(x, t)

        return denoised

    @property
    def scale(self) -> float:
        return self.guidance.scale

    def with_scale(self, scale: float) -> "Cads":
        return dataclasses.replace(self, guidance=self.guidance.with_scale(scale))

    def gamma(self, t: Scalar) -> Scalar:
        """How clean conditions are (equation 5)."""
        return jnp.clip((self.tau_2 - t) / (self.tau_2 - self.tau_1), 0.0, 1.0)

    def _noisy(self, conditions: Mapping[str, Encoded], t: Scalar, keys: Keys) -> dict[str, Encoded]:
        keys = fold_in(fold_in(keys, NOISE), jax.lax.bitcast_convert_type(t.astype(jnp.float32), jnp.uint32))
        given = {name: condition.given for name, condition in conditions.items()}
        leaves, tree = jax.tree.flatten(given)
        noisy = [self._corrupted(leaf, self.gamma(t), fold_in(keys, i)) for i, leaf in enumerate(leaves)]
        given = jax.tree.unflatten(tree, noisy)
        return {name: condition._replace(given=given[name]) for name, condition in conditions.items()}

    def _corrupted(self, y: Any, gamma: Scalar, keys: Keys) -> Any:
        """Equations 4 and 6 for one array of a condition; masks and numbers of classes stay as they are."""
        if not jnp.issubdtype(y.dtype, jnp.floating):
            return y
        n = jax.vmap(lambda key: jax.random.normal(key, y.shape[1:], jnp.float32))(keys)
        noisy = jnp.sqrt(gamma) * y + self.noise_scale * jnp.sqrt(1 - gamma) * n
        mean, std = _moments(noisy)
        mean_y, std_y = _moments(y)
        normal = (noisy - expand(mean, y)) / jnp.where(expand(std, y) > 0, expand(std, y), 1.0)
        back = normal * expand(std_y, y) + expand(mean_y, y)
        return (self.rescale * back + (1 - self.rescale) * noisy).astype(y.dtype)


def _moments(y: Float[Array, "batch ..."]) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    """Mean and standard deviation of each image's condition."""
    axes = tuple(range(1, y.ndim))
    return jnp.mean(y, axes), jnp.std(y, axes)
