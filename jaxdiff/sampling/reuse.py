"""DeepCache: features of a network are reused between neighbouring steps of sampling."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxdiff.errors import UserError, positive
from jaxdiff.process.prediction import Prediction
from jaxdiff.sampling.protocols import ConditionalDenoise, Conditions, StatefulDenoiser
from jaxdiff.typing import Data, Drops, Scalar


@runtime_checkable
class ReusableDenoise(Protocol):
    """A conditional denoiser that gives away the features which enter the last blocks of its network."""

    def keeping(
        self, x: Data, t: Scalar, conditions: Conditions, drop: Drops, blocks: int
    ) -> tuple[Prediction, Any]:
        """The prediction, and the features, a tree of arrays, that enter the last `blocks` blocks."""
        ...

    def reusing(
        self, x: Data, t: Scalar, conditions: Conditions, drop: Drops, blocks: int, features: Any
    ) -> Prediction:
        """The prediction with these features, without what made them."""
        ...


@dataclasses.dataclass(frozen=True)
class DeepCache:
    """DeepCache (Ma et al. 2024): the first of `interval` calls of the model is whole, the others reuse its features.

    Deep features of a U-Net change slowly from step to step. A call that reuses them runs the last blocks of the
    decoder, and the beginning of the encoder whose skips these read. It acts on the model that is sampled, not on a
    guiding model. A call is also whole where guidance in an interval of noise levels begins or ends, and after a return
    to noise.

    Attributes:
      interval: calls of the model from one whole call to the next; 1 is off.
      blocks: blocks of the decoder that every call runs; the paper's branch is one less. 1 is the fastest.
    """

    interval: int = 3
    blocks: int = 1

    def __post_init__(self):
        positive(self, "interval", "blocks")

    def whole_calls(self, calls: int) -> int:
        """The number of whole calls among `calls`, without those that an interval or a return to noise adds."""
        return -(-calls // self.interval)

    def __call__(self, denoise: ConditionalDenoise) -> ConditionalDenoise | StatefulDenoiser:
        """The denoiser that reuses features.

        Raises:
          UserError: the denoiser gives away no features.
        """
        if self.interval == 1:
            return denoise
        if not isinstance(denoise, ReusableDenoise):
            raise UserError(
                f"sampling.reuse={self!r}: expected a denoiser that gives away its features, got one that does not. "
                "Fix: leave reuse out"
            )
        return StatefulDenoiser(
            lambda *args: self._call(denoise, *args), lambda *args: self._init(denoise, *args)
        )

    def _call(
        self, denoise: ReusableDenoise, x: Data, t: Scalar, conditions: Conditions, drop: Drops, state: Any
    ) -> tuple[Prediction, Any]:
        since, last, features = state

        def whole(features: Any) -> tuple[Prediction, Any]:
            return denoise.keeping(x, t, conditions, drop, self.blocks)

        def shallow(features: Any) -> tuple[Prediction, Any]:
            return denoise.reusing(x, t, conditions, drop, self.blocks, features), features

        fresh = (since == 0) | (t > last)  # features of less noisy data say nothing about noisier data
        prediction, features = jax.lax.cond(fresh, whole, shallow, features)
        since = (jnp.where(fresh, 0, since) + 1) % self.interval
        return prediction, (since, t, features)

    def _init(self, denoise: ReusableDenoise, x: Data, conditions: Conditions, drop: Drops) -> Any:
        """Calls since the last whole one, the time of the last call, and features, which the first call replaces."""
        t = jnp.zeros((), x.dtype)
        shapes = jax.eval_shape(lambda: denoise.keeping(x, t, conditions, drop, self.blocks)[1])
        return jnp.int32(0), t, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
