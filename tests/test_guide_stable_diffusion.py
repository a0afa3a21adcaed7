"""The guide of Stable Diffusion: its commands and its Python run, with tiny pipelines in place of the downloads."""

import importlib
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from jaxdiff import convert, sample
from jaxdiff.distributed import runtime
from jaxdiff.errors import UserError
from tests import pipelines
from tests.test_guides import BLOCK, ROOT, lines

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own

GUIDE = (ROOT / "docs/stable_diffusion.md").read_text()
COMMANDS = lines(GUIDE)
MAIN = {"convert": convert.main, "sample": sample.main}
DOWNLOADS = {
    "stable-diffusion-v1-5": "sd1",
    "stable-diffusion-2-1": "sd2",
    "stable-diffusion-xl-base-1.0": "xl",
    "stable-diffusion-xl-refiner-1.0": "refiner",
    "stable-diffusion-inpainting": "inpaint",
    "instruct-pix2pix": "ip2p",
    "stable-diffusion-x4-upscaler": "upscaler",
}
SINGLE_FILES = {"sd15.safetensors": "sd1", "sd21.safetensors": "sd2", "sdxl.safetensors": "xl"}
STEPS = "5"


@pytest.fixture
def at_downloads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "start", lambda: None)
    return tmp_path


def write_files(folder):
    """The files besides the pipelines that the guide names."""
    draw = np.random.default_rng(0)
    for name in ("photo", "small", "edges"):
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{name}.png")
    inside = np.zeros((32, 32), np.uint8)
    inside[8:24, 4:20] = 255
    Image.fromarray(inside).save(folder / "mask.png")
    np.save(folder / "noise.npy", draw.standard_normal((1, 16, 16, 4)).astype(np.float32))
    for seed, name in enumerate(("style", "detail", "lcm")):
        pipelines.write_lora(folder / f"{name}.safetensors", seed)
    unet = pathlib.Path("stable-diffusion-v1-5/unet/diffusion_pytorch_model.safetensors")
    shutil.copy(unet, folder / "distilled.safetensors")
    write_control_net(unet.parent, folder / "sd-controlnet-canny")


def write_control_net(unet, folder):
    """A ControlNet for the U-Net of a folder, whose latents are half as large as images."""
    import diffusers

    network = diffusers.UNet2DConditionModel.from_pretrained(unet)
    diffusers.ControlNetModel.from_unet(
        network, conditioning_embedding_out_channels=(16, 32)
    ).save_pretrained(folder)


def write_single_files():
    """Single files that say nothing about themselves, with the vocabulary that they are taken to have."""
    for name, kind in SINGLE_FILES.items():
        source = next(folder for folder, each in DOWNLOADS.items() if each == kind)
        pipelines.with_clip_vocabulary(kind, pathlib.Path(source))
        convert.main(["--from", source, "--workdir", f"exported/{kind}"])
        convert.main(["--workdir", f"exported/{kind}", "--to", name])
        save_file(load_file(name), name)


def shortened(words):
    """A command with few steps and small images."""
    small = [word.replace("384x512", "32x48").replace("[512, 512]", "[32, 32]") for word in words]
    if "--steps" in small:
        small[small.index("--steps") + 1] = STEPS
        return small
    return [*small, "--steps", STEPS]


def run(module, words):
    MAIN[module](shortened(words) if module == "sample" else words)


def test_each_command_parses_and_each_link_and_download_exists():
    for module, words in COMMANDS:
        importlib.import_module(f"jaxdiff.{module}").parser().parse(words)
    headings = {re.sub(r"\W+", "-", text.lower()) for text in re.findall(r"^#+ (.+)$", GUIDE, re.MULTILINE)}
    targets = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", GUIDE)
    assert targets
    for file, heading in targets:
        assert not file or (ROOT / "docs" / file).exists(), file
        assert file or heading in headings, heading
    sources = {words[words.index("--from") + 1] for module, words in COMMANDS if "--from" in words}
    assert sources == (DOWNLOADS.keys() - {"stable-diffusion-2-1"}) | SINGLE_FILES.keys() | {
        "distilled.safetensors"
    }


@pytest.mark.slow
def test_the_first_model_is_converted_and_sampled(at_downloads):
    pipelines.write("sd1", at_downloads / "stable-diffusion-v1-5")
    first = [(module, words) for module, words in COMMANDS if "runs/sd15" in words][:2]
    assert [module for module, _ in first] == ["convert", "sample"]
    for module, words in first:
        run(module, words)
    with Image.open("astronaut.png") as image:
        assert np.asarray(image).std() > 10
    record = json.loads(pathlib.Path("runs/sd15/frozen.json").read_text())
    assert record["network"]["from"] == "{workdir}/frozen/unet.safetensors network"
    unet = "stable-diffusion-v1-5/unet/diffusion_pytorch_model.safetensors"
    for source, fix in {unet: "--base RUN", "nowhere": "give one that exists"}.items():
        with pytest.raises(UserError, match=f"Fix: .*{fix}"):
            convert.main(["--from", source, "--workdir", "runs/other"])


@pytest.mark.slow
def test_the_guide_can_be_followed(at_downloads):
    for name, kind in DOWNLOADS.items():
        pipelines.write(kind, at_downloads / name)
    write_files(at_downloads)
    write_single_files()
    for module, words in COMMANDS:
        run(module, words)
    assert len(list(pathlib.Path("horses").glob("*.png"))) == 4
    for name, size in {"wide": (48, 32), "large": (64, 64), "refined": (32, 32)}.items():
        with Image.open(f"{name}.png") as image:
            assert image.size == size
    outside = np.asarray(Image.open("mask.png")) == 0
    for name in ("part", "completed", "replaced"):
        found, given = (np.asarray(Image.open(f"{each}.png").convert("RGB")) for each in (name, "photo"))
        np.testing.assert_array_equal(found[outside], given[outside])
        assert np.any(found[~outside] != given[~outside])
    for match in BLOCK.finditer(GUIDE):
        namespace = {}
        exec(match["code"].replace("(384, 512)", "(32, 48)"), namespace)
        assert namespace["images"].dtype == np.uint8
