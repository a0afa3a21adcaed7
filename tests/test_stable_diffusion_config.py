"""configs/stable_diffusion.py is the published models in size and structure, and is planned without their files."""

import dataclasses
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import config as configs
from jaxdiff.codecs.latent import NAME
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.cost.chips import CHIPS
from jaxdiff.cost.estimate import estimate
from jaxdiff.distributed.mesh import MeshShape
from jaxdiff.interop import schedulers
from jaxdiff.interop.stable_diffusion import FAMILIES
from jaxdiff.interop.stable_diffusion_conditions import extra_conditions
from jaxdiff.interop.stable_diffusion_unet_config import unet_layout
from jaxdiff.models.autoencoder_kl import AutoencoderKL
from jaxdiff.tasks import pretrained
from jaxdiff.training.state import abstract_params, abstract_state
from jaxdiff.training.step import Frozen, jit_train_step, make_train_step
from tests.selection import some
from tests.test_configs import placed

FILE = pathlib.Path(__file__).parent.parent / "configs" / "stable_diffusion.py"
XL = {
    "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": True,
    "transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
# The fields of the published `config.json` that are not diffusers' defaults.
UNETS = {
    "sd15": {"cross_attention_dim": 768},
    "sd21": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    "sdxl": XL,
    "refiner": XL | {
        "block_out_channels": [384, 768, 1536, 1536], "attention_head_dim": [6, 12, 24, 24],
        "cross_attention_dim": 1280, "transformer_layers_per_block": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "projection_class_embeddings_input_dim": 2560,
    },
    "inpaint": {"cross_attention_dim": 768, "in_channels": 9},
}  # fmt: skip
PUBLISHED = {
    "sd15": 859_520_964, "sd21": 865_910_724, "sdxl": 2_567_463_684, "inpaint": 859_535_364,
}  # fmt: skip
VAE, CLIP_L, OPEN_CLIP_H, OPEN_CLIP_G = 83_653_863, 123_060_480, 340_387_840, 694_659_840
TEXT = "conditioner/parts_text"
FROZEN = {
    "sd15": {TEXT: CLIP_L},
    "sd21": {TEXT: OPEN_CLIP_H},
    "sdxl": {f"{TEXT}/encoder_0": CLIP_L, f"{TEXT}/encoder_1": OPEN_CLIP_G},
    "refiner": {TEXT: OPEN_CLIP_G},
    "inpaint": {TEXT: CLIP_L},
}


def load(variant):
    return configs.build(configs.load(f"{FILE}:{variant}"))


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
@pytest.mark.parametrize("variant", some(UNETS, ("sd15",)))
def test_networks_have_the_published_numbers_of_parameters(variant):
    task = load(variant).task.for_shapes()
    trained, _ = abstract_params(task, MeshShape().make(jax.devices()[:1]))
    if variant in PUBLISHED:
        assert size(trained) == PUBLISHED[variant]
    found = {name: size(tree) for name, tree in task.frozen_shapes().items()}
    assert found == {"autoencoder": VAE, **FROZEN[variant]}


@pytest.mark.slow
@pytest.mark.parametrize("variant", some(("sd15", "sd21", "sdxl"), ("sd15",)))
def test_from_scratch_the_same_network_is_trained_on_fewer_pixels(variant):
    """Nothing is read from the U-Net's file; text encoders and autoencoder are those of the converted run."""
    tuned, new = load(variant), load(f"{variant}_scratch")
    assert (new.init_from, new.task.image_shape, new.task.data_shape) == (None, (256, 256, 3), (32, 32, 4))
    assert new.task.denoiser.network == tuned.task.denoiser.network
    assert new.task.denoiser.process == tuned.task.denoiser.process
    assert new.task.denoiser.parameterization == tuned.task.denoiser.parameterization
    assert new.task.frozen == tuned.task.frozen
    trained, _ = abstract_params(new.task.for_shapes(), MeshShape().make(jax.devices()[:1]))
    assert size(trained) == PUBLISHED[variant]


def test_sdxl_from_scratch_learns_the_sizes_and_crops_of_its_images():
    data = load("sdxl_scratch").data
    assert data.buckets.shapes == ((256, 256),)
    assert data.source.size is None
    example = {"image": np.zeros((300, 400, 3), np.uint8), "index": np.int32(0)}
    found = data.buckets.cover()(example, np.random.default_rng(0))
    assert found["original_size"].tolist() == [300, 400]
    assert 0 <= found["crop"][1] <= round(400 * 256 / 300) - 256


LORA = {"sd15_lora": 3_188_736, "sdxl_lora": 23_224_320}
"""Numbers in factors of rank 16 for the projections of attention, as PEFT's."""


@pytest.mark.slow
@pytest.mark.parametrize("variant", some(LORA, ("sd15_lora",)))
def test_lora_trains_factors_and_holds_the_rest_in_half_precision(variant):
    task = load(variant).task.for_shapes()
    trained, _ = abstract_params(task, MeshShape().make(jax.devices()[:1]))
    assert size(trained) == size(trained[pretrained.LORA]) == LORA[variant]
    model = variant.removesuffix("_lora")
    frozen = task.frozen_shapes()
    assert sum(map(size, frozen.values())) == PUBLISHED[model] + VAE + sum(FROZEN[model].values())
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(frozen))
    assert held < 2.01 * sum(map(size, frozen.values()))


