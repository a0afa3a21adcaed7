"""Sets of weights in a file: finding them, and choosing between trained and averaged (EMA) weights."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from jaxdiff.interop.files import Unreadable
from jaxdiff.interop.torch_tensors import Tensor
from jaxdiff.interop.unpickling import Inert

_AVERAGED = re.compile(r"(^|[_./])ema([_./]|$)")
_ORDINARY = (
    "state_dict", "model_state_dict", "model", "net", "network", "unet", "params", "weights", "module", "online_model",
)  # fmt: skip
"""Names of sets of weights that are not averaged, in order of preference."""

_WRAPPERS = ("module.", "_orig_mod.")
_COUNTERS = {"model_ema.decay", "model_ema.num_updates"}
_DEEPEST = 2
_LONGEST_NAME = 1000
_MOST_LEVELS = 64
_MOST_ENTRIES = 300_000


def trees_in(content: Any) -> dict[str, dict[str, Tensor]]:
    """All sets of named tensors in an object, by their path: ``ema``, ``model/state_dict``.

    A dict of tensors is a set, and so is a module. Dicts of sets are searched two levels deep. Tensors next to sets (a
    step counter) are not weights. Without any set, the object itself is one, named "".
    """
    found = dict(_sets(content, "", 0, set()))
    own = _direct(content)
    return found or ({"": own} if own else {})


def _sets(content: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if id(content) in seen:  # a file can contain the same object under many names
        return
    seen.add(id(content))
    if _is_module(content):
        yield path, dict(_of_module(content))
    elif isinstance(content, dict):
        inside = False
        for name, inner in content.items() if depth < _DEEPEST else ():
            if isinstance(name, str) and len(name) < _LONGEST_NAME and isinstance(inner, dict | Inert):
                for found in _sets(inner, f"{path}/{name}".removeprefix("/"), depth + 1, seen):
                    inside = True
                    yield found
        if depth > 0 and not inside and (own := _direct(content)):
            yield path, own


def _direct(content: Any) -> dict[str, Tensor]:
    """The tensors that are values of a dict."""
    entries = content.items() if isinstance(content, dict) else ()
    return {name: value for name, value in entries if isinstance(name, str) and isinstance(value, Tensor)}


def _is_module(content: Any) -> bool:
    return isinstance(content, Inert) and isinstance(content.state, dict) and "_modules" in content.state


def _of_module(module: Inert) -> Iterator[tuple[str, Tensor]]:
    """The items of ``module.state_dict()``."""
    left, room = [("", module, 0)], _MOST_ENTRIES
    while left:
        prefix, module, level = left.pop()
        parts = [module.state.get(kind) for kind in ("_parameters", "_buffers", "_modules")]
        temporary = module.state.get("_non_persistent_buffers_set") or []
        if not (all(isinstance(part, dict) for part in parts) and isinstance(temporary, list | tuple)):
            raise Unreadable("expected modules with parameters, buffers and modules, got another object")
        room -= 1 + len(temporary) + sum(map(len, parts))
        if room < 0 or level > _MOST_LEVELS or len(prefix) > _LONGEST_NAME:
            raise Unreadable("expected a network of ordinary size, got too many nested modules")
        hidden = {name for name in temporary if isinstance(name, str)}
        parameters, buffers, modules = (
            [
                (name, value)
                for name, value in part.items()
                if isinstance(name, str) and len(name) < _LONGEST_NAME
            ]
            for part in parts
        )
        buffers = [(name, value) for name, value in buffers if name not in hidden]
        yield from (
            (prefix + name, value) for name, value in parameters + buffers if isinstance(value, Tensor)
        )
        left += [
            (f"{prefix}{name}.", inner, level + 1) for name, inner in reversed(modules) if _is_module(inner)
        ]


def split(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Separate sets in one list of names that differ by a prefix: {set: {its name: name in the file}}.

    * ``ema_model.`` and ``online_model.``, written by wrappers of a model.
    * ``model_ema.`` and ``model.``, written by latent diffusion (Rombach et al. 2022). Its averages have names without
      dots and replace the tensors of those names; the others (text encoder, autoencoder) belong to both sets.

    Either may be inside a wrapper of PyTorch, ``module.`` or ``_orig_mod.``, which is removed then.
    """
    names = list(names)
    for wrapper in _WRAPPERS:
        if names and all(name.startswith(wrapper) for name in names):
            inner = split(name.removeprefix(wrapper) for name in names)
            if set(inner) != {""}:
                return {path: _longer(pairs, wrapper) for path, pairs in inner.items()}
    wrapped = {
        prefix: {name.removeprefix(f"{prefix}."): name for name in names if name.startswith(f"{prefix}.")}
        for prefix in ("ema_model", "online_model")
    }
    if wrapped["ema_model"]:
        return {prefix: pairs for prefix, pairs in wrapped.items() if pairs}
    averages = {name for name in names if name.startswith("model_ema.")} - _COUNTERS
    if not averages:
        return {"": {name: name for name in names}}
    model = {name: name for name in names if not name.startswith("model_ema.")}
    trained = [name for name in model if name.startswith("model.")]
    named = {"model_ema." + name.removeprefix("model.").replace(".", ""): name for name in trained}
    if len(named) < len(trained) or not averages <= named.keys():
        raise Unreadable("expected averaged weights (model_ema) with the names of trained ones, got others")
    return {"model": model, "model_ema": model | {named[average]: average for average in averages}}


def _longer(pairs: dict[str, str], prefix: str) -> dict[str, str]:
    return {ours: prefix + theirs for ours, theirs in pairs.items()}


def choose(paths: Iterable[str], ema: bool | None) -> str:
    """The path of the set to read: averaged weights (True), trained ones (False), or averaged if any (None)."""
    averaged = sorted(path for path in paths if is_averaged(path))
    others = sorted((path for path in paths if not is_averaged(path)), key=_rank)
    if ema and not averaged:
        raise Unreadable("expected averaged weights, got none marked so", "leave the choice (--weights) out")
    if ema is False and not others:
        raise Unreadable(
            "expected trained weights, got averaged ones only", "leave the choice (--weights) out"
        )
    chosen = averaged if averaged and ema is not False else others
    known = chosen is others and bool(others) and _rank(others[0]) < len(_ORDINARY)
    if not chosen:
        raise Unreadable("expected named tensors, got none", "name a file of weights")
    if len(chosen) > 1 and not known:
        raise Unreadable(
            f"expected one set of tensors, got several: {chosen[:10]}", "store the intended one separately"
        )
    return chosen[0]


def is_averaged(path: str) -> bool:
    """Whether a path in a file or folder (``model_ema``, ``ema/net``) names averaged weights."""
    return _AVERAGED.search(path) is not None and not path.endswith("online_model")


def has_nameless_averages(content: Any) -> bool:
    """Whether averaged weights are a list in the order of the model's own code (``shadow_params``)."""
    entries = content.items() if isinstance(content, dict) else ()
    return any(
        isinstance(name, str) and is_averaged(name) and isinstance(inner, dict) and "shadow_params" in inner
        for name, inner in entries
    )


def _rank(path: str) -> int:
    name = path.rpartition("/")[2]
    return _ORDINARY.index(name) if name in _ORDINARY else len(_ORDINARY)
