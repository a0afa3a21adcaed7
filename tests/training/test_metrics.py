import math

import jax.numpy as jnp
import numpy as np

from jaxdiff.training.metrics import RunningMean


def add(means, loss, skipped=0.0):
    means.add({"loss": jnp.float32(loss), "skipped": jnp.float32(skipped)})


def test_means_are_over_the_steps_that_were_not_skipped():
    means = RunningMean()
    add(means, 1.0)
    add(means, np.nan, skipped=1.0)
    add(means, 4.0)
    assert means.steps == 3
    assert means.take() == {"loss": 2.5, "skipped": 1.0}
    add(means, 7.0)
    assert means.take() == {"loss": 7.0, "skipped": 0.0}


def test_window_of_skipped_steps_has_no_mean():
    means = RunningMean()
    add(means, np.inf, skipped=1.0)
    values = means.take()
    assert math.isnan(values["loss"])
    assert values["skipped"] == 1.0
