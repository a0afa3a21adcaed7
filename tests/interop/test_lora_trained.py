"""Trained factors as the adapters of files: merged from there, a kernel is the one that was trained."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.interop.lora.merging import merged_all
from jaxdiff.interop.lora.trained import adapters_of, own_entries
from jaxdiff.models.lora import KERNELS, Lora

PATH, RANK = "network/layer/kernel", 2
SHAPES = dict(
    zip(("dense", "conv", "to_heads", "from_heads"), ((5, 4), (3, 2, 5, 4), (6, 3, 2, 4), (2, 4, 5)), strict=True)
)  # fmt: skip


def made(name, dora, seed=0):
    """A kernel, its kind, and random factors."""
    rng, kind = np.random.default_rng(seed), list(KERNELS.values())[list(SHAPES).index(name)]
    kernel = rng.normal(size=SHAPES[name]).astype(np.float32)
    sizes = kind.shapes(kernel.shape, RANK)
    if dora:
        sizes["magnitude"] = np.asarray(kind.norm(jnp.asarray(kernel))).shape
    own = {part: rng.uniform(0.5, 1.5, size).astype(np.float32) for part, size in sizes.items()}
    return kernel, kind, own


@pytest.mark.spread(3)
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_file_changes_a_kernel_as_training_does(name, dora):
    kernel, kind, own = made(name, dora)
    lora = Lora(RANK, alpha=3.0, dora=dora, scale=0.7)
    (entry,) = own_entries({PATH: (kind, kernel.shape)})
    adapters = adapters_of(lora, {PATH: own}, {PATH: kernel}, [entry])
    assert list(adapters) == list(entry.keys)
    assert len(adapters) == (3 if name == "to_heads" else 1)
    tensors = dict(zip(entry.keys, entry.layout.save(kernel), strict=True))
    merged = merged_all(tensors, [(adapters, 1.0)])
    found = entry.layout.load([merged[key] for key in entry.keys], kernel.shape)
    factors = {part: jnp.asarray(array) for part, array in own.items()}
    expected = lora.changed(PATH, jnp.asarray(kernel), factors)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(expected) - kernel).max() > 0.1


def test_kernels_without_factors_have_no_adapters():
    kernel, kind, own = made("dense", False)
    entries = list(own_entries({PATH: (kind, kernel.shape), "network/other/kernel": (kind, kernel.shape)}))
    assert list(adapters_of(Lora(RANK), {PATH: own}, {PATH: kernel}, entries)) == ["network.layer.weight"]
