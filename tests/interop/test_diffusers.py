"""Conversions from and to diffusers' `UNet2DModel`, compared with diffusers itself."""

import functools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.config import build, describe
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError
from jaxdiff.interop import diffusers as layout
from jaxdiff.interop.mapping import to_params, to_tensors
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.interface import BlockOptions
from jaxdiff.models.pixel_attention import PixelAttention
from jaxdiff.models.spatial_transformer import SpatialTransformer
from jaxdiff.models.transformer import TransformerMiddle
from jaxdiff.models.unet import Level, UNet
from jaxdiff.process.gaussian import VariancePreserving
from jaxdiff.process.prediction import LearnedVariance, Noise, V
from jaxdiff.process.table import CosineBetas, Table
from tests.selection import some

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SMALL = {"sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
LAYOUTS = {
    "ddpm": SMALL | {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
        "norm_eps": 1e-6,
    },
    "adm": SMALL | {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"), "downsample_type": "resnet",
        "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8,
        "num_class_embeds": 5, "out_channels": 6,
    },
    "three_levels": SMALL | {
        "block_out_channels": (16, 24, 32), "layers_per_block": 2, "norm_num_groups": 4, "attention_head_dim": 12,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "add_attention": False,
    },
    "attention_everywhere": SMALL | {
        "down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2,
        "downsample_type": "resnet", "upsample_type": "resnet", "norm_eps": 1e-3,
    },
    "one_channel": SMALL | {
        "in_channels": 1, "out_channels": 1, "time_embedding_dim": 48, "block_out_channels": (16, 16),
        "down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8, "add_attention": False,
    },
}  # fmt: skip


@functools.cache
def peer(name):
    """A network of diffusers with random parameters."""
    model = diffusers.UNet2DModel(**LAYOUTS[name]).eval()
    generator = torch.Generator().manual_seed(0)
    for key, value in model.named_parameters():
        gain = "norm" in key and key.endswith("weight")
        drawn = torch.randn(value.shape, generator=generator)
        value.data = 1 + 0.1 * drawn if gain else 0.08 * drawn
    return model


def shapes(denoiser, channels):
    x, t = jnp.zeros((1, 16, 16, channels)), jnp.full((1,), 0.5)
    given = denoiser.conditioner.example(1, (16, 16, channels)), denoiser.conditioner.none_dropped(1)
    boxed = jax.eval_shape(functools.partial(denoiser.init, train=False), jax.random.key(0), x, t, *given)
    return nn.meta.unbox(boxed)["params"]


def numbers(model):
    return {key: value.detach().numpy() for key, value in model.state_dict().items()}


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", some(LAYOUTS, ("ddpm", "adm")))
def test_the_same_network(name):
    model = peer(name)
    ours = layout.denoiser(model.config)
    channels = model.config.in_channels
    params = to_params(layout.entries(ours.network), numbers(model), shapes(ours, channels))
    rng = np.random.default_rng(1)
    x, steps = rng.normal(size=(3, 16, 16, channels)).astype(np.float32), np.array([0, 17, 999])
    labels = np.array([4, 0, 2]) if "label" in ours.conditioner.conditions else None
    with torch.no_grad():
        classes = None if labels is None else torch.tensor(labels)
        given = torch.tensor(x.transpose(0, 3, 1, 2))
        expected = (
            model(given, torch.tensor(steps), class_labels=classes).sample.numpy().transpose(0, 2, 3, 1)
        )
    fields = {} if labels is None else {"label": labels}
    drop = ours.conditioner.none_dropped(3)
    t = (jnp.asarray(steps, jnp.float32) + 1) / 1000
    found = jax.jit(functools.partial(ours.apply, train=False))({"params": params}, x, t, fields, drop)
    error = np.asarray(found, float) - expected
    assert np.abs(error).max() <= 1e-4
    assert np.sqrt(np.mean(error**2) / np.mean(expected.astype(float) ** 2)) <= 1e-5


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", LAYOUTS)
def test_converting_back_gives_the_same_tensors(name):
    """The config and every tensor come back, so that diffusers opens what we write."""
    model = peer(name)
    ours = layout.denoiser(model.config)
    params = to_params(layout.entries(ours.network), numbers(model), shapes(ours, model.config.in_channels))
    again = diffusers.UNet2DModel.from_config(layout.model_config(ours, 16))
    tensors = to_tensors(layout.entries(ours.network), params)
    again.load_state_dict({key: torch.tensor(value) for key, value in tensors.items()})
    for key, value in numbers(model).items():
        np.testing.assert_array_equal(again.state_dict()[key].numpy(), value)
    assert layout.denoiser(layout.model_config(ours, 16)) == ours
    assert build(describe(ours)) == ours


def test_the_scheduler_sets_parameterization_and_schedule():
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=500,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    found = layout.denoiser(peer("ddpm").config, scheduler.config)
    assert found.process == VariancePreserving(Table(CosineBetas(500), zero_terminal_snr=True))
    assert isinstance(found.parameterization, V)
    t = jnp.asarray([1, 250, 500]) / 500
    expected = scheduler.alphas_cumprod.numpy()[[0, 249, 499]]
    np.testing.assert_allclose(found.process.signal(t).alpha ** 2, expected, atol=2e-6)
    both = layout.denoiser(peer("adm").config, diffusers.DDPMScheduler().config)
    assert isinstance(both.parameterization, LearnedVariance)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"down_block_types": ("SkipDownBlock2D", "AttnDownBlock2D")}, "down_block_types='SkipDownBlock2D'"),
        ({"up_block_types": ("UpBlock2D", "AttnUpBlock2D")}, "up_block_types=.*attention at the levels"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor=1.4"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ({"attn_norm_num_groups": 2}, "attn_norm_num_groups=2"),
        ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups=None"),
        (
            {"down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D")},
            "down_block_types=.*one kind of resampling",
        ),
    ],
)
def test_other_networks_are_refused(changed, message):
    with pytest.raises(UserError, match=message):
        layout.denoiser(LAYOUTS["ddpm"] | changed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": BlockOptions(min_group_size=1, skip_scale=0.7)}, "skip_scale=0.7"),
        ({"input_path": "residual"}, "input_path=residual"),
        ({"output_path": "skip"}, "output_path=skip"),
        ({"resampling": "plain"}, "resampling=plain"),
        ({"middle": TransformerMiddle(32, 1, head_dim=32)}, "middle=TransformerMiddle"),
        ({"middle": ResidualMiddle(PixelAttention(head_dim=16))}, r"middle\.attention=PixelAttention"),
        (
            {"middle": ResidualMiddle(SpatialTransformer(heads=1, head_dim=None))},
            r"middle\.attention=Spatial",
        ),
        ({"levels": (Level(32, 1), Level(32, 2))}, r"levels\[1\].blocks=2"),
        ({"levels": (Level(32, 1), Level(32, 1, PixelAttention(True, True)))}, "cross_attention"),
        ({"block": BlockOptions()}, "min_group_size=4"),
    ],
)
def test_options_without_an_equivalent_are_refused(options, message):
    network = UNet(
        **{
            "levels": (Level(32, 1, PixelAttention()), Level(32, 1)),
            "out_channels": 3,
            "block": BlockOptions(min_group_size=1),
        }
        | options
    )
    conditioner = Conditioner(NoiseLevel(128, frequencies=16))
    model = Denoiser(network, conditioner, VariancePreserving(Table(CosineBetas())), Noise())
    with pytest.raises(UserError, match=message):
        layout.model_config(model, 16)
