"""Runs trained by jaxdiff 0.1.0, before modules, classes and fields were renamed, still open and continue.

The archives hold a run's folder, samples drawn by that version, and the metrics of its next steps.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest

from jaxdiff.config import build
from jaxdiff.config.overrides import override
from jaxdiff.generation.generator import Generator
from jaxdiff.runs.workdir import read_config
from jaxdiff.train import train
from tests import commands

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


def unpacked(name, folder):
    with tarfile.open(GOLDENS / f"run_0_1_0_{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / name


def off_by_a_level(found, stored):
    """Equal up to rounding: one level, at few pixels."""
    difference = np.abs(found.astype(int) - stored)
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 0.01


def test_a_class_conditional_run_gives_the_same_samples(tmp_path):
    workdir = unpacked("digits", tmp_path)
    stored = np.load(workdir / "samples.npz")
    off_by_a_level(Generator.load(str(workdir))(label=stored["label"]), stored["images"])


@pytest.mark.slow
def test_a_text_to_image_run_gives_the_same_samples(tmp_path):
    workdir = unpacked("text", tmp_path)
    stored = np.load(workdir / "samples.npz")
    images = Generator.load(str(workdir))(text=["a red three above a green seven"] * 2)
    off_by_a_level(images, stored["images"])


@pytest.mark.slow
def test_training_continues_with_the_same_losses(tmp_path):
    """Adam's moments, two EMAs and the loss history of the time sampler are all restored."""
    workdir = unpacked("digits", tmp_path)
    config = read_config(str(workdir))
    override(config, "steps", "8")
    train(build(config), str(workdir))
    rows = {row["step"]: row for row in commands.metrics(workdir)}
    for line in (workdir / "after.jsonl").read_text().splitlines():
        expected = json.loads(line)
        assert rows[expected["step"]]["loss"] == pytest.approx(expected["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "old", "text", "new", "value"),
    [
        ("digits", "task.times.base.mean", "0.5", "task.time_sampler.base.mean", 0.5),
        ("digits", "task.denoiser.conditioner.parts.label.bias", "true",
         "task.denoiser.conditioner.conditions.label.bias", True),
        ("digits", "task.denoiser.network.eps", "0.5", "task.denoiser.network.block.eps", 0.5),
        ("digits", "task.denoiser.network.levels[1].self_attention", "false",
         "task.denoiser.network.levels[1].attention.self_attention", False),
        ("text", "task.denoiser.conditioner.parts.text.layers", "3",
         "task.denoiser.conditioner.conditions.text.encoder.layers", 3),
        ("digits", "sampling.sampler", "jaxdiff.sampling.heun:Heun", "sampling.sampler.target",
         "jaxdiff.sampling.samplers.heun:Heun"),
    ],
)  # fmt: skip
def test_old_names_work_on_the_command_line(name, old, text, new, value, tmp_path):
    config = read_config(str(unpacked(name, tmp_path)))
    override(config, old, text)
    for key in new.replace("[1]", ".1").split("."):
        config = config[int(key) if key.isdigit() else key]
    assert config == value