@pytest.mark.slow
@pytest.mark.parametrize("variant", LORA)
def test_factors_have_as_many_numbers_as_in_peft(variant):
    diffusers, peft = pytest.importorskip("diffusers"), pytest.importorskip("peft")
    names = ["to_q", "to_k", "to_v", "to_out.0"]

    def make():
        unet = diffusers.UNet2DConditionModel(**UNETS[variant.removesuffix("_lora")]).requires_grad_(False)
        unet.add_adapter(peft.LoraConfig(r=16, target_modules=names))
        return unet

    whole, plain = on_meta(make), PUBLISHED[variant.removesuffix("_lora")]
    assert whole - plain == LORA[variant]


def on_meta(make):
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        return sum(parameter.numel() for parameter in make().parameters())


@pytest.mark.slow
@pytest.mark.parametrize("variant", UNETS)
def test_unets_have_as_many_parameters_as_in_diffusers(variant):
    diffusers = pytest.importorskip("diffusers")
    trained, _ = abstract_params(load(variant).task.for_shapes(), MeshShape().make(jax.devices()[:1]))
    assert size(trained) == on_meta(lambda: diffusers.UNet2DConditionModel(**UNETS[variant]))


TEXT_CONFIGS = {
    CLIP_L: (768, 12, 12, False),
    OPEN_CLIP_H: (1024, 23, 16, False),
    OPEN_CLIP_G: (1280, 32, 20, True),
}


@pytest.mark.parametrize("count", TEXT_CONFIGS)
def test_text_encoders_have_as_many_parameters_as_in_transformers(count):
    transformers = pytest.importorskip("transformers")
    width, layers, heads, projects = TEXT_CONFIGS[count]
    config = transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
        projection_dim=width,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    assert on_meta(lambda: kind(config)) == count


@pytest.mark.parametrize("variant", UNETS)
def test_denoisers_are_those_that_a_conversion_makes(variant):
    """So that training can start from a converted run: the same modules, in another precision."""
    task = load(variant).task
    denoiser, layout = task.denoiser, unet_layout(UNETS[variant])
    assert denoiser.network.clone(dtype="float32", remat=False) == layout.network
    conditioner, text = denoiser.conditioner, denoiser.conditioner.conditions["text"]
    assert (conditioner.noise, conditioner.mapping) == (layout.noise, layout.mapping)
    extra = extra_conditions(layout, 1280 if layout.mapping else 0, 8)
    made = Conditioner(layout.noise, {"text": text, **extra.conditions}, extra.concatenated, layout.mapping)
    assert conditioner == made.for_images(task.image_shape, task.data_shape)
    assert text.null == ("zero" if variant == "sdxl" else "empty")
    family = {"sd15": "sd1", "inpaint": "sd1", "sd21": "sd2"}.get(variant, "xl")
    kind = "v_prediction" if variant == "sd21" else "epsilon"
    settings = {**FAMILIES[family].scheduler, "prediction_type": kind}
    assert denoiser.process == schedulers.process(settings)
    assert denoiser.parameterization == schedulers.parameterization(settings)


