"""The recipe that a run is sampled by."""

from collections.abc import Collection, Sequence
from typing import Any

from jaxdiff import config as configs
from jaxdiff.config.overrides import override
from jaxdiff.errors import expect
from jaxdiff.experiment import Experiment
from jaxdiff.interop.schedulers import NAMES
from jaxdiff.sampling import names


def sampled_by(
    sampler: str | None, config: Any, packages: tuple[str, ...], overrides: Sequence[tuple[str, str]]
) -> Experiment:
    """The experiment of a config with another sampler, if it is not None, and with overrides of what results."""
    of_recipes = [pair for pair in overrides if pair[0].startswith("recipes")]
    for path, text in of_recipes:
        override(config, path, text, packages=packages)
    recipes = config.get("recipes", {})
    _check_allowed(sampler, recipes)
    name = None if sampler is None else names.plain(sampler)
    if name in recipes:
        own = config.get("sampling") or {}
        kept = {field: own[field] for field in ("steps", "guidance") if field in own}
        config.sampling = {**recipes[name], **kept}
    elif sampler is not None:
        override(config, "sampling.sampler", names.sampler_target(sampler, recipes), packages=packages)
    for path, text in overrides:
        if (path, text) not in of_recipes:
            override(config, path, text, packages=packages)
    return configs.build(config, packages=packages)


def _check_allowed(sampler: str | None, recipes: Collection[str]) -> None:
    """Raise `UserError` for a published sampler that the settings of a converted run do not allow."""
    name = None if sampler is None else names.plain(sampler)
    plain = sampler is not None and "(" not in sampler
    refused = plain and bool(recipes) and name in NAMES and name not in recipes
    fix = f"choose one of {', '.join(recipes)}; or write a class with its arguments, such as 'Heun()'"
    expected = "a sampler that the settings of the run's published scheduler allow"
    expect(not refused, "--sampler", sampler, expected, fix)
