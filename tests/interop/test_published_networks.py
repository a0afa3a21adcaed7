"""Networks of guided-diffusion and EDM with random weights match the authors' code."""

import functools
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.denoiser import Denoiser
from jaxdiff.interop import edm, guided_diffusion
from jaxdiff.interop.mapping import to_params, to_tensors
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import VarianceExploding, VariancePreserving
from jaxdiff.process.labels import LogSigma, StepIndex, Time
from jaxdiff.process.prediction import Edm, LearnedVariance, Noise, Score, decode
from jaxdiff.process.schedule import Linear
from jaxdiff.process.table import CosineBetas, LinearBetas, Table
from tests.selection import some

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
VE, VP = VarianceExploding(), VariancePreserving(Linear(0.1, 20.0))
WIDTH = 32
TABLE = VariancePreserving(Table(LinearBetas()))


def adm(**options):
    """The two levels of all stored networks."""
    attention = options.pop("attention", PixelAttention(head_dim=16))
    widths = options.pop("widths", (WIDTH, 2 * WIDTH))
    attends = options.pop("attends", (False, True))
    levels = tuple(
        Level(width, 1, attention if here else None) for width, here in zip(widths, attends, strict=True)
    )
    common = {"levels": levels, "out_channels": 3, "middle": ResidualMiddle(attention)}
    return UNet(**common | {"block": BlockOptions(min_group_size=1)} | options)


def song(**options):
    """DDPM++ and what NCSN++ has in common with it."""
    block = BlockOptions(
        modulation="shift",
        skip_scale=math.sqrt(0.5),
        eps=1e-6,
        project_resampled=True,
        resample_taps=options.pop("taps", (1.0, 1.0)),
    )
    attention = PixelAttention(head_dim=None, heads=1)
    return adm(**{"block": block, "attention": attention, "decoder_attention": "last"} | options)


