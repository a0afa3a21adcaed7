"""The guides: their commands parse and fit their configs, their Python runs, and two of them are followed in full."""

import importlib
import pathlib
import re
import shlex
import sys
import types

import numpy as np
import pytest
from PIL import Image

from jaxdiff import config as configs
from jaxdiff import sample
from jaxdiff.cli import app as command
from jaxdiff.config.overrides import override
from jaxdiff.distributed import runtime
from jaxdiff.sampling.names import sampler_target
from tests import commands

ROOT = pathlib.Path(__file__).parent.parent
NAMES = ("class_conditional", "text_to_image", "super_resolution", "image_to_image")
GUIDES = {name: (ROOT / f"docs/{name}.md").read_text() for name in NAMES}
BLOCK = re.compile(
    r"(?P<needs><!-- needs: [^\n]+ -->\n)?^```python\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)
SECTIONS = ("Train", "Sample", "Evaluate", "Your own data", "Options that matter", "Fine-tune", "Scale up")


def lines(text):
    """The commands of a guide, as (module, arguments)."""
    shell = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    found = [shlex.split(line) for line in shell.splitlines() if line.strip()]
    for words in found:
        assert words[:2] == ["python", "-m"], words
        assert words[2].startswith("jaxdiff."), words
    return [(words[2].removeprefix("jaxdiff."), words[3:]) for words in found]


LINES = [(name, *line) for name, text in GUIDES.items() for line in lines(text)]
PYTHON = [
    pytest.param(match["code"], match["needs"] is not None, id=f"{name}-{i}")
    for name, text in GUIDES.items()
    for i, match in enumerate(BLOCK.finditer(text))
]


def runs():
    """The config, with its overrides, of each run that a guide trains."""
    found = {}
    for _, module, words in LINES:
        if module == "train":
            flags, overrides = importlib.import_module("jaxdiff.train").parser().parse(words)
            file, _, variant = flags.config.partition(":")
            stem = pathlib.Path(file).stem
            workdir = flags.workdir or f"runs/{stem}{'_' + variant if variant else ''}"
            found[workdir] = (flags.config, overrides)
    return found


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", NAMES)
def test_a_guide_has_every_section_and_its_links_exist(name):
    headings = re.findall(r"^## (.+)$", GUIDES[name], re.MULTILINE)
    assert [heading for heading in headings if heading in SECTIONS] == list(SECTIONS)
    assert {module for guide, module, _ in LINES if guide == name} >= {"train", "sample", "evaluate", "plan"}
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", GUIDES[name]):
        assert (ROOT / "docs" / target).exists(), target
    for path in re.findall(r"`((?:configs|launch)/[\w.]+)`", GUIDES[name]):
        assert (ROOT / path).exists() or path == "configs/flowers.py", path


@pytest.mark.spread(5)
@pytest.mark.parametrize(
    ("name", "module", "words"), LINES, ids=lambda value: "" if isinstance(value, list) else value
)
def test_each_command_parses_and_fits_the_config_of_its_run(name, module, words):
    flags, overrides = importlib.import_module(f"jaxdiff.{module}").parser().parse(words)
    if module in ("train", "plan"):
        configs.build(command.load_config(flags.config, overrides))
        start = getattr(flags, "from_workdir", None)
        assert start is None or start in runs(), start
        return
    folders = flags.cascade.split(",") if getattr(flags, "cascade", None) else [flags.workdir]
    guiding = getattr(flags, "guiding_model", getattr(flags, "guide", None))
    guiding_folders = [] if guiding is None else [guiding.rpartition(":")[0]]
    conditions = {}
    for folder in [*folders, *guiding_folders]:
        config, training = runs()[folder]
        loaded = command.load_config(config, training)
        for path, text in overrides:
            override(loaded, path, text)
        built = configs.build(loaded)
        conditions |= dict(built.task.denoiser.conditioner.conditions)
    if module == "evaluate":
        assert built.evaluation is not None
        return
    if flags.sampler is not None:
        assert ":" in sampler_target(flags.sampler)
    for word in [*flags.image, *flags.condition, *flags.level, *flags.negative, *flags.source]:
        assert word.partition("=")[0] in conditions, word
    assert not flags.text or "text" in conditions
    assert flags.label is None or "label" in conditions
    assert flags.guidance is None or "=" in flags.guidance or float(flags.guidance) >= 0


@pytest.mark.parametrize(("code", "needs"), PYTHON)
def test_each_block_of_python_compiles_and_runs_if_it_needs_nothing(code, needs, monkeypatch):
    program = compile(code, "guide", "exec")
    exec("\n".join(re.findall(r"^(?:from|import) .+$", code, re.MULTILINE)), {})
    if not needs:
        module = types.ModuleType("guide")
        monkeypatch.setitem(sys.modules, "guide", module)
        exec(program, module.__dict__)


SMALL = (
    "--config.task.denoiser.network.levels[0].width=16",
    "--config.task.denoiser.network.levels[0].blocks=1",
    "--config.task.denoiser.network.levels[1].width=32",
    "--config.batch_size=4",
    "--config.steps=3",
    "--config.optimizer.schedule.warmup_steps=1",
    "--config.sample_every=0",
    "--config.sampling.steps=2",
    "--config.data.source.split=train[:8]",
)


def save_random(path, size, seed=0, alpha=None, levels=(0, 256)):
    pixels = np.random.default_rng(seed).integers(*levels, (size, size, 3), np.uint8)
    if alpha is not None:
        pixels = np.dstack([pixels, np.where(alpha, 255, 0).astype(np.uint8)])
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """Follows the sections "Train", which ends with an evaluation, and "Sample" of a guide, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "start", lambda: None)

    def follow(name, *changes):
        parts = re.split(r"^## (.+)$", GUIDES[name], flags=re.MULTILINE)
        sections = dict(zip(parts[1::2], parts[2::2], strict=True))
        ((_, words),) = lines(sections["Train"])
        config, workdir = str(ROOT / words[1]), f"{tmp_path}/runs/{pathlib.Path(words[1]).stem}"
        commands.run("train", "--config", config, "--workdir", workdir, *SMALL, *changes, devices=1)
        for _, words in lines(sections["Sample"]):
            sample.main(words)

    return tmp_path, follow


def opened(path):
    with Image.open(path) as found:
        return np.asarray(found)


def shapes(folder):
    return [opened(path).shape for path in sorted(folder.glob("*.png"))]


@pytest.mark.slow
def test_the_guide_of_super_resolution_can_be_followed(followed):
    folder, follow = followed
    for name in ("small", "other", "rough"):
        save_random(folder / f"{name}.png", 16, len(name), levels=(100, 150))
    (folder / "many.jsonl").write_text('{"low_res": "small.png"}\n{"low_res": "other.png"}\n')
    follow("super_resolution", "--config.evaluation.n=4", "--config.test_data.source.split=test[:4]")
    assert shapes(folder / "several") == [(64, 64, 3)] * 8
    assert shapes(folder / "many") == [(64, 64, 3)] * 2
    with np.load(folder / "both.npz") as file:
        found = dict(file)
    assert found["images"].shape == (2, 64, 64, 3)
    blocks = found["images"].reshape(2, 16, 4, 16, 4, 3)
    inner = ((blocks > 0) & (blocks < 255)).all(axis=(2, 4))  # other pixels were clipped
    assert inner.mean() > 0.05
    assert np.abs(blocks.mean(axis=(2, 4)) - found["low_res"])[inner].max() <= 0.5
    assert opened(folder / "cleaned.png").shape == (64, 64, 3)
    assert (folder / "runs/photos_sr/evaluation.png").exists()


@pytest.mark.slow
def test_the_guide_of_image_to_image_can_be_followed(followed):
    folder, follow = followed
    inside = np.zeros((32, 32), bool)
    inside[8:24, 8:24] = True
    for name in ("grey", "sketch", "photo"):
        pixels = save_random(folder / f"{name}.png", 32, len(name))
    save_random(folder / "holes.png", 32, alpha=~inside)
    middle = save_random(folder / "middle.png", 32, alpha=inside)
    Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)).save(folder / "mask.png")
    (folder / "many.jsonl").write_text(
        '{"source": "holes.png", "task": 1}\n{"source": "sketch.png", "task": 3}\n'
    )
    follow("image_to_image", "--config.evaluation.n=16", "--config.test_data.source.split=test[:32]")
    masked = opened(folder / "masked.png")
    np.testing.assert_array_equal(masked[~inside], pixels[~inside])
    assert np.any(masked[inside] != pixels[inside])
    wider = opened(folder / "wider.png")
    np.testing.assert_array_equal(wider[inside], middle[inside][:, :3])
    assert shapes(folder / "many") == [(32, 32, 3)] * 2
    assert (folder / "runs/photos_palette/evaluation.png").exists()
