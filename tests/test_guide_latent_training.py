"""The guide of latent diffusion, "Train both": its commands are followed with few steps, and its Python builds."""

import importlib
import json
import re

import numpy as np
import pytest
from PIL import Image

from jaxdiff.cli import app
from jaxdiff.config import build
from jaxdiff.experiment import Experiment
from tests import commands, guides
from tests.test_guides import lines

SECTION, FULL = (guides.section("latent_diffusion", title) for title in ("Train both", "At full size"))
(CODE,) = guides.python(SECTION)
OF_SAMPLES = ("--config.sampling", "--config.evaluation")
CHANGES = {
    "scenes_autoencoder": [word for word in guides.SMALL if not word.startswith(OF_SAMPLES)],
    "scenes_latent": list(guides.SMALL),
}


def test_the_python_of_the_guide_builds():
    codec = build(guides.run(CODE)["codec"])
    assert codec.data_shape((24, 24, 3)) == (12, 12, 4)
    assert set(codec.frozen) == {"autoencoder", "latent_statistics"}


OF_CONFIGS = [(module, words) for module, words in lines(FULL) if "--config" in words]


@pytest.mark.parametrize(("module", "words"), OF_CONFIGS, ids=str)
def test_the_commands_at_full_size_fit_their_configs(module, words):
    flags, overrides = importlib.import_module(f"jaxdiff.{module}").parser().parse(words)
    assert isinstance(build(app.load_config(str(commands.ROOT / flags.config), overrides)), Experiment)


@pytest.mark.parametrize(
    ("config", "count"), re.findall(r"^\| `(configs/[\w.:]+)`.* \| (\d[\d,]*\d)", FULL, re.MULTILINE)
)
def test_the_table_states_the_counts_of_the_headers(config, count):
    assert count in (commands.ROOT / config.partition(":")[0]).read_text()


@pytest.mark.slow
def test_the_commands_of_the_guide_can_be_followed(tmp_path):
    guides.follow(SECTION, tmp_path, CHANGES)
    latents = json.loads((tmp_path / "runs/scenes_autoencoder/evaluation.json").read_text())["test"][
        "latents"
    ]
    assert len(latents["mean"]) == len(latents["std"]) == 4
    origins = json.loads((tmp_path / "runs/scenes_latent/frozen.json").read_text())
    assert set(origins) == {"autoencoder", "latent_statistics"}
    with Image.open(tmp_path / "latent.png") as opened:
        assert np.asarray(opened).std() > 0
