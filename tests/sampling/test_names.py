"""Samplers by name."""

import pytest

from jaxdiff.errors import UserError
from jaxdiff.sampling.names import plain, sampler_target


@pytest.mark.parametrize(
    ("word", "target"),
    [
        ("heun", "jaxdiff.sampling.samplers.heun:Heun"),
        ("RungeKutta4", "jaxdiff.sampling.samplers.adaptive:RungeKutta4"),
        ("UniPc(order=3)", "jaxdiff.sampling.samplers.unipc:UniPc(order=3)"),
        ("dpmsolver2m", "jaxdiff.sampling.samplers.dpm_solver:DpmSolver2M"),
        ("dpm_solver2m", "jaxdiff.sampling.samplers.dpm_solver:DpmSolver2M"),
        ("DPM++ 2M", "jaxdiff.sampling.samplers.dpm_solver:DpmSolver2M"),
        ("Euler-Ancestral(eta=0.5)", "jaxdiff.sampling.samplers.ddim:EulerAncestral(eta=0.5)"),
        ("my.package:Sampler", "my.package:Sampler"),
    ],
)
def test_a_sampler_is_found_by_its_name(word, target):
    assert sampler_target(word) == target


def test_an_unknown_sampler_is_reported_with_all_names():
    with pytest.raises(UserError, match="hoin") as error:
        sampler_target("hoin", ["ddim", "dpmsolver2mkarras"])
    for name in (
        "Ddim",
        "Ancestral",
        "Heun",
        "DpmSolver3M",
        "UniPc",
        "Deis",
        "Lms",
        "Pndm",
        "SaSolver",
        "Rk45",
        "dpmsolver2mkarras",
    ):
        assert name in str(error.value)
    assert "_Upwards" not in str(error.value)
    assert "ddim" not in str(error.value)  # it is a class


def test_a_name_is_the_same_with_and_without_marks():
    for name in ("dpm++ 2m karras", "DPM-Solver++ 2M Karras", "dpm_solver_2m_karras"):
        assert plain(name) == "dpmsolver2mkarras"
