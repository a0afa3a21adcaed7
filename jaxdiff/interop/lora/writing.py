"""Writing adapters into LoRA files, in the layouts of diffusers (with PEFT's names) and of kohya.

Factors and magnitudes are written as they are, so that reading them back gives the same bits.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from jaxdiff.errors import expect
from jaxdiff.interop.lora.adapters import Adapter, Adapters, Magnitude
from jaxdiff.interop.lora.factors import Array, LowRank, fields, kind_of
from jaxdiff.interop.lora.settings import METADATA
from jaxdiff.interop.safetensors_files import write_safetensors

Layout = Literal["diffusers", "kohya"]
File = tuple[dict[str, Array], dict[str, str]]
"""Tensors and metadata of a file."""


def write_lora(path: str | os.PathLike, adapters: Adapters, layout: Layout) -> None:
    """Write a LoRA file of safetensors.

    Args:
      path: the file; an existing one is replaced.
      adapters: adapters by component and name of the weight.
      layout: "diffusers" holds LoRA, and DoRA with magnitudes per output; "kohya" everything.

    Raises:
      UserError: there are no adapters, the layout cannot hold one of them, or the file cannot be written.
    """
    expect(layout in _LAYOUTS, "layout", layout, "'diffusers' or 'kohya'", "choose one of these")
    expect(any(adapters.values()), "adapters", {}, "adapters of at least one weight", "give some", "none")
    write_safetensors(path, *_LAYOUTS[layout](adapters))


def _to_diffusers(adapters: Adapters) -> File:
    tensors: dict[str, Array] = {}
    settings: dict[str, Any] = {}
    for component, own in adapters.items():
        for weight, adapter in own.items():
            _check_plain(weight, adapter)
            tensors |= {
                f"{component}.{_module(weight)}.{end}": array for end, array in _peft_parts(adapter).items()
            }
        if own:
            settings |= {f"{component}.{name}": value for name, value in _settings(own).items()}
    return tensors, {"format": "pt", METADATA: json.dumps(settings)}


def _check_plain(weight: str, adapter: Adapter) -> None:
    factors, fix = adapter.factors, "write the layout of kohya"
    plain = isinstance(factors, LowRank) and factors.mid is None
    named = f"adapters[{weight!r}]"
    expect(plain, named, type(factors).__name__, "LoRA without a core for diffusers", fix)
    magnitude = adapter.magnitude
    expect(magnitude is None or magnitude.axis == "out", named, "in", "DoRA per output for diffusers", fix)


def _peft_parts(adapter: Adapter) -> dict[str, Array]:
    assert isinstance(adapter.factors, LowRank)
    parts = {"lora_A.weight": adapter.factors.down, "lora_B.weight": adapter.factors.up}
    if adapter.magnitude is not None:
        values = adapter.magnitude.values
        form = (1, -1, 1, 1) if len(adapter.shape) == 4 else (-1,)
        parts["lora_magnitude_vector"] = values.reshape(form)
    return parts


def _settings(own: Mapping[str, Adapter]) -> dict[str, Any]:
    """PEFT's LoraConfig. A pattern fits all modules whose names end with it, so the longest names come first."""
    modules = {
        _module(weight): adapter for weight, adapter in sorted(own.items(), key=lambda item: -len(item[0]))
    }
    alphas = {module: adapter.alpha for module, adapter in modules.items()}
    ranks = {module: adapter.factors.rank for module, adapter in modules.items()}
    return {
        "r": next(iter(ranks.values())),
        "lora_alpha": next(iter(alphas.values())),
        "rank_pattern": ranks if len(set(ranks.values())) > 1 else {},
        "alpha_pattern": alphas if len(set(alphas.values())) > 1 else {},
        "target_modules": sorted(modules),
        "use_dora": any(adapter.magnitude is not None for adapter in own.values()),
    }


def _to_kohya(adapters: Adapters) -> File:
    first = "lora_te1" if "text_encoder_2" in adapters else "lora_te"
    prefixes = {"unet": "lora_unet", "text_encoder": first, "text_encoder_2": "lora_te2"}
    tensors: dict[str, Array] = {}
    for component, own in adapters.items():
        for weight, adapter in own.items():
            module = _kohya_module(component, _module(weight))
            tensors |= {
                f"{prefixes[component]}_{module}.{end}": array for end, array in _kohya_parts(adapter).items()
            }
    return tensors, {"format": "pt"}


def _kohya_module(component: str, module: str) -> str:
    """kohya's text encoders have the prefix that some folders of transformers leave out."""
    bare = component != "unet" and module.startswith(("encoder.", "embeddings."))
    return ("text_model." + module if bare else module).replace(".", "_")


def _kohya_parts(adapter: Adapter) -> dict[str, Array]:
    factors = adapter.factors
    parts = {kind_of(type(factors), field): array for field, array in fields(factors).items()}
    alpha = np.float32(adapter.alpha)
    parts["alpha"] = np.asarray(alpha if float(alpha) == adapter.alpha else np.float64(adapter.alpha))
    if adapter.magnitude is not None:
        parts["dora_scale"] = _dora_scale(adapter.magnitude, len(adapter.shape))
    return parts


def _dora_scale(magnitude: Magnitude, axes: int) -> Array:
    ones = (1,) * (axes - 2)
    return magnitude.values.reshape((-1, 1, *ones) if magnitude.axis == "out" else (1, -1, *ones))


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")


_LAYOUTS = {"diffusers": _to_diffusers, "kohya": _to_kohya}
