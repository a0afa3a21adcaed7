"""LPIPS against its formula in PyTorch, from files of the published names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdiff.errors import UserError
from jaxdiff.interop.lpips import LpipsFiles
from jaxdiff.models.lpips import BLOCKS, MEAN, STD, Lpips

POSITIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Numbers of the convolutions in torchvision's VGG-16."""


@pytest.fixture(scope="module")
def tensors():
    rng, channels = np.random.default_rng(0), 3
    widths = [width for width, count in BLOCKS for _ in range(count)]
    network = {}
    for position, width in zip(POSITIONS, widths, strict=True):
        kernel = rng.standard_normal((width, channels, 3, 3)) * (2 / (9 * channels)) ** 0.5
        network[f"features.{position}.weight"] = kernel.astype(np.float32)
        network[f"features.{position}.bias"] = 0.1 * rng.standard_normal(width).astype(np.float32)
        channels = width
    linear = {
        f"lin{i}.model.1.weight": rng.random((1, width, 1, 1)).astype(np.float32)
        for i, (width, _) in enumerate(BLOCKS)
    }
    return network, linear


@pytest.fixture(scope="module")
def files(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lpips")
    for name, each in zip(("vgg16", "linear"), tensors, strict=True):
        save_file(each, folder / f"{name}.safetensors")
    return LpipsFiles(str(folder / "vgg16.safetensors"), str(folder / "linear.safetensors"))


@pytest.mark.slow
def test_distances_are_those_of_the_formula(files, tensors):
    torch = pytest.importorskip("torch")
    network, linear = tensors
    rng = np.random.default_rng(1)
    x, y = (rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32) for _ in range(2))

    def features(images):
        h = (torch.tensor(images.transpose(0, 3, 1, 2)) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(
            STD
        )[:, None, None]
        last, found = {3, 8, 15, 22, 29}, []
        for position in range(30):
            if f"features.{position}.weight" in network:
                weight, bias = (
                    torch.tensor(network[f"features.{position}.{end}"]) for end in ("weight", "bias")
                )
                h = torch.nn.functional.conv2d(h, weight, bias, padding=1)
            elif position in (4, 9, 16, 23):
                h = torch.nn.functional.max_pool2d(h, 2)
            else:
                h = torch.relu(h)
            found += [h / h.norm(dim=1, keepdim=True)] if position in last else []
        return found

    expected = sum(
        torch.nn.functional.conv2d((a - b) ** 2, torch.tensor(linear[f"lin{i}.model.1.weight"])).mean(
            dim=(1, 2, 3)
        )
        for i, (a, b) in enumerate(zip(features(x), features(y), strict=True))
    )
    params = jax.tree.map(jnp.asarray, files.read())
    x, y = jnp.asarray(x), jnp.asarray(y)
    np.testing.assert_allclose(Lpips().apply({"params": params}, x, y), expected.numpy(), rtol=1e-4)
    assert not np.any(Lpips().apply({"params": params}, x, x))
    slopes = jax.jit(jax.grad(lambda x: Lpips().apply({"params": params}, x, y).sum()))(jnp.zeros_like(x))
    assert np.all(np.isfinite(slopes))


def test_other_files_are_refused(files, tmp_path):
    with pytest.raises(UserError, match=r"perceptual=.*: expected a tensor features.0.weight"):
        LpipsFiles(files.linear, files.linear).read()
