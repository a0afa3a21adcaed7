"""Trained factors of Stable Diffusion as LoRA files: diffusers loads them, and makes the same images."""

import copy
import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxdiff.codecs.latent import NAME
from jaxdiff.generation.generator import Generator
from jaxdiff.interop import published
from jaxdiff.interop.lora.trained import adapters_of
from jaxdiff.interop.lora.writing import write_lora
from jaxdiff.interop.stable_diffusion_export import Exported
from jaxdiff.interop.stable_diffusion_lora import networks_of
from jaxdiff.models.lora import Lora, by_kernel
from jaxdiff.runs.published import convert
from tests import pipelines
from tests.pipelines import as_torch, check_images

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # the peer's own warnings

NOISE = np.random.default_rng(0).standard_normal((1, 16, 16, 4)).astype(np.float32)
TEXT = "a photo of a horse"


def random_factors(lora, model):
    """Factors for all targets of a model, small enough that images stay images."""
    denoiser, shape = model.denoiser, model.data_shape
    conditioner = denoiser.conditioner

    def init():
        x, t = jnp.zeros((1, *shape)), jnp.full((1,), 0.5)
        fields, drops = conditioner.example(1, shape), conditioner.none_dropped(1)
        return denoiser.init(jax.random.key(0), x, t, fields, drops, train=False)["params"]

    shapes = jax.eval_shape(lambda: lora.init(jax.eval_shape(init), jax.random.key(0)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32), shapes)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_images_of_a_lora_are_those_of_diffusers(kind, layout, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = pipelines.write(kind, tmp_path / "published")
    convert(published.find(folder), str(tmp_path / "run"))
    model = Generator.load(str(tmp_path / "run"), sampler="ddim", overrides=[("sampling.steps", "3")])
    lora = Lora(2, alpha=3.0, targets=("network/*transformer*",))
    factors = random_factors(lora, model)
    exported = Exported(model.denoiser, model.codec, model.params, model.frozen[NAME])
    kernels = flatten_dict(model.params, sep="/")
    adapters = {
        name: adapters_of(lora, by_kernel(factors), kernels, entries)
        for name, (_, entries) in networks_of(exported).items()
    }
    file = tmp_path / "lora.safetensors"
    write_lora(file, adapters, layout)
    changed = dataclasses.replace(model, params=lora.merged(model.params, factors))

    pipe = copy.deepcopy(
        pipelines.pipeline(kind, folder, "DDIMScheduler")
    )  # its networks are shared by tests
    pipe.load_lora_weights(str(tmp_path), weight_name=file.name)
    options = {
        "num_inference_steps": 3,
        "guidance_scale": 5.0,
        "height": 32,
        "width": 32,
        "output_type": "np",
    }
    expected = pipe(TEXT, negative_prompt="", latents=as_torch(NOISE), **options).images
    given = {
        "text": [TEXT],
        "negative": {"text": ""},
        "guidance": 5.0,
        "noise": NOISE,
        "image_size": (32, 32),
    }
    found = changed(**given)
    assert np.mean(found != model(**given)) > 0.5
    check_images(found, expected)
