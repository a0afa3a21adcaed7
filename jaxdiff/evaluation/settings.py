"""Settings and losses that reports state next to their values."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdiff.errors import expect
from jaxdiff.evaluation.protocols import EvaluationInputs
from jaxdiff.sampling.guidance.classifier_free import LARGEST

QUANTIZATION = "uint8: round((x + 1) * 127.5), clipped"


def check_sampling(seed: int, guidances: Sequence[float]) -> None:
    """Raise `UserError` for a seed or a guidance scale that no sampler takes."""
    expect(0 <= seed < 2**32, "seed", seed, "a 32-bit whole number", "give 0 to 4294967295")
    for scale in guidances:
        possible = math.isfinite(scale) and abs(scale) <= LARGEST
        expect(possible, "guidances", scale, f"finite scales of at most {LARGEST:g}", "give such, as 1.5")


def curves(inputs: EvaluationInputs) -> dict[str, list[float]] | None:
    """The losses by noise level as plain numbers.

    Raises:
      ValueError: the curves have different lengths.
    """
    losses = inputs.noise_losses
    if losses is None:
        return None
    found = {name: [float(value) for value in losses[name]] for name in ("log_snr", "train", "test")}
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"noise_losses: expected lists of one length, got {lengths}")
    return found


def sampling_settings(settings: Mapping[str, Any]) -> str:
    """Sampler, grid and number of steps in one line."""
    known = {name: settings[name] for name in ("sampler", "grid", "steps", "step") if name in settings}
    return ", ".join(f"{name} {value}" for name, value in known.items())


def ratio(value: float | None, reference: float | None) -> float | None:
    """``value / reference``; None where there is no such number."""
    return value / reference if value is not None and reference else None
