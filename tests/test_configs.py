"""Every config in configs/ builds, survives JSON, and fits together in shape: initialisation, step and sample."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from jaxdiff import config as configs
from jaxdiff.errors import UserError
from jaxdiff.training import step as training_step

FILES = sorted(str(path) for path in (pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_config_builds_and_survives_json(file):
    config = configs.load(file)
    stored = configs.from_json(configs.to_json(config))
    assert configs.build(config) == configs.build(stored, packages=("jaxdiff",))
    assert not configs.differences(json.loads(configs.to_json(config)), config)


@pytest.mark.parametrize("file", FILES)
def test_config_fits_together_in_shape(file):
    experiment = configs.build(configs.load(file))
    task, size = experiment.task, experiment.batch_size
    mesh = experiment.mesh.make()
    optimizer = experiment.optimizer.make(experiment.steps)
    state = training_step.abstract_state(task, optimizer, mesh)
    image = jax.ShapeDtypeStruct((size, *task.image_shape), jnp.float32)
    fields = jax.eval_shape(lambda: task.denoiser.conditioner.example(size))
    step = training_step.make_train_step(
        task, optimizer, experiment.ema, experiment.seed, experiment.accumulation
    )
    after, metrics = jax.eval_shape(step, state, {"image": image, **fields})
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert metrics["loss"].shape == ()

    def sample(params, fields, keys):
        def denoise(x, t, fields, drop):
            times = jnp.broadcast_to(t, x.shape[:1])
            return task.denoiser.apply({"params": params}, x, times, fields, drop, method="predict")

        return experiment.sampling(denoise, task.denoiser.process_of(params), fields, task.image_shape, keys)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
    made = jax.eval_shape(sample, state.params, fields, keys)
    assert made.shape == (size, *task.image_shape)
    assert made.dtype == jnp.float32


@pytest.mark.parametrize(
    ("field", "value"),
    [("log_every", 0), ("steps", 0), ("keep", -1), ("accumulation", 0), ("sample_every", -1), ("seed", -1)],
)
def test_a_number_that_cannot_be_is_named(field, value):
    config = configs.load(FILES[0])
    config[field] = value
    with pytest.raises(UserError, match=rf"config\.{field}={value}: .* Fix: "):
        configs.build(config)
