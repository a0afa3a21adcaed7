"""The denoiser: network, conditions, process and parameterization as one module."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.embeddings import Embeddings
from jaxdiff.process.gaussian import Process
from jaxdiff.process.labels import LogSigma
from jaxdiff.process.prediction import Parameterization, Prediction, decode
from jaxdiff.typing import Drops, Features, Fields, Images, Params, Times


class Denoiser(nn.Module):
    """Sees a noisy image and knows the rest: what time means, what the network wants to see, what it gives.

    Attributes:
      network: module ``(x, embeddings, *, train) -> images``.
      conditioner: module ``(noise_label, fields, drop) -> Embeddings``.
      process: how data become noise; or a module ``() -> Process``, whose parameters are learned with the rest.
      parameterization: what the network predicts and in which form it sees ``x_t`` and t.
      uncertainty: module ``noise label -> log-variance of the error``, if it is to be learned as well.
    """

    network: nn.Module
    conditioner: Conditioner
    process: Process | nn.Module
    parameterization: Parameterization
    uncertainty: nn.Module | None = None

    def __call__(self, x_t: Images, t: Times, fields: Fields, drop: Drops, *, train: bool) -> Features:
        """The network's own output, which training compares with the parameterization's target."""
        if self.is_initializing():
            self.log_variance(t)
        return self._output(x_t, t, self.encode(fields, drop), train)

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
        return self.predict_encoded(x_t, t, self.encode(fields, drop), train=train)

    def encode(self, fields: Fields, drop: Drops) -> dict[str, Embeddings]:
        """Every condition embedded: what sampling does once, and not at each step."""
        return self.conditioner.encode(fields, drop)

    def predict_encoded(
        self, x_t: Images, t: Times, encoded: Mapping[str, Embeddings], *, train: bool = False
    ) -> Prediction:
        """`predict`, from what `encode` has made of the conditions."""
        output = self._output(x_t, t, encoded, train)
        return decode(self.parameterization, self._process(), t, x_t, output)

    def log_variance(self, t: Times) -> Times | None:
        """What the model thinks of its error at each time; None if it has no `uncertainty`."""
        return None if self.uncertainty is None else self.uncertainty(LogSigma()(self._process(), t))

    @nn.nowrap
    def process_of(self, params: Params) -> Process:
        """The process of a model with these parameters; for most models simply `process`."""
        if isinstance(self.process, nn.Module):
            learned: Any = self.process.apply({"params": params["process"]})
            return learned
        return self.process

    def _output(self, x_t: Images, t: Times, encoded: Mapping[str, Embeddings], train: bool) -> Features:
        x, noise_label = self.parameterization.network_input(self._process(), x_t, t)
        return self.network(x, self.conditioner.join(noise_label, encoded), train=train)

    def _process(self) -> Process:
        return self.process() if isinstance(self.process, nn.Module) else self.process
