"""Names in LoRA files: which part of an adapter a key holds, and for which weight of which network.

A name is looked up among the spellings of the network's own names. It is never rewritten by rules, since kohya's
underscores do not say which of them are dots.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jaxdiff.errors import expect
from jaxdiff.interop.lora.factors import Shape
from jaxdiff.interop.lora.original import original_names

Networks = Mapping[str, Mapping[str, Shape]]
"""Shapes of the networks' tensors by component ("unet", "text_encoder", "text_encoder_2") and name in diffusers."""

Table = Mapping[str, set[str]]
"""Names of weights by a name of their module; several, if the name is ambiguous."""

DOTTED: dict[str, tuple[str, ...]] = {
    "unet": ("model.diffusion_model.", "diffusion_model."),
    "text_encoder": (),
    "text_encoder_2": (),
}
"""Prefixes of dotted names by component, beyond those of PEFT and diffusers."""

UNDERSCORED: dict[str, tuple[str, ...]] = {
    "unet": ("lora_unet_", "lycoris_"),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
"""Prefixes of kohya's names by component; ``lycoris_`` is that of LyCORIS outside kohya."""

_KEY = re.compile(
    r"""(?P<module>.+?)(?:
      \.(?P<plain>lora_(?:up|down|mid)\.weight|dora_scale|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))
    | \.lora_(?P<peft>[AB])(?:\.(?!weight$)[^.]+)?\.weight
    | (?:[._]lora|\.lora_linear_layer)?\.(?P<old>up|down)\.weight
    | (?:[._]lora|\.lora_linear_layer)?\.(?P<alpha>alpha)
    | \.(?P<magnitude>lora_magnitude_vector|magnitude)(?:\.[^.]+){0,2}
    )""",
    re.VERBOSE,
)
_OLD_ATTENTION = re.compile(r"(?P<block>.*\.attn\d)\.(?P<layer>to_q|to_k|to_v|to_out)(?:\.0)?")
_OLD_TEXT = re.compile(r"(?P<block>.*self_attn)\.(?P<layer>q|k|v|out)_proj")


class Part(NamedTuple):
    """A key of a file: the module that it names, and what of the module's adapter it holds, in kohya's words."""

    module: str
    kind: str


class Target(NamedTuple):
    """A weight of a network."""

    component: str
    weight: str


def part(key: str) -> Part | None:
    """The part that a key names, or None if it has the form of no layout."""
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    kinds = {
        "A": "lora_down.weight",
        "B": "lora_up.weight",
        "down": "lora_down.weight",
        "up": "lora_up.weight",
    }
    if match["magnitude"]:
        return Part(match["module"], "magnitude")
    kind = match["plain"] or match["alpha"] or kinds[match["peft"] or match["old"]]
    return Part(match["module"], kind)


class Modules:
    """The modules of networks under all names that files use.

    Args:
      networks: shapes of the networks' tensors.

    Raises:
      UserError: a component has an unknown name.
    """

    def __init__(self, networks: Networks):
        known = " or ".join(UNDERSCORED)
        self._tables: list[tuple[str, str, Table]] = []
        for component, shapes in networks.items():
            expect(component in UNDERSCORED, "networks", component, f"components {known}", "name them so")
            dotted = _table(component, shapes)
            self._tables += [(component, prefix, dotted) for prefix in _dotted_prefixes(component)]
            underscored = _underscored(dotted)
            self._tables += [(component, prefix, underscored) for prefix in UNDERSCORED[component]]

    def find(self, module: str) -> list[Target]:
        """The weights that a module's name stands for: one, if the name is good."""
        found = {
            Target(component, weight)
            for component, prefix, table in self._tables
            if module.startswith(prefix)
            for weight in table.get(module.removeprefix(prefix), ())
        }
        return sorted(found)

    def nearest(self, key: str) -> str:
        """What a key that names nothing might mean, in a few words."""
        named = part(key)
        if named is None and any(self.find(key[: dot.start()]) for dot in re.finditer(r"\.", key)):
            return "no known part of a layer"
        module = key if named is None else named.module
        longest = max(
            (prefix for _, prefix, _ in self._tables if module.startswith(prefix)), key=len, default=""
        )
        names = {prefix + name for _, prefix, table in self._tables if prefix == longest for name in table}
        close = difflib.get_close_matches(module, sorted(names), 1)
        return f"nearest known: {(close[0] + key[len(module) :])!r}" if close else "no known key is near"


def _dotted_prefixes(component: str) -> tuple[str, ...]:
    peft = (f"{component}.base_model.model.", f"base_model.model.{component}.", "base_model.model.")
    return (*peft, f"{component}.", *DOTTED[component], "")


def _table(component: str, shapes: Mapping[str, Shape]) -> Table:
    """The weights by all dotted names of their modules."""
    ends = ".weight"
    modules = [
        name.removesuffix(ends) for name, shape in shapes.items() if name.endswith(ends) and len(shape) > 1
    ]
    original = original_names(set(modules)) if component == "unet" else {}
    table: dict[str, set[str]] = {}
    for module in modules:
        for name in {*_spellings(module, component), original.get(module, module)}:
            table.setdefault(name, set()).add(module + ends)
    return table


def _spellings(module: str, component: str) -> Iterator[str]:
    """Names of a module in diffusers and transformers, current and former."""
    yield module
    if component == "unet" and (old := _OLD_ATTENTION.fullmatch(module)):
        yield f"{old['block']}.processor.{old['layer']}"
        yield f"{old['block']}.{old['layer']}"
    if component != "unet":
        inner = module.removeprefix("text_model.")
        for prefix in ("", "text_model."):
            yield prefix + inner
            if old := _OLD_TEXT.fullmatch(inner):
                yield f"{prefix}{old['block']}.to_{old['layer']}"


def _underscored(table: Table) -> Table:
    """The same table under the names with underscores in place of dots."""
    found: dict[str, set[str]] = {}
    for name, weights in table.items():
        found.setdefault(name.replace(".", "_"), set()).update(weights)
    return found
