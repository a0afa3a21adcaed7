"""PEFT's settings of an adapter, which hold alpha: its tensors do not.

diffusers writes them into the metadata of the file (``lora_adapter_metadata``), PEFT into an ``adapter_config.json``.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxdiff.interop.files import Unreadable

METADATA = "lora_adapter_metadata"
_NAME = re.compile(r"\^?[\w.]+")


@dataclasses.dataclass(frozen=True)
class PeftSettings:
    """What PEFT states of one component.

    Attributes:
      alpha: alpha of all modules that no pattern names; None: the rank.
      patterns: alpha by the end of a module's name. The first that fits counts.
      by_root: whether the scale is alpha/sqrt(rank) (rsLoRA, Kalajdzievski 2023) rather than alpha/rank.
    """

    alpha: float | None = None
    patterns: Mapping[str, float] = dataclasses.field(default_factory=dict)
    by_root: bool = False

    def alpha_of(self, module: str, rank: int) -> float:
        """alpha such that alpha/rank is the scale of a module."""
        fitting = (alpha for end, alpha in self.patterns.items() if f".{module}".endswith(f".{end}"))
        alpha = next(fitting, self.alpha)
        if alpha is None:
            return float(rank)
        return alpha * math.sqrt(rank) if self.by_root else alpha


def peft_settings(
    metadata: Mapping[str, Any], config: Mapping[str, Any], components: Iterable[str]
) -> dict[str, PeftSettings]:
    """The settings of each component.

    Args:
      metadata: the metadata of a file. Settings of one component have its name in front; others are for all.
      config: content of `adapter_config.json`; {} without one.
      components: names of the components.

    Raises:
      Unreadable: the settings are malformed, or of a method other than LoRA.
    """
    stated = metadata.get(METADATA)
    given = json.loads(stated) if isinstance(stated, str) else {}
    _check(isinstance(given, dict), METADATA, given, "a JSON object")
    found = {}
    for component in components:
        prefix = f"{component}."
        own = {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}
        found[component] = _settings({**config, **given, **own})
    return found


def _settings(given: Mapping[str, Any]) -> PeftSettings:
    method, alpha, patterns = (
        given.get("peft_type", "LORA"),
        given.get("lora_alpha"),
        given.get("alpha_pattern") or {},
    )
    _check(method == "LORA", "peft_type", method, "'LORA'")
    _check(alpha is None or _is_number(alpha), "lora_alpha", alpha, "a number")
    _check(isinstance(patterns, dict), "alpha_pattern", patterns, "a JSON object")
    for name, value in patterns.items():
        _check(_NAME.fullmatch(name) is not None, "alpha_pattern", name, "names of modules")
        _check(_is_number(value), "alpha_pattern", value, "numbers")
    ends = {name.removeprefix("^"): float(value) for name, value in patterns.items()}
    return PeftSettings(None if alpha is None else float(alpha), ends, bool(given.get("use_rslora")))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check(condition: bool, field: str, value: Any, expected: str) -> None:
    if not condition:
        raise Unreadable(
            f"expected {expected} as {field} of PEFT, got {str(value)[:100]!r}",
            "export the adapter again with PEFT or diffusers",
        )
