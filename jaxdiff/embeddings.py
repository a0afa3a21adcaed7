"""Embeddings: the slots that conditions fill and networks read, named by where they act."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax.numpy as jnp

from jaxdiff.errors import UserError
from jaxdiff.typing import Array, Bool, Float, Images

FeatureMap = Float[Array, "batch _ _ _"]
"""Features on a grid of any resolution and width."""


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
class ImagePrompt:
    """Tokens of an image with keys and values of their own in every cross-attention (IP-Adapter, Ye et al. 2023).

    Attributes:
      features: the tokens, [batch, tokens, channels].
      scale: factor of their attention's output, [batch].
    """

    features: Float[Array, "batch tokens channels"]
    scale: Float[Array, "batch"]


@flax.struct.dataclass
class Control:
    """An image that a control network reads (ControlNet, Zhang et al. 2023).

    Attributes:
      image: values in [0, 1], [batch, height, width, channels]; usually larger than the data, which are latents.
      scale: factor of the residuals that the control network makes of it, [batch].
    """

    image: Images
    scale: Float[Array, "batch"]


@flax.struct.dataclass
class Residuals:
    """What is added to the features of a U-Net, by the names of its modules (`UNet.places`).

    Attributes:
      features: added to the output of a module, and so to all that follows.
      skips: added to that output only where the decoder joins it.
    """

    features: Mapping[str, FeatureMap] = flax.struct.field(default_factory=dict)
    skips: Mapping[str, FeatureMap] = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class VectorInputs:
    """What `Embeddings.vector` was made of, for networks with a noise embedding of their own (ControlNet).

    Attributes:
      noise_label: the noise level as the parameterization encodes it, [batch].
      concatenated: the vectors that `Conditioner.mapping` reads, concatenated; None without a mapping.
    """

    noise_label: Float[Array, "batch"]
    concatenated: Float[Array, "batch channels"] | None = None


@flax.struct.dataclass
class Embeddings:
    """The conditions of a batch, as a network reads them. None marks an empty slot.

    Attributes:
      vector: drives the adaptive norms, [batch, features].
      tokens: read by cross-attention.
      spatial: channels appended to the noisy image, [batch, height, width, channels].
      features: added to the Fourier features of the noise level before their mapping, [batch, features]. The
        `Conditioner` passes them to its noise module; networks never receive them.
      image_prompts: tokens of images, by the name of the adapter that reads them.
      controls: images for control networks, by the name of the network; see `jaxdiff.models.control_net.Controlled`.
      residuals: what is added to the features of a U-Net.
      vector_inputs: what `vector` was made of; `Conditioner.join` fills it.
    """

    vector: Float[Array, "batch features"] | None = None
    tokens: Tokens | None = None
    spatial: Images | None = None
    features: Float[Array, "batch channels"] | None = None
    image_prompts: Mapping[str, ImagePrompt] | None = None
    controls: Mapping[str, Control] | None = None
    residuals: Residuals | None = None
    vector_inputs: VectorInputs | None = None


def merge(embeddings: Sequence[Embeddings]) -> Embeddings:
    """Merge conditions: vectors, features and residuals are added, tokens and spatial channels are concatenated, and
    image prompts and controls are collected. `vector_inputs` stay empty.

    Raises:
      UserError: sizes that do not fit each other, or two image prompts or controls of one name.
    """
    vectors = [each.vector for each in embeddings if each.vector is not None]
    features = [each.features for each in embeddings if each.features is not None]
    tokens = [each.tokens for each in embeddings if each.tokens is not None]
    spatial = [each.spatial for each in embeddings if each.spatial is not None]
    residuals = [each.residuals for each in embeddings if each.residuals is not None]
    _check_equal("width", [vector.shape[-1] for vector in vectors], "vectors are added")
    _check_equal("width", [values.shape[-1] for values in features], "features are added")
    _check_equal("channels", [each.features.shape[-1] for each in tokens], "tokens form one sequence")
    _check_equal("image_shape", [image.shape[1:3] for image in spatial], "spatial channels share one grid")
    return Embeddings(
        vector=sum(vectors[1:], vectors[0]) if vectors else None,
        tokens=_concatenate(tokens) if tokens else None,
        spatial=jnp.concatenate(spatial, axis=-1) if spatial else None,
        features=sum(features[1:], features[0]) if features else None,
        image_prompts=_collected("image_prompts", [each.image_prompts or {} for each in embeddings]),
        controls=_collected("controls", [each.controls or {} for each in embeddings]),
        residuals=add_residuals(residuals) if residuals else None,
    )


def add_residuals(residuals: Sequence[Residuals]) -> Residuals:
    """The sums of the residuals of each module.

    Raises:
      UserError: two residuals of a module differ in shape.
    """
    return Residuals(
        _summed([each.features for each in residuals]), _summed([each.skips for each in residuals])
    )


def _summed(maps: Sequence[Mapping[str, FeatureMap]]) -> dict[str, FeatureMap]:
    total: dict[str, FeatureMap] = {}
    for name, value in [item for each in maps for item in each.items()]:
        if name in total:
            _check_equal(f"residuals.{name}", [total[name].shape, value.shape], "residuals are added")
        total[name] = total[name] + value if name in total else value
    return total


def _collected(field: str, maps: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    names = [name for each in maps for name in each]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{field}: expected different names, got {name!r} from {names.count(name)} conditions. "
                "Fix: give each of these conditions another name"
            )
    return {name: value for each in maps for name, value in each.items()} or None


def _concatenate(tokens: Sequence[Tokens]) -> Tokens:
    features = jnp.concatenate([each.features for each in tokens], axis=1)
    return Tokens(features, jnp.concatenate([each.mask for each in tokens], axis=1))


def _check_equal(field: str, sizes: list, reason: str) -> None:
    if len(set(sizes)) > 1:
        raise UserError(
            f"{field}={sizes}: expected equal sizes, since {reason}, got others. Fix: make them equal"
        )
