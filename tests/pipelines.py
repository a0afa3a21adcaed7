"""Tiny pipelines of diffusers with random weights, written to folders as published ones are.

Groups and heads are those that single files of such widths are taken to have.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import warnings
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from jaxdiff.data.clip_merges import SIZE, write_clip_tokenizer
from jaxdiff.runs import published_export
from tests.data.clip_vocabulary import VOCABULARY, write_tokenizer

os.environ["HF_HUB_OFFLINE"] = "1"

BETAS = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
OFFSET = {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}
PNDM = {"_class_name": "PNDMScheduler", **BETAS, **OFFSET, "skip_prk_steps": True}
DDIM_V = {"_class_name": "DDIMScheduler", **BETAS, **OFFSET, "prediction_type": "v_prediction"}
EULER = {"_class_name": "EulerDiscreteScheduler", **BETAS, "timestep_spacing": "leading", "steps_offset": 1}
SD1 = {"attention_head_dim": 8, "cross_attention_dim": 64}
XL = {
    "attention_head_dim": [1, 1], "cross_attention_dim": 128, "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "transformer_layers_per_block": [1, 2],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 6 * 256 + 64,
}  # fmt: skip


def text_config(layers, activation):
    return {
        "hidden_size": 64, "num_hidden_layers": layers, "num_attention_heads": 1, "intermediate_size": 128,
        "hidden_act": activation, "vocab_size": len(VOCABULARY), "projection_dim": 64,
        "bos_token_id": len(VOCABULARY) - 2, "eos_token_id": len(VOCABULARY) - 1, "pad_token_id": 0,
    }  # fmt: skip


CLIP, OPEN_CLIP = text_config(3, "quick_gelu"), text_config(3, "gelu")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of published model: its pipeline's class, scheduler, text encoders by the ends of their folders, U-Net.

    An upscaler also has a scheduler for the noise of the small image, `low_res`.
    """

    pipeline: str
    scheduler: dict[str, Any]
    texts: dict[str, dict[str, Any]]
    unet: dict[str, Any]
    scaling_factor: float = 0.18215
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    low_res: dict[str, Any] | None = None

    @property
    def sdxl(self) -> bool:
        return "XL" in self.pipeline


LORA = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
KINDS = {
    "sd1": Kind("StableDiffusionPipeline", PNDM, {"": CLIP}, SD1, options=UNCHECKED),
    "sd2": Kind(
        "StableDiffusionPipeline", DDIM_V, {"": OPEN_CLIP},
        {"block_out_channels": [64, 64], "attention_head_dim": [1, 1], "cross_attention_dim": 64,
         "use_linear_projection": True}, options=UNCHECKED,
    ),
    "xl": Kind("StableDiffusionXLPipeline", EULER, {"": CLIP, "_2": OPEN_CLIP}, XL, 0.13025),
    "refiner": Kind(
        "StableDiffusionXLImg2ImgPipeline", EULER, {"_2": OPEN_CLIP},
        {**XL, "cross_attention_dim": 64, "projection_class_embeddings_input_dim": 5 * 256 + 64}, 0.13025,
        {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False, "text_encoder": None,
         "tokenizer": None},
    ),
    "inpaint": Kind("StableDiffusionInpaintPipeline", PNDM, {"": CLIP}, {**SD1, "in_channels": 9}, options=UNCHECKED),
    "ip2p": Kind(
        "StableDiffusionInstructPix2PixPipeline", PNDM, {"": CLIP}, {**SD1, "in_channels": 8}, options=UNCHECKED
    ),
    "upscaler": Kind(
        "StableDiffusionUpscalePipeline", DDIM_V, {"": OPEN_CLIP},
        {**SD1, "in_channels": 7, "use_linear_projection": True, "num_class_embeds": 1000,
         "only_cross_attention": [True, False], "mid_block_only_cross_attention": True},
        0.08333,
        low_res={**BETAS, "beta_schedule": "linear", "beta_start": 1e-9, "beta_end": 1e-9},
    ),
}  # fmt: skip


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


