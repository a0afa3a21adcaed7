"""Factors of a weight's change, by method (LoRA and LoCon, LoHa, LoKr): formulas, and the shapes that fit a weight.

Weights are [out, in] or [out, in, height, width]. A core is the small convolution between two factors of a Tucker
decomposition, which files call ``lora_mid``, ``hada_t1`` or ``lokr_t2``.
"""

import dataclasses
import itertools
import math
from typing import ClassVar

import numpy as np

Array = np.ndarray
Shape = tuple[int, ...]
Form = frozenset[str]


@dataclasses.dataclass(frozen=True, eq=False)
class LowRank:
    """LoRA (Hu et al. 2021): the change is ``up @ down``. With a core between them: LoCon (Yeh et al. 2023).

    Attributes:
      up: [out, rank].
      down: [rank, in], for a convolution [rank, in, height, width]; with a core [rank, in].
      mid: core [rank, rank, height, width].
    """

    up: Array
    down: Array
    mid: Array | None = None

    PREFIX: ClassVar[str] = "lora_"
    FORMS: ClassVar[tuple[Form, ...]] = (frozenset({"up", "down"}), frozenset({"up", "down", "mid"}))

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def expected(self, shape: Shape) -> dict[str, Shape]:
        """The shapes of the factors for a weight of the given shape, by field."""
        (out, width), kernel, rank = shape[:2], shape[2:], self.rank
        if self.mid is None:
            return {"down": (rank, width, *kernel), "up": (out, rank)}
        return {"down": (rank, width), "mid": (rank, rank, *kernel), "up": (out, rank)}

    def change(self) -> Array:
        """The change for alpha = rank, its axes behind the first in any form."""
        if self.mid is None:
            return _matrix(self.up) @ _matrix(self.down)
        return _tucker(self.mid, _matrix(self.up).T, _matrix(self.down))


@dataclasses.dataclass(frozen=True, eq=False)
class Hadamard:
    """LoHa (Hyeon-Woo et al. 2022, FedPara): the change is ``(w1_a @ w1_b) * (w2_a @ w2_b)``, element by element.

    Attributes:
      w1_a, w2_a: [out, rank]; with cores [rank, out].
      w1_b, w2_b: [rank, in height width]; with cores [rank, in].
      t1, t2: cores [rank, rank, height, width].
    """

    w1_a: Array
    w1_b: Array
    w2_a: Array
    w2_b: Array
    t1: Array | None = None
    t2: Array | None = None

    PREFIX: ClassVar[str] = "hada_"
    FORMS: ClassVar[tuple[Form, ...]] = (
        frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}),
        frozenset({"w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"}),
    )

    @property
    def rank(self) -> int:
        return self.w1_b.shape[0]

    def expected(self, shape: Shape) -> dict[str, Shape]:
        """The shapes of the factors for a weight of the given shape, by field."""
        (out, width), kernel, rank = shape[:2], shape[2:], self.rank
        if self.t1 is None:
            flat = (rank, width * math.prod(kernel))
            return {"w1_b": flat, "w2_b": flat, "w1_a": (out, rank), "w2_a": (out, rank)}
        left, right, core = (rank, out), (rank, width), (rank, rank, *kernel)
        return {"w1_b": right, "w2_b": right, "w1_a": left, "w2_a": left, "t1": core, "t2": core}

    def change(self) -> Array:
        """The change for alpha = rank, its axes behind the first in any form."""
        first = _product(self.t1, self.w1_a, self.w1_b)
        return first * _product(self.t2, self.w2_a, self.w2_b)


