"""CADS: diversity by noise on the conditions."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.errors import between, expect
from jaxdiff.process.gaussian import Process, expand
from jaxdiff.process.per_example import data_axes
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.noise import fold_in, noise_like
from jaxdiff.sampling.protocols import (
    Conditional,
    Conditions,
    Dropping,
    Encoded,
    Guidance,
    GuidedDenoiser,
    Numeric,
)
from jaxdiff.typing import Array, Data, Float, Keys, Scalar

NOISE = 2**31 - 3  # folded into an example's key, apart from the numbers of steps and those of the loop


@dataclasses.dataclass(frozen=True)
class Cads:
    """CADS: another guidance with conditions that are noisy early and clean late (Sadat et al. 2024, algorithm 1).

    Each embedded condition y is replaced by ``sqrt(gamma) y + noise_scale sqrt(1 - gamma) n``, where gamma falls
    linearly from 1 at time tau_1 to 0 at tau_2 (equations 4 and 5). Its unconditional counterpart stays as it is. The
    noise n is fresh at each time, and a function of the example's key and the time.

    Attributes:
      guidance: the guidance that receives the noisy conditions.
      tau_1, tau_2: times; up to tau_1 conditions are clean, from tau_2 on they are pure noise.
      noise_scale: s, 0.025 to 0.25 in the paper.
      rescale: psi, how far the mean and standard deviation of a condition are restored (equation 6), from 0 to 1.
    """

    guidance: Guidance
    tau_1: float = 0.6
    tau_2: float = 0.9
    noise_scale: float = 0.1
    rescale: float = 1.0

    def __post_init__(self):
        expect(self.tau_1 < self.tau_2, "tau_2", self.tau_2, f"a time > tau_1={self.tau_1}", "raise it")
        expect(self.noise_scale >= 0, "noise_scale", self.noise_scale, "a standard deviation >= 0", "try 0.1")
        between(self, "rescale", 0.0, 1.0)

    def __call__(
        self,
        denoise: Conditional,
        process: Process,
        conditions: Conditions,
        keys: Keys,
        guiding_model: Conditional | None = None,
    ) -> GuidedDenoiser:
        def guided(conditions: Conditions) -> GuidedDenoiser:
            return self.guidance(denoise, process, conditions, keys, guiding_model)

        def call(x: Data, t: Scalar, state: Any) -> tuple[Prediction, Any]:
            return guided(self._noisy(conditions, t, keys)).call(x, t, state)

        return GuidedDenoiser(call, guided(conditions).init)

    @property
    def scale(self) -> Any:
        """The scale of the inner guidance; an array where it is an argument of a compiled program."""
        return self.guidance.scale

    def dropped(self, names: Collection[str]) -> frozenset[str]:
        """The conditions that the inner guidance drops."""
        return self.guidance.dropped(names) if isinstance(self.guidance, Dropping) else frozenset()

    def with_scale(self, scale: float) -> "Cads":
        return dataclasses.replace(self, guidance=self.guidance.with_scale(scale))

    @property
    def numbers(self) -> Mapping[str, Any]:
        """The numbers of the inner guidance."""
        return self.guidance.numbers if isinstance(self.guidance, Numeric) else {}

    def with_numbers(self, numbers: Mapping[str, Any]) -> "Cads":
        """See `jaxdiff.sampling.protocols.Numeric`."""
        inner = self.guidance
        changed = inner.with_numbers(numbers) if isinstance(inner, Numeric) else inner
        return dataclasses.replace(self, guidance=changed)

    def gamma(self, t: Scalar) -> Scalar:
        """The fraction of the condition's variance that is signal (equation 5)."""
        return jnp.clip((self.tau_2 - t) / (self.tau_2 - self.tau_1), 0.0, 1.0)

    def _noisy(self, conditions: Mapping[str, Encoded], t: Scalar, keys: Keys) -> dict[str, Encoded]:
        keys = fold_in(fold_in(keys, NOISE), jax.lax.bitcast_convert_type(t.astype(jnp.float32), jnp.uint32))
        cond = {name: condition.cond for name, condition in conditions.items()}
        leaves, tree = jax.tree.flatten(cond)
        noisy = [self._corrupted(leaf, self.gamma(t), fold_in(keys, i)) for i, leaf in enumerate(leaves)]
        cond = jax.tree.unflatten(tree, noisy)
        return {name: condition._replace(cond=cond[name]) for name, condition in conditions.items()}

    def _corrupted(self, y: Any, gamma: Scalar, keys: Keys) -> Any:
        """Equations 4 and 6 for one array of a condition; masks and integers stay as they are."""
        if not jnp.issubdtype(y.dtype, jnp.floating):
            return y
        noisy = jnp.sqrt(gamma) * y + self.noise_scale * jnp.sqrt(1 - gamma) * noise_like(keys, y)
        mean, std = _moments(noisy)
        mean_y, std_y = _moments(y)
        normal = (noisy - expand(mean, y)) / jnp.where(expand(std, y) > 0, expand(std, y), 1.0)
        restored = normal * expand(std_y, y) + expand(mean_y, y)
        return (self.rescale * restored + (1 - self.rescale) * noisy).astype(y.dtype)


def _moments(y: Float[Array, "batch ..."]) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    """Mean and standard deviation of each example's condition."""
    return jnp.mean(y, data_axes(y)), jnp.std(y, data_axes(y))
