"""Reading LoRA files of kohya, LyCORIS, PEFT and diffusers into adapters of named weights.

>>> adapters = read_lora("style.safetensors", {"unet": shapes(weights)})
>>> weights = merged(weights, adapters["unet"], 0.8)
"""

import os
import pathlib
from collections.abc import Mapping

import numpy as np

from jaxdiff.interop.files import Unreadable, read_json, reading
from jaxdiff.interop.lora.adapters import Adapter, Adapters, Magnitude
from jaxdiff.interop.lora.factors import METHODS, Array, Factors, Shape, fields, kind_of, same_shape
from jaxdiff.interop.lora.names import Modules, Networks, Target, part
from jaxdiff.interop.lora.settings import PeftSettings, peft_settings
from jaxdiff.interop.tensors import read_tensors

_FILES = ("pytorch_lora_weights", "adapter_model")
_CONFIG = "adapter_config.json"
_OTHER_MODEL = "use it with the model that it was trained for. Nothing was merged"
_DAMAGED = "export it again from the program that trained it. Nothing was merged"
_NOT_FACTORS = {"alpha", "dora_scale", "magnitude"}
_PEFT_WORDS = {"lora_up.weight": " (lora_B)", "lora_down.weight": " (lora_A)"}
_SHOWN = 20
_SUGGESTED = 3
_LONGEST = 200

Parts = Mapping[str, str]
"""Keys of a file by the kind of part that they hold."""


def read_lora(path: str | os.PathLike, networks: Networks) -> Adapters:
    """Read a LoRA file.

    Layouts: kohya (names of diffusers or of latent diffusion), LyCORIS, PEFT, diffusers now and before 0.22. Methods:
    LoRA with DoRA and with the Tucker form of LoCon, LoHa, LoKr. alpha comes from the file, or from PEFT's settings in
    its metadata or beside it; without any, it is the rank.

    Args:
      path: a file of safetensors or of PyTorch, or the folder of one.
      networks: names and shapes of the tensors of each component ("unet", "text_encoder", "text_encoder_2"), in the
        layout of diffusers and transformers. Those of text encoders may begin with ``text_model.`` or not.

    Returns:
      adapters by component and by the name of the weight; {} for a component that the file does not change.

    Raises:
      UserError: names the file and the keys that bind to no weight, are incomplete, or do not fit their weight.
    """
    path = pathlib.Path(path)
    modules = Modules(networks)
    with reading(path):
        file = _file(path) if path.is_dir() else path
        checkpoint = read_tensors(file)
        config = file.with_name(_CONFIG)
        given = read_json(config) if file.stem == _FILES[1] and config.exists() else {}
        settings = peft_settings(checkpoint.metadata, given, networks)
        tensors = {key: np.asarray(array) for key, array in checkpoint.tensors.items()}
        return _adapters(tensors, modules, networks, settings)


def _file(folder: pathlib.Path) -> pathlib.Path:
    for name in (f"{stem}.{end}" for stem in _FILES for end in ("safetensors", "bin")):
        if (folder / name).exists():
            return folder / name
    raise Unreadable(f"expected a file such as {_FILES[0]}.safetensors in it, got none", "name the file")


def _adapters(
    tensors: Mapping[str, Array], modules: Modules, networks: Networks, settings: Mapping[str, PeftSettings]
) -> Adapters:
    found: Adapters = {component: {} for component in networks}
    for (component, weight), (module, parts) in _bound(tensors, modules).items():
        shape = tuple(networks[component][weight])
        found[component][weight] = _adapter(tensors, parts, shape, module, settings[component])
    return found


def _bound(tensors: Mapping[str, Array], modules: Modules) -> dict[Target, tuple[str, dict[str, str]]]:
    """For each target its module's name in the file, and keys by kind of part: all keys of the file, or an error."""
    found: dict[Target, tuple[str, dict[str, str]]] = {}
    unbound = []
    for key in tensors:
        named = part(key)
        targets = modules.find(named.module) if named else []
        if named is None or not targets:
            unbound.append(key)
            continue
        if len(targets) > 1:
            several = " or ".join(f"{component}'s {weight}" for component, weight in targets[:3])
            fix = "rename the keys, with the component ('text_encoder.') in front"
            raise Unreadable(f"expected one weight per key, got {_quoted(key)} for {several}", fix)
        parts = found.setdefault(targets[0], (named.module, {}))[1]
        if named.kind in parts:
            both = f"{_quoted(parts[named.kind])} and {_quoted(key)}"
            raise Unreadable(f"expected one key per factor of a weight, got two: {both}", _DAMAGED)
        parts[named.kind] = key
    if unbound:
        raise Unreadable(_listed(unbound, len(tensors), modules), _OTHER_MODEL)
    if not found:
        raise Unreadable("expected the keys of a LoRA, got no tensors", "name another file")
    return found


