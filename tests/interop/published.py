"""Small files in published formats, and pickles assembled by hand.

With PyTorch, `python tests/interop/published.py` writes the samples in tests/goldens that are read without it.
"""

import io
import pathlib
import pickle
import struct
import sys
import types
import zipfile
import zlib

import ml_dtypes
import numpy as np

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"

SIX = np.arange(6, dtype=np.float32).tobytes()
"""The storage of the pickles that are put together by hand."""

SOURCE = "raise SystemExit('the source text in a snapshot was run')"


def expected() -> dict[str, np.ndarray]:
    """The tensors of the samples of PyTorch. Two are views of one storage, one is transposed."""
    base = np.arange(10, dtype=np.float32)
    return {
        "conv.weight": np.arange(12, dtype=np.float32).reshape(2, 3, 2) / 8,
        "conv.bias": np.array([-1.5, 2.5], np.float16),
        "brain": np.array([[1, -2], [0.5, 3]], ml_dtypes.bfloat16),
        "double": np.array([1 / 3, -1e300]),
        "count": np.array(7, np.int64),
        "mask": np.array([True, False, True]),
        "empty": np.zeros((0, 4), np.float32),
        "turned": np.arange(6, dtype=np.int32).reshape(2, 3).T,
        "slice": base[2:5],
        "every_third": base[1::3],
    }


def expected_edm() -> dict[str, np.ndarray]:
    """The tensors of the EDM-like snapshot: half precision, a buffer in float32, names by modules within modules."""
    return {
        "unet.enc.8x8_conv.weight": np.arange(4, dtype=np.float16).reshape(2, 2),
        "unet.enc.8x8_conv.bias": np.array([0.25, -0.5], np.float16),
        "unet.freqs": np.array([1, 2, 4], np.float32),
    }


def as_torch(arrays: dict[str, np.ndarray]) -> dict:
    """As tensors of PyTorch, the two views on one storage."""
    import torch

    def tensor(array):
        if array.dtype == ml_dtypes.bfloat16:
            return torch.tensor(array.astype(np.float32)).bfloat16()
        return torch.from_numpy(array)

    base = torch.arange(10, dtype=torch.float32)
    views = {"slice": base[2:5], "every_third": base[1::3]}
    return {name: views[name] if name in views else tensor(array) for name, array in arrays.items()}


