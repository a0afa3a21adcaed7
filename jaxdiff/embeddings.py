"""Embeddings: the slots that conditions fill and networks read, named by where they act."""

from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp

from jaxdiff.errors import UserError
from jaxdiff.typing import Array, Bool, Float, Images


@flax.struct.dataclass
class Tokens:
    """A sequence for attention.

    Attributes:
      features: the tokens, [batch, tokens, channels].
      mask: False at positions without a token, [batch, tokens].
    """

    features: Float[Array, "batch tokens channels"]
    mask: Bool[Array, "batch tokens"]


@flax.struct.dataclass
class Embeddings:
    """The conditions of a batch, as a network reads them. None marks an empty slot.

    Attributes:
      vector: drives the adaptive norms, [batch, features].
      tokens: read by cross-attention.
      spatial: channels appended to the noisy image, [batch, height, width, channels].
      features: added to the Fourier features of the noise level before their mapping, [batch, features]. The
        `Conditioner` passes them to its noise module; networks never receive them.
    """

    vector: Float[Array, "batch features"] | None = None
    tokens: Tokens | None = None
    spatial: Images | None = None
    features: Float[Array, "batch channels"] | None = None


def merge(embeddings: Sequence[Embeddings]) -> Embeddings:
    """Merge conditions: vectors and features are added, tokens and spatial channels are concatenated.

    Raises:
      UserError: sizes that do not fit each other.
    """
    vectors = [each.vector for each in embeddings if each.vector is not None]
    features = [each.features for each in embeddings if each.features is not None]
    tokens = [each.tokens for each in embeddings if each.tokens is not None]
    spatial = [each.spatial for each in embeddings if each.spatial is not None]
    _check_equal("width", [vector.shape[-1] for vector in vectors], "vectors are added")
    _check_equal("width", [values.shape[-1] for values in features], "features are added")
    _check_equal("channels", [each.features.shape[-1] for each in tokens], "tokens form one sequence")
    _check_equal("image_shape", [image.shape[1:3] for image in spatial], "spatial channels share one grid")
    return Embeddings(
        vector=sum(vectors[1:], vectors[0]) if vectors else None,
        tokens=_concatenate(tokens) if tokens else None,
        spatial=jnp.concatenate(spatial, axis=-1) if spatial else None,
        features=sum(features[1:], features[0]) if features else None,
    )


def _concatenate(tokens: Sequence[Tokens]) -> Tokens:
    features = jnp.concatenate([each.features for each in tokens], axis=1)
    return Tokens(features, jnp.concatenate([each.mask for each in tokens], axis=1))


def _check_equal(field: str, sizes: list, reason: str) -> None:
    if len(set(sizes)) > 1:
        raise UserError(
            f"{field}={sizes}: expected equal sizes, since {reason}, got others. Fix: make them equal"
        )
