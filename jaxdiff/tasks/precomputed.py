"""What frozen networks make of the fields of a batch before anything is drawn: latents' posteriors, text embeddings.

`DenoisingTask.draw` takes it in place of the field, so a cache may hold it (`jaxdiff.caching`).
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax

from jaxdiff import config as configs
from jaxdiff.codecs.protocol import Precomputing
from jaxdiff.errors import UserError
from jaxdiff.tasks.denoising import DenoisingTask
from jaxdiff.tasks.pretrained import LORA
from jaxdiff.trees import check_like, paths, with_branch
from jaxdiff.typing import Params, Weights


def fields(task: DenoisingTask) -> tuple[str, ...]:
    """The fields of a batch that a network reads without drawing anything: the data, and texts."""
    data = (task.data_field,) if isinstance(task.codec, Precomputing) else ()
    conditions = task.denoiser.conditioner.conditions
    return (*data, *(name for name, each in conditions.items() if each.precomputed_by))


def networks(task: DenoisingTask, field: str) -> dict[str, Weights]:
    """The frozen networks that read a field, by their names in `DenoisingTask.frozen`.

    Raises:
      UserError: parameters that read it are trained.
    """
    if field == task.data_field:
        return dict(task.codec.frozen)
    read = _shapes(task, field)
    trained = sorted(read.keys() & _trained(task))
    if trained:
        raise UserError(
            f"config.task.pretrained={tuple(task.pretrained)}: expected the encoder of the condition {field!r} among "
            f"the modules that are not trained, since its embeddings are stored, got {trained[0]}, which is trained. "
            f"Fix: name its module in pretrained, without LoRA in it, or make a cache without {field}, by --fields "
            f"{task.data_field}"
        )
    return {
        name: weights
        for name, weights in task.pretrained.items()
        if any(path.startswith(f"{name}/") for path in read)
    }


def made_by(task: DenoisingTask, field: str) -> dict[str, Any]:
    """What determines the result for a field, apart from parameters: blocks of a config by their paths in the task."""
    if field == task.data_field:
        part, path = task.codec, "codec"
    else:
        part, path = task.denoiser.conditioner.conditions[field], f"denoiser.conditioner.conditions.{field}"
    fields: tuple[str, ...] = part.precomputed_by  # pyright: ignore[reportAttributeAccessIssue]
    return {path: {name: configs.describe(getattr(part, name)) for name in fields}}


def precompute(task: DenoisingTask, field: str, frozen: Mapping[str, Params], values: Any) -> Any:
    """What the networks of a field make of its values for a batch.

    Args:
      frozen: the trees of `networks`.
      values: as batches hold them.
    """
    if field == task.data_field:
        codec: Any = task.codec
        return codec.precompute(frozen, values)
    params: Params = {}
    for name in frozen:
        params = with_branch(params, name.split("/"), frozen[name])
    found: Any = task.denoiser.apply({"params": params}, {field: values}, method="precompute")
    return found[field]


def check(task: DenoisingTask, field: str, frozen: Mapping[str, Params]) -> None:
    """Raise `UserError` unless the parameters of a condition's encoder have the expected names and shapes.

    A codec checks its own where it uses them.
    """
    if field == task.data_field:
        return
    found = {f"{name}/{path}": leaf for name, tree in frozen.items() for path, leaf in paths(tree).items()}
    expected = _shapes(task, field)
    used = {path: found[path] for path in expected if path in found}
    check_like("config.task.pretrained", expected, used, "use weights of this module", types=False)


@functools.cache
def _shapes(task: DenoisingTask, field: str) -> dict[str, Any]:
    """The parameters that read the values of a condition, as shapes by path."""
    values = task.denoiser.conditioner.example(1, task.data_shape)[field]
    init = functools.partial(task.denoiser.init, method="precompute")
    return paths(jax.eval_shape(init, jax.random.key(0), {field: values})["params"])


@functools.cache
def _trained(task: DenoisingTask) -> set[str]:
    """The paths of parameters that are trained, those of kernels with factors of LoRA included."""
    shapes = paths(jax.eval_shape(task.init, jax.random.key(0)))
    adapted = {
        path.removeprefix(f"{LORA}/").rpartition("/")[0] for path in shapes if path.startswith(f"{LORA}/")
    }
    return adapted | shapes.keys()
