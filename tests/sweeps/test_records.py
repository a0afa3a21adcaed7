"""Records of a sweep: lines survive a process that is killed, and damage is found."""

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.sweeps.records import LINES, Records, Samples, key_of

A, B = ({"key": key, "scored": "s", "values": {"recall": 0.5}} for key in "ab")


def test_lines_come_back(tmp_path):
    records = Records(tmp_path / "new")
    records.add(A)
    records.add(B)
    assert Records(tmp_path / "new").found == {("a", "s"): A, ("b", "s"): B}


def test_a_line_that_was_cut_off_is_written_again_and_spoils_no_other(tmp_path):
    records = Records(tmp_path)
    records.add(A)
    whole = (tmp_path / LINES).read_bytes()
    records.add(B)
    both = (tmp_path / LINES).read_bytes()
    for length in range(len(whole), len(both)):
        (tmp_path / LINES).write_bytes(both[:length])
        again = Records(tmp_path)
        assert set(again.found) == {("a", "s")}
        again.add(B)
        assert (tmp_path / LINES).read_bytes() == both


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"key": "a"}', b""])
def test_a_damaged_line_is_named(tmp_path, line):
    records = Records(tmp_path)
    records.add(A)
    records.add(B)
    lines = (tmp_path / LINES).read_bytes().splitlines()
    (tmp_path / LINES).write_bytes(b"\n".join([lines[0], line, lines[1]]) + b"\n")
    with pytest.raises(UserError, match=r"sweep.jsonl='line 2': expected a JSON object of a sweep"):
        Records(tmp_path)


def test_samples_come_back_and_a_damaged_file_is_none(tmp_path):
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4, 1)
    records = Records(tmp_path)
    assert records.samples("a") is None
    records.keep("a", Samples(images, 0.25, 2))
    found = records.samples("a")
    np.testing.assert_array_equal(found.images, images)
    assert (found.seconds, found.rows) == (0.25, 2)
    file = tmp_path / "images" / "a.npz"
    whole = file.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert records.samples("a") is None


def test_a_key_does_not_depend_on_the_order_of_names():
    assert key_of({"a": 1, "b": [2.5]}) == key_of({"b": [2.5], "a": 1}) != key_of({"a": 1, "b": [2.0]})