@functools.cache
def parts_of(name: str):
    """The networks of a kind, in diffusers and transformers, by the names of their folders."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers
        import transformers
    kind, seed = KINDS[name], list(KINDS).index(name)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64), norm_num_groups=32, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, sample_size=32,
        scaling_factor=kind.scaling_factor,
    )  # fmt: skip
    found = {"unet": randomise(network(name), seed), "vae": certain(randomise(vae, 100))}
    for end, options in kind.texts.items():
        cls = transformers.CLIPTextModelWithProjection if end else transformers.CLIPTextModel
        found[f"text_encoder{end}"] = randomise(cls(transformers.CLIPTextConfig(**options)), 200 + seed)
    return found


def network(name: str):
    """The U-Net of a kind."""
    import diffusers

    settings = {
        "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 32,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], **KINDS[name].unet,
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**settings)


def write(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Write the folder of a kind's pipeline."""
    kind = KINDS[name]
    for part, module in parts_of(name).items():
        module.save_pretrained(folder / part)
    for end in kind.texts:
        write_tokenizer(folder / f"tokenizer{end}", pad_token=_padding(name, end))
    for part, settings in {"scheduler": kind.scheduler, "low_res_scheduler": kind.low_res}.items():
        if settings is not None:
            (folder / part).mkdir()
            text = json.dumps({"_diffusers_version": "0.6.0", **settings})
            (folder / part / "scheduler_config.json").write_text(text)
    zeros = kind.options.get("force_zeros_for_empty_prompt", True)
    index = {"_class_name": kind.pipeline, **({"force_zeros_for_empty_prompt": zeros} if kind.sdxl else {})}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def with_clip_vocabulary(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Give a kind's folder CLIP's published vocabulary, which its single file is taken to have."""
    for end in KINDS[name].texts:
        texts, tokenizer = folder / f"text_encoder{end}", folder / f"tokenizer{end}"
        tensors = load_file(texts / "model.safetensors")
        table = next(each for each in tensors if each.endswith("token_embedding.weight"))
        tensors[table] = np.resize(tensors[table], (SIZE, tensors[table].shape[1]))
        save_file(tensors, texts / "model.safetensors")
        config = json.loads((texts / "config.json").read_text())
        config |= {"vocab_size": SIZE, "bos_token_id": SIZE - 2, "eos_token_id": SIZE - 1}
        (texts / "config.json").write_text(json.dumps(config))
        shutil.rmtree(tokenizer)
        write_clip_tokenizer(tokenizer, _padding(name, end))
    return folder


def _padding(name: str, end: str) -> str:
    return "!" if name in ("sd2", "upscaler") or end else "<|endoftext|>"


def write_lora(file: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """Write a LoRA file of kohya's layout, for one layer of the U-Nets that read 64 channels."""
    draw = np.random.default_rng(seed)
    shapes = {"up": (64, 2), "down": (2, 64)}
    save_file(
        {
            f"{LORA}.lora_{part}.weight": draw.standard_normal(shape).astype(np.float32)
            for part, shape in shapes.items()
        },
        file,
    )
    return file


def export_file(run: str, file: pathlib.Path) -> None:
    """Write a run as a single file."""
    published_export.single_file(run).write(file)


def export_folder(run: str, folder: pathlib.Path) -> None:
    """Write a run as a pipeline's folder."""
    folder.mkdir(parents=True)
    published_export.folder(run).write(folder)


def tokenizer(end: str, folder: pathlib.Path):
    """A tokenizer of a pipeline's folder, in transformers."""
    import transformers

    return transformers.CLIPTokenizer.from_pretrained(folder / f"tokenizer{end}")


def pipeline(name: str, folder: pathlib.Path, scheduler: str | None = None):
    """The pipeline of a folder, in diffusers, perhaps with another scheduler from the folder's settings."""
    import diffusers

    kind = KINDS[name]
    tokenizers = {f"tokenizer{end}": tokenizer(end, folder) for end in kind.texts}
    cls = getattr(diffusers, scheduler or kind.scheduler["_class_name"])
    made = getattr(diffusers, kind.pipeline)(
        scheduler=cls.from_config(kind.scheduler), **{**kind.options, **parts_of(name), **tokenizers}
    )
    made.set_progress_bar_config(disable=True)
    encoder = made.components.get("text_encoder")
    if encoder is not None and not hasattr(encoder, "text_model"):
        object.__setattr__(encoder, "text_model", encoder)  # the place of the last norm, for clip skip
    return made


def as_torch(noise):
    import torch

    return torch.tensor(noise.transpose(0, 3, 1, 2))


def check_images(found, expected):
    """At most one level of 255 in 99.9 % of the values, and two anywhere."""
    difference = np.abs(found.astype(int) - np.round(255 * np.clip(expected, 0, 1)))
    assert expected.std() > 0.1
    assert difference.max() <= 2
    assert np.mean(difference > 1) <= 0.001
