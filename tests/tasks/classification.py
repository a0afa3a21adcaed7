"""A task other than denoising: softmax regression of classes on pixels, by the task protocol alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from jaxdiff.errors import expect


@dataclasses.dataclass(frozen=True)
class Classification:
    """Cross-entropy of a linear classifier, with pixels dropped at random."""

    features: int
    classes: int
    keep: float = 1.0
    frozen: Mapping[str, Any] = FrozenDict()

    def check(self, example, num_classes):
        expect(
            num_classes == self.classes,
            "config.task.classes",
            self.classes,
            f"{num_classes} classes",
            "use these",
        )

    def init(self, key):
        return {"kernel": jnp.zeros((self.features, self.classes)), "bias": jnp.zeros((self.classes,))}

    def init_task_state(self):
        return {"seen": jnp.zeros((), jnp.int32)}

    def draw(self, batch, context, key):
        kept = jax.random.bernoulli(key, self.keep, batch["image"].shape)
        return {"x": kept * batch["image"].astype(jnp.float32) / 255, "label": batch["label"]}

    def loss(self, params, context, examples, key, train):
        x = examples["x"].reshape(len(examples["x"]), -1)
        logits = x @ params["kernel"] + params["bias"][None]
        right = jnp.argmax(logits, axis=1) == examples["label"]
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), examples["label"][:, None], axis=1)[:, 0]
        return losses, {"accuracy": jnp.mean(right)}

    def update_task_state(self, task_state, examples, losses):
        return {"seen": task_state["seen"] + len(losses)}
