"""Configs: `spec` writes blocks, `build` makes their objects, and files store them."""

from jaxdiff.config.blocks import build, describe, spec
from jaxdiff.config.files import differences, from_json, load, to_json

__all__ = ["build", "describe", "differences", "from_json", "load", "spec", "to_json"]
