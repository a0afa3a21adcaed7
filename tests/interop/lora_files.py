"""Random LoRA files in every layout, written by hand, with the names of tiny networks of diffusers."""

import functools
import json

import numpy as np
import pytest

SD1 = {
    "block_out_channels": (8, 16), "layers_per_block": 2, "norm_num_groups": 4, "cross_attention_dim": 12,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "attention_head_dim": 2,
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
SDXL = {
    "block_out_channels": (8, 16, 16), "layers_per_block": 2, "norm_num_groups": 4, "cross_attention_dim": 12,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 2,
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "use_linear_projection": True,
    "transformer_layers_per_block": (1, 1, 2), "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 36,
}  # fmt: skip

UNET = {
    "sd1": (
        "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q", "down_blocks.0.attentions.0.proj_in",
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj", "up_blocks.0.upsamplers.0.conv",
        "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0", "up_blocks.1.resnets.0.conv_shortcut",
        "down_blocks.1.resnets.0.conv1", "conv_in", "conv_out", "time_embedding.linear_1",
    ),
    "sdxl": (
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.downsamplers.0.conv",
        "down_blocks.2.attentions.1.transformer_blocks.1.attn2.to_out.0", "down_blocks.1.resnets.0.conv1",
        "down_blocks.1.resnets.1.conv2", "down_blocks.1.resnets.0.time_emb_proj",
        "down_blocks.1.resnets.0.conv_shortcut",
        "mid_block.attentions.0.proj_in", "mid_block.resnets.1.conv1", "up_blocks.0.attentions.2.proj_out",
        "up_blocks.0.upsamplers.0.conv", "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2",
        "up_blocks.2.resnets.1.conv1", "conv_in", "conv_out", "time_embedding.linear_2", "add_embedding.linear_1",
    ),
}  # fmt: skip
TEXT = (
    "text_model.encoder.layers.0.self_attn.q_proj",
    "text_model.encoder.layers.1.self_attn.out_proj",
    "text_model.encoder.layers.1.mlp.fc1",
)
ORIGINAL = {
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
    "down_blocks.2.attentions.1.transformer_blocks.1.attn2.to_out.0":
        "input_blocks_8_1_transformer_blocks_1_attn2_to_out_0",
    "down_blocks.1.resnets.0.conv1": "input_blocks_4_0_in_layers_2",
    "down_blocks.1.resnets.1.conv2": "input_blocks_5_0_out_layers_3",
    "down_blocks.1.resnets.0.time_emb_proj": "input_blocks_4_0_emb_layers_1",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks_4_0_skip_connection",
    "mid_block.attentions.0.proj_in": "middle_block_1_proj_in",
    "mid_block.resnets.1.conv1": "middle_block_2_in_layers_2",
    "up_blocks.0.attentions.2.proj_out": "output_blocks_2_1_proj_out",
    "up_blocks.0.upsamplers.0.conv": "output_blocks_2_2_conv",
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2": "output_blocks_3_1_transformer_blocks_0_ff_net_2",
    "up_blocks.2.resnets.1.conv1": "output_blocks_7_0_in_layers_2",
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
}  # fmt: skip
"""Names in the published files of Stable Diffusion XL, written by hand."""


@functools.cache
def networks(kind):
    """Shapes of the tensors of tiny networks, by component."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**(SD1 if kind == "sd1" else SDXL))
        text = transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=20, **sizes))
    found = {"unet": shapes_of(unet.state_dict())}
    published = {name if name.startswith("text_model.") else f"text_model.{name}": value
                 for name, value in text.state_dict().items()}  # fmt: skip
    for name in ("text_encoder", "text_encoder_2")[: 1 if kind == "sd1" else 2]:
        found[name] = shapes_of(published)
    return found


def shapes_of(tensors):
    return {name: tuple(value.shape) for name, value in tensors.items()}


def targets(kind):
    """(component, module) of every layer that the adapter changes."""
    text = [component for component in networks(kind) if component != "unet"]
    return [("unet", module) for module in UNET[kind]] + [(name, module) for name in text for module in TEXT]


@functools.cache
def adapter(kind):
    """{(component, module): (down, up, alpha)}: random numbers, with a rank and an alpha of each layer's own."""
    rng, found = np.random.default_rng(0), {}
    for i, (component, module) in enumerate(targets(kind)):
        out, width, *kernel = networks(kind)[component][f"{module}.weight"]
        rank, ones = 2 + i % 3, [1] * len(kernel)
        down = rng.normal(size=(rank, width, *kernel)).astype(np.float32)
        up = rng.normal(size=(out, rank, *ones)).astype(np.float32)
        found[component, module] = down, up, float(1 + i % 4)
    return found


def weights(kind):
    """Random weights of each component, of the layers that change and of one more."""
    rng, found = np.random.default_rng(1), {}
    for component, module in targets(kind):
        own = found.setdefault(component, {"other.weight": np.ones(3, np.float32)})
        shape = networks(kind)[component][f"{module}.weight"]
        own[f"{module}.weight"] = rng.normal(size=shape).astype(np.float32)
    return found


def by_formula(kind, scale=1.0):
    """W + scale alpha/rank up @ down in float64."""
    found = {component: dict(own) for component, own in weights(kind).items()}
    for (component, module), (down, up, alpha) in adapter(kind).items():
        rank = len(down)
        product = up.astype(float).reshape(-1, rank) @ down.astype(float).reshape(rank, -1)
        own = found[component]
        weight = own[f"{module}.weight"]
        own[f"{module}.weight"] = weight + scale * alpha / rank * product.reshape(weight.shape)
    return found


def kohya(kind, original=False):
    te = "lora_te" if kind == "sd1" else "lora_te1"
    prefixes = {"unet": "lora_unet", "text_encoder": te, "text_encoder_2": "lora_te2"}
    tensors = {}
    for (component, module), (down, up, alpha) in adapter(kind).items():
        named = ORIGINAL[module] if original and component == "unet" else module.replace(".", "_")
        stem = f"{prefixes[component]}_{named}"
        tensors |= {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": np.float32(alpha),
        }
    return {name: np.asarray(value) for name, value in tensors.items()}, {}


def peft(kind, stem="{component}.{module}", ends=("lora_A.weight", "lora_B.weight")):
    """Tensors under the names of PEFT and alpha in the metadata."""
    tensors, metadata = {}, {}
    for (component, module), (down, up, alpha) in adapter(kind).items():
        named = stem.format(component=component, module=module)
        tensors |= {f"{named}.{ends[0]}": down, f"{named}.{ends[1]}": up}
        metadata.setdefault(f"{component}.lora_alpha", 77)
        metadata.setdefault(f"{component}.alpha_pattern", {})[module] = alpha
    return tensors, {"lora_adapter_metadata": json.dumps(metadata)}


def old_diffusers(kind):
    """Names of diffusers before 0.22, without alpha: it is multiplied into the second factor."""
    tensors = {}
    for (component, module), (down, up, alpha) in adapter(kind).items():
        block, _, layer = module.removesuffix(".0").rpartition(".")
        if layer in ("to_q", "to_out"):
            stem = f"{component}.{block}.processor.{layer}_lora"
        elif layer in ("q_proj", "out_proj"):
            stem = f"{component}.{block}.to_{layer.removesuffix('_proj')}_lora"
        else:
            stem = f"{component}.{module}.{'lora' if component == 'unet' else 'lora_linear_layer'}"
        tensors |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up * np.float32(alpha / len(down))}
    return tensors, {}


LAYOUTS = {
    "kohya": kohya,
    "kohya_original": functools.partial(kohya, original=True),
    "diffusers": peft,
    "diffusers_named": functools.partial(peft, ends=("lora_A.default.weight", "lora_B.default.weight")),
    "peft": functools.partial(peft, stem="{component}.base_model.model.{module}"),
    "peft_inside": functools.partial(peft, stem="base_model.model.{component}.{module}"),
    "old_diffusers": old_diffusers,
    "lora_layers": functools.partial(peft, ends=("lora.down.weight", "lora.up.weight")),
}
