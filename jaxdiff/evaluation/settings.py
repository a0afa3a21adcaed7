"""Settings and losses that reports state next to their values."""

from collections.abc import Mapping
from typing import Any

from jaxdiff.evaluation.protocols import EvaluationInputs

QUANTIZATION = "uint8: round((x + 1) * 127.5), clipped"


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
