"""The unpickler gives the data that Python gives, without calls or imports, in bounded memory."""

import pickle
import sys
import tracemalloc

import pytest

from jaxdiff.interop.files import Unreadable
from jaxdiff.interop.torch_names import KNOWN
from jaxdiff.interop.unpickling import Budget, Inert, Name, Unpickler
from tests.interop.published import called, found, mapping, number, program, several, text


@pytest.fixture(autouse=True)
def as_users_run_it(untyped):
    """Hostile values must be refused by the unpickler, not by the type checks of the tests."""


def load(data, known=KNOWN, budget=None):
    return Unpickler(memoryview(data), known, budget=budget).load()


SHARED = ["shared"]
PLAIN = {
    "text": ["", "é", "\U0001f600" * 100, "\ud800"],
    "numbers": [0, 255, 256, 65535, 65536, -1, 2**31, -(2**63), 2**100, 0.1, float("inf")],
    "constants": (None, True, False),
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), (((1,),),)],
    "shared": [SHARED, SHARED, {"again": SHARED}],
    "many": list(range(2000)),
    5: {None: {}, -1: []},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_what_python_reads(protocol):
    read = load(pickle.dumps(PLAIN, protocol))
    assert read == PLAIN
    assert read["shared"][0] is read["shared"][1]
    assert type(read["constants"]) is tuple


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_bytes_are_views_of_the_file(protocol):
    values = [b"", b"abc", bytes(1000)] + ([bytearray(b"xyz")] if protocol == 5 else [])
    data = pickle.dumps(values, protocol)
    read = load(data)
    assert read == values
    assert all(isinstance(value, memoryview) and value.obj is data for value in read)


def test_sets_are_lists_and_old_text_is_text():
    assert load(pickle.dumps({1}, 4)) == [1]
    assert load(pickle.dumps({1}, 2)) == [1]
    assert load(pickle.dumps(frozenset([1]), 4)) == (1,)
    assert load(program(pickle.SHORT_BINSTRING + b"\x02a\xe9")) == "aé"


def test_a_list_that_holds_itself():
    holds = []
    holds.append(holds)
    read = load(pickle.dumps(holds, 2))
    assert read[0] is read


def test_an_object_is_its_name_arguments_and_state():
    """Names in the state that could mislead the reader do not become attributes."""
    state = mapping(text("make"), text("x"), text("__class__"), number(1), text("__setstate__"), number(2))
    made = load(program(called(found("argparse", "Namespace"), number(7)) + state + pickle.BUILD))
    assert isinstance(made, Inert)
    assert (made.of, made.args) == (Name("argparse", "Namespace"), (7,))
    assert made.state == {"make": "x", "__class__": 1, "__setstate__": 2}


FORBIDDEN = {
    ("os", "OrderedDict"), ("os.argparse", "Namespace"), ("os", "system"), ("posix", "system"), ("nt", "system"),
    ("builtins", "eval"), ("__builtin__", "exec"),
    ("builtins", "getattr"), ("builtins", "__import__"), ("operator", "attrgetter"), ("functools", "partial"),
    ("subprocess", "Popen"), ("pickle", "loads"), ("torch", "load"), ("torch.storage", "_load_from_bytes"),
    ("collections", "OrderedDict.__init__.__globals__"), ("collections.OrderedDict", "fromkeys"), ("", ""),
    ("torch.nn.modules.module", "Module.__setattr__"), ("jaxdiff.interop.unpickling", "Unpickler"), ("torch", ""),
    ("torch.hub", "load"), ("numpy", "load"), ("numpy.testing._private.utils", "runstring"), ("antigravity", "x"),
    ("torch.jit._script", "unpickle"), ("this", "s"), ("torch._utils", "_rebuild_tensor_v2\n"), ("a\x1b[2J", "b"),
}  # fmt: skip


@pytest.mark.parametrize(("module", "name"), sorted(FORBIDDEN))
@pytest.mark.parametrize("stacked", [True, False])
def test_a_name_that_is_not_allowed_is_refused_by_name(module, name, stacked):
    before = set(sys.modules)
    of = text(module) + text(name) + pickle.STACK_GLOBAL if stacked else found(module, name)
    with pytest.raises(Unreadable) as refused:
        load(program(called(of, text("touch /"))))
    assert stacked is False or f"{module}.{name}" in refused.value.why.encode().decode("unicode_escape")
    assert "\x1b" not in refused.value.why
    assert "\n" not in refused.value.why
    assert set(sys.modules) == before


