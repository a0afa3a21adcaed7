"""Every format gives the names, values and dtypes of weights; averaged weights have precedence."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdiff.errors import UserError
from jaxdiff.interop.safetensors_files import write_safetensors
from jaxdiff.interop.tensors import read_tensors
from tests.interop.published import (
    GOLDENS,
    archive,
    as_torch,
    edm_like,
    expected,
    expected_edm,
    mapping,
    number,
    several,
    tensor,
    text,
)


def same(tensors, arrays):
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        read = tensors[name]
        assert (read.dtype, read.shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(read.astype(array.dtype), array, err_msg=name)


@pytest.mark.parametrize("name", ["interop_zip.pt", "interop_legacy.pt"])
def test_both_formats_of_torch_without_torch(name, tmp_path):
    renamed = tmp_path / "weights.safetensors"  # the name does not matter
    renamed.write_bytes((GOLDENS / name).read_bytes())
    checkpoint = read_tensors(renamed)
    same(checkpoint.tensors, expected())
    assert (checkpoint.tree, checkpoint.averaged, checkpoint.metadata) == (
        "state_dict",
        False,
        {"step": 1000},
    )


def test_a_snapshot_of_edm_without_torch():
    checkpoint = read_tensors(GOLDENS / "interop_edm.pkl")
    same(checkpoint.tensors, expected_edm())
    assert (checkpoint.tree, checkpoint.averaged) == ("ema", True)
    network = checkpoint.metadata["ema"]
    assert network["class_name"] == "Precond"
    assert network["init_kwargs"] == {"img_resolution": 8, "channel_mult": [1, 2], "dropout": 0.1}
    assert network["attributes"] == {"sigma_data": 0.5, "dtype": "float16", "training": True}
    assert checkpoint.metadata["encoder"]["attributes"] == {
        "scale": [0.5, 2.0],
        "shift": 3.0,
        "kind": {"class_name": "device"},
    }
    assert checkpoint.metadata["dataset_kwargs"] == {"use_labels": True}


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_snapshot_of_edm_in_each_protocol_of_python_3(protocol, tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "snapshot.pkl").write_bytes(edm_like(protocol))
    same(read_tensors(tmp_path / "snapshot.pkl").tensors, expected_edm())


@pytest.mark.parametrize("zipped", [True, False])
def test_all_dtypes_of_torch(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    kinds = ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "complex64", "bool"]
    kinds += ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
    values = torch.tensor([[0.0, 1], [1, 2]])
    tensors = {kind: values.to(getattr(torch, kind)) for kind in kinds}
    tensors["parameter"] = torch.nn.Parameter(values)
    tensors["channels_last"] = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    tensors |= torch.nn.Linear(2, 3).state_dict()  # an OrderedDict with attributes
    torch.save(tensors, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    read = read_tensors(tmp_path / "a.ckpt").tensors
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        assert read[name].dtype.name == str(value.dtype).removeprefix("torch.")
        wide = np.complex128 if name == "complex64" else np.float64
        np.testing.assert_array_equal(
            read[name].astype(wide), value.detach().to(getattr(torch, np.dtype(wide).name)).numpy()
        )


def test_tensors_are_read_on_access(tmp_path):
    """Tensors are views of the file and take no memory."""
    (tmp_path / "a.pt").write_bytes(archive(mapping(text("a"), tensor(), text("b"), tensor())))
    tensors = read_tensors(tmp_path / "a.pt").tensors
    assert not tensors["a"].flags.owndata
    assert not tensors["a"].flags.writeable
    assert np.shares_memory(tensors["a"], tensors["b"])
    with pytest.raises(KeyError):
        tensors["c"]


def test_torch_is_not_imported():
    """In a separate process, since other tests import it."""
    code = f"from jaxdiff.interop.tensors import read_tensors; read_tensors({str(GOLDENS / 'interop_edm.pkl')!r})"
    code += "; import sys; sys.exit(bool({'torch', 'jax', 'pickletools'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


A, B = np.arange(3, dtype=np.float32), np.arange(3, 6, dtype=np.float32)
FIRST, SECOND = tensor((3,), (1,)), tensor((3,), (1,), offset=3)


def two_sets(first, second):
    return mapping(text(first), mapping(text("w"), FIRST), text(second), mapping(text("w"), SECOND))


@pytest.mark.parametrize(
    ("body", "ema", "tree", "arrays"),
    [
        (mapping(text("w"), FIRST), None, "", {"w": A}),
        (mapping(text("w"), FIRST, text("epoch"), number(3)), False, "", {"w": A}),
        (mapping(text("model"), mapping(text("w"), FIRST), text("step"), SECOND), None, "model", {"w": A}),
        (
            mapping(text("opt"), mapping(text("w"), SECOND), text("state_dict"), mapping(text("w"), FIRST)),
            None,
            "state_dict",
            {"w": A},
        ),
        (mapping(text("a"), mapping(text("w"), FIRST) + b"q\5", text("b"), b"h\5"), None, "a", {"w": A}),
        *[
            (two_sets("model", name), ema, tree, arrays)
            for name in ("ema", "ema_model", "model_ema", "state_dict_ema", "ema_0.9999")
            for ema, tree, arrays in (
                (None, name, {"w": B}),
                (True, name, {"w": B}),
                (False, "model", {"w": A}),
            )
        ],
        (
            mapping(text("ema"), mapping(text("module"), mapping(text("w"), FIRST))),
            True,
            "ema/module",
            {"w": A},
        ),
        (
            mapping(text("ema"), mapping(text("ema_model.w"), FIRST, text("online_model.w"), SECOND)),
            None,
            "ema/ema_model",
            {"w": A},
        ),
        (
            mapping(text("ema"), mapping(text("ema_model.w"), FIRST, text("online_model.w"), SECOND)),
            False,
            "ema/online_model",
            {"w": B},
        ),
    ],
)
def test_averaged_weights_are_preferred_and_marked(body, ema, tree, arrays, tmp_path):
    (tmp_path / "a.pt").write_bytes(archive(body))
    checkpoint = read_tensors(tmp_path / "a.pt", ema)
    assert (checkpoint.tree, checkpoint.averaged) == (tree, "ema" in tree and "online" not in tree)
    same(checkpoint.tensors, arrays)


@pytest.mark.parametrize(
    ("ema", "tree", "averaged"), [(None, "model_ema", 1), (True, "model_ema", 1), (False, "model", 0)]
)
def test_averages_of_latent_diffusion_have_names_without_dots(ema, tree, averaged, tmp_path):
    tensors = {"model.diffusion_model.out.0.weight": A, "first_stage_model.w": A, "betas": A}
    averages = {
        "model_ema.diffusion_modelout0weight": B,
        "model_ema.decay": A[:1],
        "model_ema.num_updates": A[:1],
    }
    save_file(tensors | averages, tmp_path / "a.ckpt")
    checkpoint = read_tensors(tmp_path / "a.ckpt", ema)
    assert (checkpoint.tree, checkpoint.averaged) == (tree, bool(averaged))
    same(checkpoint.tensors, tensors | ({"model.diffusion_model.out.0.weight": B} if averaged else {}))


@pytest.mark.parametrize(
    ("body", "ema", "why"),
    [
        (mapping(text("w"), FIRST), True, "got none marked so"),
        (mapping(text("ema"), mapping(text("w"), FIRST)), False, "averaged ones only"),
        (two_sets("a", "b"), None, "got several"),
        (two_sets("a_ema", "b_ema"), None, "got several"),
        (mapping(text("step"), number(3)), None, "expected named tensors, got none"),
        (number(3), None, "expected named tensors, got none"),
        (mapping(text("ema"), mapping(text("shadow_params"), several(FIRST))), None, "choose the trained ones"),
        (mapping(text("model_ema.x"), FIRST, text("model.y"), FIRST), None, "names of trained ones"),
        (mapping(text("model_ema.ab"), FIRST, text("model.a.b"), FIRST, text("model.ab"), FIRST), None, "of trained"),
    ],
)  # fmt: skip
def test_missing_or_ambiguous_sets_are_named(body, ema, why, tmp_path):
    (tmp_path / "a.pt").write_bytes(archive(body))
    with pytest.raises(UserError, match=why):
        read_tensors(tmp_path / "a.pt", ema)


def test_nameless_averages_do_not_prevent_reading_the_trained_weights(tmp_path):
    body = mapping(
        text("ema"), mapping(text("shadow_params"), several(FIRST)), text("model"), mapping(text("w"), FIRST)
    )
    (tmp_path / "a.pt").write_bytes(archive(body))
    same(read_tensors(tmp_path / "a.pt", ema=False).tensors, {"w": A})


def test_a_folder_of_diffusers(tmp_path):
    write_safetensors(tmp_path / "diffusion_pytorch_model.fp16.safetensors", {"w": A.astype(np.float16)})
    assert read_tensors(tmp_path).tensors["w"].dtype == np.float16
    write_safetensors(tmp_path / "diffusion_pytorch_model.safetensors", {"w": A}, {"format": "pt"})
    (tmp_path / "config.json").write_text('{"sample_size": 8}')
    checkpoint = read_tensors(tmp_path)
    same(checkpoint.tensors, {"w": A})
    assert checkpoint.metadata == {"format": "pt", "config": {"sample_size": 8}}
    write_safetensors(tmp_path / "diffusion_pytorch_model.non_ema.safetensors", {"w": B})
    same(read_tensors(tmp_path).tensors, {"w": A})
    same(read_tensors(tmp_path, ema=False).tensors, {"w": B})


def test_the_folder_of_a_pipeline(tmp_path):
    for name in ("unet", "scheduler", "vae"):
        (tmp_path / name).mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "unet" / "config.json").write_text('{"in_channels": 4}')
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"beta_start": 1e-4}')
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(archive(mapping(text("w"), FIRST)))
    checkpoint = read_tensors(tmp_path)
    same(checkpoint.tensors, {"w": A})
    assert checkpoint.metadata == {"config": {"in_channels": 4}, "scheduler": {"beta_start": 1e-4}}
    (tmp_path / "unet_ema").mkdir()
    write_safetensors(tmp_path / "unet_ema" / "diffusion_pytorch_model.safetensors", {"w": B})
    for ema, tree, array in ((None, "unet_ema", B), (True, "unet_ema", B), (False, "", A)):
        checkpoint = read_tensors(tmp_path, ema)
        assert (checkpoint.tree, checkpoint.averaged) == (tree, tree == "unet_ema")
        same(checkpoint.tensors, {"w": array})


@pytest.mark.parametrize("by_folder", [True, False])
def test_a_file_in_several_parts(by_folder, tmp_path):
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    write_safetensors(tmp_path / "1.safetensors", {"a": A, "unlisted": B})
    (tmp_path / "2.bin").write_bytes(archive(mapping(text("b"), SECOND)))
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "1.safetensors", "b": "2.bin"}}))
    same(read_tensors(tmp_path if by_folder else index).tensors, {"a": A, "b": B})


def test_symbolic_links_are_followed_as_caches_need_it(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    write_safetensors(tmp_path / "blobs" / "4f2a", {"w": A})
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/4f2a")
    same(read_tensors(tmp_path / "snapshot").tensors, {"w": A})


def test_a_written_file_is_read_back(tmp_path):
    arrays = {
        "turned": np.arange(6.0).reshape(2, 3).T,
        "strided": np.arange(9)[::2],
        "brain": np.array([[1.5, -2]], ml_dtypes.bfloat16),
        "scalar": np.array(3, np.float16),
        "empty": np.zeros((0, 2), np.int8),
        "big_endian": np.arange(3, dtype=">f4").astype(">f4"),
    }
    write_safetensors(tmp_path / "a.safetensors", arrays, {"config": "{}"})
    checkpoint = read_tensors(tmp_path / "a.safetensors")
    same(checkpoint.tensors, arrays | {"big_endian": A})
    assert checkpoint.metadata == {"config": "{}"}
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"w": A})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_safetensors(path, {"w": B})
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    same(read_tensors(path).tensors, {"w": A})


@pytest.mark.parametrize(
    ("tensors", "field"),
    [
        ({"w": np.array(["a"])}, r"tensors\['w'\]='str"),
        ({"w": np.array([None])}, r"tensors\['w'\]='object"),
    ],
)
def test_unsupported_dtypes_are_refused(tensors, field, tmp_path):
    with pytest.raises(UserError, match=field):
        write_safetensors(tmp_path / "a.safetensors", tensors)
    assert not list(tmp_path.iterdir())


def test_the_stored_samples_equal_what_torch_writes():
    """PyTorch reads the stored samples, written by `published.py`, with the same values."""
    torch = pytest.importorskip("torch")
    for name in ("interop_zip.pt", "interop_legacy.pt"):
        loaded = torch.load(GOLDENS / name, weights_only=True)["state_dict"]
        ours = as_torch(expected())
        assert all(torch.equal(loaded[key], ours[key]) for key in ours)
