"""Spikes of the loss: a robust bound from recent losses, by the median and the median absolute deviation (MAD)."""

import logging
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdiff.training.fault_tolerance import Spikes

NORMAL = 1.4826
"""Standard deviation of a normal distribution over its MAD."""

LEAST = 1e-3
"""Least deviation, as a fraction of the median: losses that are all equal have none."""

_log = logging.getLogger(__name__)


def no_losses(window: int) -> Any:
    """The last losses before the first step, float32 [window]: NaN, since there are none."""
    return jnp.full((window,), jnp.nan, jnp.float32)


def appended(losses: Any, loss: Any) -> Any:
    """The last losses, [window], with one more at the end."""
    return jnp.concatenate([losses[1:], jnp.asarray(loss, jnp.float32)[None]])


def is_spike(losses: Any, loss: Any, spikes: Spikes) -> Any:
    """Whether a loss is a spike above the losses before it, [window], in which NaN stands for no loss."""
    enough = 2 * jnp.sum(jnp.isfinite(losses)) >= spikes.window
    return enough & (loss > _bound(jnp, losses, spikes))


def _bound(numpy: Any, losses: Any, spikes: Spikes) -> Any:
    """The loss above which a spike begins, for arrays of NumPy or JAX."""
    median = numpy.nanmedian(losses)
    deviation = NORMAL * numpy.nanmedian(numpy.abs(losses - median))
    return median + spikes.deviations * numpy.maximum(deviation, LEAST * numpy.abs(median))


class SpikeReports:
    """Warnings about spikes of the loss, which change nothing in training."""

    def __init__(self, spikes: Spikes):
        self._spikes = spikes
        self._losses = np.full(spikes.window, np.nan)

    def add(self, step: int, loss: float) -> None:
        """Compare the loss of a step with those before it."""
        if not math.isfinite(loss):
            return
        known = np.isfinite(self._losses).sum()
        if 2 * known >= self._spikes.window and loss > (least := _bound(np, self._losses, self._spikes)):
            text = "step %d: expected a loss below %.4g, as the last %d were, got a spike of %.4g"
            _log.warning(text, step, least, known, loss)
        self._losses = np.append(self._losses[1:], loss)
