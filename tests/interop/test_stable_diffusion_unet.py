"""U-Nets of Stable Diffusion, compared with diffusers' `UNet2DConditionModel` and its conversion of single files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.interop.mapping import to_params, to_tensors
from jaxdiff.interop.stable_diffusion_unet import entries
from jaxdiff.interop.stable_diffusion_unet_config import unet_layout
from jaxdiff.interop.stable_diffusion_unet_export import layout_of, unet_config
from tests.interop.stable_diffusion_unets import (
    ORIGINAL,
    PATHS,
    TINY,
    denoiser_of,
    draw,
    numbers,
    peer,
    shapes,
)
from tests.selection import some

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

QUICK = {"xla_backend_optimization_level": 0}
STEPS = np.array([3, 700])


@functools.cache
def loaded(name):
    """A layout, its denoiser and its parameters."""
    layout = unet_layout(dict(peer(name).config))
    denoiser = denoiser_of(layout)
    return layout, denoiser, to_params(entries(layout, **PATHS), numbers(peer(name)), shapes(denoiser))


def inputs(name):
    """Noisy latents that are not square, and values of all conditions."""
    layout, denoiser, _ = loaded(name)
    latents, text = draw(2, 8, 16, 4), {"tokens": draw(2, 5, layout.context_width, seed=1)}
    if layout.in_channels > 4:
        text["spatial"] = draw(2, 8, 16, layout.in_channels - 4, seed=2)
    if layout.mapping:
        text["vector"] = draw(2, 10, seed=3)
    values = {
        "text": text, "original_size": np.array([[1024.0, 768.0], [500.0, 333.0]]),
        "crop": np.array([[0.0, 64.0], [7.0, 0.0]]), "target_size": np.array([[1024.0, 1024.0], [512.0, 900.0]]),
        "aesthetic_score": np.array([6.0, 2.5]), "level": np.array([19, 4]), "scale": draw(2, 6, seed=4),
    }  # fmt: skip
    return latents, {key: values[key] for key in denoiser.conditioner.conditions}


def theirs(name, latents, fields):
    """The output of diffusers."""
    text = {key: torch.tensor(value) for key, value in fields["text"].items()}
    x = torch.tensor(np.concatenate([latents, fields["text"].get("spatial", latents[..., :0])], axis=-1))
    given = {}
    if "original_size" in fields:
        sizes = [fields[key].reshape(2, -1) for key in fields if key not in ("text", "level", "scale")]
        given["added_cond_kwargs"] = {
            "text_embeds": text["vector"], "time_ids": torch.tensor(np.concatenate(sizes, axis=1)),
        }  # fmt: skip
    elif "vector" in text:
        given["class_labels"] = text["vector"]
    if "level" in fields:
        given["class_labels"] = torch.tensor(fields["level"])
    if "scale" in fields:
        given["timestep_cond"] = torch.tensor(fields["scale"])
    with torch.no_grad():
        found = peer(name)(x.permute(0, 3, 1, 2), torch.tensor(STEPS), text["tokens"], **given).sample
    return found.permute(0, 2, 3, 1).numpy()


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", some(TINY, ("sd1", "sdxl")))
def test_the_same_network(name):
    """The noise level and the mapped vectors are a part of it."""
    _, denoiser, params = loaded(name)
    latents, fields = inputs(name)
    order = {key: fields[key] for key in (*denoiser.conditioner.concatenated, *fields)}
    expected = theirs(name, latents, order)
    run = jax.jit(functools.partial(denoiser.apply, train=False), compiler_options=QUICK)
    t, drop = (jnp.asarray(STEPS, jnp.float32) + 1) / 1000, denoiser.conditioner.none_dropped(2)
    error = np.asarray(run({"params": params}, latents, t, fields, drop), float) - expected
    assert np.abs(error).max() <= 1e-4 * np.abs(expected).max()
    assert np.sqrt(np.mean(error**2) / np.mean(expected.astype(float) ** 2)) <= 1e-5


@pytest.mark.parametrize("name", some(TINY, ("sdxl",)))
def test_what_we_write_diffusers_opens(name):
    """The config, and every tensor bit for bit, from the denoiser and the parameters of a run alone."""
    layout, denoiser, params = loaded(name)
    found = layout_of(denoiser, params, **PATHS)
    assert found == layout
    config = unet_config(found, 8)
    assert unet_layout(config) == layout
    again = diffusers.UNet2DConditionModel.from_config(config)
    tensors = to_tensors(entries(found, **PATHS), params)
    again.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()}, strict=True)
    for key, value in numbers(peer(name)).items():
        np.testing.assert_array_equal(tensors[key], value)


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", some(ORIGINAL, ("sd1", "sd2", "sdxl")))
def test_original_names_are_those_that_diffusers_converts(name):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    layout, denoiser, params = loaded(name)
    original = to_tensors(entries(layout, "original", **PATHS), params)
    prefixed = {f"model.diffusion_model.{key}": value for key, value in original.items()}
    converted = convert_ldm_unet_checkpoint(prefixed, config=dict(peer(name).config))
    expected = numbers(peer(name))
    assert converted.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(converted[key], value)
    back = to_params(entries(layout, "original", **PATHS), original, shapes(denoiser))
    jax.tree.map(np.testing.assert_array_equal, back, params)