CLASS = ClassLabel(10, 4 * WIDTH, null="zero")
SONG_CLASS = ClassLabel(10, WIDTH, null="zero", bias=True, before_mapping=True, scale=math.sqrt(10))
AUGMENT = Continuous(9, WIDTH, before_mapping=True)
NOISE = NoiseLevel(4 * WIDTH, frequencies=WIDTH // 2)
ENDPOINT = NoiseLevel(4 * WIDTH, frequencies=WIDTH // 2, endpoint=True, sine_first=True)
FOURIER = NoiseLevel(4 * WIDTH, frequencies=WIDTH, random_scale=16.0, sine_first=True)


def denoiser(network, noise, parts, process, parameterization):
    return Denoiser(network, Conditioner(noise, parts), process, parameterization)


def small_song(process, parameterization, **parts):
    """DDPM++ on images of 8 x 8 pixels with 4 classes: the network of EDM's stored runs and losses."""
    width = 16
    network = song(widths=(width, 2 * width))
    noise = NoiseLevel(4 * width, frequencies=width // 2, endpoint=True, sine_first=True)
    label = ClassLabel(4, width, null="zero", bias=True, before_mapping=True, scale=2.0)
    return denoiser(network, noise, {"label": label, **parts}, process, parameterization)


def load_small_song(model, tensors):
    return to_params(edm.entries(model.network, 8, "SongUNet"), tensors, shapes(model, 8), edm.BUFFERS)


GUIDED = {
    "gd_unet_ddpm": (
        adm(
            block=BlockOptions(min_group_size=1, modulation="shift"),
            resampling="conv",
            attention=PixelAttention(head_dim=None, heads=2),
        ),
        "H3C",
        {},
    ),
    "gd_unet_adm_legacy": (adm(out_channels=6), "H3C", {"label": CLASS}),
    "gd_unet_adm_new": (adm(out_channels=6), "3HC", {"label": CLASS}),
    "gd_superres": (
        adm(out_channels=6, attention=PixelAttention(head_dim=32)),
        "H3C",
        {"low_res": ImageCondition(3, factor=2.0)},
    ),
}


def nhwc(array):
    return jnp.asarray(array).transpose(0, 2, 3, 1)


@functools.cache
def golden(name):
    """The peer's parameters, and the other arrays of its file."""
    stored = np.load(GOLDENS / f"{name}.npz")
    params = {key.removeprefix("param/"): stored[key] for key in stored.files if key.startswith("param/")}
    return params, {key: stored[key] for key in stored.files if not key.startswith("param/")}


def shapes(model, size=16):
    """The parameters of a denoiser without their values."""
    conditioner = model.conditioner
    x, t = jnp.zeros((1, size, size, 3)), jnp.full((1,), 0.5)
    given = conditioner.example(1, (size, size, 3)), conditioner.none_dropped(1)
    boxed = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), x, t, *given)
    return nn.meta.unbox(boxed)["params"]


def close(found, expected, name=""):
    expected = np.asarray(expected)
    error = np.asarray(found, np.float64) - expected
    assert np.abs(error).max() <= 1e-4 * max(1.0, np.abs(expected).max()), (name, np.abs(error).max())
    relative = np.sqrt(np.mean(error**2) / np.mean(expected.astype(float) ** 2))
    assert relative <= 1e-5, (name, relative)


@functools.partial(jax.jit, static_argnums=(0, 5), compiler_options={"xla_backend_optimization_level": 0})
def run(model, params, x, t, given, method):
    conditioner = model.conditioner
    drop = dict.fromkeys(conditioner.conditions, jnp.full(x.shape[0], not given))
    fields = given or conditioner.example(x.shape[0], x.shape[1:])
    arguments = {"train": False} if method != "predict" else {}
    return model.apply({"params": params}, x, t, fields, drop, method=method, **arguments)


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", some(GUIDED, ("gd_unet_ddpm", "gd_unet_adm_new")))
def test_guided_diffusion(name):
    network, order, parts = GUIDED[name]
    model = denoiser(network, NOISE, parts, TABLE, Noise(label=StepIndex()))
    tensors, stored = golden(name)
    params = to_params(guided_diffusion.entries(network, order), tensors, shapes(model))
    given = {"label": stored["in/y"]} if "in/y" in stored else {}
    if "in/low_res" in stored:
        given["low_res"] = nhwc(stored["in/low_res"])
    for key in ("t0", "t5", "t999", "t_mixed", "t_frac"):
        steps = stored[f"in/{key}"] if f"in/{key}" in stored else np.full(2, int(key[1:]))
        t = (jnp.asarray(steps, jnp.float32) + 1) / 1000
        found = run(model, params, nhwc(stored["in/x"]), t, given, None)
        close(found, nhwc(stored[f"out/{key}"]), key)


VARIANTS = {
    "EDMPrecond": (VE, Edm(sigma_data=0.5)),
    "VPPrecond": (VP, Noise(label=Time(999.0))),
    "VEPrecond": (VE, Score(scaled=True, label=LogSigma(1.0, -math.log(2)))),
    "iDDPMPrecond": (
        VariancePreserving(Table(CosineBetas())),
        LearnedVariance(Noise(label=StepIndex(rounded=True))),
    ),
}
EDM_ADM = adm(attention=PixelAttention(head_dim=64), block=BlockOptions())
EDM = {
    "edm_adm": (EDM_ADM, NOISE, {"label": CLASS, "augment": AUGMENT}, "DhariwalUNet"),
    "edm_adm_iddpm": (EDM_ADM.clone(out_channels=6), NOISE, {"label": CLASS}, "DhariwalUNet"),
    "edm_song_ddpmpp": (
        song(),
        ENDPOINT,
        {"label": SONG_CLASS, "augment": AUGMENT},
        "SongUNet",
    ),
    "edm_song_ncsnpp": (
        song(
            attends=(True, False),
            input_path="residual",
            taps=(1.0, 3.0, 3.0, 1.0),
        ),
        FOURIER,
        {"augment": Continuous(9, 2 * WIDTH, before_mapping=True)},
        "SongUNet",
    ),
}


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("name", "variant"),
    some(
        [
            ("edm_adm", "EDMPrecond"),
            ("edm_adm_iddpm", "iDDPMPrecond"),
            *((name, v) for name in ("edm_song_ddpmpp", "edm_song_ncsnpp") for v in list(VARIANTS)[:3]),
        ],
        [
            ("edm_adm_iddpm", "iDDPMPrecond"),
            ("edm_song_ncsnpp", "VEPrecond"),
        ],
    ),
)
def test_edm(name, variant):
    network, noise, parts, names = EDM[name]
    process, parameterization = VARIANTS[variant]
    model = denoiser(network, noise, parts, process, parameterization)
    tensors, stored = golden(name)
    entries = list(edm.entries(network, 16, names))
    params = to_params(entries, tensors, shapes(model), edm.BUFFERS)
    sigma = jnp.asarray(stored["in/sigma"], jnp.float32)
    t = process.time(-2 * jnp.log(sigma))
    x, scaled = nhwc(stored["in/x"]), process.signal(t).alpha[:, None, None, None] * nhwc(stored["in/x"])
    stored_as = {"label": "in/class_labels", "augment": "in/augment_labels"}
    given = {part: jnp.asarray(stored[stored_as[part]], jnp.float32) for part in parts}
    seen, label = parameterization.network_input(process, scaled, t)
    close(seen, nhwc(stored[f"out/{variant}/F_in"]), "F_in")
    # The peer's VP label takes log(1 + sigma^2) in float32, which is off by 5e-4 at sigma = 0.002.
    np.testing.assert_allclose(
        label, stored[f"out/{variant}/c_noise"], rtol=2e-6, atol=1e-3 * (process is VP)
    )
    for suffix, fields in (("_null", {}), ("", given)):
        output = run(
            model, params, seen, jnp.asarray(stored[f"out/{variant}/c_noise"]), fields, network_output
        )
        close(output, nhwc(stored[f"out/{variant}/F{suffix}"]), f"F{suffix}")
        # The levels are those of the images before they are scaled: a noise and an image are what they are in VE.
        row = parameterization if variant in ("EDMPrecond", "VEPrecond") else LearnedVariance(Noise())
        output = output if variant != "VPPrecond" else jnp.concatenate([output, output], axis=-1)
        found = decode(row, VE, VE.time(-2 * jnp.log(sigma)), x, output)
        close(found.x_0, nhwc(stored[f"out/{variant}/D{suffix}"]), f"D{suffix}")
    if variant == "EDMPrecond":
        found = run(model, params, scaled, t, given, "predict")
        close(found.x_0, nhwc(stored[f"out/{variant}/D"]), "D")


