"""The guide of LoRA: its Python builds, and its commands are followed with small networks."""

import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from jaxdiff.config import build
from jaxdiff.models.lora import Lora
from tests import guides

SECTION = guides.section("fine_tuning", "LoRA")
(CODE,) = guides.python(SECTION)
THIN = [f"--config.task.denoiser.network.levels[{i}].width=32" for i in (1, 2)]
CHANGES = {
    "scenes_text": [*guides.SMALL, *THIN],
    # Another schedule and mixture than in configs/scenes_text.py.
    "scenes_lora": [*(word for word in guides.SMALL if "split" not in word), *THIN],
}


def test_the_python_of_the_guide_builds():
    task = build(guides.run(CODE)["config"]).task
    assert task.lora == Lora(8, targets=("network/*",))
    assert set(task.frozen) == {"network", "conditioner"}


def test_the_table_states_every_field():
    assert set(re.findall(r"^\| `(\w+)` \|", SECTION, re.MULTILINE)) <= set(Lora.__dataclass_fields__)


@pytest.mark.slow
def test_the_commands_of_the_guide_can_be_followed(tmp_path):
    guides.follow(SECTION, tmp_path, CHANGES)
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
