"""The denoiser: network, conditions, process and parameterization as one module."""

import flax.linen as nn

from jaxdiff.process.gaussian import Process
from jaxdiff.process.prediction import Parameterization, Prediction, decode
from jaxdiff.typing import Drops, Fields, Images, Times


class Denoiser(nn.Module):
    """Sees a noisy image and knows the rest: what time means, what the network wants to see, what it gives.

    Attributes:
      network: module ``(x, embeddings, *, train) -> images``.
      conditioner: module ``(noise_label, fields, drop) -> Embeddings``.
      process: how data become noise.
      parameterization: what the network predicts and in which form it sees ``x_t`` and t.
    """

    network: nn.Module
    conditioner: nn.Module
    process: Process
    parameterization: Parameterization

    def __call__(self, x_t: Images, t: Times, fields: Fields, drop: Drops, *, train: bool) -> Images:
        """The network's own output, which training compares with the parameterization's target."""
        x, noise_label = self.parameterization.network_input(self.process, x_t, t)
        return self.network(x, self.conditioner(noise_label, fields, drop), train=train)

    def predict(
        self, x_t: Images, t: Times, fields: Fields, drop: Drops, *, train: bool = False
    ) -> Prediction:
        """The clean image and the noise that the model sees in ``x_t`` at time t [batch].

        Args:
          x_t: noisy images.
          t: their times.
          fields: values of every condition.
          drop: for every condition, which examples see its null.
          train: whether dropout is on.
        """
        return decode(self.parameterization, self.process, t, x_t, self(x_t, t, fields, drop, train=train))