def small_xl():
    """SDXL's config with few channels: two text encoders, sizes, and transformers of several blocks."""
    experiment = load("sdxl")
    denoiser, codec = experiment.task.denoiser, experiment.task.codec
    text = denoiser.conditioner.conditions["text"]
    encoders = tuple(
        encoder.clone(width=64, layers=2, heads=1, vocabulary=256, projection=encoder.projection and 64)
        for encoder in text.encoder.encoders
    )
    text = text.clone(encoder=text.encoder.clone(encoders=encoders), name=None)
    conditions = {**denoiser.conditioner.conditions, "text": text}
    network = denoiser.network
    part = dataclasses.replace(network.middle.attention, depth=2)
    levels = tuple(
        dataclasses.replace(level, width=width, blocks=1, attention=attention)
        for level, width, attention in zip(network.levels, (32, 64), (None, part), strict=False)
    )
    middle = dataclasses.replace(network.middle, attention=part)
    task = dataclasses.replace(
        experiment.task,
        denoiser=denoiser.clone(
            network=network.clone(levels=levels, middle=middle),
            conditioner=denoiser.conditioner.clone(conditions=conditions),
        ),
        codec=dataclasses.replace(codec, network=AutoencoderKL(widths=(32, 32), blocks=1)),
        image_shape=(32, 32, 3),
    )
    return dataclasses.replace(experiment, task=task, batch_size=8)


def check_plan(experiment, trained, frozen):
    """The plan counts what is trained and what is frozen apart; both take memory, and no file is read."""
    assert not pathlib.Path(experiment.init_from.workdir).exists()
    plan = estimate(dataclasses.replace(experiment, batch_size=1), "t4", 1)
    assert plan["parameters"] == sum(plan["parts"].values()) == trained
    assert plan["frozen_parameters"] == frozen
    kept, others = plan["memory"], 4 * sum(frozen.values())
    assert (kept["parameters"], kept["frozen"]) == (4 * trained, others)
    assert plan["memory_bytes"] > 5 * 4 * trained + others  # with gradients, average and two moments
    assert plan["sampling_fits"] == (plan["sampling_memory_bytes"] <= CHIPS["t4"].memory)
    return plan["sampling_memory_bytes"] - 4 * trained - others


@pytest.mark.slow
def test_a_plan_counts_frozen_networks_apart_and_reads_no_file():
    experiment = small_xl()
    task = experiment.task.for_shapes()
    trained, _ = abstract_params(task, MeshShape().make(jax.devices()[:1]))
    networks = task.frozen_shapes()
    features = check_plan(experiment, size(trained), {name: size(tree) for name, tree in networks.items()})
    x = jax.ShapeDtypeStruct((1, *task.data_shape), jnp.float32)
    decode = jax.jit(task.codec.decode).lower({NAME: networks[NAME]}, x).compile()
    assert (
        0.5 < features / decode.memory_analysis().temp_size_in_bytes < 2
    )  # the decoder's peak is the highest


@pytest.mark.slow
def test_the_plan_of_sd15_has_the_published_numbers():
    check_plan(load("sd15"), PUBLISHED["sd15"], {"autoencoder": VAE, TEXT: CLIP_L})


def lowered_step(experiment):
    """The lowered training step of an experiment on eight devices."""
    task, rows = experiment.task.for_shapes(), experiment.batch_size
    mesh = MeshShape(data=2, fsdp=2, tensor=2).make()
    optimizer = experiment.optimizer.make(experiment.steps)
    state = abstract_state(task, optimizer, mesh)
    fields = jax.eval_shape(lambda: task.denoiser.conditioner.stored_example(rows, task.data_shape))
    batch = {**fields, "image": jax.ShapeDtypeStruct((rows, *task.image_shape), jnp.uint8)}
    step = make_train_step(task, optimizer, experiment.ema, 0)
    frozen = Frozen(placed(task.frozen_shapes(), mesh))
    return state, jit_train_step(step, state, mesh, frozen).lower(state, batch, frozen)


def check_is_split(state, compiled):
    """Each of eight devices holds about a quarter of the state: two groups of four share it."""
    bytes_of_state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert compiled.memory_analysis().alias_size_in_bytes < 0.35 * bytes_of_state


@pytest.mark.slow
def test_the_training_step_of_a_small_sdxl_lowers_on_a_mesh():
    state, lowered = lowered_step(small_xl())
    assert jax.tree.map(jnp.shape, lowered.out_info[0]) == jax.tree.map(jnp.shape, state)


@pytest.mark.slow
def test_the_training_step_of_a_small_sdxl_is_split_over_the_mesh():
    state, lowered = lowered_step(small_xl())
    check_is_split(state, lowered.compile({"xla_backend_optimization_level": 0}))


@pytest.mark.slow
def test_the_training_step_of_sd15_lowers_on_a_mesh():
    state, lowered = lowered_step(dataclasses.replace(load("sd15"), batch_size=8))
    assert size(state.params) == PUBLISHED["sd15"]
    assert jax.tree.map(jnp.shape, lowered.out_info[0]) == jax.tree.map(jnp.shape, state)
