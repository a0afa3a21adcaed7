"""The guide of unCLIP, published models: commands and Python run, with tiny models in place of the downloads."""

import re

import numpy as np
import pytest
from PIL import Image

from jaxdiff import convert, sample
from jaxdiff.distributed import runtime
from tests import unclip
from tests.test_guides import ROOT, lines

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own

GUIDE = (ROOT / "docs/unclip.md").read_text().partition("## Train the stack")[0]
COMMANDS = lines(GUIDE)
MAIN = {"convert": convert.main, "sample": sample.main}
PARSERS = {"convert": convert.parser, "sample": sample.parser}
DOWNLOADS = dict(
    zip(
        ("karlo-v1-alpha", "karlo-v1-alpha-image-variations", "stable-unclip", "stable-unclip-img2img"),
        unclip.KINDS,
        strict=True,
    )
)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
NOISE = {"prior": (5, 1, 64), "decoder": (6, 1, 16, 16, 3), "super_res": (4, 1, 32, 32, 3)}


def shortened(words):
    """A command with few steps."""
    short = [re.sub(r"(prior|decoder|super_res|image)=(25|20|7)\b", r"\1=2", word) for word in words]
    return short if "--steps" in short else [*short, "--steps", "2"]


def test_each_command_parses_and_names_a_download():
    assert len(COMMANDS) == 11
    for module, words in COMMANDS:
        flags, _ = PARSERS[module]().parse(words)
        assert module == "sample" or flags.source is None or flags.source in DOWNLOADS


@pytest.mark.slow
def test_the_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "start", lambda: None)
    random = np.random.default_rng(0)
    for name, kind in DOWNLOADS.items():
        unclip.write(kind, tmp_path / name)
    for name, shape in NOISE.items():
        np.save(f"{name}.npy", random.standard_normal(shape).astype(np.float32))
    Image.fromarray(random.integers(0, 256, (32, 48, 3), np.uint8)).save("photo.png")
    for module, words in COMMANDS:
        MAIN[module](shortened(words) if module == "sample" else words)
        if module == "sample":
            assert (tmp_path / words[words.index("--out") + 1]).exists()
    assert (tmp_path / "karlo-for-diffusers" / "model_index.json").exists()
    for code in PYTHON.findall(GUIDE):
        scope = {}
        exec(compile(code, "docs/unclip.md", "exec"), scope)
        assert scope["images"].shape == (1, 32, 32, 3)
