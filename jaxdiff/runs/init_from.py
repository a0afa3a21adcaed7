"""Fine-tuning: the initial state of a run from the parameters of another run."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn

from jaxdiff import config as configs
from jaxdiff.conditioning.conditioner import parameters_of
from jaxdiff.denoiser import Denoiser
from jaxdiff.distributed import partitioning
from jaxdiff.errors import UserError, expect
from jaxdiff.experiment import Experiment
from jaxdiff.models.control_net import uncontrolled
from jaxdiff.models.unet import UNet
from jaxdiff.runs import new_controls
from jaxdiff.runs.restore import restore_params
from jaxdiff.runs.stages import read_model_config
from jaxdiff.runs.weights import load
from jaxdiff.runs.workdir import CONFIG_FILE
from jaxdiff.training import transfer
from jaxdiff.training.partition import split
from jaxdiff.training.state import abstract_params, abstract_state, begin, init_params
from jaxdiff.training.step import TrainState
from jaxdiff.trees import merge, paths
from jaxdiff.typing import Params, TypedWeights, Weights

CLOSE = 1e-2
"""Relative difference between the models that rounding may cause, also in bfloat16."""

READERS = (
    "network/*/cross_attention",
    *(f"network/middle/block_*/{name}" for name in ("query", "key_value", "norm_tokens", "cross_out")),
)
"""Modules that read tokens; they are new with the first condition that gives tokens. At first they add nothing."""


def first_state(
    experiment: Experiment, mesh: jax.sharding.Mesh, networks: Mapping[str, Params]
) -> tuple[TrainState, Params]:
    """Initial state of a run with `init_from`, and the parameters that the run does not train.

    Args:
      experiment: the run to start; its `init_from` names the other run.
      mesh: the devices of the run.
      networks: parameters of frozen networks, by the names in `Task.frozen`.

    Raises:
      UserError: there is no such run, its parameters do not fit, or the two models differ at step 0.
    """
    start: Any = experiment.init_from
    task = experiment.sampled
    other, old = _other_run(start, mesh)
    before, after = other.sampled.denoiser.conditioner, task.denoiser.conditioner
    origins = {name: _held_in(start.dtype, origin) for name, origin in other.task.frozen.items()}
    other_networks = load(origins, mesh, epath.Path(start.workdir).expanduser())
    full_old = other.sampled.full_params(old, other_networks)
    shape, patterns = task.data_shape, experiment.optimizer.frozen
    new = [name for name in after.conditions if name not in before.conditions]
    controls = new_controls.added_controls(other.sampled.denoiser.network, task.denoiser.network)
    zero_initialised = [path for name in new for path in zero_initialised_in(task.denoiser, name, shape)]
    added = [f"conditioner/{parameters_of(name)}" for name in new]
    if any("tokens" in _channels(after, name, shape) for name in new):
        added += READERS
    added += new_controls.own_modules(controls)
    layouts = layout(other), layout(experiment)
    optimizer, emas = experiment.optimizer.make(experiment.steps), experiment.ema.count
    kept = experiment.fault_tolerance.kept_losses

    def make(old: Params) -> tuple[TrainState, Params]:
        fresh = nn.meta.unbox(init_params(task, experiment.seed))
        old = merge(old, new_controls.copies(old, fresh, controls, layouts[0]))
        params = transfer.transfer_params(
            old, fresh, zero_initialised, layouts, added, start.fresh, tuple(task.frozen)
        )
        trained, untrained = split(params, patterns)
        return begin(task, optimizer, trained, emas, kept), untrained

    abstract = (
        abstract_state(task, optimizer, mesh, emas, patterns, kept),
        abstract_params(task, mesh, patterns)[1],
    )
    state, untrained = jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))(
        full_old
    )
    if not start.fresh:
        full_new = task.full_params(merge(state.params, untrained), networks)
        models = (other.sampled.denoiser, full_old), (task.denoiser, full_new)
        difference = _difference(*models, other.sampled.data_shape, mesh)
        fix = "use the same process, parameterization and network, or name what is new in init_from.fresh"
        got = f"outputs that differ by {difference:.2g} of the largest"
        same = difference <= CLOSE
        expect(same, "init_from.workdir", start.workdir, "the same model at step 0", fix, got)
    return state, untrained


def layout(experiment: Experiment) -> dict[str, int]:
    """Input channels of the network, name -> number: the noisy image, then each condition that is joined to it, then
    the coordinates."""
    conditioner: Any = experiment.sampled.denoiser.conditioner
    shape = experiment.sampled.data_shape
    found = {"image": shape[-1]}
    for name in conditioner.conditions:
        slots = _channels(conditioner, name, shape)
        if "spatial" in slots:
            found[f"condition {name}"] = slots["spatial"]
    unet = uncontrolled(experiment.sampled.denoiser.network)
    if isinstance(unet, UNet) and unet.coordinates:
        found[new_controls.COORDINATES] = 2
    return found


def zero_initialised_in(denoiser: Denoiser, name: str, data_shape: tuple[int, ...]) -> list[str]:
    """Paths of parameters of a condition which, set to zero, remove its effect on the norms.

    They are found by trial, from the last parameter on: the embeddings of a class, or the last of several layers.
    Earlier parameters keep their initial values, so that gradients reach them. Effects through channels of the image or
    through tokens are left to the network.

    Raises:
      UserError: neither one parameter nor all of one module suffice.
    """
    condition: Any = denoiser.conditioner.conditions[name]
    values = _some_values(condition, data_shape)
    none = jnp.zeros((2,), bool)
    params = nn.meta.unbox(condition.init(jax.random.key(0), values, none)).get("params", {})
    chosen: list[str] = []
    for drop in (none, ~none):

        def has_effect(zeros: list[str], drop: Any = drop) -> bool:
            found = condition.apply({"params": _zeroed(params, zeros)}, values, drop)
            slots = (found.vector, found.features)
            return any(bool(jnp.any(slot != 0)) for slot in slots if slot is not None)

        if has_effect(chosen):
            every = list(reversed(paths(params)))
            modules = dict.fromkeys(path.rpartition("/")[0] for path in every)
            trials = [[path] for path in every]
            trials += [[path for path in every if path.rpartition("/")[0] == module] for module in modules]
            found = next((trial for trial in trials if not has_effect(chosen + trial)), None)
            if found is None:
                raise UserError(
                    f"init_from: expected a new condition without effect at step 0, got {name} "
                    f"({type(condition).__name__}), which has one with any parameter at zero. "
                    f"Fix: use another condition, or init_from.fresh=('conditioner/{parameters_of(name)}',)"
                )
            chosen += found
    return [f"conditioner/{parameters_of(name)}/{path}" for path in chosen]


def _other_run(start: transfer.InitFrom, mesh: jax.sharding.Mesh) -> tuple[Experiment, Params]:
    exists = (epath.Path(start.workdir).expanduser() / CONFIG_FILE).exists()
    fix = "give the folder of a run"
    expect(exists, "init_from.workdir", start.workdir, f"a folder with {CONFIG_FILE}", fix, "none")
    other: Any = configs.build(read_model_config(start.workdir), packages=("jaxdiff", *start.packages))
    field = "ema" if start.ema else "params"
    return other, restore_params(other, start.workdir, mesh, start.step, field, flag="init_from.workdir")


def _held_in(dtype: str, weights: Weights) -> Weights:
    """Weights that the device holds in this type, if they have a type."""
    typed: Any = weights
    return dataclasses.replace(typed, dtype=dtype) if isinstance(weights, TypedWeights) else weights


def _difference(
    old: tuple[Denoiser, Params],
    new: tuple[Denoiser, Params],
    shape: tuple[int, ...],
    mesh: jax.sharding.Mesh,
) -> float:
    """Largest difference of two models' outputs, with and without conditions, relative to the largest output."""
    values = {name: _some_values(each, shape) for name, each in new[0].conditioner.conditions.items()}

    def output(denoiser: Any, params: Params) -> Any:
        x, t = jax.random.normal(jax.random.key(1), (2, *shape)), jnp.array([0.3, 0.7])
        conditions = denoiser.conditioner.conditions
        fields = {name: values[name] for name in conditions}
        drop = dict.fromkeys(conditions, jnp.array([False, True]))
        return denoiser.apply({"params": params}, x, t, fields, drop, train=False)

    everywhere = partitioning.replicated(mesh)
    before, after = (
        np.asarray(jax.jit(functools.partial(output, denoiser), out_shardings=everywhere)(params))
        for denoiser, params in (old, new)
    )
    largest = float(np.abs(before).max())
    return float(np.abs(after - before).max()) / largest if largest else float(np.abs(after).max())


def _some_values(condition: Any, data_shape: tuple[int, ...]) -> Any:
    """Two values of a condition: its example, with floats drawn from [0, 1)."""
    leaves, structure = jax.tree.flatten(condition.example(2, data_shape))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    floats = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    drawn = [
        jax.random.uniform(key, leaf.shape, leaf.dtype) if is_float else leaf
        for key, leaf, is_float in zip(keys, leaves, floats, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def _channels(conditioner: Any, name: str, data_shape: tuple[int, ...]) -> dict[str, int]:
    """Number of channels of a condition's "spatial" and "tokens" slots, if filled; by abstract evaluation."""
    condition, none = conditioner.conditions[name], jnp.zeros((1,), bool)

    def embeddings() -> dict[str, Any]:
        found, _ = condition.init_with_output(jax.random.key(0), condition.example(1, data_shape), none)
        return {"spatial": found.spatial, "tokens": found.tokens and found.tokens.features}

    slots = jax.eval_shape(embeddings)
    return {slot: array.shape[-1] for slot, array in slots.items() if array is not None}


def _zeroed(params: Mapping[str, Any], zeros: list[str]) -> Any:
    leaves = [jnp.zeros_like(leaf) if path in zeros else leaf for path, leaf in paths(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
