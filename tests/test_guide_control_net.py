"""The guide of ControlNets: its Python builds experiments, and its commands are followed with small networks."""

import contextlib
import json
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from jaxdiff.experiment import Experiment
from tests import commands

GUIDE = (commands.ROOT / "docs/fine_tuning.md").read_text()
CONTROL = GUIDE.partition("## ControlNet")[2].partition("\n## ")[0]
SHELL = "\n".join(re.findall(r"^```bash\n(.*?)^```", CONTROL, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
CODE = re.findall(r"^```python\n(.*?)^```", CONTROL, re.DOTALL | re.MULTILINE)

SMALL = (
    "--config.steps=2", "--config.batch_size=8", "--config.checkpoint_every=2", "--config.sample_every=0",
    "--config.optimizer.schedule.warmup_steps=1", "--config.sampling.steps=2",
    "--config.data.source.split=train[:400]", "--config.test_data.source.split=novel[:64]",
    "--config.evaluation.n=16", "--config.evaluation.classifier.scenes=400",
)  # fmt: skip
NETWORKS = {
    "scenes_text": ("network",),
    "scenes_sketch": ("network.network", "network.controls.sketch.network"),
}


def thin(name):
    """Overrides that make every level as wide as the first."""
    paths = [f"--config.task.denoiser.{path}.levels[{i}].width=32" for path in NETWORKS[name] for i in (1, 2)]
    return [*SMALL, *paths]


@pytest.mark.parametrize("code", CODE)
def test_the_python_of_the_guide_builds_a_controlled_run(code):
    scope = {}
    with contextlib.chdir(commands.ROOT):
        exec(code, scope)
    experiment = scope["experiment"]
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
    for line in SHELL.splitlines():
        python, _, module, *words = shlex.split(line)
        assert python == "python"
        if module == "jaxdiff.train":
            name = re.search(r"configs/(\w+)\.py", line)[1]
            words = ["--config", str(commands.ROOT / f"configs/{name}.py"), *thin(name)]
        out, _ = commands.run(
            module.removeprefix("jaxdiff."), *words, devices=1, at=tmp_path, PYTHONPATH=str(commands.ROOT)
        )
    assert "overlap of boxes (IoU)" in out
    values = json.loads((tmp_path / "runs/scenes_sketch/evaluation.json").read_text())
    for row in (*values["samples"], values["shuffled"], values["real"], values["real_shuffled"]):
        assert {"correct", "overlap"} <= row.keys()
    assert values["real"]["overlap"] > 0.85
    assert len(list((tmp_path / "sketched").glob("*.png")) or [tmp_path / "sketched.png"]) in (1, 8)