@dataclasses.dataclass(frozen=True, eq=False)
class Kronecker:
    """LoKr (Yeh et al. 2023): the change is the Kronecker product of w1 and w2, each whole or in low-rank factors.

    Attributes:
      w1: [a, b], where a divides out and b divides in.
      w2: [out/a, in/b], for a convolution [out/a, in/b, height, width].
      w1_a, w1_b: w1 as [a, rank] and [rank, b].
      w2_a, w2_b: w2 as [out/a, rank] and [rank, in/b height width]; with a core [rank, out/a] and [rank, in/b].
      t2: core [rank, rank, height, width].
    """

    w1: Array | None = None
    w2: Array | None = None
    w1_a: Array | None = None
    w1_b: Array | None = None
    w2_a: Array | None = None
    w2_b: Array | None = None
    t2: Array | None = None

    PREFIX: ClassVar[str] = "lokr_"
    FORMS: ClassVar[tuple[Form, ...]] = tuple(
        frozenset(first + second)
        for first, second in itertools.product(
            (("w1",), ("w1_a", "w1_b")), (("w2",), ("w2_a", "w2_b"), ("w2_a", "w2_b", "t2"))
        )
    )

    @property
    def rank(self) -> int | None:
        """None if both factors are whole: then alpha has no meaning, and the change is the product itself."""
        thin = self.w1_b if self.w2_b is None else self.w2_b
        return None if thin is None else thin.shape[0]

    def expected(self, shape: Shape) -> dict[str, Shape]:
        """The shapes of the factors for a weight of the given shape, by field."""
        (out, width), kernel, rank = shape[:2], shape[2:], self.rank or 0
        rows, columns = (
            (self.w1 if self.w1_a is None else self.w1_a),
            (self.w1 if self.w1_b is None else self.w1_b),
        )
        assert rows is not None
        assert columns is not None
        a, b = math.gcd(rows.shape[0], out), math.gcd(columns.shape[1], width)
        c, d = out // a, width // b
        thin = {"w2_a": (rank, c), "w2_b": (rank, d)}
        if self.t2 is None:
            thin = {"w2_a": (c, rank), "w2_b": (rank, d * math.prod(kernel))}
        fitting = {"w1": (a, b), "w1_a": (a, rank), "w1_b": (rank, b), "t2": (rank, rank, *kernel)}
        return {"w2": (c, d, *kernel)} | fitting | thin

    def change(self) -> Array:
        """The change for alpha = rank, its axes behind the first in any form."""
        first = self.w1 if self.w1 is not None else _product(None, self.w1_a, self.w1_b)
        second = self.w2 if self.w2 is not None else _product(self.t2, self.w2_a, self.w2_b)
        return np.kron(_matrix(first), _matrix(second))


Factors = LowRank | Hadamard | Kronecker
METHODS: tuple[type[Factors], ...] = (LowRank, Hadamard, Kronecker)


def fields(factors: Factors) -> dict[str, Array]:
    """The factors that are there, by field."""
    named = {field.name: getattr(factors, field.name) for field in dataclasses.fields(factors)}
    return {name: array for name, array in named.items() if array is not None}


def kind_of(method: type[Factors], field: str) -> str:
    """kohya's and LyCORIS's word for a factor, the last part of its key: "lora_up.weight", "hada_w1_a"."""
    return f"lora_{field}.weight" if method is LowRank else f"{method.PREFIX}{field}"


def same_shape(one: Shape, other: Shape) -> bool:
    """Whether shapes agree up to axes of length 1 behind the second: a linear layer can be a 1x1 convolution."""
    return _trimmed(one) == _trimmed(other)


def _trimmed(shape: Shape) -> Shape:
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _matrix(array: Array) -> Array:
    return np.asarray(array, np.float32).reshape(array.shape[0], -1)


def _product(core: Array | None, left: Array | None, right: Array | None) -> Array:
    assert left is not None
    assert right is not None
    if core is None:
        return _matrix(left) @ _matrix(right)
    return _tucker(core, _matrix(left), _matrix(right))


def _tucker(core: Array, left: Array, right: Array) -> Array:
    """sum_ij left[i, out] core[i, j, ...] right[j, in], as [out, in, ...]."""
    return np.einsum("ij...,ip,jr->pr...", np.asarray(core, np.float32), left, right, optimize=True)
