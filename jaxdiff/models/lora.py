"""LoRA: low-rank changes of kernels, trained in their place (Hu et al. 2021); and DoRA (Liu et al. 2024)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdiff.errors import UserError, expect, finite, one_of, positive
from jaxdiff.models.group_norm import statistics_dtype
from jaxdiff.models.layers import HIGHEST
from jaxdiff.trees import HALF, check_patterns, dtype_in, matches
from jaxdiff.typing import Array, Key, Params


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kind of kernel, and how two factors make its change.

    Attributes:
      product: the `einsum` of the factors ``down`` and ``up``; r is the rank.
      inputs: the axes that the layer sums over.
    """

    product: str
    inputs: tuple[int, ...]

    def shapes(self, shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the factors for a kernel of this shape."""
        factors, _, kernel = self.product.partition("->")
        sizes = dict(zip(kernel, shape, strict=True), r=rank)
        names = zip(("down", "up"), factors.split(","), strict=True)
        return {name: tuple(sizes[axis] for axis in axes) for name, axes in names}

    def norm(self, kernel: Array) -> Array:
        """The norm of the weights of each output, with axes of length 1 for the inputs."""
        return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=self.inputs, keepdims=True))


KERNELS: Mapping[tuple[str | None, ...], Kernel] = {
    ("channels_in", "channels_out"): Kernel("ir,ro->io", (0,)),
    (None, None, "channels_in", "channels_out"): Kernel("hwir,ro->hwio", (0, 1, 2)),
    ("channels_in", None, "heads", None): Kernel("cir,crhd->ichd", (0,)),
    ("heads", None, "channels_out"): Kernel("hdr,ro->hdo", (0, 1)),
}
"""Kernels by the names of their axes: `Dense`, `Conv`, `ToHeads` (queries, keys and values apart) and `FromHeads`."""

_BY_AXES = {tuple(map(len, each.product.partition("->")[0].split(","))): each for each in KERNELS.values()}
"""The same by the numbers of axes of both factors."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adaptation: ``W + scale alpha / rank down up``, where W is not trained.

    ``down`` begins at random and ``up`` at zero, so that training starts from the model itself.

    Attributes:
      rank: columns of ``down`` and rows of ``up``.
      alpha: the change is alpha / rank times the product; the rank itself if None.
      targets: patterns of the paths of kernels that change, see `jaxdiff.trees`; such as ``"network/*"``, or
        ``"network/*attention*"``.
      dora: train the norm of each output's weights as well. The changed kernel is divided by its own norm, through
        which no gradient flows (Liu et al. 2024, section 4.3), and multiplied by the trained one.
      scale: multiplies the change. At 0 the model is the one before training, bit for bit; with `dora` the trained
        norms stay, as in PEFT.
      dtype: the type of changed kernels in training. They exist all at once, with their gradients. The network's own
        type, "bfloat16", halves their memory and changes nothing, since layers round kernels to it anyway.
    """

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ("network/*",)
    dora: bool = False
    scale: float = 1.0
    dtype: str = "float32"

    def __post_init__(self):
        one_of(self, "dtype", ("float32", *HALF))
        positive(self, "rank", "alpha")
        finite(self, "scale")
        fix = "name kernels, such as 'network/*'"
        expect(len(self.targets) > 0, "targets", self.targets, "at least one pattern", fix)

    @property
    def factor(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.scale * (self.rank if self.alpha is None else self.alpha) / self.rank

    def chosen(self, params: Params) -> dict[str, tuple[Kernel, tuple[int, ...]]]:
        """The kernels that change: their kinds and shapes by path.

        Args:
          params: parameters or their shapes, boxed with the names of their axes.

        Raises:
          UserError: a pattern names no kernel.
        """
        boxes = flatten_dict(params, sep="/")
        kernels = {
            path: (KERNELS[names], tuple(box.unbox().shape))
            for path, box in boxes.items()
            if isinstance(box, nn.meta.AxisMetadata)
            and (names := tuple(getattr(box, "names", ()))) in KERNELS
        }
        check_patterns("config.task.lora.targets", self.targets, kernels, "kernel")
        return {path: each for path, each in kernels.items() if matches(path, self.targets)}

    def init(self, params: Params, key: Key[Array, ""]) -> Params:
        """The factors of every kernel that changes, at the kernel's path.

        Args:
          params: as for `chosen`.
        """
        chosen = self.chosen(params)
        keys = jax.random.split(key, len(chosen))
        factors = {
            path: self._factors(kind, shape, each)
            for (path, (kind, shape)), each in zip(chosen.items(), keys, strict=True)
        }
        return unflatten_dict(factors, sep="/")

    def _factors(self, kind: Kernel, shape: tuple[int, ...], key: Key[Array, ""]) -> dict[str, Array]:
        sizes = kind.shapes(shape, self.rank)
        bound = 1 / math.sqrt(math.prod(shape[axis] for axis in kind.inputs))
        found = {"down": jax.random.uniform(key, sizes["down"], minval=-bound, maxval=bound)}
        found["up"] = jnp.zeros(sizes["up"])
        if self.dora:
            found["magnitude"] = jnp.ones([1 if axis in kind.inputs else n for axis, n in enumerate(shape)])
        return found

    def merged(self, params: Params, factors: Params, train: bool = False) -> Params:
        """The parameters with their changes.

        Args:
          params: a tree that has the kernels.
          factors: of `init`. ``magnitude`` counts in norms of the kernels before training, so it begins at 1.
          train: whether changed kernels have `dtype`; else they are float32 at least.

        Raises:
          UserError: a kernel is not there, or has another shape.
        """
        flat: dict[str, Any] = dict(flatten_dict(params, sep="/"))
        for path, own in by_kernel(factors).items():
            changed = self.changed(path, flat.get(path), own)
            flat[path] = changed.astype(dtype_in(changed, self.dtype)) if train else changed
        return unflatten_dict(flat, sep="/")

    def changed(self, path: str, kernel: Array | None, factors: Mapping[str, Array]) -> Array:
        """A kernel with its change, in float32 at least."""
        kind = kind_of(factors)
        shape = None if kernel is None else tuple(kernel.shape)
        fits = shape is not None and {
            name: tuple(array.shape) for name, array in factors.items() if name != "magnitude"
        } == kind.shapes(shape, self.rank)
        if kernel is None or not fits:
            raise UserError(
                f"config.task.lora={path}: expected a kernel of the model for these factors, got {shape}. "
                "Fix: use the model that they were trained for"
            )
        change = jnp.einsum(kind.product, factors["down"], factors["up"], precision=HIGHEST)
        kernel = kernel.astype(
            statistics_dtype(kernel)
        )  # half precision would round small changes to nothing
        changed = kernel + self.factor * change.astype(kernel.dtype)
        if "magnitude" not in factors:
            return changed
        norm = jax.lax.stop_gradient(kind.norm(changed))
        return changed * (factors["magnitude"] * kind.norm(kernel) / jnp.where(norm == 0, 1, norm))


def kind_of(factors: Mapping[str, Any]) -> Kernel:
    """The kind of kernel that factors belong to."""
    return _BY_AXES[factors["down"].ndim, factors["up"].ndim]


def by_kernel(factors: Params) -> dict[str, dict[str, Any]]:
    """The factors of each kernel, by its path."""
    found: dict[str, dict[str, Any]] = {}
    for path, array in flatten_dict(factors, sep="/").items():
        kernel, _, name = path.rpartition("/")
        found.setdefault(kernel, {})[name] = array
    return found
