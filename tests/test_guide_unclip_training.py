"""The guide of unCLIP, training: the stack is trained by its commands, sampled by its Python, and joined as stages."""

import contextlib
import json
import pathlib
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from jaxdiff import config as configs
from jaxdiff.errors import UserError
from jaxdiff.generation.unclip import Unclip, slerp
from jaxdiff.runs.stages import Stage, StagedRun, read_staged, write_staged
from jaxdiff.sampling.samplers.ddim import Ddim
from tests import commands

GUIDE = (commands.ROOT / "docs/unclip.md").read_text()
SECTION = GUIDE.partition("## Train the stack")[2].partition("\n## ")[0]
SHELL = "\n".join(re.findall(r"^```bash\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE))
CODE = re.findall(r"^```python\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
SMALL = ("--config.steps=2", "--config.batch_size=8", "--config.optimizer.schedule.warmup_steps=1",
         "--config.data.source.split=train[:64]", "--config.test_data.source.split=novel[:128]")  # fmt: skip
THIN = ("--config.task.denoiser.network.levels[0].width=16", "--config.task.denoiser.network.levels[1].width=32",
        "--config.sampling.steps=2")  # fmt: skip
CHANGES = {
    "scenes_text": ("--config.evaluation=None",),
    "scenes_unclip_clip": (),
    "scenes_unclip_prior": ("--config.sampling.steps=2",),
    "scenes_unclip_decoder": ("--config.sampling.steps=2",),
    "scenes_unclip_upsample": THIN,
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """The folder in which the commands of the guide were run, with fewer steps and smaller networks."""
    folder = tmp_path_factory.mktemp("guide")
    for line in filter(None, SHELL.splitlines()):
        if line.startswith("python -m jaxdiff.sample") and not (folder / "runs/scenes_unclip").exists():
            Image.fromarray(picture(0)).save(folder / "scene.png")
            np.save(
                folder / "vectors.npy", np.random.default_rng(0).standard_normal((3, 96)).astype(np.float32)
            )
            with contextlib.chdir(folder):
                exec(CODE[1], {})
        python, _, module, *words = shlex.split(line)
        assert python == "python"
        if module == "jaxdiff.train":
            config = words[words.index("--config") + 1]
            name = config.removeprefix("configs/").replace(".py:", "_").removesuffix(".py")
            words = [
                "--config",
                str(commands.ROOT / config),
                "--workdir",
                f"runs/{name}",
                *SMALL,
                *CHANGES[name],
            ]
        commands.run(
            module.removeprefix("jaxdiff."), *words, devices=1, at=folder, PYTHONPATH=str(commands.ROOT)
        )
    return folder


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (24, 24, 3)).astype(np.uint8)


@pytest.mark.slow
def test_the_guide_can_be_followed(stack, monkeypatch):
    monkeypatch.chdir(stack)
    values = json.loads(pathlib.Path("runs/scenes_unclip_clip/evaluation.json").read_text())
    assert values["test"]["retrieval"]["groups"] == 2
    counts = {
        name: len(list(pathlib.Path(name).glob("*.png"))) for name in ("scenes", "variations", "between")
    }
    assert counts == {"scenes": 4, "variations": 8, "between": 3}
    scope = {}
    exec(CODE[0], scope)
    assert (scope["images"].shape, scope["images"].dtype) == ((2, 48, 48, 3), np.uint8)
    assert (scope["again"].shape, scope["between"].shape, scope["green"].shape) == (
        (4, 48, 48, 3), (7, 48, 48, 3), (4, 48, 48, 3),
    )  # fmt: skip
    np.testing.assert_allclose(np.linalg.norm(scope["vectors"], axis=1), 1.0, rtol=1e-5)


@pytest.mark.slow
def test_images_of_one_vector_and_one_noise_are_equal_and_ends_are_those_of_the_images(stack, monkeypatch):
    monkeypatch.chdir(stack)
    unclip = Unclip.load("runs/scenes_unclip")
    a, b = picture(1), picture(2)
    vectors = unclip.image_vectors(np.stack([a, b]))
    row = unclip.interpolate(a, b, (0.0, 0.5, 1.0), seed=3)
    np.testing.assert_array_equal(row[[0, 2]], unclip.decode(vectors, seed=3, same_noise=True))
    same = unclip.interpolate(a, a, (0.0, 1.0), seed=3)
    np.testing.assert_array_equal(same[0], same[1])
    varied = unclip.variations(a, 2, seed=3)
    assert np.any(varied[0] != varied[1])  # the noise differs
    with pytest.raises(UserError, match="after='a blue one': expected a text with another embedding"):
        unclip.text_diff(a, "a blue one", "a blue one")
    for images in (a, a[None] / np.float32(255), a[None, ..., :1], a[..., 0]):
        with pytest.raises(UserError, match=r"images=.*expected uint8 \[n, height, width, 3\]"):
            unclip.image_vectors(images)
    with pytest.raises(UserError, match=r"texts='a blue one': expected a list of texts"):
        unclip.text_vectors("a blue one")
    for vectors in (np.ones(96, np.float32), np.ones((0, 96), np.float32)):
        with pytest.raises(UserError, match=r"vectors=.*: expected vectors \[n, dim\]"):
            unclip.decode(vectors)


@pytest.mark.slow
def test_a_prior_is_replaced_by_vectors_and_a_decoder_reads_texts(stack, monkeypatch):
    monkeypatch.chdir(stack)
    unclip, text = Unclip.load("runs/scenes_unclip"), "a red three above a green seven"
    found = unclip.stages.run(2, text=text, seed=5)
    assert {name: samples.shape for name, samples in found.items()} == {
        "prior": (2, 96), "decoder": (2, 24, 24, 3), "upsample": (2, 48, 48, 3),
    }  # fmt: skip
    np.testing.assert_allclose(np.linalg.norm(found["prior"], axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(unclip.decode(found["prior"], text=text, seed=5), found["upsample"])
    assert np.any(unclip.decode(found["prior"], seed=5) != found["upsample"])  # without the text
    given = unclip(2, image=picture(4), seed=5)
    np.testing.assert_array_equal(given, unclip.variations(picture(4), 2, seed=5))


def test_stages_that_do_not_exist_are_refused(tmp_path):
    staged = StagedRun(
        (Stage("prior", str(tmp_path / "prior"), gives="image"), Stage("decoder", str(tmp_path)))
    )
    with pytest.raises(UserError, match="expected the folder of a run, got none"):
        write_staged(staged, str(tmp_path / "all"))
    assert not (tmp_path / "all").exists()
    for folder in ("prior", "."):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "config.json").write_text(configs.to_json(configs.spec(Ddim)))
    write_staged(staged, str(tmp_path / "all"))
    write_staged(staged, str(tmp_path / "all"))
    assert read_staged(str(tmp_path / "all")) == staged
    with pytest.raises(UserError, match="expected a folder without another run, got a run"):
        write_staged(staged, str(tmp_path / "prior"))
    other = StagedRun((Stage("decoder", str(tmp_path)),))
    with pytest.raises(UserError, match="expected a folder without another run, got a run"):
        write_staged(other, str(tmp_path / "all"))
    assert read_staged(str(tmp_path / "all")) == staged
    with pytest.raises(UserError, match=r"stages.prior.gives='image': expected None for the last stage"):
        StagedRun(staged.stages[:1])


def test_slerp_is_on_the_great_circle():
    a, b = np.array([2.0, 0, 0]), np.array([0, 0.5, 0])
    found = slerp(a, b, (0.0, 1 / 3, 1.0))
    np.testing.assert_allclose(found, [[1, 0, 0], [3**0.5 / 2, 0.5, 0], [0, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(slerp(a, 3 * a, (0.0, 0.7)), [[1, 0, 0], [1, 0, 0]], atol=1e-6)
    tilted = np.array([np.cos(2.5), np.sin(2.5), 0])
    np.testing.assert_allclose(slerp(a, tilted, (0.4,)), [[np.cos(1.0), np.sin(1.0), 0]], atol=1e-6)
    with pytest.raises(UserError, match="expected no opposite vectors"):
        slerp(a, -a, (0.5,))
    with pytest.raises(UserError, match="expected two vectors that are not zero"):
        slerp(a, 0 * a, (0.5,))
    with pytest.raises(UserError, match=r"vectors=.*: expected two vectors of one length"):
        slerp(a, a[:2], (0.5,))
    with pytest.raises(UserError, match=r"fractions=0.5: expected a list of numbers"):
        slerp(a, b, 0.5)
