"""Denoising: the task of every diffusion model, in pixels or latents, with any conditions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import require
from jaxdiff.process import gaussian, time_sampling
from jaxdiff.tasks.augmentation import FIELD, Augmentation
from jaxdiff.tasks.objectives import LossInputs, Objective, WeightedError
from jaxdiff.typing import Array, Batch, Float, Images, Key, Metrics, Params, Times


@dataclasses.dataclass(frozen=True)
class DenoisingTask:
    """Predict the clean image from a noisy one (Ho et al. 2020, algorithm 1, with any target, law of times and loss).

    Attributes:
      denoiser: network, conditioner, process and parameterization in one module.
      times: the law of the training times.
      image_shape: (height, width, channels) of the images that are trained on.
      objective: what the denoiser is punished for.
      stratified: spread the times of a batch evenly over their law (VDM, Kingma et al. 2021, appendix I.1).
      augmentation: what is done to the images. The model is told by its condition "augment", so that nothing of it
        leaks into samples. Conditions that are images do not move with them.
    """

    denoiser: Denoiser
    time_sampler: time_sampling.TimeSampler
    image_shape: tuple[int, int, int]
    objective: Objective = WeightedError()
    stratified: bool = True
    augmentation: Augmentation | None = None

    def __post_init__(self):
        require(len(self.image_shape) == 3, "image_shape", self.image_shape, "it is not (height, width, channels)",
                "give three numbers")  # fmt: skip
        self.objective.check(self.denoiser, self.time_sampler)
        if self.augmentation is not None:
            told = self.denoiser.conditioner.conditions.get(FIELD)
            require(getattr(told, "size", None) == self.augmentation.size, "augmentation", self.augmentation,
                    f"the model is not told by a condition {FIELD!r} of {self.augmentation.size} numbers",
                    f"give it conditions={{'{FIELD}': Continuous(size={self.augmentation.size}, ...)}}")  # fmt: skip

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters, each boxed with the logical names of its axes."""
        conditioner = self.denoiser.conditioner
        x, t = jnp.zeros((1, *self.image_shape)), jnp.full((1,), 0.5)
        arguments = (x, t, conditioner.example(1, self.image_shape), conditioner.none_dropped(1))
        return self.denoiser.init(key, *arguments, train=False)["params"]

    def init_task_state(self) -> Any:
        """What the law of times remembers of losses before there are any."""
        return self.time_sampler.init_history()

    def draw(self, batch: Batch, task_state: Any, key: Key[Array, ""]) -> dict:
        """Everything random about a batch: noise, augmentations, what conditions draw, which are dropped, and the
        uniform numbers that become times.

        All examples are drawn at once, and without the parameters: `loss` makes times of the numbers, with the process
        as far as it is learned. `importance` undoes what the law prefers.
        """
        key_times, key_noise, key_drop, key_fields, key_augment = jax.random.split(key, 5)
        x_0 = batch["image"]
        size = x_0.shape[0]
        if self.augmentation is not None:
            x_0, labels = self.augmentation(x_0, jax.random.split(key_augment, size))
            batch = {**batch, FIELD: labels}
        conditioner = self.denoiser.conditioner
        u, importance = self.time_sampler.choose(
            task_state, time_sampling.uniforms(key_times, size, self.stratified)
        )
        return {
            "x_0": x_0,
            "noise": jax.random.normal(key_noise, x_0.shape),
            "u": u,
            "importance": importance,
            "drop": conditioner.draw_drops(key_drop, size),
            "fields": conditioner.draw(batch, jax.random.split(key_fields, size), train=True),
        }

    def loss(
        self, params: Params, examples: dict, key: Key[Array, ""], train: bool
    ) -> tuple[Float[Array, "batch"], Metrics]:
        """The objective for each of the examples that `draw` made, times its importance."""
        process = self.denoiser.process_of(params)
        x_0, noise, u = examples["x_0"], examples["noise"], examples["u"]
        t = self.time_sampler.quantile(u, process)
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
        log_variance: Any = self.denoiser.apply({"params": params}, t, method="log_variance")
        inputs = LossInputs(
            process,
            self.denoiser.parameterization,
            self.time_sampler,
            u,
            t,
            x_0,
            noise,
            x_t,
            output,
            log_variance,
        )
        losses, metrics = self.objective(inputs)
        return examples["importance"] * losses, metrics

    def update_task_state(self, task_state: Any, examples: dict, losses: Float[Array, "batch"]) -> Any:
        """The memory after a step whose losses were these."""
        return self.time_sampler.update_history(task_state, examples["u"], losses / examples["importance"])

    def error_at(
        self, params: Params, images: Images, fields: dict, t: Times, key: Key[Array, ""]
    ) -> Float[Array, "batch"]:
        """Squared error per value of the predicted image, conditional and without dropout, at chosen times.

        The same quantity whatever the objective: the held-out loss by noise level. Images are not augmented, and
        conditions are as in sampling.
        """
        conditioner, count = self.denoiser.conditioner, images.shape[0]
        noise = jax.random.normal(key, images.shape)
        x_t = gaussian.diffuse(self.denoiser.process_of(params), images, noise, t)
        fields = {**fields, **conditioner.draw(fields, jax.random.split(key, count), train=False)}
        drop = conditioner.none_dropped(count)
        predicted: Any = self.denoiser.apply({"params": params}, x_t, t, fields, drop, method="predict")
        return jnp.mean(jnp.square(predicted.x_0 - images), axis=(1, 2, 3))
