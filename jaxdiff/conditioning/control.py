"""Control images: edges, depth, poses and the like, for ControlNets and T2I-Adapters."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning.image import ImageValues
from jaxdiff.embeddings import Control, Embeddings, Residuals
from jaxdiff.errors import UserError, finite, positive
from jaxdiff.typing import Array, Bool, Images, Keys


class UnitImage(ImageValues):
    """The base of control images, whose values are in [0, 1] on the device, as published controls read them.

    A control image has the size of the generated image. It has no null: guidance shows it in both branches.

    Attributes:
      channels, factor: as in `ImageValues`.
      scale: factor of what is added to the network's features; 0 switches the control off.
    """

    scale: float = 1.0

    def __post_init__(self):
        finite(self, "scale")
        super().__post_init__()

    @nn.nowrap
    def draw(self, values: Array, keys: Keys, train: bool) -> Images:
        """Bytes as floats in [0, 1]; floats stay as they are."""
        floats = jnp.issubdtype(values.dtype, jnp.floating)
        return values if floats else values.astype(jnp.float32) / 255

    @nn.nowrap
    def check(self, values: object, name: str = "image") -> None:
        """Raise `UserError` unless these are images with the right channels, as bytes or as floats in [0, 1]."""
        super().check(values, name)
        array = np.asarray(values)
        if array.dtype != np.uint8 and array.size and (array.min() < 0 or array.max() > 1):
            got = f"{array.min():.3g} to {array.max():.3g}"
            raise UserError(
                f"{name}=...: expected uint8, or floats between 0 and 1, got {got}. Fix: rescale the control image"
            )

    @nn.nowrap
    def images(self, values: Any) -> np.ndarray:
        array = np.asarray(values)
        return array if array.dtype == np.uint8 else 2 * array - 1


class ControlImage(UnitImage):
    """Control image of a ControlNet (Zhang et al. 2023), which is a part of a `Controlled` network.

    Attributes:
      control: the name of the ControlNet.
      enlarged: integer factor by which the image is enlarged first (bilinear), for an image of a lower resolution than
        the generated one.
    """

    control: str = "control"
    enlarged: int = 1

    def __post_init__(self):
        positive(self, "enlarged")
        super().__post_init__()

    @nn.compact
    def __call__(self, values: Images, drop: Bool[Array, "batch"]) -> Embeddings:
        if self.enlarged > 1:
            batch, height, width, channels = values.shape
            size = batch, height * self.enlarged, width * self.enlarged, channels
            values = jax.image.resize(values, size, "bilinear")
        scale = jnp.full((values.shape[0],), self.scale, jnp.float32)
        return Embeddings(controls={self.control: Control(values, scale)})


class AdapterImage(UnitImage, kw_only=True):
    """Control image of a T2I-Adapter (Mou et al. 2023), which is a part of this condition.

    Its features are added to those of the U-Net. They do not depend on the noisy data, and are computed once.

    Attributes:
      adapter: module from images to a list of features, such as `jaxdiff.models.t2i_adapter.T2IAdapter`. It shares the
        parameter scope of this module.
      places: for each map of features, the name of the module of the U-Net after which it is added (`UNet.places`).
    """

    adapter: nn.Module
    places: tuple[str, ...]

    def setup(self):
        nn.share_scope(self, self.adapter)

    @nn.compact
    def __call__(self, values: Images, drop: Bool[Array, "batch"]) -> Embeddings:
        features = self.adapter(values)
        scaled = [self.scale * each for each in features]
        return Embeddings(residuals=Residuals(dict(zip(self.places, scaled, strict=True))))
