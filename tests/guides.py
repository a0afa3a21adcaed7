"""Sections of the guides: their Python is run, and their commands are followed with small sizes."""

import contextlib
import pathlib
import re
from collections.abc import Mapping, Sequence

from tests import commands
from tests.test_guides import lines

SMALL = (
    "--config.steps=2", "--config.batch_size=8", "--config.checkpoint_every=2", "--config.sample_every=0",
    "--config.optimizer.schedule.warmup_steps=1", "--config.sampling.steps=2",
    "--config.data.source.split=train[:400]", "--config.test_data.source.split=novel[:64]",
    "--config.evaluation.n=16", "--config.evaluation.classifier.scenes=400",
)  # fmt: skip
"""Changes of configs/scenes_text.py and of configs that are made from it."""


def section(guide: str, title: str) -> str:
    """The text of a page of docs/ below a heading."""
    text = (commands.ROOT / f"docs/{guide}.md").read_text()
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def python(text: str) -> list[str]:
    """The Python of a section, block by block."""
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(code: str) -> dict:
    """The names that Python of a guide defines, run in the repository."""
    scope: dict = {}
    with contextlib.chdir(commands.ROOT):
        exec(code, scope)
    return scope


def follow(text: str, folder: pathlib.Path, changes: Mapping[str, Sequence[str]]) -> str:
    """Run the commands of a section in a folder, one after another, and return the output of the last.

    Args:
      text: the section. Its configs are files of configs/.
      folder: where the commands run.
      changes: further words of each command that trains, by the name of its config.
    """
    out = ""
    for module, words in lines(text):
        if module == "train":
            name = pathlib.Path(words[words.index("--config") + 1]).stem
            words = ["--config", str(commands.ROOT / f"configs/{name}.py"), *changes[name]]
        out, _ = commands.run(module, *words, devices=1, at=folder, PYTHONPATH=str(commands.ROOT))
    return out
