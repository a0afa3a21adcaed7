"""Topologies: names, sizes and links; what is wrong is an error before anything slow is imported."""

import importlib.util
import subprocess
import sys

import pytest

from jaxdiff import plan as planning
from jaxdiff.cost import topologies
from jaxdiff.cost.chips import CHIPS
from jaxdiff.cost.topologies import KINDS, Topology
from jaxdiff.errors import UserError
from tests.commands import DIGITS


@pytest.mark.parametrize(
    ("name", "slices", "chips", "wrap"),
    [
        ("v5e:1x1", 1, 1, (False, False, False)),
        ("v5e:4x4", 1, 16, (False, False, False)),
        ("v5e:8x16", 1, 128, (False, True, False)),
        ("v6e:16x16", 2, 512, (True, True, False)),
        ("v4:2x2x1", 1, 4, (False, False, False)),
        ("v5p:2x4x4", 1, 32, (False, False, False)),
        ("v5p:8x8x16", 3, 3072, (True, True, True)),
    ],
)
def test_a_name_says_how_many_chips_there_are(name, slices, chips, wrap):
    topology = Topology.parse(name, slices)
    assert (topology.name, topology.size, topology.wrap) == (name, chips, wrap)


@pytest.mark.parametrize(
    "name",
    [
        "v5e",
        "v5e:",
        "v3:4x4",
        "v5e:4",
        "v5e:3x3",
        "v5e:4x4x4",
        "v5p:4x4",
        "v5p:3x4x4",
        "v5p:0x4x4",
        "v5e:2x-2",
        "v5e:axb",
    ],
)
def test_a_slice_that_does_not_exist_is_named_with_those_that_do(name):
    with pytest.raises(
        UserError, match=rf"^--compile='{name}': expected .*, got '{name}'. Fix: use one such as "
    ):
        Topology.parse(name)


def test_a_chip_needs_some_hundred_operations_for_each_byte_that_it_reads():
    for kind in KINDS.values():
        assert 160 < CHIPS[kind.chip].flops["bfloat16"] / kind.bandwidth < 600


def test_without_libtpu_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv(topologies.LIBRARY, raising=False)
    with pytest.raises(
        UserError, match=r"^--compile=v5e:4x4: expected libtpu.* Fix: pip install 'jaxdiff\[tpu\]'$"
    ):
        planning.main(["--config", DIGITS, "--compile", "v5e:4x4"])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--slices=2",), "--slices=2"),
        (("--quick",), "--quick=True"),
        (("--executable=step.bin",), "--executable='step.bin'"),
        (("--compile-sampler=4",), "--compile-sampler=4"),
        (("--try-fixes",), "--try-fixes=True"),
        (("--compile=v5e:2x2", "--slices=0"), "--slices=0"),
        (("--compile=v5e:2x2", "--chip=h100"), "--chip='h100'"),
        (("--compile=v5e:2x2", "--devices=4"), "--devices=4"),
    ],
)
def test_flags_that_do_not_fit_each_other_are_errors(monkeypatch, words, named):
    monkeypatch.setenv(topologies.LIBRARY, "libtpu.so")
    with pytest.raises(UserError, match="Fix: ") as error:
        planning.main(["--config", DIGITS, *words])
    assert str(error.value).startswith(named)


def test_a_wrong_topology_is_an_error_before_jax_is_imported():
    program = (
        "import sys, jaxdiff.plan as plan\n"
        "try: plan.main(['--config', 'x', '--compile', 'v5e:5x5'])\n"
        "except ValueError as error: print(str(error)[:20], 'jax' in sys.modules)"
    )
    assert (
        subprocess.check_output([sys.executable, "-c", program], text=True).strip()
        == "--compile='v5e:5x5': False"
    )
