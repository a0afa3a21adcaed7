"""Tiny pipelines of diffusers with random weights, written to folders as published ones are.

Groups and heads are those that single files of such widths are taken to have.
"""

import functools
import json
import os
import pathlib
import warnings

from tests.data.clip_vocabulary import VOCABULARY, write_tokenizer

os.environ["HF_HUB_OFFLINE"] = "1"

BETAS = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
OFFSET = {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}
SCHEDULERS = {
    "sd1": ("PNDMScheduler", {**BETAS, **OFFSET, "skip_prk_steps": True}, ("clip_sample",)),
    "sd2": ("DDIMScheduler", {**BETAS, **OFFSET, "prediction_type": "v_prediction"}, ()),
    "xl": ("EulerDiscreteScheduler", {**BETAS, "timestep_spacing": "leading", "steps_offset": 1}, ()),
}
UNETS = {
    "sd1": {"attention_head_dim": 8, "cross_attention_dim": 64},
    "sd2": {
        "block_out_channels": [64, 64], "attention_head_dim": [1, 1], "cross_attention_dim": 64,
        "use_linear_projection": True,
    },
    "xl": {
        "attention_head_dim": [1, 1], "cross_attention_dim": 128, "use_linear_projection": True,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "transformer_layers_per_block": [1, 2],
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 6 * 256 + 64,
    },
}  # fmt: skip
EPS = {"sd1": 0.18215, "sd2": 0.18215, "xl": 0.13025}


def text_config(width, layers, activation, **options):
    return {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 1, "intermediate_size": 2 * width,
        "hidden_act": activation, "vocab_size": len(VOCABULARY), "projection_dim": width,
        "bos_token_id": len(VOCABULARY) - 2, "eos_token_id": len(VOCABULARY) - 1, "pad_token_id": 0, **options,
    }  # fmt: skip


TEXTS = {
    "sd1": [text_config(64, 2, "quick_gelu")],
    "sd2": [text_config(64, 3, "gelu")],
    "xl": [text_config(64, 3, "quick_gelu"), text_config(64, 3, "gelu")],
}


def randomise(module, seed=0):
    """Random values for all parameters: zero-initialised layers would hide all others."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        gain = "norm" in name and name.endswith("weight")
        value.data = float(gain) + 0.1 * torch.randn(value.shape, generator=generator)
    return module.eval()


def certain(vae):
    """The autoencoder with posteriors without variance, so that all draws from them are equal."""
    half = vae.quant_conv.bias.shape[0] // 2
    vae.quant_conv.weight.data[half:] = 0.0
    vae.quant_conv.bias.data[half:] = -60.0
    return vae


def write(kind: str, folder: pathlib.Path, **unet) -> pathlib.Path:
    """Write a pipeline's folder: ``sd1``, ``sd2`` or ``xl``; `unet` are further options of its U-Net."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers
        import transformers
    texts = TEXTS[kind]
    randomise(network(kind, **unet)).save_pretrained(folder / "unet")
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64), norm_num_groups=32, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, sample_size=32, scaling_factor=EPS[kind],
    )  # fmt: skip
    certain(randomise(vae, 1)).save_pretrained(folder / "vae")
    for i, options in enumerate(texts):
        end = "" if i == 0 else f"_{i + 1}"
        cls = transformers.CLIPTextModelWithProjection if kind == "xl" and i else transformers.CLIPTextModel
        encoder = randomise(cls(transformers.CLIPTextConfig(**options)), 2 + i)
        encoder.save_pretrained(folder / f"text_encoder{end}")
        padding = {"pad_token": "!"} if kind == "sd2" or i else {"pad_token": "<|endoftext|>"}
        write_tokenizer(folder / f"tokenizer{end}", **padding)
    write_scheduler(kind, folder)
    return folder


def network(kind: str, **options):
    """The U-Net of a kind."""
    import diffusers

    settings = {
        "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 32,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], **UNETS[kind], **options,
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**settings)


def write_scheduler(kind: str, folder: pathlib.Path) -> None:
    name, settings, _ = SCHEDULERS[kind]
    (folder / "scheduler").mkdir()
    content = {"_class_name": name, "_diffusers_version": "0.6.0", **settings}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(content))


@functools.cache
def pipeline(kind: str, folder: pathlib.Path):
    """The pipeline of a folder, in diffusers."""
    import diffusers
    import transformers

    cls = diffusers.StableDiffusionXLPipeline if kind == "xl" else diffusers.StableDiffusionPipeline
    ends = [""] if kind != "xl" else ["", "_2"]
    parts = {}
    for i, end in enumerate(ends):
        model = transformers.CLIPTextModelWithProjection if i else transformers.CLIPTextModel
        parts[f"text_encoder{end}"] = model.from_pretrained(folder / f"text_encoder{end}")
        parts[f"tokenizer{end}"] = transformers.CLIPTokenizer.from_pretrained(folder / f"tokenizer{end}")
    name = SCHEDULERS[kind][0]
    made = (
        {}
        if kind == "xl"
        else {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    )
    pipe = cls(
        vae=diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
        unet=diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=getattr(diffusers, name).from_pretrained(folder / "scheduler"), **parts, **made,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe
