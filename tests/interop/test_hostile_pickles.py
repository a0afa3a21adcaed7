"""Pickles that run code, impossible tensors and endless objects are refused, and nothing runs."""

import functools
import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from jaxdiff.interop import torch_files
from jaxdiff.interop.tensors import read_tensors
from jaxdiff.interop.unpickling import Budget
from tests.interop.hostile import attempt, refused
from tests.interop.published import (
    SIX,
    archive,
    called,
    found,
    legacy,
    mapping,
    number,
    program,
    several,
    storage,
    tensor,
    text,
)

pytestmark = pytest.mark.usefixtures("untyped", "nothing_runs")

SYSTEM = called(found("os", "system"), text("touch /tmp/owned"))
EVIL = {
    "a call": SYSTEM,
    "a call in a tensor's name": mapping(SYSTEM, tensor()),
    "a call in a storage": mapping(text("w"), tensor(of=storage(kind=SYSTEM))),
    "a call in a hook": mapping(text("w"), called(found("torch._utils", "_rebuild_parameter"), tensor(), SYSTEM)),
    "a call in a state": called(found("argparse", "Namespace")) + SYSTEM + pickle.BUILD,
    "eval": called(found("builtins", "eval"), text("__import__('os').system('touch /tmp/owned')")),
    "getattr": called(found("builtins", "getattr"), found("os", "environ"), text("clear")),
    "a method": called(text("collections") + text("OrderedDict.fromkeys") + pickle.STACK_GLOBAL, text("x")),
    "torch.load": called(found("torch.serialization", "load"), text("x")),
    "inner bytes": called(
        found("torch.storage", "_load_from_bytes"),
        pickle.SHORT_BINBYTES + bytes([len(program(SYSTEM))]) + program(SYSTEM),
    ),
    "inner bytes of the right kind": called(
        found("torch.storage", "_load_from_bytes"),
        pickle.SHORT_BINBYTES + bytes([len(legacy(SYSTEM, b""))]) + legacy(SYSTEM, b""),
    ),
    "a subclass": called(found("torch._tensor", "_rebuild_from_type_v2"), found("os", "system"), text("x"), text("y")),
}  # fmt: skip


@pytest.mark.parametrize("case", EVIL)
@pytest.mark.parametrize("wrap", [archive, lambda body: legacy(body, struct.pack("<q", 6) + SIX), program])
def test_programs_are_not_run(case, wrap, tmp_path):
    (tmp_path / "a").write_bytes(wrap(EVIL[case]))
    refused(tmp_path / "a")
    assert not os.path.exists("/tmp/owned")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_real_exploit_is_named(protocol, tmp_path):
    class Exploit:
        def __reduce__(self):
            return os.system, ("touch /tmp/owned",)

    (tmp_path / "a").write_bytes(pickle.dumps({"ema": Exploit()}, protocol))
    refused(tmp_path / "a", "got 'posix.system'.*nothing was run")


LOAD = ("torch.storage", "_load_from_bytes")


def inline(content):
    """A pickle of a tensor whose storage is bytes, as EDM has it."""
    data = pickle.BINBYTES + struct.pack("<I", len(content)) + content
    return program(mapping(text("w"), tensor(of=called(found(*LOAD), data))))


def test_storages_within_storages(tmp_path):
    good = legacy(storage() + b"", struct.pack("<q", 6) + SIX)
    good = good.replace(
        text("cpu") + number(6) + pickle.TUPLE, text("cpu") + number(6) + pickle.NONE + pickle.TUPLE
    )
    (tmp_path / "a").write_bytes(inline(good))
    np.testing.assert_array_equal(attempt(tmp_path / "a")["w"], np.arange(6, dtype=np.float32).reshape(2, 3))
    head = good[: good.index(b"\x80\x02]")]
    bad = {
        "not a storage": legacy(number(3), b"", ()),
        "a tensor": legacy(tensor(), struct.pack("<q", 6) + SIX),
        "itself again": legacy(called(found(*LOAD), pickle.SHORT_BINBYTES + b"\0"), b"", ()),
        "an object": legacy(called(found("argparse", "Namespace")), b"", ()),
        "no list of storages": head + pickle.dumps(3, 2),
        "too few bytes": good[:-1],
        "a length that lies": good[: -len(SIX) - 8] + struct.pack("<q", 2**62) + SIX,
        "a negative length": good[: -len(SIX) - 8] + struct.pack("<q", -6) + SIX,
        "a big-endian machine": good.replace(b"little_endianq\x01\x88", b"little_endianq\x01\x89"),
        "a name that is a list": head + pickle.dumps([[[]]], 2) + struct.pack("<q", 6) + SIX,
        "no storages": head + pickle.dumps([], 2),
        "another number at the start": good.replace(b"\x8a\x0a\x6c", b"\x8a\x0a\x6d"),
    }
    for case, content in bad.items():
        (tmp_path / "a").write_bytes(inline(content))
        assert attempt(tmp_path / "a") is None, case
    (tmp_path / "a").write_bytes(inline(bad["an object"]))
    refused(tmp_path / "a", "got 'argparse.Namespace'")


