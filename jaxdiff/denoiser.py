"""The denoiser: network, conditioner, noise process and parameterization as one module."""

from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.embeddings import Embeddings
from jaxdiff.process.gaussian import Process
from jaxdiff.process.labels import LogSigma
from jaxdiff.process.prediction import Parameterization, Prediction, decode
from jaxdiff.typing import Data, Drops, Fields, Output, Params, Times


class Denoiser(nn.Module):
    """A network with its preconditioning: conditioner, noise process and parameterization.

    Attributes:
      network: module ``(x, embeddings, *, train) -> output``.
      conditioner: module ``(noise_label, fields, drop) -> Embeddings``.
      process: the noise process; or a module ``() -> Process``, whose parameters are learned with the others.
      parameterization: what the network predicts, and the form of its inputs.
      uncertainty: module ``noise label -> log-variance of the error``, for losses that learn it.
    """

    network: nn.Module
    conditioner: Conditioner
    process: Process | nn.Module
    parameterization: Parameterization
    uncertainty: nn.Module | None = None

    def __call__(self, x_t: Data, t: Times, fields: Fields, drop: Drops, *, train: bool) -> Output:
        """The raw output of the network, which training compares with the parameterization's target."""
        if self.is_initializing():
            self.log_variance(t)
        return self._output(x_t, t, self.encode(fields, drop), train)

    def predict(
        self,
        x_t: Data,
        t: Times,
        fields: Fields,
        drop: Drops,
        *,
        train: bool = False,
        until: Times | None = None,
    ) -> Prediction:
        """The clean data and the noise that the model predicts from ``x_t`` at time t [batch].

        Args:
          x_t: noisy data.
          t: one time per example.
          fields: values of every condition.
          drop: for every condition, the examples that see its null.
          train: whether dropout is on.
          until: for a model with `Conditioner.span`, the time r at which each example's step ends; None for r = t. The
            predicted pair is the one that leads there: ``x_r = alpha_r x_0 + sigma_r noise``.

        Raises:
          UserError: `until` is given to a model that reads one time.
        """
        return self.predict_encoded(x_t, t, self.encode(fields, drop), train=train, until=until)

    def encode(self, fields: Fields, drop: Drops) -> dict[str, Embeddings]:
        """Embed every condition; sampling does this once, not at each step."""
        return self.conditioner.encode(fields, drop)

    def precompute(self, fields: Fields) -> Fields:
        """What the encoders of conditions make of their values, see `Condition.precompute`."""
        return self.conditioner.precompute(fields)

    def predict_encoded(
        self,
        x_t: Data,
        t: Times,
        encoded: Mapping[str, Embeddings],
        *,
        train: bool = False,
        until: Times | None = None,
    ) -> Prediction:
        """`predict` with conditions embedded by `encode`."""
        output = self._output(x_t, t, encoded, train, until)
        return decode(self.parameterization, self._process(), t, x_t, output)

    def log_variance(self, t: Times) -> Times | None:
        """The learned log-variance of the error at each time; None without `uncertainty`."""
        return None if self.uncertainty is None else self.uncertainty(LogSigma()(self._process(), t))

    @nn.nowrap
    def with_class_names(self, names: tuple[str, ...]) -> "Denoiser":
        """This denoiser with the names of a run's class table, see `Conditioner.with_class_names`."""
        return self.clone(conditioner=self.conditioner.with_class_names(names)) if names else self

    @nn.nowrap
    def for_images(self, shape: tuple[int, ...], data_shape: tuple[int, ...]) -> "Denoiser":
        """This denoiser for images of this stored shape, see `Conditioner.for_images`."""
        conditioner = self.conditioner.for_images(shape, data_shape)
        return self if conditioner is self.conditioner else self.clone(conditioner=conditioner)

    @nn.nowrap
    def without(self, names: Collection[str]) -> "Denoiser":
        """This denoiser without the conditions of these names, see `Conditioner.without`."""
        return self.clone(conditioner=self.conditioner.without(names)) if names else self

    @nn.nowrap
    def for_shapes(self) -> "Denoiser":
        """This denoiser where only shapes are wanted, see `Condition.for_shapes`."""
        return self.clone(conditioner=self.conditioner.for_shapes())

    @nn.nowrap
    def for_negative(self) -> "Denoiser":
        """This denoiser for negative conditions, see `Condition.for_negative`."""
        conditioner = self.conditioner.for_negative()
        return self if conditioner is self.conditioner else self.clone(conditioner=conditioner)

    @nn.nowrap
    def process_of(self, params: Params) -> Process:
        """The process of a model with these parameters; unless it is learned, `process`."""
        if isinstance(self.process, nn.Module):
            learned: Any = self.process.apply({"params": params["process"]})
            return learned
        return self.process

    def _output(
        self,
        x_t: Data,
        t: Times,
        encoded: Mapping[str, Embeddings],
        train: bool,
        until: Times | None = None,
    ) -> Output:
        process = self._process()
        x, noise_label = self.parameterization.network_input(process, x_t, t)
        span = None if until is None else noise_label - self.parameterization.label(process, until)
        return self.network(x, self.conditioner.join(noise_label, encoded, span), train=train)

    def _process(self) -> Process:
        return self.process() if isinstance(self.process, nn.Module) else self.process
