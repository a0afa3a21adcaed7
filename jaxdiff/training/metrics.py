"""Metrics of a run: means over log windows."""

import math

import jax
import jax.numpy as jnp

from jaxdiff.typing import Metrics


@jax.jit
def _add(totals: Metrics, metrics: Metrics) -> Metrics:
    used = metrics["skipped"] == 0
    added = {name: jnp.where(used, value, 0.0) for name, value in metrics.items()} | {
        "skipped": metrics["skipped"]
    }
    return jax.tree.map(jnp.add, totals, added)


class RunningMean:
    """Means over a window of steps, accumulated on the device until `take` copies them to the host.

    Attributes:
      steps: number of steps in the window.
    """

    def __init__(self):
        self._totals: Metrics | None = None
        self.steps = 0

    def add(self, metrics: Metrics) -> None:
        """Add the metrics of one step, which include `skipped` (0 or 1)."""
        totals = jax.tree.map(jnp.zeros_like, metrics) if self._totals is None else self._totals
        self._totals = _add(totals, metrics)
        self.steps += 1

    def take(self) -> dict[str, float]:
        """Means over the steps that were not skipped (NaN if all were), and the number of skipped steps.

        Starts a new window.
        """
        assert self._totals is not None
        totals = {name: float(value) for name, value in jax.device_get(self._totals).items()}
        used = self.steps - round(totals["skipped"])
        means = {name: total / used if used else math.nan for name, total in totals.items()}
        means = {"loss": means.pop("loss"), **means}  # the loss comes first in every output
        self.__init__()
        return means | {"skipped": totals["skipped"]}
