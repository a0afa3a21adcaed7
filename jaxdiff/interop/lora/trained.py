"""Trained factors of `jaxdiff.models.lora` as the adapters of LoRA files, under the names of another codebase."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from jaxdiff.errors import expect
from jaxdiff.interop.lora.adapters import Adapter, Magnitude
from jaxdiff.interop.lora.factors import Array, LowRank
from jaxdiff.interop.mapping import CONV, DENSE, Entry, Layout, from_heads, separate_heads
from jaxdiff.models.lora import KERNELS, Kernel, Lora, kind_of

Factors = Mapping[str, Mapping[str, Array]]
"""``down``, ``up`` and perhaps ``magnitude`` by the path of their kernel."""

_DENSE, _CONV, _TO_HEADS, _FROM_HEADS = KERNELS.values()
_LAYOUTS: Mapping[Kernel, Layout] = {
    _DENSE: DENSE, _CONV: CONV, _TO_HEADS: separate_heads(), _FROM_HEADS: from_heads(),
}  # fmt: skip


def adapters_of(
    lora: Lora, factors: Factors, kernels: Mapping[str, Array], entries: Iterable[Entry]
) -> dict[str, Adapter]:
    """Adapters by the other codebase's names of weights, for those factors whose kernels `entries` map.

    Args:
      lora: how the factors change kernels. Its `scale` becomes a part of alpha.
      factors: the trained factors.
      kernels: the kernels before training, for DoRA's magnitudes.
      entries: where the other codebase has them.

    Raises:
      UserError: a kernel is stored there in a form that has no low-rank factors.
    """
    found = {}
    for entry in entries:
        if entry.path in factors:
            own = factors[entry.path]
            change = lora.factor * np.einsum(kind_of(own).product, own["down"], own["up"])
            expected = entry.layout.save(change)
            for key, weight, adapter in zip(
                entry.keys, expected, _adapters(lora, own, kernels, entry, expected), strict=True
            ):
                near = np.allclose(
                    adapter.change(), weight, rtol=1e-3, atol=1e-5 * np.abs(weight).max() + 1e-12
                )
                fix = "choose other targets, or keep the run"
                expect(near, "config.task.lora.targets", entry.path, "kernels that LoRA files can hold", fix)
                found[key] = adapter
    return found


def _adapters(
    lora: Lora, own: Mapping[str, Array], kernels: Mapping[str, Array], entry: Entry, weights: list[Array]
) -> Iterator[Adapter]:
    """The adapters of the tensors that hold a kernel: of queries, keys and values apart."""
    norms: list[Array | None] = [None] * len(weights)
    if "magnitude" in own:
        kernel = np.asarray(kernels[entry.path], np.float32)
        whole = np.broadcast_to(own["magnitude"] * _norm(kind_of(own), kernel), kernel.shape)
        norms = [each.reshape(len(each), -1)[:, 0] for each in entry.layout.save(whole)]
    for (down, up), weight, norm in zip(_parts(own), weights, norms, strict=True):
        ones = (1,) * (weight.ndim - 2)
        factors = LowRank(up.T.reshape(*up.T.shape, *ones), down.reshape(lora.rank, *weight.shape[1:]))
        magnitude = None if norm is None else Magnitude(norm, "out")
        yield Adapter(factors, lora.factor * lora.rank, weight.shape, magnitude)


def _parts(own: Mapping[str, Array]) -> list[tuple[Array, Array]]:
    """Factors [rank, in] and [rank, out] of each tensor; in order (in, height, width) of a convolution."""
    down, up = (np.asarray(own[name]) for name in ("down", "up"))
    if kind_of(own) is _TO_HEADS:
        return [(one.T, other.reshape(len(other), -1)) for one, other in zip(down, up, strict=True)]
    if kind_of(own) is _CONV:
        return [(down.transpose(3, 2, 0, 1), up)]
    return [(down.reshape(-1, down.shape[-1]).T, up)]


def _norm(kind: Kernel, kernel: Array) -> Array:
    return np.sqrt(np.sum(np.square(kernel), axis=kind.inputs, keepdims=True))


def own_entries(kernels: Mapping[str, tuple[Kernel, tuple[int, ...]]]) -> Iterator[Entry]:
    """Kernels under names of our own, their paths with dots; queries, keys and values have numbers.

    Args:
      kernels: kinds and shapes by path, see `Lora.chosen`.
    """
    for path, (kind, shape) in kernels.items():
        name = path.removesuffix("/kernel").replace("/", ".")
        parts = [f"{name}.{i}" for i in range(shape[1])] if kind is _TO_HEADS else [name]
        yield Entry(path, tuple(f"{part}.weight" for part in parts), _LAYOUTS[kind])
