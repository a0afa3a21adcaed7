"""InceptionV3 of the FID against torch-fidelity: its blocks, and the whole network with weights made from names."""

import functools
import hashlib
import pathlib
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdiff.errors import UserError
from jaxdiff.evaluation.features.inception import Inception
from jaxdiff.interop.inception import (
    BLOCKS,
    convolution,
    entries,
    inception_params,
    inception_tensors,
)
from jaxdiff.interop.mapping import to_params
from jaxdiff.models import inception
from jaxdiff.models.inception import Block, average_pool, max_pool, shrink
from tests.text_models import QUICK

GOLDENS = pathlib.Path(__file__).parent.parent / "goldens"


def golden(name):
    return np.load(GOLDENS / f"inception_{name}.npz")


def last(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


BRANCHES = {
    "A": inception.block_35(8),
    "B": inception.BLOCKS["mixed_3"],
    "C": inception.block_17(8),
    "E_1": [branch for branch in inception.block_8("average") if branch.name in ("one", "pooled")],
    "E_2": [branch for branch in inception.block_8("max") if branch.name in ("one", "pooled")],
}
OURS = {"A": "mixed_0", "B": "mixed_3", "C": "mixed_4", "E_1": "mixed_9", "E_2": "mixed_10"}


def block_output(file, peer):
    """Our block with torch-fidelity's parameters and input."""
    block, x = Block(tuple(BRANCHES[peer])), last(file["in/block_x"])
    shapes = nn.meta.unbox(jax.eval_shape(block.init, jax.random.key(0), x))["params"]
    prefix = f"param/block{peer}."
    tensors = {name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)}
    names = {ours: theirs for ours, theirs in BLOCKS[OURS[peer]][1].items() if ours in shapes}
    pairs = [entry for ours, theirs in names.items() for entry in convolution(ours, theirs)]
    params = to_params(pairs, tensors, shapes, ("num_batches_tracked",))
    return jax.jit(block.apply, compiler_options=QUICK)({"params": params}, x)


@pytest.mark.spread(2)
@pytest.mark.parametrize("peer", BRANCHES)
def test_blocks_are_torch_fidelity_s(peer):
    file = golden("blocks")
    found = block_output(file, peer).transpose(0, 3, 1, 2)
    if peer.startswith("E"):
        expected = [file[f"out/block{peer}/{branch}"] for branch in ("branch1x1", "branch_pool")]
    else:
        expected = [file[f"out/block{peer}"]]
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), rtol=0, atol=1e-5)


def test_pools_are_torch_fidelity_s():
    file = golden("blocks")
    x = last(file["in/block_x"])
    pools = {"E_1": average_pool, "E_2": max_pool, "max_s2": shrink}
    for name, pool in pools.items():
        found = pool(x).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(found, file[f"out/pool/{name}"], rtol=1e-6, atol=1e-6)


def test_averages_do_not_count_the_padding():
    ones = jnp.ones((1, 4, 5, 2))
    np.testing.assert_array_equal(average_pool(ones), ones)


def by_rule(shapes):
    """Weights of a network as the goldens have them, from the names of the tensors."""
    found = {}
    for key, shape in shapes.items():
        random = np.random.RandomState(zlib.crc32(key.encode()))
        draw = functools.partial(random.randint, size=shape, dtype=np.int64)
        if key.endswith("running_var"):
            values = 1 + draw(0, 65) / 128
        elif key.endswith("bn.weight"):
            values = 1 + draw(-32, 33) / 256
        elif key.endswith(("bias", "running_mean")):
            values = draw(-32, 33) / 256
        else:
            fan_in = np.prod(shape[1:])
            values = draw(-127, 128) * 2.0 ** np.round(np.log2(np.sqrt(6 / fan_in) / 127))
        found[key] = values.astype(np.float32)
    return found


def test_names_are_those_of_the_published_file():
    listed = {str(key).split(" ")[0] for key in golden("full")["out/full/keys"]}
    assert {key for entry in entries() for key in entry.keys} == {
        name for name in listed if "num_batches_tracked" not in name
    }


def test_another_network_is_refused():
    with pytest.raises(UserError, match=r"expected those of InceptionV3.*got layer1.0.conv1.weight"):
        inception_params({"layer1.0.conv1.weight": np.zeros((64, 64, 3, 3))})


@functools.cache
def published():
    """Tensors of the published names and shapes, which the goldens list."""
    rows = [str(key).split(" ") for key in golden("full")["out/full/keys"]]
    return by_rule({name: tuple(map(int, shape)) for name, *shape in rows if shape})


@pytest.mark.slow
def test_tensors_that_do_not_fit_are_listed_and_nothing_is_loaded():
    tensors = published()
    torchvision = tensors | {"fc.weight": tensors["fc.weight"][:1000], "AuxLogits.fc.bias": np.zeros(3)}
    with pytest.raises(UserError, match="nothing was loaded") as error:
        inception_params(torchvision)
    assert len(error.value.details) == 2
    assert any("fc.weight" in row and "1008" in row for row in error.value.details)
    back = inception_tensors(inception_params(tensors))
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value)


def of_file(tensors, path, **options):
    save_file(tensors, path)
    return Inception(str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest(), batch_size=8, **options)


@pytest.mark.slow
def test_outputs_for_stored_images_are_torch_fidelity_s(tmp_path):
    file = golden("full")
    images = file["in/images_u8"].transpose(0, 2, 3, 1)
    found = of_file(published(), tmp_path / "a").shared(images)
    values = {extractor.output: vectors for extractor, vectors in found.items()}
    assert {extractor.dim == found[extractor].shape[1] for extractor in found} == {True}
    for tap, output in {"2048": "pool", "logits_unbiased": "logits", "logits": "biased_logits"}.items():
        np.testing.assert_allclose(values[output], file[f"out/full64/{tap}"], rtol=0, atol=1e-5)
    # The branch of the spatial features with seven constant channels, so that each is known.
    constant = {name: value.copy() for name, value in published().items()}
    branch = "Mixed_6d.branch1x1"
    for name in (f"{branch}.conv.weight", f"{branch}.bn.running_mean"):
        constant[name][:7] = 0
    constant[f"{branch}.bn.bias"][:7] = np.arange(7) - 1
    spatial = of_file(constant, tmp_path / "b", output="spatial")(images)
    expected = np.tile([0, 0, 1, 2, 3, 4, 5], 17 * 17)
    np.testing.assert_array_equal(spatial, np.stack([expected, expected]))
