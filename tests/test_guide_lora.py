"""The guide of LoRA: its Python builds, and its commands are followed with small networks."""

import contextlib
import pathlib
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from jaxdiff.config import build
from jaxdiff.models.lora import Lora
from tests import commands
from tests.test_guide_control_net import SMALL

GUIDE = (commands.ROOT / "docs/fine_tuning.md").read_text()
SECTION = GUIDE.partition("## LoRA")[2].partition("\n## ")[0]
SHELL = "\n".join(re.findall(r"^```bash\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
(CODE,) = re.findall(r"^```python\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
THIN = [f"--config.task.denoiser.network.levels[{i}].width=32" for i in (1, 2)]
OTHERS = {  # another schedule and mixture than in configs/scenes_text.py
    "scenes_lora": [word for word in SMALL if "split" not in word]
}


def test_the_python_of_the_guide_builds():
    scope = {}
    with contextlib.chdir(commands.ROOT):
        exec(CODE, scope)
    task = build(scope["config"]).task
    assert task.lora == Lora(8, targets=("network/*",))
    assert set(task.frozen) == {"network", "conditioner"}


def test_the_table_states_every_field():
    assert set(re.findall(r"^\| `(\w+)` \|", SECTION, re.MULTILINE)) <= set(Lora.__dataclass_fields__)


@pytest.mark.slow
def test_the_commands_of_the_guide_can_be_followed(tmp_path):
    for line in SHELL.splitlines():
        python, _, module, *words = shlex.split(line)
        assert python == "python"
        if module == "jaxdiff.train":
            name = re.search(r"configs/(\w+)\.py", line)[1]
            words = ["--config", str(commands.ROOT / f"configs/{name}.py"), *OTHERS.get(name, SMALL), *THIN]
        commands.run(
            module.removeprefix("jaxdiff."), *words, devices=1, at=tmp_path, PYTHONPATH=str(commands.ROOT)
        )
    for name in ("cyan", "weaker"):
        with Image.open(tmp_path / f"{name}.png") as opened:
            assert np.asarray(opened).std() > 0
    sizes = [
        sum(file.stat().st_size for file in tree_of(tmp_path / f"runs/{name}"))
        for name in ("scenes_lora", "scenes_text")
    ]
    assert sizes[0] < sizes[1]


def tree_of(run: pathlib.Path):
    """The files of the newest checkpoint of a run."""
    return [file for file in (run / "checkpoints/2").rglob("*") if file.is_file()]
