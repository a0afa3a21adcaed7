"""A sampling request: the parsed and validated command line of `jaxdiff.sample`. Imports nothing heavy."""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

from jaxdiff.cli.app import run_and_step
from jaxdiff.errors import UserError, expect

NOT_IN_CASCADES = ("step", "size", "guiding_model", "known", "mask", "edit", "negative")
"""Flags that a cascade has no use for."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A sampling request.

    Attributes:
      flags: the flags.
      out: file or folder of the output.
      runs: the folders of the training runs, each with the step of its checkpoint (None: the newest).
      overrides: (path, text) pairs that change the stored configs.
      packages: packages whose classes the stored configs may use.
    """

    flags: argparse.Namespace
    out: pathlib.Path
    runs: Sequence[tuple[str, int | None]]
    overrides: Sequence[tuple[str, str]]
    packages: Sequence[str]

    @property
    def guiding_model(self) -> str | tuple[str, int] | None:
        """The run of the guiding model, perhaps with a step."""
        text = self.flags.guiding_model
        return None if text is None else run_and_step(text)


def of(flags: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> Request:
    """The request of parsed flags.

    Raises:
      UserError: flags that exclude each other, an existing output, an unknown sampler.
    """
    out = pathlib.Path(flags.out).expanduser()
    if out.exists() and not flags.overwrite:
        raise UserError(
            f"--out={flags.out}: expected a new file, got an existing one. Fix: give another name, or --overwrite"
        )
    expect(flags.n is None or flags.n > 0, "--n", flags.n, "at least one image", "give a number > 0")
    packages = [name for name in flags.packages.split(",") if name]
    return Request(flags, out, runs(flags), [*overrides, *_recipe_overrides(flags)], packages)


def runs(flags: argparse.Namespace) -> list[tuple[str, int | None]]:
    """The runs of ``--workdir`` or ``--cascade``, each with the step of its checkpoint (None: the newest)."""
    if flags.cascade is None:
        if flags.workdir is None:
            raise UserError(
                "--workdir=: expected a run, got none. Fix: give the folder of a training run, or --cascade"
            )
        return [(flags.workdir, flags.step)]
    if flags.workdir is not None:
        raise UserError(
            f"--workdir={flags.workdir!r}: expected either --workdir or --cascade, got both. Fix: leave one out"
        )
    for name in NOT_IN_CASCADES:
        value = getattr(flags, name)
        if value not in (None, []):
            raise UserError(
                f"--{name.replace('_', '-')}={value!r}: expected a flag for cascades, got one for a single model. "
                "Fix: leave it out"
            )
    named = [run_and_step(folder) for folder in flags.cascade.split(",")]
    return [run if isinstance(run, tuple) else (run, None) for run in named]


def _recipe_overrides(flags: argparse.Namespace) -> list[tuple[str, str]]:
    """``--steps`` and ``--sampler`` as overrides of the stored recipe."""
    found = []
    if flags.steps is not None:
        found.append(("sampling.steps", str(flags.steps)))
    if flags.sampler is not None:
        found.append(("sampling.sampler", sampler_target(flags.sampler)))
    return found


def sampler_target(text: str) -> str:
    """``module:Class(...)`` from the name of a class in `jaxdiff.sampling.samplers`, in any case: ``ddim(eta=1.0)``."""
    import importlib
    import inspect
    import pkgutil

    from jaxdiff.sampling import samplers

    word, bracket, arguments = text.partition("(")
    if ":" in word:
        return text
    found = {}
    for module in pkgutil.iter_modules(samplers.__path__):
        source = importlib.import_module(f"{samplers.__name__}.{module.name}")
        for name, cls in inspect.getmembers(source, inspect.isclass):
            is_sampler = all(hasattr(cls, method) for method in ("init", "step", "calls"))
            hidden = name.startswith("_") or getattr(cls, "_is_protocol", False)
            if cls.__module__ == source.__name__ and is_sampler and not hidden:
                found[name.lower()] = f"{cls.__module__}:{name}"
    if word.lower() not in found:
        names = ", ".join(target.partition(":")[2] for target in found.values())
        raise UserError(f"--sampler={text}: expected a known sampler, got {word!r}. Fix: use one of {names}")
    return found[word.lower()] + bracket + arguments
