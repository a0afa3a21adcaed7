"""The guide of fine-tuning: its commands run on a folder of images, or fit their configs."""

import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from jaxdiff import config as configs
from jaxdiff import train
from jaxdiff.cli import app
from jaxdiff.data import __main__ as data
from jaxdiff.data.buckets import Buckets
from jaxdiff.data.pipeline import Pipeline
from tests.data.clip_vocabulary import write_tokenizer
from tests.data.pixels import noise
from tests.test_guides import ROOT, lines

SHAPES = (
    (ROOT / "docs/fine_tuning.md").read_text().partition("## Data of many shapes")[2].partition("\n## ")[0]
)
COMMANDS = lines(SHAPES)


@pytest.fixture
def images(tmp_path, monkeypatch):
    """The folders that the configs name: images with captions, and the tokenizers of converted runs."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "images"
    folder.mkdir()
    for i, size in enumerate([(90, 130), (110, 110), (130, 80)]):
        Image.fromarray(noise(*size, seed=i)).save(folder / f"{i}.jpg")
        (folder / f"{i}.txt").write_text("a photograph of a horse")
    for name in ("sdxl/tokenizer", "sdxl/tokenizer_2", "sd15/tokenizer"):
        write_tokenizer(tmp_path / "runs" / name)
    return folder


@pytest.mark.parametrize("words", [words for module, words in COMMANDS if module == "data"], ids=" ".join)
def test_each_command_about_data_prints_and_draws(words, images, capsys):
    words = [*words[:1], str(ROOT / words[1]), *words[2:]]
    data.main(words)
    said = capsys.readouterr().out
    assert re.search("examples +3 in images", said)
    assert ("1 of height x width" in said) == ("squares.png" in words)
    with Image.open(words[words.index("--out") + 1]) as sheet:
        assert sheet.width > 500


@pytest.mark.parametrize("words", [words for module, words in COMMANDS if module == "train"], ids=" ".join)
def test_each_command_that_trains_reads_batches_of_the_model(words, images):
    flags, overrides = train.parser().parse(words)
    config = app.load_config(str(ROOT / flags.config), overrides)
    pipeline = configs.build(config.data)
    assert isinstance(pipeline, Pipeline)
    assert (pipeline.buckets.size,) * 2 == tuple(config.task.image_shape[:2])
    batch = next(pipeline.batches(2, 0))
    assert batch["image"].shape[1:3] in pipeline.buckets.shapes
    assert np.all(batch["target_size"] == batch["image"].shape[1:3])


def test_the_table_states_every_field_with_its_default():
    text = pathlib.Path(ROOT / "docs/fine_tuning.md").read_text()
    for name, default in configs.spec(Buckets).items():
        if name != "target":
            written = f'"{default}"' if isinstance(default, str) else default
            assert f"| `{name}` | {written} |" in text
    assert f"The default has {len(Buckets().shapes)} shapes at most" in text
