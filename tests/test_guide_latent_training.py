"""The guide of latent diffusion, "Train both": its commands are followed with few steps, and its Python builds."""

import contextlib
import json
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from jaxdiff.config import build
from tests import commands
from tests.test_guide_control_net import SMALL

GUIDE = (commands.ROOT / "docs/latent_diffusion.md").read_text()
SECTION = GUIDE.partition("## Train both")[2].partition("\n## ")[0]
(SHELL,) = re.findall(r"^```bash\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
(CODE,) = re.findall(r"^```python\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
OF_SAMPLES = ("--config.sampling", "--config.evaluation")
CHANGES = {
    "scenes_autoencoder": [word for word in SMALL if not word.startswith(OF_SAMPLES)],
    "scenes_latent": list(SMALL),
}


def test_the_python_of_the_guide_builds():
    scope = {}
    with contextlib.chdir(commands.ROOT):
        exec(CODE, scope)
    codec = build(scope["codec"])
    assert codec.data_shape((24, 24, 3)) == (6, 6, 8)
    assert set(codec.frozen) == {"autoencoder", "latent_statistics"}


@pytest.mark.slow
def test_the_commands_of_the_guide_can_be_followed(tmp_path):
    for line in SHELL.splitlines():
        python, _, module, *words = shlex.split(line)
        assert python == "python"
        if module == "jaxdiff.train":
            name = re.search(r"configs/(\w+)\.py", line)[1]
            words = ["--config", str(commands.ROOT / f"configs/{name}.py"), *CHANGES[name]]
        commands.run(
            module.removeprefix("jaxdiff."), *words, devices=1, at=tmp_path, PYTHONPATH=str(commands.ROOT)
        )
    latents = json.loads((tmp_path / "runs/scenes_autoencoder/evaluation.json").read_text())["test"][
        "latents"
    ]
    assert len(latents["mean"]) == len(latents["std"]) == 8
    origins = json.loads((tmp_path / "runs/scenes_latent/frozen.json").read_text())
    assert set(origins) == {"autoencoder", "latent_statistics"}
    with Image.open(tmp_path / "latent.png") as opened:
        assert np.asarray(opened).std() > 0