def test_reading_one_storage_repeatedly_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files, "Budget", functools.partial(Budget, operations=20_000))
    inner = legacy(storage(), struct.pack("<q", 6) + SIX)
    data = (
        pickle.BINBYTES
        + struct.pack("<I", len(inner))
        + inner
        + pickle.TUPLE1
        + pickle.BINPUT
        + b"\0"
        + pickle.POP
    )
    again = found(*LOAD) + pickle.BINGET + b"\0" + pickle.REDUCE + pickle.POP
    (tmp_path / "a").write_bytes(program(data + again * 1000 + pickle.NONE))
    refused(tmp_path / "a", "expected a pickle of ordinary size")


SHAPES = {
    "beyond the end": tensor((2, 4), (4, 1)),
    "by its strides": tensor((2, 2), (5, 1)),
    "by its offset": tensor((1,), (1,), 6),
    "a huge offset": tensor((1,), (1,), 2**47),
    "repeated without end": tensor((2**40,), (0,)),
    "repeated a little": tensor((7,), (0,)),
    "whose product is 64 bits of nothing": tensor((2**32, 2**32), (0, 0)),
    "negative": tensor((-1,), (1,)),
    "backwards": tensor((2,), (-1,), 5),
    "before the start": tensor((1,), (1,), -1),
    "of other lengths": tensor((2, 3), (1,)),
    "of forty axes": tensor((1,) * 40, (1,) * 40),
    "of 80 bits": tensor((2**80,), (0,)),
    "empty and huge": tensor((0, 2**47, 2**47), (1, 1, 1)),
    "of text": called(found("torch._utils", "_rebuild_tensor"), storage(), number(0), text("ab"), text("ab")),
    "of a truth": called(
        found("torch._utils", "_rebuild_tensor"), storage(), number(0), several(pickle.NEWTRUE), several(number(1))
    ),
    "of a list": called(
        found("torch._utils", "_rebuild_tensor"), storage(), number(0), pickle.EMPTY_LIST, pickle.EMPTY_TUPLE
    ),
    "without a storage": tensor(of=number(3)),
    "of a storage that is text": tensor(of=text("0")),
    "conjugate": called(
        found("torch._utils", "_rebuild_tensor_v2"), storage(), number(0), several(number(6)), several(number(1)),
        pickle.NEWFALSE, pickle.NONE, mapping(text("neg"), pickle.NEWTRUE),
    ),
    "of no dtype": called(
        found("torch._utils", "_rebuild_tensor_v3"), storage(), number(0), several(number(6)), several(number(1)),
        pickle.NEWFALSE, pickle.NONE, found("torch", "device"),
    ),
    "wider than its storage": called(
        found("torch._utils", "_rebuild_tensor_v3"), storage(), number(0), several(number(4)), several(number(1)),
        pickle.NEWFALSE, pickle.NONE, found("torch", "float64"),
    ),
    "of a longer storage": tensor(of=storage(number(7))),
    "of a shorter storage": tensor((5,), (1,), of=storage(number(5))),
    "of a huge storage": tensor(of=storage(number(2**60))),
    "of a negative storage": tensor(of=storage(number(-6))),
    "of wider numbers": tensor(of=storage(kind=found("torch", "DoubleStorage"))),
    "of no kind": tensor(of=storage(kind=found("torch", "device"))),
    "of a kind that is text": tensor(of=storage(kind=text("FloatStorage"))),
    "of a missing storage": tensor(of=storage(key=text("1"))),
    "of a path": tensor(of=storage(key=text("../../../../etc/passwd"))),
    "of the pickle": tensor(of=storage(key=text("../data.pkl"))),
    "of a key that is a number": tensor(of=storage(key=number(0))),
    "of a key that is a tuple": tensor(of=storage(key=several(text("0")))),
    "of an id that is text": tensor(of=text("storage") + pickle.BINPERSID),
    "of an id of one": tensor(of=several(text("storage")) + pickle.BINPERSID),
    "of a module": tensor(of=several(text("module"), *[text("x")] * 4) + pickle.BINPERSID),
}  # fmt: skip


