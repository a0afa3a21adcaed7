"""A tiny task: least squares on vectors, with noise drawn by the task."""

import functools
import hashlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.training.ema import Ema
from jaxdiff.training.state import create_state
from jaxdiff.training.step import Frozen, jit_train_step, make_train_step

SIZE = 8
COUNT = 16


class Linear:
    """y = x W + b, from x with a little noise, which is drawn for the whole batch."""

    frozen: dict = {}  # noqa: RUF012

    def __init__(self, size=SIZE, dropout=False):
        self.size, self.dropout = size, dropout

    def check(self, example, num_classes):
        pass

    def init(self, key):
        kernel = jax.random.normal(key, (self.size, self.size)) / self.size
        return {
            "kernel": nn.LogicallyPartitioned(kernel, ("channels_in", "channels_out")),
            "bias": jnp.zeros((self.size,)),
        }

    def init_task_state(self):
        return ()

    def draw(self, batch, context, key):
        return {**batch, "noise": 0.1 * jax.random.normal(key, batch["x"].shape)}

    def update_task_state(self, task_state, examples, losses):
        return task_state

    def loss(self, params, context, examples, key, train):
        assert train
        x = examples["x"] + examples["noise"]
        if self.dropout:
            x = x * jax.random.bernoulli(key, 0.5, x.shape)
        error = x @ params["kernel"] + params["bias"][None] - examples["y"]
        return jnp.mean(error**2, axis=1), {"bias": jnp.mean(error)}


class Recalling(Linear):
    """The same, with more noise after larger losses, so that its state matters. Keeps the last losses."""

    def init_task_state(self):
        return {"losses": jnp.zeros((COUNT,)), "x": jnp.zeros((COUNT,)), "total": jnp.zeros(())}

    def draw(self, batch, context, key):
        examples = super().draw(batch, context, key)
        return {**examples, "noise": examples["noise"] * (1 + jnp.mean(context.task_state["losses"]))}

    def update_task_state(self, task_state, examples, losses):
        return {"losses": losses, "x": examples["x"][:, 0], "total": task_state["total"] + jnp.sum(losses)}


LINEAR, WIDE, RECALLING, ADAM = Linear(), Linear(128), Recalling(), optax.adam(1e-2)


def batch(step, count=COUNT, size=SIZE, poison=()):
    """The batch of a step: a pure function of the step. The steps in `poison` hold a NaN."""
    random = np.random.default_rng([1, step])
    x = random.standard_normal((count, size)).astype(np.float32)
    y = (2.0 * x[:, ::-1] + 1.0).astype(np.float32)
    if step in poison:
        y[0, 0] = np.nan
    return {"x": x, "y": y}


def batches(start, **options):
    return (batch(step, **options) for step in itertools.count(start))


def mesh(count=1, **shape):
    return MeshShape(**shape).make(jax.devices()[:count])


@functools.cache
def program(mesh, optimizer, accumulation, task):
    """The step, compiled once for all tests, and the state to start from, on the host."""
    state = create_state(task, optimizer, mesh, 0)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    step_fn = jit_train_step(make_train_step(task, optimizer, Ema(), 0, accumulation), abstract, mesh)
    return step_fn, jax.device_get(state), jax.tree.map(lambda x: x.sharding, abstract)


def train(steps, *, mesh, optimizer=ADAM, accumulation=1, task=LINEAR, **options):
    """A few steps without the loop: the final state and the metrics of each step."""
    step_fn, initial, shardings = program(mesh, optimizer, accumulation, task)
    # a copy: a state on the device must not share memory with the host, for the step takes it over
    state = jax.tree.map(lambda x, where: jax.device_put(x, where, may_alias=False), initial, shardings)
    history = []
    for step in range(steps):
        state, metrics = step_fn(state, batch(step, size=task.size, **options), Frozen())
        history.append(jax.device_get(metrics))
    return state, history


def sha(state):
    """The SHA-256 of all arrays of a state, with their paths."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.flatten_with_path(state)[0]:
        digest.update(f"{path}{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()