def edm_like(protocol: int = 4) -> bytes:
    """A snapshot as EDM's persistence writes it, from stand-ins of its modules that exist while it is pickled."""
    import torch

    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    def reconstruct(meta):
        raise SystemExit("a function that a snapshot names was called")

    class EasyDict(dict):
        pass

    for home, name, value in (
        (persistence, "_reconstruct_persistent_obj", reconstruct),
        (util, "EasyDict", EasyDict),
    ):
        value.__module__, value.__name__, value.__qualname__ = home.__name__, name, name
        setattr(home, name, value)

    class Persistent:
        def __reduce__(self):
            meta = {
                "type": "class",
                "version": 6,
                "module_src": SOURCE,
                "class_name": type(self).__name__,
                "state": self.__dict__,
            }
            return reconstruct, (meta,)

    class Conv(Persistent, torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("weight", "bias"):
                value = torch.from_numpy(expected_edm()[f"unet.enc.8x8_conv.{name}"])
                setattr(self, name, torch.nn.Parameter(value, requires_grad=False))

    class UNet(Persistent, torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.enc = torch.nn.ModuleDict({"8x8_conv": Conv()})
            self.act = torch.nn.SiLU()
            self.register_buffer("freqs", torch.from_numpy(expected_edm()["unet.freqs"]))
            self.register_buffer("temporary", torch.ones(2), persistent=False)

    class Precond(Persistent, torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet, self.sigma_data, self.dtype = UNet(), 0.5, torch.float16
            self._init_args, self._init_kwargs = (
                (),
                {"img_resolution": 8, "channel_mult": [1, 2], "dropout": 0.1},
            )

    class Encoder(Persistent):
        def __init__(self):
            self.scale, self.shift, self.kind = (
                np.array([0.5, 2], np.float32),
                np.float32(3),
                torch.device("cpu"),
            )

    content = EasyDict(ema=Precond(), encoder=Encoder(), dataset_kwargs={"use_labels": True})
    before = dict(sys.modules)
    sys.modules.update({"torch_utils.persistence": persistence, "dnnlib.util": util})
    for name in ("torch_utils", "dnnlib"):
        sys.modules.setdefault(name, types.ModuleType(name))
    try:
        return pickle.dumps(content, protocol)
    finally:
        for name in sys.modules.keys() - before.keys():
            if name.startswith(("torch_utils", "dnnlib")):
                del sys.modules[name]


# Pickles by hand. Each function gives the operations that leave one object on the stack.


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def found(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def several(*parts: bytes) -> bytes:
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def called(of: bytes, *args: bytes) -> bytes:
    return of + several(*args) + pickle.REDUCE


def mapping(*parts: bytes) -> bytes:
    return pickle.EMPTY_DICT + pickle.MARK + b"".join(parts) + pickle.SETITEMS


def program(body: bytes) -> bytes:
    return pickle.PROTO + b"\x02" + body + pickle.STOP


def storage(
    length: bytes = number(6), kind: bytes = found("torch", "FloatStorage"), key: bytes = text("0")
) -> bytes:
    return several(text("storage"), kind, key, text("cpu"), length) + pickle.BINPERSID


def tensor(shape: tuple = (2, 3), strides: tuple = (3, 1), offset: int = 0, of: bytes | None = None) -> bytes:
    sizes, steps = several(*map(number, shape)), several(*map(number, strides))
    rest = (pickle.NEWFALSE, called(found("collections", "OrderedDict")))
    return called(
        found("torch._utils", "_rebuild_tensor_v2"), of or storage(), number(offset), sizes, steps, *rest
    )


def archive(body: bytes, files: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch.save with this pickle program, and a storage "0" of six numbers."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as made:
        made.writestr("archive/data.pkl", program(body))
        for name, data in (files or {"data/0": SIX}).items():
            made.writestr(f"archive/{name}", data)
    return out.getvalue()


def legacy(body: bytes, data: bytes, keys: tuple[str, ...] = ("0",)) -> bytes:
    """The same in the older format. `data` follows the list of storages."""
    magic = pickle.PROTO + b"\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" + pickle.STOP
    head = magic + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    return head + program(body) + pickle.dumps(list(keys), 2) + data


def rechecked(data: bytes) -> bytes:
    """A modified zip archive with correct checksums, as an attacker would write it."""
    made, at = bytearray(data), data.rfind(b"PK\x05\x06")
    entry = int.from_bytes(data[at + 16 : at + 20], "little")
    while 0 <= entry < len(made) - 46 and made[entry : entry + 4] == b"PK\x01\x02":
        size, name, extra, comment = struct.unpack_from("<I4xHHH", made, entry + 20)
        local = struct.unpack_from("<I", made, entry + 42)[0]
        if local + 30 <= len(made):
            start = local + 30 + sum(struct.unpack_from("<HH", made, local + 26))
            struct.pack_into("<I", made, entry + 16, zlib.crc32(made[start : start + size]))
        entry += 46 + name + extra + comment
    return bytes(made)


if __name__ == "__main__":
    import torch

    tensors = as_torch(expected())
    torch.save({"state_dict": tensors, "step": 1000}, GOLDENS / "interop_zip.pt")
    torch.save(
        {"state_dict": tensors, "step": 1000},
        GOLDENS / "interop_legacy.pt",
        _use_new_zipfile_serialization=False,
    )
    (GOLDENS / "interop_edm.pkl").write_bytes(edm_like())
