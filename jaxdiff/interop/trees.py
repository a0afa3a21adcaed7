"""Which tensors of a file are the weights, and which of them are averaged over training (EMA)."""

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
"""Under which names weights stand that are not averaged. The first that a file has is taken."""

_COUNTERS = {"model_ema.decay", "model_ema.num_updates"}
_DEEPEST = 2
_LONGEST_NAME = 1000
_MOST_LEVELS = 64
_MOST_ENTRIES = 300_000


def trees_in(content: Any) -> dict[str, dict[str, Tensor]]:
    """All sets of named tensors in an object, by where they stand in it: ``ema``, ``model/state_dict``.

    A dict of tensors is a set, and so is a module. Dicts of such are searched two levels deep. Tensors that stand
    beside sets (a count of steps) are not weights; without any set, the object itself is one, named "".
    """
    found = dict(_sets(content, "", 0, set()))
    own = _direct(content)
    return found or ({"": own} if own else {})


def _sets(content: Any, place: str, depth: int, seen: set[int]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if id(content) in seen:  # a file can hold the same object under any number of names
        return
    seen.add(id(content))
    if _is_module(content):
        yield place, dict(_of_module(content))
    elif isinstance(content, dict):
        inside = False
        for name, inner in content.items() if depth < _DEEPEST else ():
            if isinstance(name, str) and len(name) < _LONGEST_NAME and isinstance(inner, dict | Inert):
                for found in _sets(inner, f"{place}/{name}".removeprefix("/"), depth + 1, seen):
                    inside = True
                    yield found
        if depth > 0 and not inside and (own := _direct(content)):
            yield place, own


def _direct(content: Any) -> dict[str, Tensor]:
    """The tensors that are values of a dict."""
    entries = content.items() if isinstance(content, dict) else ()
    return {name: value for name, value in entries if isinstance(name, str) and isinstance(value, Tensor)}


def _is_module(content: Any) -> bool:
    return isinstance(content, Inert) and isinstance(content.state, dict) and "_modules" in content.state


def _of_module(module: Inert) -> Iterator[tuple[str, Tensor]]:
    """What ``module.state_dict()`` would give."""
    left, room = [("", module, 0)], _MOST_ENTRIES
    while left:
        prefix, module, level = left.pop()
        parts = [module.state.get(kind) for kind in ("_parameters", "_buffers", "_modules")]
        temporary = module.state.get("_non_persistent_buffers_set") or []
        if not (all(isinstance(part, dict) for part in parts) and isinstance(temporary, list | tuple)):
            raise Unreadable("it has a module without parameters, buffers or modules")
        room -= 1 + len(temporary) + sum(map(len, parts))
        if room < 0 or level > _MOST_LEVELS or len(prefix) > _LONGEST_NAME:
            raise Unreadable("it has more modules within modules than any network")
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
    """The sets that stand in one list of names and differ by a prefix. For each, its names and those of the file.

    * ``ema_model.`` beside ``online_model.``, as wrappers of a whole model write them.
    * ``model_ema.`` beside ``model.``, as latent diffusion does (Rombach et al. 2022). Its averages have names without
      dots, and replace what they are averages of; the rest (text encoder, autoencoder) is common to both.
    """
    names = list(names)
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
        raise Unreadable("its averaged weights (model_ema) do not tell what they are averages of")
    return {"model": model, "model_ema": model | {named[average]: average for average in averages}}


def choose(places: Iterable[str], ema: bool | None) -> str:
    """Where the weights stand that are meant: the averaged ones if `ema` is None and there are any."""
    averaged = sorted(place for place in places if is_averaged(place))
    others = sorted((place for place in places if not is_averaged(place)), key=_rank)
    if ema and not averaged:
        raise Unreadable(
            "ema=True, but nothing in it says that it is averaged", "leave `ema` out to take what it has"
        )
    if ema is False and not others:
        raise Unreadable("ema=False, but it has averaged weights only", "leave `ema` out to take those")
    meant = averaged if averaged and ema is not False else others
    known = meant is others and bool(others) and _rank(others[0]) < len(_ORDINARY)
    if not meant:
        raise Unreadable("it has no tensors under names", "name a file of weights")
    if len(meant) > 1 and not known:
        raise Unreadable(
            f"it has several sets of tensors: {meant[:10]}", "store the one that is meant by itself"
        )
    return meant[0]


def is_averaged(place: str) -> bool:
    """Whether a place in a file or folder is by its name (``model_ema``, ``ema/net``) one of averaged weights."""
    return _AVERAGED.search(place) is not None and not place.endswith("online_model")


def has_nameless_averages(content: Any) -> bool:
    """Whether averaged weights are a list, in an order that only the model's own code knows (``shadow_params``)."""
    entries = content.items() if isinstance(content, dict) else ()
    return any(
        isinstance(name, str) and is_averaged(name) and isinstance(inner, dict) and "shadow_params" in inner
        for name, inner in entries
    )


def _rank(place: str) -> int:
    name = place.rpartition("/")[2]
    return _ORDINARY.index(name) if name in _ORDINARY else len(_ORDINARY)