@pytest.mark.parametrize("case", SHAPES)
def test_impossible_tensors(case, tmp_path):
    (tmp_path / "a").write_bytes(archive(mapping(text("w"), SHAPES[case])))
    refused(tmp_path / "a")
    (tmp_path / "a").write_bytes(legacy(mapping(text("w"), SHAPES[case]), struct.pack("<q", 6) + SIX))
    refused(tmp_path / "a")


@pytest.mark.parametrize("case", ["beyond the end", "by its strides", "by its offset", "repeated a little"])
def test_a_tensor_must_lie_in_its_storage(case, tmp_path):
    (tmp_path / "a").write_bytes(archive(mapping(text("w"), SHAPES[case])))
    refused(tmp_path / "a", "its storage of 6 elements")


def module(parameters=b"}", modules=b"}", more=b""):
    """A module of PyTorch, pickled in whole."""
    state = mapping(
        text("_parameters"), parameters, text("_buffers"), pickle.EMPTY_DICT, text("_modules"), modules, more
    )
    return (
        found("torch.nn.modules.module", "Module") + pickle.EMPTY_TUPLE + pickle.NEWOBJ + state + pickle.BUILD
    )


def doubled(times):
    """Modules within modules, each twice in the next: 2 ** times when they are followed."""
    made = module(mapping(text("w"), tensor()))
    for _ in range(times):
        keep = pickle.BINPUT + b"\0" + pickle.POP
        made = made + keep + module(modules=mapping(text("a"), b"h\0", text("b"), b"h\0"))
    return made


TREES = {
    "modules that unfold": doubled(40),
    "modules in a circle": module(b"}", b"}" + pickle.BINPUT + b"\1")
    + pickle.BINPUT + b"\0" + pickle.POP + b"h\1" + text("x") + b"h\0" + pickle.SETITEM + pickle.POP + b"h\0",
    "deep modules": doubled(3)[:-1] + pickle.BUILD + b"".join(
        pickle.BINPUT + b"\0" + pickle.POP + module(modules=mapping(text("a"), b"h\0")) for _ in range(100)
    ),
    "modules without parameters": found("torch.nn.modules.module", "Module") + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    + mapping(text("_modules"), number(3)) + pickle.BUILD,
    "a dict in a circle": pickle.EMPTY_DICT + pickle.BINPUT + b"\0" + text("model") + b"h\0" + pickle.SETITEM,
}  # fmt: skip


@pytest.mark.spread(3)
@pytest.mark.parametrize("case", TREES)
def test_endless_trees(case, tmp_path):
    (tmp_path / "a").write_bytes(archive(TREES[case]))
    refused(tmp_path / "a")


def test_endless_metadata_is_omitted(tmp_path):
    wide = pickle.EMPTY_LIST + pickle.BINPUT + b"\0" + pickle.POP
    unfolding = (
        number(1)
        + (pickle.BINPUT + b"\0" + pickle.POP + pickle.BINGET + b"\0" + pickle.BINGET + b"\0" + pickle.TUPLE2)
        * 60
    )
    circle = pickle.EMPTY_LIST + pickle.BINPUT + b"\1" + pickle.BINGET + b"\1" + pickle.APPEND
    rows = called(found("numpy", "dtype"), text("f4")) + several(number(3), text("<")) + pickle.BUILD
    big = called(found("numpy", "dtype"), text("f4")) + several(number(3), text(">")) + pickle.BUILD
    big = called(found("numpy.core.multiarray", "scalar"), big, pickle.SHORT_BINBYTES + b"\x04abcd")
    empty = called(found("numpy.core.multiarray", "_reconstruct"))
    empty += several(
        number(1), several(number(10**9), number(0)), rows, pickle.NEWFALSE, pickle.SHORT_BINBYTES + b"\0"
    )
    entries = {
        "w": tensor(), "wide": wide + number(7), "unfolding": unfolding, "circle": circle, "rows": empty + pickle.BUILD,
        "of other machines": big, "long": several(*[number(1)] * 20_000), "step": number(3),
    }  # fmt: skip
    body = mapping(*[part for name, value in entries.items() for part in (text(name), value)])
    (tmp_path / "a").write_bytes(archive(body))
    tracemalloc.start()
    assert read_tensors(tmp_path / "a").metadata == {"wide": 7, "rows": [], "step": 3}
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
