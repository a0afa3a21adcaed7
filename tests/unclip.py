"""Tiny networks of unCLIP in diffusers and transformers with random weights, and whole pipelines of them."""

import contextlib
import functools
import json
import pathlib
import sys
import warnings

import numpy as np
import pytest

from tests import pipelines
from tests.data.clip_vocabulary import write_tokenizer
from tests.pipelines import text_config
from tests.text_models import randomise

DIM = 64
"""Length of CLIP's embeddings, and channels of its states."""

TEXT = text_config(2, "quick_gelu")
PRIOR = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "embedding_dim": DIM}


@functools.cache
def text_encoder():
    transformers = pytest.importorskip("transformers")
    return randomise(transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**TEXT)), 0.1)


@functools.cache
def prior():
    diffusers = pytest.importorskip("diffusers")
    return randomise(diffusers.PriorTransformer(**PRIOR), 0.1)


def numbers(module):
    """The tensors of a module."""
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def ids(*texts, length=77):
    """Ids of CLIP's tokenizer for texts of these numbers of words, padded with the end as in OpenAI's models."""
    last = TEXT["eos_token_id"]
    rows = np.full((len(texts), length), last, np.int32)
    for row, count in zip(rows, texts, strict=True):
        row[: count + 1] = [TEXT["bos_token_id"], *range(3, 3 + count)]
    return rows


DECODER = {
    "sample_size": 16, "in_channels": 3, "out_channels": 6, "block_out_channels": (16, 32), "layers_per_block": 1,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), "norm_num_groups": 8,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "cross_attention_dim": 20, "attention_head_dim": 8,
    "resnet_time_scale_shift": "scale_shift", "class_embed_type": "identity",
}  # fmt: skip
PROJECTION = {
    "clip_extra_context_tokens": 3, "clip_embeddings_dim": DIM, "time_embed_dim": 64, "cross_attention_dim": 20,
}  # fmt: skip
SUPER_RES = {
    "sample_size": 32, "in_channels": 6, "out_channels": 3, "block_out_channels": (16, 32), "layers_per_block": 1,
    "down_block_types": ("ResnetDownsampleBlock2D",) * 2, "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
    "norm_num_groups": 8, "add_attention": False, "resnet_time_scale_shift": "scale_shift",
}  # fmt: skip


@functools.cache
def decoder():
    diffusers = pytest.importorskip("diffusers")
    return randomise(diffusers.UNet2DConditionModel(**DECODER), 0.1)


@functools.cache
def text_proj():
    pytest.importorskip("diffusers")
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    return randomise(UnCLIPTextProjModel(**PROJECTION), 0.1)


@functools.cache
def super_res(seed):
    diffusers = pytest.importorskip("diffusers")
    import torch

    module = randomise(diffusers.UNet2DModel(**SUPER_RES), 0.1)
    with torch.no_grad():
        for value in module.parameters():
            value.mul_(1 - 0.3 * seed)
    return module


VISION = {
    "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8, "projection_dim": DIM,
}  # fmt: skip
KARLO_SCHEDULERS = {
    "prior_scheduler": {
        "_class_name": "UnCLIPScheduler", "prediction_type": "sample", "clip_sample_range": 5.0,
        "variance_type": "fixed_small_log", "num_train_timesteps": 1000,
    },
    "decoder_scheduler": {
        "_class_name": "UnCLIPScheduler", "prediction_type": "epsilon", "variance_type": "learned_range",
        "num_train_timesteps": 1000,
    },
    "super_res_scheduler": {
        "_class_name": "UnCLIPScheduler", "prediction_type": "epsilon", "variance_type": "fixed_small_log",
        "num_train_timesteps": 1000,
    },
}  # fmt: skip
STABLE_SCHEDULERS = {
    "prior_scheduler": {
        "_class_name": "DDPMScheduler", "prediction_type": "sample", "clip_sample_range": 5.0, "clip_sample": True,
        "variance_type": "fixed_small_log", "num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2",
    },
    "image_noising_scheduler": {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"},
    "scheduler": pipelines.DDIM_V,
}  # fmt: skip
PREPROCESSOR = {
    "crop_size": {"height": 16, "width": 16}, "size": {"shortest_edge": 16}, "do_center_crop": True,
    "do_normalize": True, "do_resize": True, "do_rescale": True, "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "CLIPImageProcessor",
}  # fmt: skip
KINDS = (
    "UnCLIPPipeline",
    "UnCLIPImageVariationPipeline",
    "StableUnCLIPPipeline",
    "StableUnCLIPImg2ImgPipeline",
)


@functools.cache
def image_encoder():
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(**VISION, hidden_act="quick_gelu")
    return randomise(transformers.CLIPVisionModelWithProjection(config), 0.1)


@functools.cache
def normalizer():
    pytest.importorskip("diffusers")
    import torch
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer

    module = StableUnCLIPImageNormalizer(DIM)
    random = np.random.default_rng(3)
    module.mean.data = torch.tensor(random.normal(size=(1, DIM)).astype(np.float32))
    module.std.data = torch.tensor(random.uniform(0.5, 1.5, (1, DIM)).astype(np.float32))
    return module


@functools.cache
def unet():
    diffusers = pytest.importorskip("diffusers")
    return pipelines.randomise(
        diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=32,
            down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], attention_head_dim=[1, 2],
            up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"], use_linear_projection=True, cross_attention_dim=64,
            class_embed_type="projection", projection_class_embeddings_input_dim=2 * DIM,
        )
    )  # fmt: skip


