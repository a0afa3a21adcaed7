"""The sampler as a program for devices that need not be there: it is the one that generates."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from jaxdiff.generation.compiled import GenerationInputs, Trees
from jaxdiff.generation.generator import Generator
from jaxdiff.generation.lowering import lower_sampler
from jaxdiff.training.state import init_params
from tests.cost.test_compiled import tiny


@pytest.mark.parametrize("overrides", [(), ("mesh.fsdp=2",)], ids=["data", "fsdp"])
def test_the_program_makes_the_samples_of_a_generator(overrides):
    _, experiment = tiny(*overrides)
    mesh, labels, n = experiment.mesh.make(), np.arange(8, dtype=np.int32), 8
    params = nn.meta.unbox(jax.jit(lambda: init_params(experiment.task, 0))())
    expected = Generator.of(experiment, params, mesh)(label=labels, seed=3)

    program = lower_sampler(experiment, mesh, n).compile()
    fields, absent = {"label": labels}, {"label": np.zeros(n, bool)}
    inputs = GenerationInputs(fields, absent, fields, {"label": np.ones(n, bool)})
    numbers = dict(experiment.recipe.guidance.numbers)
    request = numbers, Trees((params,), {}), inputs, np.arange(n, dtype=np.uint32), np.uint32(3), None
    samples = program(*jax.device_put(request, program.input_shardings[0]))
    np.testing.assert_array_equal(experiment.sampled.codec.stored(np.asarray(samples)), expected)
    assert len({round(float(each.mean())) for each in expected}) > 1


def test_a_batch_is_the_next_power_of_two_that_the_devices_share():
    _, experiment = tiny()
    lowered = lower_sampler(experiment, experiment.mesh.make(), 9)
    assert lowered.out_info.shape == (16, 8, 8, 1)
