"""The recipe that a run is sampled by."""

import dataclasses
import logging
from collections.abc import Collection, Sequence
from typing import Any

from jaxdiff import config as configs
from jaxdiff.config.blocks import TARGET
from jaxdiff.config.overrides import override
from jaxdiff.experiment import Experiment
from jaxdiff.interop.schedulers import NAMES
from jaxdiff.sampling import names
from jaxdiff.sampling.modifiers.inpainting import Replacement
from jaxdiff.sampling.recipe import Preset, Recipe

PRESET = f"{Preset.__module__}:{Preset.__qualname__}"

_log = logging.getLogger(__name__)


def sampled_by(
    sampler: str | None, config: Any, packages: tuple[str, ...], overrides: Sequence[tuple[str, str]]
) -> Experiment:
    """The experiment of a config with another sampler, if it is not None, and with overrides of what results.

    A recipe of the run leaves the run's own steps and guidance, unless it is a `Preset`.
    """
    of_recipes = [pair for pair in overrides if pair[0].startswith("recipes")]
    for path, text in of_recipes:
        override(config, path, text, packages=packages)
    recipes = config.get("recipes", {})
    _warn_if_refused(sampler, [name for name in recipes if name in NAMES])
    name = None if sampler is None else names.plain(sampler)
    if name in recipes:
        own = config.get("sampling") or {}
        kept = () if _is_preset(recipes[name]) else ("steps", "guidance")
        config.sampling = {**recipes[name], **{field: own[field] for field in kept if field in own}}
    elif sampler is not None:
        override(config, "sampling.sampler", names.sampler_target(sampler, recipes), packages=packages)
    for path, text in overrides:
        if (path, text) not in of_recipes:
            override(config, path, text, packages=packages)
    return configs.build(config, packages=packages)


def completing(recipe: Recipe) -> Recipe:
    """The recipe with a method for partially known data: its own, or else `Replacement`."""
    return dataclasses.replace(recipe, inpainting=recipe.inpainting or Replacement())


def _is_preset(block: Any) -> bool:
    return block.get(TARGET) == PRESET


def _warn_if_refused(sampler: str | None, recipes: Collection[str]) -> None:
    """Warn of a published sampler that the run has no recipe for: its class follows the run's own grid and ending."""
    name = None if sampler is None else names.plain(sampler)
    if recipes and name in NAMES and name not in recipes and "(" not in str(sampler):
        _log.warning(
            "--sampler=%s: the settings of the run's published scheduler allow no such recipe, but %s; the sampler "
            "follows the grid and the ending of the run's own recipe", sampler, ", ".join(recipes),
        )  # fmt: skip
