"""A task's codec for conditions whose images are encoded as the data are."""

import dataclasses
from collections.abc import Mapping

from jaxdiff.codecs.latent import Latent
from jaxdiff.codecs.protocol import Codec
from jaxdiff.errors import UserError
from jaxdiff.typing import Data, Images, Keys, Params


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A codec with the parameters of its networks: the argument of `Condition.encoded`.

    Attributes:
      codec: of the task.
      frozen: trees by the names in `Codec.frozen`; there may be others.
    """

    codec: Codec
    frozen: Mapping[str, Params]

    def data(self, images: Images, keys: Keys) -> Data:
        """Images as diffused data, see `Codec.encode`."""
        return self.codec.encode(self.frozen, images, keys)

    def latents(self, images: Images) -> Data:
        """The modes of the autoencoder's posteriors, see `Latent.latents`.

        Raises:
          UserError: the codec has no autoencoder.
        """
        if not isinstance(self.codec, Latent):
            kind = type(self.codec).__name__
            raise UserError(
                f"config.task.codec={kind}: expected Latent, since a condition is the latents of an image, got {kind}. "
                "Fix: use Latent, or ImageCondition for the image itself"
            )
        return self.codec.latents(self.frozen, images)
