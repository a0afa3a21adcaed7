"""The guide of latent diffusion, section "Cache": its commands, with a small model in place of Stable Diffusion."""

import re

import pytest

from jaxdiff import cache, train
from jaxdiff.cli import app
from jaxdiff.config import build
from jaxdiff.distributed import runtime
from tests.caching.model import write_files
from tests.commands import metrics
from tests.test_guides import ROOT, lines

PAGE = (ROOT / "docs/latent_diffusion.md").read_text()
CACHE = next(part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE) if part.startswith("Cache\n"))
MAIN = {"cache": cache, "train": train}
CONFIG = """
import pathlib

from tests.caching.model import a_config


def get_config(variant):
    return a_config(pathlib.Path(__file__).parent)
"""
NAMED = "configs/stable_diffusion.py"


@pytest.mark.parametrize(("name", "words"), lines(CACHE), ids=str)
def test_each_command_fits_its_config(name, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags, overrides = MAIN[name].parser().parse(words)
    assert build(app.load_config(flags.config, overrides)).task.pretrained


@pytest.mark.slow
def test_the_commands_make_a_cache_and_train_from_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "start", lambda: None)
    write_files(tmp_path)
    (tmp_path / "config.py").write_text(CONFIG)
    for name, words in lines(CACHE):
        MAIN[name].main([word.replace(NAMED, "config.py") for word in words])
    assert "train with --config.data.encoded=caches/sd15" in capsys.readouterr().out
    assert len(metrics(tmp_path / "runs" / "config_sd15")) == 3
