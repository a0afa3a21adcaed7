"""The posterior of latents: what an autoencoder makes of an image before anything is drawn."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxdiff.typing import Data, Keys


@flax.struct.dataclass
class Posterior:
    """Gaussian posterior of latents, independent for each number (Kingma & Welling 2014, appendix B).

    Arrays of the device or of the host.

    Attributes:
      mean: [batch, *latent].
      log_variance: [batch, *latent]; minus infinity for an autoencoder without variance.
    """

    mean: Any
    log_variance: Any

    def float32(self) -> "Posterior":
        """This posterior in float32; it may be stored in less."""
        return Posterior(self.mean.astype(jnp.float32), self.log_variance.astype(jnp.float32))

    def sample(self, keys: Keys) -> Data:
        """Latents from a key for each example, so that they do not depend on the rest of the batch."""
        noise = jax.vmap(lambda key: jax.random.normal(key, self.mean.shape[1:]))(keys)
        return self.mean + jnp.exp(self.log_variance / 2) * noise
