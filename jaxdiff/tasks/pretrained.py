"""Modules of a denoiser that are not trained: taken out of its parameters, put back, and changed by LoRA."""

from collections.abc import Iterable, Mapping

import jax

from jaxdiff.errors import expect
from jaxdiff.models.lora import Lora
from jaxdiff.trees import check_like, with_branch, with_dtype, without_branch
from jaxdiff.typing import Array, Key, Params, Weights, dtype_of

LORA = "lora"
"""The name of the factors of `DenoisingTask.lora` among the trained parameters."""


def trained_part(every: Params, modules: Iterable[str], lora: Lora | None, key: Key[Array, ""]) -> Params:
    """The parameters that are trained: those of no pretrained module, and the factors of `lora`.

    Args:
      every: all parameters of the denoiser, each boxed with the names of its axes.
      modules: the paths of the pretrained modules.
      key: of the factors.

    Raises:
      UserError: there is no such module, or `lora` changes a kernel that is trained itself.
    """
    params = every
    for path in modules:
        _check_path(every, path)
        params = without_branch(params, path.split("/"))
    if lora is None:
        return params
    for path in lora.chosen(every):
        untrained = any(path.startswith(f"{name}/") for name in modules)
        fix = "name its module in pretrained, with the weights of the model that is adapted"
        expect(untrained, "config.task.lora.targets", path, "kernels of pretrained modules", fix)
    return {**params, LORA: lora.init(every, key)}


def full_params(
    params: Params,
    frozen: Mapping[str, Params],
    modules: Iterable[str],
    lora: Lora | None,
    train: bool = False,
) -> Params:
    """All parameters of the denoiser: the trained ones with those of pretrained modules, changed by `lora`.

    `train` is that of `Lora.merged`.
    """
    for path in modules:
        params = with_branch(params, path.split("/"), frozen[path])
    return params if lora is None else lora.merged(without_branch(params, [LORA]), params[LORA], train)


def held(shapes: Params, origin: Weights) -> Params:
    """The shapes of a network's parameters, in the types in which the device holds them."""
    return jax.eval_shape(lambda tree: with_dtype(tree, dtype_of(origin)), shapes)


def check(path: str, expected: Params, found: Params) -> None:
    """Raise `UserError` unless the parameters of a pretrained module have the expected names, types and shapes."""
    names, fix = path.split("/"), "use weights of this module"
    ours, theirs = with_branch({}, names, expected), with_branch({}, names, found)
    check_like("config.task.pretrained", ours, theirs, fix)


def _check_path(params: Params, path: str) -> None:
    """Raise `UserError` unless a path is that of a module."""
    branch = params
    for name in path.split("/"):
        inside = isinstance(branch, Mapping)
        fix = f"use one of {', '.join(branch)}" if inside else "name a module, not a parameter"
        expect(inside and name in branch, "config.task.pretrained", path, "the path of a module", fix)
        branch = branch[name]