PROGRESSIVE = {  # input and output path, noise embedding
    "edm_song_skip_skip": (("skip", "skip"), NoiseLevel(32, frequencies=8, endpoint=True, sine_first=True)),
    "edm_song_residual_skip": (
        ("residual", "skip"),
        NoiseLevel(32, frequencies=16, random_scale=16.0, sine_first=True),
    ),
}


def progressive(name):
    """A network on 8 x 8 pixels with three levels, an image at each of them."""
    (input_path, output_path), noise = PROGRESSIVE[name]
    network = song(
        widths=(16, 16, 32),
        attends=(False, True, False),
        taps=(1.0, 3.0, 3.0, 1.0),
        input_path=input_path,
        output_path=output_path,
    )
    return denoiser(network, noise, {}, VE, Edm())


@pytest.mark.slow
@pytest.mark.parametrize("name", some(PROGRESSIVE, ("edm_song_skip_skip",)))
def test_progressive_input_and_output(name):
    """Song et al. 2021, appendix H.1, as EDM's code has it: `encoder_type` and `decoder_type`."""
    model, (tensors, stored) = progressive(name), golden(name)
    entries = list(edm.entries(model.network, 8, "SongUNet"))
    params = to_params(entries, tensors, shapes(model, 8), edm.BUFFERS)
    found = run(
        model, params, nhwc(stored["in/x"]), jnp.asarray(stored["in/noise_labels"]), {}, network_output
    )
    close(found, nhwc(stored["out/y"]))
    trained = {key for key in tensors if key.rpartition(".")[2] not in edm.BUFFERS}
    assert set(to_tensors(entries, params)) == trained


def test_resampling_without_parameters():
    """guided-diffusion's `conv_resample=False`: means of 2 x 2 pixels and repeated pixels."""
    network = adm(widths=(WIDTH, WIDTH), resampling="plain", attention=PixelAttention(head_dim=None, heads=2))
    model = denoiser(network, NOISE, {}, TABLE, Noise(label=StepIndex()))
    tensors, stored = golden("gd_unet_plain_resampling")
    params = to_params(guided_diffusion.entries(network, "H3C"), tensors, shapes(model, 8))
    t = (jnp.asarray(stored["in/t"], jnp.float32) + 1) / 1000
    close(run(model, params, nhwc(stored["in/x"]), t, {}, None), nhwc(stored["out/y"]))


def network_output(denoiser, x, label, fields, drop, train):
    """The raw output of the network for its scaled input and the peer's exact noise label.

    Random Fourier features multiply the label by about 16 turns, so labels near 1000 (NCSN++ under VP) lose digits.
    """
    return denoiser.network(x, denoiser.conditioner(label, fields, drop), train=train)


def all_networks():
    for name, (network, order, parts) in GUIDED.items():
        yield name, network, NOISE, parts, guided_diffusion.entries(network, order)
    for name, (network, noise, parts, names) in EDM.items():
        yield name, network, noise, parts, edm.entries(network, 16, names)


@pytest.mark.parametrize("name", [*GUIDED, *EDM])
def test_no_stored_layer_has_its_initial_values(name):
    """A last convolution of zeros would hide all errors before it."""
    for key, tensor in golden(name)[0].items():
        if tensor.size > 1 and key.rpartition(".")[2] not in edm.BUFFERS:
            assert np.std(tensor) > 0.02, key


@pytest.mark.spread(1)
@pytest.mark.parametrize("case", list(all_networks()), ids=lambda case: case[0])
def test_converted_and_back_is_exact(case):
    name, network, noise, parts, entries = case
    model, entries = denoiser(network, noise, parts, VE, Edm()), list(entries)
    tensors, _ = golden(name)
    tensors = {key: x for key, x in tensors.items() if key.rpartition(".")[2] not in edm.BUFFERS}
    params = to_params(entries, tensors, shapes(model))
    back = to_tensors(entries, params)
    again = to_params(entries, back, shapes(model))
    assert set(back) == set(tensors)
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor)
    for path, ours in flatten_dict(params).items():
        np.testing.assert_array_equal(ours, flatten_dict(again)[path])