def _listed(unbound: list[str], count: int, modules: Modules) -> str:
    hints = [f"{_quoted(key)} ({modules.nearest(key[:_LONGEST])})" for key in unbound[:_SUGGESTED]]
    others = [_quoted(key) for key in unbound[_SUGGESTED:_SHOWN]]
    more = [f"and {len(unbound) - _SHOWN} more"] if len(unbound) > _SHOWN else []
    which = "none that does" if len(unbound) == count else f"{len(unbound)} of {count} that do not"
    return f"expected keys that name layers of the networks, got {which}: {', '.join(hints + others + more)}"


def _adapter(
    tensors: Mapping[str, Array], parts: Parts, shape: Shape, module: str, settings: PeftSettings
) -> Adapter:
    for kind, key in parts.items():
        _check_numbers(kind, key, tensors[key])
    factors = _factors(tensors, parts)
    _check_shapes(factors, parts, shape)
    alpha = settings.alpha_of(module, factors.rank or 1)
    if "alpha" in parts:
        alpha = float(tensors[parts["alpha"]].reshape(()))
    return Adapter(factors, alpha, shape, _magnitude(tensors, parts, shape))


def _check_numbers(kind: str, key: str, array: Array) -> None:
    floating = array.dtype.kind == "f" or array.dtype.name.startswith(("bfloat16", "float8"))
    if not (floating or (kind == "alpha" and array.dtype.kind in "iu")):
        raise Unreadable(
            f"expected floating-point numbers in {_quoted(key)}, got {array.dtype.name}", _DAMAGED
        )
    if not np.isfinite(array.astype(np.float32)).all():
        raise Unreadable(f"expected finite numbers in {_quoted(key)}, got NaN or infinity", _DAMAGED)
    if kind == "alpha" and array.size != 1:
        raise Unreadable(f"expected one number in {_quoted(key)}, got shape {array.shape}", _DAMAGED)
    if kind not in _NOT_FACTORS and array.ndim < 2:
        raise Unreadable(f"expected a matrix in {_quoted(key)}, got shape {array.shape}", _DAMAGED)


def _factors(tensors: Mapping[str, Array], parts: Parts) -> Factors:
    """The factors of the one method whose parts there are."""
    there = parts.keys() - _NOT_FACTORS
    forms = [
        (method, {kind_of(method, field): field for field in form})
        for method in METHODS
        for form in method.FORMS
    ]
    method, names = min(forms, key=lambda form: len(there ^ form[1].keys()))
    for kind in sorted(there - names.keys()):
        raise Unreadable(
            f"expected the factors of one method for a weight, got {_quoted(parts[kind])} too", _DAMAGED
        )
    for kind in sorted(names.keys() - there):
        key, peft = next(iter(parts.values())), _PEFT_WORDS.get(kind, "")
        raise Unreadable(f"expected {kind}{peft} beside {_quoted(key)}, got none", _DAMAGED)
    return method(**{field: tensors[parts[kind]] for kind, field in names.items()})


def _check_shapes(factors: Factors, parts: Parts, shape: Shape) -> None:
    rank = factors.rank
    if rank == 0:
        raise Unreadable(f"expected a rank > 0, got 0 in {_quoted(next(iter(parts.values())))}", _DAMAGED)
    expected = factors.expected(shape)
    for field, array in fields(factors).items():
        if not same_shape(array.shape, expected[field]):
            key, ranked = parts[kind_of(type(factors), field)], f" and rank {rank}" if rank else ""
            needs = f"shape {expected[field]} of {_quoted(key)}, for a weight of shape {shape}{ranked}"
            raise Unreadable(f"expected {needs}, got {array.shape}", _OTHER_MODEL)


def _magnitude(tensors: Mapping[str, Array], parts: Parts, shape: Shape) -> Magnitude | None:
    """DoRA's magnitudes, if the file has some."""
    keys = [parts[kind] for kind in ("dora_scale", "magnitude") if kind in parts]
    if not keys:
        return None
    if len(keys) > 1:
        both = " and ".join(map(_quoted, keys))
        raise Unreadable(f"expected one key of magnitudes for a weight, got {both}", _DAMAGED)
    return _axis(keys[0], tensors[keys[0]], shape, "magnitude" in parts)


def _axis(key: str, values: Array, shape: Shape, per_output: bool) -> Magnitude:
    """PEFT stores [out], or [1, out, 1, 1] for a convolution; LyCORIS [out, 1, ...] or [1, in, ...]."""
    column, row = (shape[0], 1), (1, shape[0] if per_output else shape[1])
    stored = values.shape if values.ndim > 1 else (values.size, 1)
    if same_shape(stored, column):
        return Magnitude(values.reshape(-1), "out")
    if same_shape(stored, row):
        return Magnitude(values.reshape(-1), "out" if per_output else "in")
    raise Unreadable(f"expected shape {column} or {row} of {_quoted(key)}, got {values.shape}", _OTHER_MODEL)


def _quoted(key: str) -> str:
    return repr(key[:_LONGEST])
