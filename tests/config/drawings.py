"""Classes for configs: a drawing of shapes and tiles, and a network of Linen modules."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, Protocol

import flax.linen as nn
import pytest
from ml_collections import ConfigDict

from jaxdiff.config import spec
from jaxdiff.errors import UserError, positive

HERE = __name__
"""The module in the targets of these classes."""


class Shape(Protocol):
    def area(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class Square:
    side: float = 1.0

    def __post_init__(self):
        positive(self, "side")

    def area(self) -> float:
        return self.side**2


@dataclasses.dataclass(frozen=True)
class Circle:
    radius: float

    def area(self) -> float:
        return 3.0 * self.radius**2


@dataclasses.dataclass(frozen=True)
class Framed:
    inner: Shape

    def area(self) -> float:
        return 2.0 * self.inner.area()


@dataclasses.dataclass(frozen=True)
class Tile:
    width: int
    gap: float = 0.5


@dataclasses.dataclass(frozen=True)
class Drawing:
    shape: Shape
    tiles: tuple[Tile, ...] = ()
    backdrop: Shape | None = None
    size: tuple[int, int] = (8, 8)
    limits: tuple[float, ...] = (0.0, 1.0)
    steps: int = 10
    cutoff: float | None = None
    colour: str = "red"
    title: str | None = None
    bright: bool = False
    mode: Literal["fill", "line"] = "fill"
    layers: Mapping[str, Shape] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Named:
    name: str


class Dense(nn.Module):
    width: int
    dtype: str = "float32"


class Network(nn.Module):
    blocks: tuple[nn.Module, ...]
    parts: Mapping[str, nn.Module]
    head: nn.Module
    dropout: float = 0.0


def drawing(**changed) -> ConfigDict:
    arguments = {"shape": spec(Square), "tiles": (spec(Tile, width=1), spec(Tile, width=2)), **changed}
    return spec(Drawing, **arguments)


def message_of(action, *arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments, **keywords)
    text = str(caught.value)
    assert "\n" not in text
    assert "Fix: " in text
    return text