NAME, DICT = found("torch", "float16"), called(found("collections", "OrderedDict"))
MALFORMED = {
    "a call of text": called(text("os.system"), text("x")),
    "a call of what a call gave": called(called(found("argparse", "Namespace")), text("x")),
    "a call of a dict": called(DICT, text("x")),
    "a call with a list": found("argparse", "Namespace") + pickle.EMPTY_LIST + pickle.REDUCE,
    "a class with a list": found("argparse", "Namespace") + pickle.EMPTY_LIST + pickle.NEWOBJ,
    "too many arguments": called(found("collections", "OrderedDict"), number(1)),
    "state of a name": NAME + mapping(text("make"), found("torch._utils", "_rebuild_tensor")) + pickle.BUILD,
    "state of text": text("x") + pickle.EMPTY_DICT + pickle.BUILD,
    "state of a list": pickle.EMPTY_LIST + pickle.EMPTY_DICT + pickle.BUILD,
    "a key that is a tuple": mapping(several(number(1)), number(1)),
    "a key that is a float": mapping(pickle.BINFLOAT + bytes(8), number(1)),
    "a key that is bytes": mapping(pickle.SHORT_BINBYTES + b"\x01a", number(1)),
    "a key that is a list": mapping(pickle.EMPTY_LIST, number(1)),
    "a key that is a tensor-like object": mapping(called(found("argparse", "Namespace")), number(1)),
    "a key of 65 bits": mapping(number(2**64), number(1)),
    "a key without a value": mapping(text("a")),
    "keys of a list": pickle.EMPTY_LIST + number(1) + number(1) + pickle.SETITEM,
    "keys of an object": called(found("argparse", "Namespace")) + text("a") + number(1) + pickle.SETITEM,
    "items of a dict": pickle.EMPTY_DICT + number(1) + pickle.APPEND,
    "items of text": text("a") + pickle.MARK + number(1) + pickle.APPENDS,
    "items of a name": NAME + number(1) + pickle.APPEND,
    "a name that is a number": number(1) + text("a") + pickle.STACK_GLOBAL,
    "a name without an end": pickle.GLOBAL + b"torch\n" + b"a" * 5000,
    "a name that is not text": pickle.GLOBAL + b"torch\n\xff\xfe\n",
    "more than is there": number(1) + pickle.TUPLE2,
    "a call of nothing": pickle.REDUCE,
    "state of nothing": pickle.EMPTY_DICT + pickle.BUILD,
    "no mark": number(1) + pickle.TUPLE,
    "marks without objects": pickle.MARK + pickle.POP + pickle.POP,
    "nothing at the end": pickle.MARK,
    "an empty memo": pickle.BINGET + b"\x01",
    "an empty memo, far": pickle.LONG_BINGET + b"\xff\xff\xff\xff",
    "text that is none": pickle.BINUNICODE + b"\x02\0\0\0\xff\xff",
    "a number of a kilobyte": pickle.LONG1 + b"\xff" + bytes(255),
    "a persistent id": text("x") + pickle.BINPERSID,
}
TOO_LONG = {
    "text": pickle.BINUNICODE + b"\xff\xff\xff\xff",
    "old text": pickle.BINSTRING + b"\xff\xff\xff\xff",
    "old text, negative": pickle.BINSTRING + b"\xff\xff\xff\xff",
    "bytes": pickle.BINBYTES + b"\xff\xff\xff\xff",
    "bytes of 64 bits": pickle.BINBYTES8 + b"\xff" * 8,
    "a bytearray": pickle.BYTEARRAY8 + b"\xff" * 7 + b"\x7f",
    "a frame": pickle.FRAME + b"\xff",
    "nothing": b"",
}
UNSUPPORTED = {
    "INST": pickle.MARK + b"ios\nsystem\n",
    "OBJ": pickle.MARK + found("argparse", "Namespace") + pickle.OBJ,
    "NEWOBJ_EX": found("argparse", "Namespace") + pickle.EMPTY_TUPLE + pickle.EMPTY_DICT + pickle.NEWOBJ_EX,
    "EXT1": pickle.EXT1 + b"\x01",
    "EXT4": pickle.EXT4 + b"\xff" * 4,
    "PERSID": b"Px\n",
    "LONG4": pickle.LONG4 + b"\xff\xff\xff\x7f",
    "LONG": b"L" + b"9" * 5000 + b"L\n",
    "INT": b"I" + b"9" * 5000 + b"\n",
    "UNICODE": b"Vx\n",
    "BINUNICODE8": pickle.BINUNICODE8 + b"\xff" * 8,
    "NEXT_BUFFER": pickle.NEXT_BUFFER,
    "READONLY_BUFFER": pickle.NONE + pickle.READONLY_BUFFER,
    "DUP": number(1) + pickle.DUP,
    "no operation": b"\xff",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_pickles_are_refused(case):
    with pytest.raises(Unreadable):
        load(program(MALFORMED[case]))


@pytest.mark.parametrize("case", TOO_LONG)
def test_absurd_lengths_cost_nothing(case):
    with pytest.raises(Unreadable):
        load(program(TOO_LONG[case]))
    tracemalloc.start()
    with pytest.raises(Unreadable, match="got a truncated one"):
        load(pickle.PROTO + b"\x04" + TOO_LONG[case])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_unsupported_operations_are_refused(case):
    with pytest.raises(Unreadable, match="expected operations that weights need"):
        load(program(UNSUPPORTED[case]))


GREEDY = {
    "dicts": pickle.EMPTY_DICT,
    "lists": pickle.EMPTY_LIST,
    "marks": pickle.MARK,
    "texts": pickle.SHORT_BINUNICODE + b"\x04\xf0\x9f\x98\x80",
    "numbers": pickle.BININT + b"\x00\x00\x00\x70",
    "long numbers": pickle.LONG1 + b"\x10" + b"\x70" * 16,
    "floats": pickle.BINFLOAT + bytes(8),
    "bytes": pickle.SHORT_BINBYTES + b"\x00",
    "tuples": pickle.EMPTY_TUPLE + pickle.TUPLE1,
    "nested tuples": pickle.TUPLE1,
    "memo": pickle.MEMOIZE,
    "dicts of one": pickle.EMPTY_DICT + pickle.NONE + pickle.NONE + pickle.SETITEM,
    "lists of one": pickle.EMPTY_LIST + pickle.NONE + pickle.APPEND,
    "objects": pickle.BINGET + b"\0" + pickle.EMPTY_TUPLE + pickle.REDUCE,
    "states": pickle.BINGET + b"\0" + pickle.EMPTY_TUPLE + pickle.NEWOBJ + pickle.EMPTY_DICT + pickle.BUILD,
    "ordered dicts": pickle.BINGET + b"\1" + pickle.EMPTY_TUPLE + pickle.REDUCE,
    "sets of sets": pickle.EMPTY_LIST + pickle.MARK + pickle.NONE * 8 + pickle.APPENDS,
}


@pytest.mark.spread(2)
@pytest.mark.parametrize("case", GREEDY)
def test_an_operation_allocates_less_than_200_bytes(case):
    """So a million operations, the limit of a file, stay below 200 MB."""
    start = found("argparse", "Namespace") + pickle.BINPUT + b"\0" + pickle.POP
    start += found("collections", "OrderedDict") + pickle.BINPUT + b"\1" + pickle.POP + pickle.NONE
    data, budget = program(start + GREEDY[case] * 20_000), Budget(operations=20_000)
    load(program(pickle.NONE))
    tracemalloc.start()
    machine = Unpickler(memoryview(data), KNOWN, budget=budget)
    with pytest.raises(Unreadable, match="expected a pickle of ordinary size"):
        machine.load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / 20_000 < 200


def test_the_text_of_a_file_is_limited():
    part = text("a" * 1000) + pickle.POP
    load(program(part * 9 + pickle.NONE), budget=Budget(text=10_000))
    with pytest.raises(Unreadable, match="got a larger one"):
        load(program(part * 11 + pickle.NONE), budget=Budget(text=10_000))


def test_limits_are_far_above_real_files():
    """A tensor takes about forty operations, and the largest models have a few thousand."""
    budget = Budget()
    assert (budget.operations, budget.text) == (1_000_000, 32 * 2**20)


def test_shared_tuples_of_exponential_size_are_not_traversed():
    """Sixty doublings: hashing, comparing or printing the result would not terminate."""
    doubled = pickle.EMPTY_TUPLE + (pickle.BINPUT + b"\0" + pickle.BINGET + b"\0" + pickle.TUPLE2) * 60
    assert len(load(program(doubled))) == 2
    with pytest.raises(Unreadable):
        load(program(pickle.EMPTY_DICT + doubled + pickle.NONE + pickle.SETITEM))
    with pytest.raises(Unreadable):
        load(program(called(found("torch._utils", "_rebuild_tensor"), doubled, doubled, doubled, doubled)))


def test_depth_does_not_matter():
    deep = pickle.EMPTY_TUPLE + pickle.TUPLE1 * 200_000
    for what in (deep, pickle.EMPTY_LIST * 1000 + pickle.APPEND * 999):
        del_me = load(program(what))
        assert len(del_me) == 1