def parts_of(kind):
    """The networks of a pipeline by the names of their folders."""
    stable, photo = kind.startswith("Stable"), "Im" in kind
    if stable:
        parts = {"unet": unet(), "vae": pipelines.parts_of("sd2")["vae"], "image_normalizer": normalizer(),
                 "text_encoder": pipelines.parts_of("sd2")["text_encoder"]}  # fmt: skip
        texts = {"prior": prior(), "prior_text_encoder": text_encoder()}
    else:
        parts = {"text_encoder": text_encoder(), "text_proj": text_proj(), "decoder": decoder(),
                 "super_res_first": super_res(0), "super_res_last": super_res(1)}  # fmt: skip
        texts = {"prior": prior()}
    return parts | ({"image_encoder": image_encoder()} if photo else texts)


def write(kind, folder: pathlib.Path) -> pathlib.Path:
    """Write the folder of a pipeline, as published ones are."""
    for name, module in parts_of(kind).items():
        module.save_pretrained(folder / name)
    stable, photo = kind.startswith("Stable"), "Im" in kind
    for name, settings in (STABLE_SCHEDULERS if stable else KARLO_SCHEDULERS).items():
        if not (photo and name == "prior_scheduler"):
            (folder / name).mkdir()
            (folder / name / "scheduler_config.json").write_text(json.dumps(settings))
    write_tokenizer(folder / "tokenizer", pad_token="!" if stable else "<|endoftext|>")
    if stable and not photo:
        write_tokenizer(folder / "prior_tokenizer", pad_token="<|endoftext|>")
    if photo:
        (folder / "feature_extractor").mkdir()
        (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    return folder


def pipeline(kind, folder):
    """The pipeline of a folder, in diffusers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers
        import transformers
    schedulers = {
        name: getattr(diffusers, settings["_class_name"]).from_config(settings)
        for name, settings in (STABLE_SCHEDULERS if kind.startswith("Stable") else KARLO_SCHEDULERS).items()
        if (folder / name).is_dir()
    }
    tokenizers = {
        name: transformers.CLIPTokenizer.from_pretrained(folder / name)
        for name in ("tokenizer", "prior_tokenizer")
        if (folder / name).is_dir()
    }
    photo = folder / "feature_extractor"
    extractor = (
        {"feature_extractor": transformers.CLIPImageProcessor.from_pretrained(photo)}
        if photo.is_dir()
        else {}
    )
    made = getattr(diffusers, kind)(**parts_of(kind), **schedulers, **tokenizers, **extractor)
    made.set_progress_bar_config(disable=True)
    return made


def channels_first(noise):
    """Noise as PyTorch has it."""
    import torch

    return torch.tensor(noise.transpose(0, 3, 1, 2) if noise.ndim == 4 else noise)


@contextlib.contextmanager
def drawing(*draws):
    """Context in which diffusers' pipelines and schedulers draw these arrays, in this order, in place of noise."""
    left = list(draws)
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("diffusers.") and "randn_tensor" in vars(module):
                patch.setattr(module, "randn_tensor", lambda *shape, **options: channels_first(left.pop(0)))
        yield
    assert not left
