"""What conditions give and networks read: slots, named by where they act."""

from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp

from jaxdiff.errors import require
from jaxdiff.typing import Array, Bool, Float, Images


@flax.struct.dataclass
class Tokens:
    """A sequence to attend to. `mask` is False where there is no token."""

    features: Float[Array, "batch tokens channels"]
    mask: Bool[Array, "batch tokens"]


@flax.struct.dataclass
class Embeddings:
    """The conditions of a batch of images, ready for a network.

    Attributes:
      vector: drives the adaptive norms, [batch, features].
      tokens: what cross-attention reads.
      spatial: channels that are joined to the noisy image, [batch, height, width, channels].
      features: added to the features of the noise level before they are mapped to a vector, [batch, features]. The
        `Conditioner` hands them to its noise module; networks never see them.
    """

    vector: Float[Array, "batch features"] | None = None
    tokens: Tokens | None = None
    spatial: Images | None = None
    features: Float[Array, "batch waves"] | None = None


def merge(parts: Sequence[Embeddings]) -> Embeddings:
    """One of many: vectors and features add up, tokens follow each other, spatial channels are stacked."""
    vectors = [part.vector for part in parts if part.vector is not None]
    features = [part.features for part in parts if part.features is not None]
    tokens = [part.tokens for part in parts if part.tokens is not None]
    spatial = [part.spatial for part in parts if part.spatial is not None]
    _agree("width", [vector.shape[-1] for vector in vectors], "vectors add up")
    _agree("width", [values.shape[-1] for values in features], "features add up")
    _agree("channels", [token.features.shape[-1] for token in tokens], "tokens form one sequence")
    _agree("image_shape", [image.shape[1:3] for image in spatial], "spatial conditions lie on one grid")
    return Embeddings(
        vector=sum(vectors[1:], vectors[0]) if vectors else None,
        tokens=Tokens(
            jnp.concatenate([token.features for token in tokens], axis=1),
            jnp.concatenate([token.mask for token in tokens], axis=1),
        )
        if tokens
        else None,
        spatial=jnp.concatenate(spatial, axis=-1) if spatial else None,
        features=sum(features[1:], features[0]) if features else None,
    )


def _agree(field: str, sizes: list, reason: str) -> None:
    require(len(set(sizes)) < 2, field, sizes, f"{reason}, so these must be equal", "give all the same")
