"""Samplers by name, as on the command line."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterable

from jaxdiff.errors import UserError


def plain(name: str) -> str:
    """A name without case and marks: ``DPM++ 2M``, ``dpm_solver2m`` and ``DpmSolver2M`` are ``dpmsolver2m``."""
    lower = name.lower().replace("dpm++", "dpmsolver")
    return "".join(letter for letter in lower if letter.isalnum())


def samplers() -> dict[str, str]:
    """``module:Class`` of every class in `jaxdiff.sampling.samplers` by its `plain` name."""
    from jaxdiff.sampling import samplers as package

    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        source = importlib.import_module(f"{package.__name__}.{module.name}")
        for name, cls in inspect.getmembers(source, inspect.isclass):
            is_sampler = all(hasattr(cls, method) for method in ("init", "step", "calls"))
            hidden = name.startswith("_") or getattr(cls, "_is_protocol", False)
            if cls.__module__ == source.__name__ and is_sampler and not hidden:
                found[plain(name)] = f"{cls.__module__}:{name}"
    return found


def sampler_target(text: str, others: Iterable[str] = ()) -> str:
    """``module:Class(...)`` from the name of a class in `jaxdiff.sampling.samplers`: ``ddim(eta=1.0)``, see `plain`.

    Args:
      text: the name, perhaps with arguments; ``module:Class`` of any other class is returned as it is.
      others: further names to list in the error.

    Raises:
      UserError: there is no such sampler.
    """
    word, bracket, arguments = text.partition("(")
    if ":" in word:
        return text
    found = samplers()
    if plain(word) not in found:
        classes = (target.partition(":")[2] for target in found.values())
        names = ", ".join([*classes, *(other for other in others if other not in found)])
        raise UserError(f"--sampler={text}: expected a known sampler, got {word!r}. Fix: use one of {names}")
    return found[plain(word)] + bracket + arguments
