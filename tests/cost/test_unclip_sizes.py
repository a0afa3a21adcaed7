"""Karlo at its published size: parameters by `jaxdiff.plan`, against those of diffusers' modules."""

import pytest

from jaxdiff.codecs.pixels import Pixels
from jaxdiff.codecs.standardized import Standardized
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.text import Text
from jaxdiff.conditioning.vector_embedding import EmbeddedVector
from jaxdiff.config import build
from jaxdiff.cost.estimate import estimate
from jaxdiff.data.text import ByteTokenizer
from jaxdiff.denoiser import Denoiser
from jaxdiff.interop import diffusers as names
from jaxdiff.interop import schedulers
from jaxdiff.interop.prior_transformer import prior_layout
from jaxdiff.interop.unclip_decoder import decoder_layout
from jaxdiff.models.clip_text import ClipTextEncoder
from jaxdiff.models.unclip_text import DecoderText, PriorText
from jaxdiff.process.time_sampling import UniformSteps
from jaxdiff.runs.published import experiment
from jaxdiff.runs.weights import FileWeights
from jaxdiff.tasks.denoising import DenoisingTask

CLIP = ClipTextEncoder(768, 12, 12, projection=768, pooled=True)
LENGTH = ByteTokenizer(77)
PRIOR = {"num_attention_heads": 32, "attention_head_dim": 64, "num_layers": 20, "embedding_dim": 768}
DECODER = {
    "sample_size": 64, "in_channels": 3, "out_channels": 6, "block_out_channels": (320, 640, 960, 1280),
    "layers_per_block": 3, "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "cross_attention_dim": 1536,
    "down_block_types": ("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3), "attention_head_dim": 64,
    "up_block_types": (*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"), "class_embed_type": "identity",
    "resnet_time_scale_shift": "scale_shift",
}  # fmt: skip
PROJECTION = {"clip_extra_context_tokens": 4, "clip_embeddings_dim": 768, "time_embed_dim": 1280,
              "cross_attention_dim": 1536}  # fmt: skip
SUPER_RES = {
    "sample_size": 256, "in_channels": 6, "out_channels": 3, "block_out_channels": (320, 640, 960, 1280),
    "layers_per_block": 3, "down_block_types": ("ResnetDownsampleBlock2D",) * 4, "add_attention": False,
    "up_block_types": ("ResnetUpsampleBlock2D",) * 4, "resnet_time_scale_shift": "scale_shift",
}  # fmt: skip


def size(*modules):
    return sum(value.numel() for module in modules for value in module.parameters())


def planned(network, conditioner, shape, codec=None):
    """The parameters of a stage without CLIP's, and those that `jaxdiff.plan` lists as frozen."""
    settings = {"_class_name": "UnCLIPScheduler"}
    kind = schedulers.parameterization(settings, learned_variance="image" in conditioner.conditions)
    denoiser = Denoiser(network, conditioner, schedulers.process(settings), kind)
    task = DenoisingTask(denoiser, UniformSteps(1000), shape, codec=codec or Pixels(), data_field="target")
    recipe = schedulers.recipe(settings, None, 25)
    return estimate(build(experiment(task, recipe, {}, None)), "h200", 1, 0.4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_stages_have_karlos_parameters():
    torch, peers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    clip = 123_650_304  # CLIP ViT-L/14's text encoder, with its projection
    with torch.device("meta"):
        prior, decoder = peers.PriorTransformer(**PRIOR), peers.UNet2DConditionModel(**DECODER)
        project, upscaler = UnCLIPTextProjModel(**PROJECTION), peers.UNet2DModel(**SUPER_RES)

    layout = prior_layout(PRIOR)
    text = Text(LENGTH, PriorText(CLIP, layout.network.width), null="empty")
    codec = Standardized(FileWeights("none"), 768)
    found = planned(layout.network, Conditioner(layout.noise, {"text": text}), (768,), codec)
    assert found["parameters"] - clip + sum(found["frozen_parameters"].values()) == size(prior)
    assert 1.0e9 < size(prior) < 1.05e9

    layout = decoder_layout(DECODER, PROJECTION)
    width = layout.noise.width
    conditions = {
        "image": EmbeddedVector(768, width, 4, 1536),
        "text": Text(LENGTH, DecoderText(CLIP, 1536, width), null="empty"),
    }
    found = planned(layout.network, Conditioner(layout.noise, conditions), (64, 64, 3))
    assert found["parameters"] - clip == size(decoder, project)

    given = names.known_fields(SUPER_RES)
    conditions = {"low_res": ImageCondition(3, factor=4.0, method="bicubic")}
    found = planned(names.network(given), Conditioner(names.noise_level(given), conditions), (256, 256, 3))
    assert found["parameters"] == size(upscaler)
