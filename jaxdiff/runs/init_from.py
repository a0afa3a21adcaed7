"""A run that starts from another: its step 0 is stored in its own folder, and training goes on from there."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn

from jaxdiff import config as configs
from jaxdiff.denoiser import Denoiser
from jaxdiff.distributed import partitioning
from jaxdiff.errors import UserError, require
from jaxdiff.experiment import Experiment
from jaxdiff.runs.restore import parameters_of
from jaxdiff.runs.workdir import CONFIG_FILE, read_config
from jaxdiff.training import finetune
from jaxdiff.training import step as training_step
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.typing import Params

CLOSE = 1e-2
"""Relative difference that computing the old and the new model in another order may make, also in bfloat16."""


READERS = (
    "network/*/cross_attention",
    *(f"network/middle/block_*/{name}" for name in ("query", "key_value", "norm_tokens", "cross_out")),
)
"""Parts of networks that read tokens, and come with the first condition that gives any. They start as their skip."""


def prepare(experiment: Experiment, workdir: epath.PathLike, mesh: jax.sharding.Mesh) -> None:
    """Store step 0 of a run with `init_from`, unless it has a checkpoint already.

    Raises:
      UserError: there is no such run, its parameters do not fit, or the new model is not the old one at step 0.
    """
    if experiment.init_from is None:
        return
    with Checkpoints(epath.Path(workdir) / "checkpoints", experiment.keep) as checkpoints:
        if checkpoints.latest() is None:
            checkpoints.save(0, first_state(experiment, mesh))
            checkpoints.wait()


def first_state(experiment: Experiment, mesh: jax.sharding.Mesh) -> training_step.TrainState:
    """Step 0 of a run with `init_from`."""
    start: Any = experiment.init_from
    other, old = _other_run(start, mesh)
    before, after = other.task.denoiser, experiment.task.denoiser
    new_parts = [name for name in after.conditioner.conditions if name not in before.conditioner.conditions]
    zero_initialised = [
        path for name in new_parts for path in zero_initialised_in(after, name, experiment.task.image_shape)
    ]
    added = [f"conditioner/parts_{name}" for name in new_parts]
    shape = experiment.task.image_shape
    if any("tokens" in _channels(after.conditioner, name, shape) for name in new_parts):
        added += READERS
    layouts = layout(other), layout(experiment)
    optimizer, extra_emas = experiment.optimizer.make(experiment.steps), len(experiment.ema.extra_emas())
    key = jax.random.fold_in(jax.random.key(experiment.seed), training_step.INITIAL)

    def make(old: Params) -> training_step.TrainState:
        fresh = nn.meta.unbox(experiment.task.init(key))
        params = finetune.transfer_params(old, fresh, zero_initialised, layouts, added, start.fresh)
        return training_step.begin(experiment.task, optimizer, params, extra_emas)

    abstract = training_step.abstract_state(experiment.task, optimizer, mesh, extra_emas)
    state = jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))(old)
    if not start.fresh:
        difference = _difference((before, old), (after, state.params), other.task.image_shape, mesh)
        fix = "use the same process, parameterization and network, or name what is new in init_from.fresh"
        why = f"the model is another one at step 0: outputs differ by {difference:.2g} of the largest"
        require(difference <= CLOSE, "init_from.workdir", start.workdir, why, fix)
    return state


def layout(experiment: Experiment) -> dict[str, int]:
    """What the network's input channels are: the noisy image's, then those of each condition that is joined to them."""
    conditioner: Any = experiment.task.denoiser.conditioner
    found = {"image": experiment.task.image_shape[2]}
    for name in conditioner.conditions:
        slots = _channels(conditioner, name, experiment.task.image_shape)
        if "spatial" in slots:
            found[f"condition {name}"] = slots["spatial"]
    return found


def zero_initialised_in(denoiser: Denoiser, name: str, image_shape: tuple[int, int, int]) -> list[str]:
    """Paths of parameters of a condition that, as zeros, keep it from saying anything to the norms.

    The last that suffice are chosen, found by trial: a class's vectors, the last layer of several. Those before them
    stay as they are, so that gradients reach them. What the condition says by channels of the image or by tokens is
    up to the network.

    Raises:
      UserError: none of its parameters, nor all of one module, can do it.
    """
    part: Any = denoiser.conditioner.conditions[name]
    values = _some_values(part, image_shape)
    none = jnp.zeros((2,), bool)
    params = nn.meta.unbox(part.init(jax.random.key(0), values, none)).get("params", {})
    chosen: list[str] = []
    for drop in (none, ~none):

        def speaks(without: list[str], drop: Any = drop) -> bool:
            muted = _zeroed(params, without)
            said = part.apply({"params": muted}, values, drop)
            return any(bool(jnp.any(slot != 0)) for slot in (said.vector, said.features) if slot is not None)

        if speaks(chosen):
            every = list(reversed(finetune.paths(params)))
            modules = dict.fromkeys(path.rpartition("/")[0] for path in every)
            trials = [[path] for path in every]
            trials += [[path for path in every if path.rpartition("/")[0] == module] for module in modules]
            found = next((trial for trial in trials if not speaks(chosen + trial)), None)
            if found is None:
                raise UserError(
                    f"init_from: the new condition {name} ({type(part).__name__}) changes the model at once, whatever "
                    f"is zero. Fix: use another condition, or init_from.fresh=('conditioner/parts_{name}',)"
                )
            chosen += found
    return [f"conditioner/parts_{name}/{path}" for path in chosen]


def _other_run(start: finetune.InitFrom, mesh: jax.sharding.Mesh) -> tuple[Experiment, Params]:
    exists = (epath.Path(start.workdir).expanduser() / CONFIG_FILE).exists()
    require(
        exists, "init_from.workdir", start.workdir, f"there is no {CONFIG_FILE}", "give the folder of a run"
    )
    other: Any = configs.build(read_config(start.workdir), packages=("jaxdiff", *start.packages))
    field = "ema" if start.ema else "params"
    return other, parameters_of(other, start.workdir, mesh, start.step, field, flag="init_from.workdir")


def _difference(
    old: tuple[Denoiser, Params],
    new: tuple[Denoiser, Params],
    shape: tuple[int, int, int],
    mesh: jax.sharding.Mesh,
) -> float:
    """How far two models answer differently to noisy images with and without conditions, relative to the largest."""
    values = {name: _some_values(part, shape) for name, part in new[0].conditioner.conditions.items()}

    def answer(denoiser: Any, params: Params) -> Any:
        x, t = jax.random.normal(jax.random.key(1), (2, *shape)), jnp.array([0.3, 0.7])
        parts = denoiser.conditioner.conditions
        fields = {name: values[name] for name in parts}
        drop = dict.fromkeys(parts, jnp.array([False, True]))
        return denoiser.apply({"params": params}, x, t, fields, drop, train=False)

    everywhere = partitioning.replicated(mesh)
    before, after = (
        np.asarray(jax.jit(functools.partial(answer, denoiser), out_shardings=everywhere)(params))
        for denoiser, params in (old, new)
    )
    largest = float(np.abs(before).max())
    return float(np.abs(after - before).max()) / largest if largest else float(np.abs(after).max())


def _some_values(part: Any, image_shape: tuple[int, int, int]) -> Any:
    """Two values of a condition; its dummies, with numbers between 0 and 1 in place of zeros."""
    leaves, structure = jax.tree.flatten(part.example(2, image_shape))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    floats = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    drawn = [
        jax.random.uniform(key, leaf.shape, leaf.dtype) if moves else leaf
        for key, leaf, moves in zip(keys, leaves, floats, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


def _channels(conditioner: Any, name: str, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """How many channels a condition has as "spatial" and as "tokens", if it has any; nothing is computed."""
    part, none = conditioner.conditions[name], jnp.zeros((1,), bool)

    def said() -> dict[str, Any]:
        found, _ = part.init_with_output(jax.random.key(0), part.example(1, image_shape), none)
        return {"spatial": found.spatial, "tokens": found.tokens and found.tokens.features}

    slots = jax.eval_shape(said)
    return {slot: array.shape[-1] for slot, array in slots.items() if array is not None}


def _zeroed(params: Mapping[str, Any], named: list[str]) -> Any:
    leaves = [
        jnp.zeros_like(leaf) if path in named else leaf for path, leaf in finetune.paths(params).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
