"""The guide of ControlNets: its Python builds experiments, and its commands are followed with small networks."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxdiff.experiment import Experiment
from tests import guides

CONTROL = guides.section("fine_tuning", "ControlNet")
NETWORKS = {
    "scenes_text": ("network",),
    "scenes_sketch": ("network.network", "network.controls.sketch.network"),
}


def thin(name):
    """Overrides that make every level as wide as the first."""
    paths = [f"--config.task.denoiser.{path}.levels[{i}].width=32" for path in NETWORKS[name] for i in (1, 2)]
    return [*guides.SMALL, *paths]


@pytest.mark.parametrize("code", guides.python(CONTROL))
def test_the_python_of_the_guide_builds_a_controlled_run(code):
    experiment = guides.run(code)["experiment"]
    assert isinstance(experiment, Experiment)
    network, conditioner = experiment.task.denoiser.network, experiment.task.denoiser.conditioner
    shape = conditioner.conditions["edges"].image_shape(experiment.task.data_shape)
    assert shape[:2] == experiment.task.image_shape[:2]
    assert shape[0] == experiment.task.data_shape[0] * network.controls["edges"].factor


@pytest.mark.slow
def test_the_commands_of_the_guide_can_be_followed(tmp_path):
    sketch = np.zeros((24, 24), np.uint8)
    sketch[4:9, 4:9] = sketch[14:19, 4:9] = 255
    Image.fromarray(sketch).save(tmp_path / "sketch.png")
    out = guides.follow(CONTROL, tmp_path, {name: thin(name) for name in NETWORKS})
    assert "overlap of boxes (IoU)" in out
    values = json.loads((tmp_path / "runs/scenes_sketch/evaluation.json").read_text())
    for row in (*values["samples"], values["shuffled"], values["real"], values["real_shuffled"]):
        assert {"correct", "overlap"} <= row.keys()
    assert values["real"]["overlap"] > 0.85
    assert len(list((tmp_path / "sketched").glob("*.png")) or [tmp_path / "sketched.png"]) in (1, 8)
