"""LPIPS against its formula in PyTorch, from files of the published names."""

import hashlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdiff.errors import UserError
from jaxdiff.evaluation.features.perceptual import PerceptualDistance
from jaxdiff.interop.lpips import LpipsFiles
from jaxdiff.models.lpips import BLOCKS, MEAN, STD, Lpips, channels

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


ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
"""Numbers of the convolutions in torchvision's AlexNet; their channels out and in, and the sides of their kernels."""


@pytest.fixture(scope="module")
def alex_tensors():
    rng = np.random.default_rng(2)
    network = {}
    for position, (width, before, side) in ALEX.items():
        kernel = rng.standard_normal((width, before, side, side)) * (2 / (side * side * before)) ** 0.5
        network[f"features.{position}.weight"] = kernel.astype(np.float32)
        network[f"features.{position}.bias"] = 0.1 * rng.standard_normal(width).astype(np.float32)
    network["classifier.6.bias"] = np.zeros(1000, np.float32)
    linear = {
        f"lin{i}.model.1.weight": rng.random((1, width, 1, 1)).astype(np.float32)
        for i, width in enumerate(channels("alex"))
    }
    return network, linear


def alex_distances(torch, tensors, x, y):
    """The formula in PyTorch, with AlexNet as torchvision lays it out."""
    network, linear = tensors

    def features(images):
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        h, found = (torch.tensor(images.transpose(0, 3, 1, 2)) - mean) / std, []
        for position, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            weight, bias = (torch.tensor(network[f"features.{position}.{end}"]) for end in ("weight", "bias"))
            h = torch.nn.functional.max_pool2d(h, 3, 2) if position in (3, 6) else h
            h = torch.relu(torch.nn.functional.conv2d(h, weight, bias, stride, padding))
            found.append(h / (h.norm(dim=1, keepdim=True) + 1e-10))
        return found

    return sum(
        torch.nn.functional.conv2d((a - b) ** 2, torch.tensor(linear[f"lin{i}.model.1.weight"])).mean(
            (1, 2, 3)
        )
        for i, (a, b) in enumerate(zip(features(x), features(y), strict=True))
    ).numpy()


def alex_files(tensors, folder):
    paths = [str(folder / f"{name}.safetensors") for name in ("alexnet", "linear")]
    for each, path in zip(tensors, paths, strict=True):
        save_file(each, path)
    return paths


def test_distances_of_alexnet_are_those_of_the_formula(alex_tensors, tmp_path):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    x, y = (rng.uniform(-1, 1, (2, 40, 35, 3)).astype(np.float32) for _ in range(2))
    params = jax.tree.map(jnp.asarray, LpipsFiles(*alex_files(alex_tensors, tmp_path), "alex").read())
    found = jax.jit(Lpips("alex").apply)({"params": params}, jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(found, alex_distances(torch, alex_tensors, x, y), rtol=1e-4)


@pytest.mark.slow
def test_stored_images_have_the_same_distance(alex_tensors, tmp_path):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    a, b = (rng.integers(0, 256, (3, 40, 40, 3)).astype(np.uint8) for _ in range(2))
    distance = PerceptualDistance(*alex_files(alex_tensors, tmp_path), batch_size=8)
    expected = alex_distances(torch, alex_tensors, *(np.float32(each / 127.5 - 1) for each in (a, b)))
    np.testing.assert_allclose(distance(a, b), expected, rtol=1e-4)
    assert not distance(a, a).any()
    assert distance.name == "LPIPS (alex)"
    hashes = [
        hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
        for path in (distance.weights, distance.linear)
    ]
    assert distance.hash.split() == hashes
    with pytest.raises(UserError, match="sides of at least 31 pixels"):
        distance(a[:, :30], b[:, :30])
    with pytest.raises(UserError, match="pairs of one shape"):
        distance(a, b[:, 1:])


def test_the_files_of_the_other_network_are_refused(alex_tensors, tmp_path):
    with pytest.raises(UserError, match=r"a tensor features.0.weight \[64, 3, 3, 3\]"):
        LpipsFiles(*alex_files(alex_tensors, tmp_path), "vgg").read()
    with pytest.raises(UserError, match="network='squeeze'"):
        LpipsFiles("a", "b", "squeeze")


def test_other_files_are_refused(files, tmp_path):
    with pytest.raises(UserError, match=r"perceptual=.*: expected a tensor features.0.weight"):
        LpipsFiles(files.linear, files.linear).read()
