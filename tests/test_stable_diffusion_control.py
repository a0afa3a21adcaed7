"""A ControlNet trained on a converted Stable Diffusion: the model stays as it is, and diffusers opens the export."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from jaxdiff import convert
from jaxdiff.conditioning.control import ControlImage
from jaxdiff.config import build, spec
from jaxdiff.data.conditions import Degrade
from jaxdiff.data.degradations import Edges
from jaxdiff.errors import UserError
from jaxdiff.generation.controls import with_control_net
from jaxdiff.generation.generator import Generator
from jaxdiff.models.control_net import Controlled, ControlNet
from jaxdiff.runs.workdir import read_config
from jaxdiff.train import train
from jaxdiff.training.transfer import InitFrom
from jaxdiff.trees import paths

pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests import pipelines  # noqa: E402

pytestmark = pytest.mark.slow

CONTROL = "network/controls_edges"
TEXT = "a red three"
IMAGE = np.random.default_rng(3).integers(0, 256, (1, 32, 32, 3), np.uint8)


def controlled(run, images, steps=2):
    """The config of a run on a converted one, with a ControlNet that reads edges."""
    config = read_config(run)
    task, denoiser = config.task, config.task.denoiser
    task.pretrained = {"conditioner/parts_text": task.pretrained["conditioner/parts_text"]}
    control = spec(
        ControlNet, network=denoiser.network, noise=denoiser.conditioner.noise, hint_widths=(8, 16)
    )
    denoiser.network = spec(Controlled, network=denoiser.network, controls={"edges": control})
    denoiser.conditioner.conditions.edges = spec(ControlImage, channels=3, factor=0.5, control="edges")
    config.init_from, config.optimizer.frozen = spec(InitFrom, workdir=run), ("*", f"!{CONTROL}")
    config.optimizer.learning_rate = 1e-3
    config.data.source.path, config.data.source.size = str(images), 32
    edges = spec(Degrade, field="edges", degradation=spec(Edges, channels=3))
    config.data.conditions = (*config.data.conditions, edges)
    config.steps, config.batch_size, config.checkpoint_every, config.log_every = steps, 8, 2, 1
    return config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of a pipeline, of the run that it is converted to, of images with captions, and of a trained run."""
    folder = tmp_path_factory.mktemp("control")
    pipelines.write("sd1", folder / "sd1")
    convert.main(["--from", str(folder / "sd1"), "--workdir", str(folder / "base")])
    (folder / "images").mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / f"images/{i}.png")
        (folder / f"images/{i}.txt").write_text(TEXT)
    train(build(controlled(str(folder / "base"), folder / "images")), str(folder / "run"))
    return folder


def test_the_model_stays_as_it_is_and_is_the_base_without_scale(made):
    base, run = Generator.load(str(made / "base")), Generator.load(str(made / "run"))
    after = paths(run.params)
    for path, array in paths(base.params).items():
        np.testing.assert_array_equal(after[path], array)
    given = {"text": TEXT, "seed": 1}
    scale = ("task.denoiser.conditioner.conditions.edges.scale", "0.0")
    off = Generator.load(str(made / "run"), overrides=[scale])
    np.testing.assert_array_equal(off(**given, edges=IMAGE), base(**given))
    assert np.any(run(**given, edges=IMAGE) != base(**given))


def test_what_is_exported_is_opened_by_diffusers_and_read_back_bit_for_bit(made):
    words = ["--workdir", str(made / "run"), "--to"]
    convert.main([*words, str(made / "edges")])
    convert.main([*words, str(made / "edges.safetensors")])
    opened, info = diffusers.ControlNetModel.from_pretrained(made / "edges", output_loading_info=True)
    assert not any(info.values())
    tensors = load_file(made / "edges/diffusion_pytorch_model.safetensors")
    assert {name: list(value.shape) for name, value in opened.state_dict().items()} == {
        name: list(value.shape) for name, value in tensors.items()
    }
    config = json.loads((made / "edges/config.json").read_text())
    assert {*config} - {"_class_name"} <= {*opened.config}
    run = Generator.load(str(made / "run"))
    for file in ("edges", "edges.safetensors"):
        again = with_control_net(Generator.load(str(made / "base")), "edges", made / file)
        assert again.denoiser == run.denoiser
        for path, array in paths(run.params).items():
            np.testing.assert_array_equal(paths(again.params)[path], array)


def test_diffusers_computes_the_same_residuals(made):
    """With one step and without guidance, both predict the same noise."""
    convert.main(["--workdir", str(made / "run"), "--to", str(made / "again")])
    control = diffusers.ControlNetModel.from_pretrained(made / "again")
    base = pipelines.pipeline("sd1", made / "sd1", "DDIMScheduler")
    pipe = diffusers.StableDiffusionControlNetPipeline(**base.components, controlnet=control)
    noise = np.random.default_rng(4).standard_normal((1, 16, 16, 4)).astype(np.float32)
    expected = pipe(
        TEXT, image=Image.fromarray(IMAGE[0]), guidance_scale=5.0, latents=pipelines.as_torch(noise),
        num_inference_steps=4, output_type="np",
    ).images  # fmt: skip
    run = Generator.load(str(made / "run"), sampler="ddim", overrides=[("sampling.steps", "4")])
    pipelines.check_images(run(text=TEXT, guidance=5.0, noise=noise, edges=IMAGE), expected)


def test_a_run_that_trains_more_is_not_exported_as_a_control_net(made, tmp_path):
    config = controlled(str(made / "base"), made / "images", steps=1)
    config.optimizer.frozen = ("*", f"!{CONTROL}", "!network/head")
    train(build(config), str(tmp_path / "run"))
    with pytest.raises(UserError, match="trains its ControlNet alone, got one that trains network/head"):
        convert.main(["--workdir", str(tmp_path / "run"), "--to", str(tmp_path / "edges")])
