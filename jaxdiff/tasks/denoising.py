"""Denoising: the task of every diffusion model, in pixels or latents, with any conditions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import require
from jaxdiff.process import gaussian, prediction, time_sampling, weighting
from jaxdiff.typing import Array, Batch, Float, Images, Key, Metrics, Params, Scalar, Times


@dataclasses.dataclass(frozen=True)
class DenoisingTask:
    """Predict the clean image from a noisy one (Ho et al. 2020, algorithm 1, with any target, law of times and weight).

    Attributes:
      denoiser: network, conditioner, process and parameterization in one module.
      times: the law of the training times.
      weighting: weight of the squared error by log-SNR, and the space in which that error is measured.
      image_shape: (height, width, channels) of the images that are trained on.
      stratified: spread the times of a batch evenly over their law (VDM, Kingma et al. 2021, appendix I.1).
    """

    denoiser: Denoiser
    times: time_sampling.TimeLaw
    weighting: weighting.Weighting
    image_shape: tuple[int, int, int]
    stratified: bool = True

    def __post_init__(self):
        require(len(self.image_shape) == 3, "image_shape", self.image_shape, "it is not (height, width, channels)",
                "give three numbers")  # fmt: skip

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters, each boxed with the logical names of its axes."""
        conditioner = self.denoiser.conditioner
        x, t = jnp.zeros((1, *self.image_shape)), jnp.full((1,), 0.5)
        arguments = (x, t, conditioner.example(1), conditioner.none_dropped(1))
        return self.denoiser.init(key, *arguments, train=False)["params"]

    def draw(self, batch: Batch, key: Key[Array, ""]) -> dict:
        """Everything random about a batch: times, noise and dropped conditions, for all of its examples at once."""
        key_times, key_noise, key_drop = jax.random.split(key, 3)
        x_0 = batch["image"]
        size = x_0.shape[0]
        conditioner = self.denoiser.conditioner
        times = time_sampling.draw(self.times, self.denoiser.process, key_times, size, self.stratified)
        return {
            "x_0": x_0,
            "noise": jax.random.normal(key_noise, x_0.shape),
            "t": times,
            "drop": conditioner.draw_drops(key_drop, size),
            "fields": {name: batch[name] for name in conditioner.parts},
        }

    def loss(
        self, params: Params, examples: dict, key: Key[Array, ""], train: bool
    ) -> tuple[Scalar, Metrics]:
        """The mean weighted squared error over the examples that `draw` made."""
        errors = self.squared_errors(params, examples, key, train)
        weights = self.weighting(self.denoiser.process.log_snr(examples["t"]))
        return jnp.mean(weights * errors), {"squared_error": jnp.mean(errors)}

    def squared_errors(
        self, params: Params, examples: dict, key: Key[Array, ""], train: bool
    ) -> Float[Array, "batch"]:
        """Squared error per value of each example, in the space that the weighting names; unweighted."""
        process, own = self.denoiser.process, self.denoiser.parameterization
        x_0, noise, t = examples["x_0"], examples["noise"], examples["t"]
        x_t = gaussian.diffuse(process, x_0, noise, t)
        output: Any = self.denoiser.apply(
            {"params": params},
            x_t,
            t,
            examples["fields"],
            examples["drop"],
            train=train,
            rngs={"dropout": key},
        )
        error = output - prediction.target(own, process, t, x_0, noise)
        if self.weighting.space is not None:
            ratio = prediction.error_ratio(self.weighting.space, own, process, t)
            error = error * gaussian.expand(ratio, error)
        return jnp.mean(jnp.square(error), axis=(1, 2, 3))

    def error_at(
        self, params: Params, images: Images, fields: dict, t: Times, key: Key[Array, ""]
    ) -> Float[Array, "batch"]:
        """Squared error of the conditional model at chosen times, dropout off: the held-out loss by noise level."""
        noise = jax.random.normal(key, images.shape)
        drop = self.denoiser.conditioner.none_dropped(images.shape[0])
        examples = {"x_0": images, "noise": noise, "t": t, "drop": drop, "fields": fields}
        return self.squared_errors(params, examples, key, train=False)
