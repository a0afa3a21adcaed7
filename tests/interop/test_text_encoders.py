"""Names of text encoders: transformers' CLIP, OpenCLIP's single files, and T5, both ways."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.interop.tensors import read_tensors
from jaxdiff.interop.text_encoders import clip_encoder, encoder_params, encoder_tensors, t5_encoder
from jaxdiff.models.clip_text import ClipTextEncoder
from tests.text_models import CLIP, IDS, T5, assert_close, clip_peer, numbers, run, t5_peer

CONFIG = CLIP | {"hidden_act": "gelu"}


def as_open_clip(tensors, blocks):
    """The same weights under OpenCLIP's names, written out by hand."""
    given = {name.removeprefix("text_model."): array for name, array in tensors.items()}
    renamed = {
        "token_embedding.weight": given["embeddings.token_embedding.weight"],
        "positional_embedding": given["embeddings.position_embedding.weight"],
        "ln_final.weight": given["final_layer_norm.weight"],
        "ln_final.bias": given["final_layer_norm.bias"],
        "text_projection": given["text_projection.weight"].T,
        "logit_scale": np.float32(4.6),
    }
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    parts |= {"self_attn.out_proj": "attn.out_proj"}
    for i in range(blocks):
        theirs, ours = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        for kind in ("weight", "bias"):
            stacked = [given[f"{theirs}.self_attn.{which}_proj.{kind}"] for which in "qkv"]
            renamed[f"{ours}.attn.in_proj_{kind}"] = np.concatenate(stacked)
            renamed |= {f"{ours}.{new}.{kind}": given[f"{theirs}.{old}.{kind}"] for old, new in parts.items()}
    return renamed


def published(layout):
    """A file's tensors in a layout, and the encoder that reads them."""
    if layout == "t5":
        tensors = numbers(t5_peer())
        tensors.pop("encoder.embed_tokens.weight")
        return tensors, t5_encoder(tensors, T5)
    tensors = numbers(clip_peer("gelu"))
    if layout == "open_clip":
        tensors = as_open_clip(tensors, 3)
        tensors.pop("logit_scale")
    return tensors, clip_encoder(tensors, CONFIG)


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def assert_same_params(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("layout", ["clip", "open_clip", "t5"])
def test_tensors_come_back_bit_for_bit(layout):
    tensors, encoder = published(layout)
    params = encoder_params(encoder, tensors)
    assert_same_tensors(encoder_tensors(encoder, params, layout), tensors)


def test_open_clips_file_is_the_same_network():
    tensors, encoder = published("clip")
    other, renamed = as_open_clip(tensors, 3), clip_encoder(as_open_clip(tensors, 3), CONFIG)
    assert renamed == encoder
    assert_same_params(encoder_params(encoder, other), encoder_params(encoder, tensors))


def test_stable_diffusion_2_drops_the_last_block_of_its_single_file():
    """Its folder has a block less, and no projection."""
    torch = pytest.importorskip("torch")
    peer = clip_peer("gelu")
    prefix = "cond_stage_model.model."
    file = {f"{prefix}{name}": array for name, array in as_open_clip(numbers(peer), 3).items()}
    file["model.diffusion_model.time_embed.0.weight"] = np.zeros((2, 2), np.float32)
    encoder = clip_encoder(file, CONFIG, prefix, penultimate=True)
    assert (encoder.layers, encoder.projection) == (2, None)
    found = run(encoder, encoder_params(encoder, file, prefix), IDS).tokens.features
    with torch.no_grad():
        states = peer.text_model(torch.tensor(IDS), output_hidden_states=True).hidden_states
        assert_close(found, peer.text_model.final_layer_norm(states[-2]))
    folder = {
        name: array
        for name, array in numbers(peer).items()
        if "layers.2." not in name and name != "text_projection.weight"
    }
    assert clip_encoder(folder, CONFIG) == encoder
    assert_same_params(encoder_params(encoder, folder), encoder_params(encoder, file, prefix))


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize("buffered", [True, False])
def test_transformers_names_with_and_without_prefix_and_buffer(prefixed, buffered):
    tensors = {name.removeprefix("text_model."): array for name, array in published("clip")[0].items()}
    if buffered:
        tensors["embeddings.position_ids"] = np.arange(12)[None]
    if prefixed:
        inside = {name: f"text_model.{name}" for name in tensors if name != "text_projection.weight"}
        tensors = {inside.get(name, name): array for name, array in tensors.items()}
    encoder = clip_encoder(tensors, CONFIG)
    expected, known = published("clip")
    assert encoder == known
    assert_same_params(encoder_params(encoder, tensors), encoder_params(known, expected))


@pytest.mark.parametrize("projects", [True, False])
def test_transformers_opens_what_is_written(tmp_path, projects):
    transformers, safetensors = pytest.importorskip("transformers"), pytest.importorskip("safetensors.numpy")
    peer = clip_peer("gelu", projects)
    encoder = clip_encoder(numbers(peer), CONFIG)
    written = encoder_tensors(encoder, encoder_params(encoder, numbers(peer)))
    safetensors.save_file(written, tmp_path / "model.safetensors", {"format": "pt"})
    peer.config.save_pretrained(tmp_path)
    again, report = type(peer).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_same_tensors(numbers(again), numbers(peer))
    assert transformers.CLIPTextModel.from_pretrained(tmp_path) is not None


def test_a_folder_of_transformers_is_read_from_disk(tmp_path):
    peer = clip_peer("gelu")
    peer.save_pretrained(tmp_path)
    checkpoint = read_tensors(tmp_path)
    encoder = clip_encoder(checkpoint.tensors, checkpoint.metadata["config"])
    params = encoder_params(encoder, checkpoint.tensors)
    assert_same_params(params, encoder_params(*reversed(published("clip"))))


def test_half_precision_files_become_float32():
    tensors, encoder = published("clip")
    for dtype in (np.float16, ml_dtypes.bfloat16):
        half = {name: array.astype(dtype) for name, array in tensors.items()}
        params = encoder_params(encoder, half)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
        np.testing.assert_array_equal(
            params["norm"]["bias"], half["text_model.final_layer_norm.bias"].astype(np.float32)
        )


def test_the_file_decides_on_sizes_and_the_config_on_the_rest():
    """SDXL's and Karlo's configs name another projection_dim than their files have."""
    tensors, _ = published("clip")
    wrong = {"projection_dim": 512, "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 3}
    config = CONFIG | wrong | {"layer_norm_eps": 1e-3, "hidden_act": "quick_gelu"}
    expected = ClipTextEncoder(
        width=32, layers=3, heads=4, hidden=80, vocabulary=99, length=12, end=97, projection=20, eps=1e-3
    )
    assert clip_encoder(tensors, config) == expected
    assert clip_encoder(tensors, {"text_config": config, "vision_config": {}}) == expected


@pytest.mark.spread(2)
@pytest.mark.parametrize(
    ("layout", "width", "heads", "activation"),
    [
        ("clip", 768, 12, "quick_gelu"),
        ("clip", 1024, 16, "gelu"),
        ("open_clip", 1024, 16, "gelu"),
        ("open_clip", 1280, 20, "gelu"),
    ],
)
def test_single_files_without_a_config(layout, width, heads, activation):
    """Nothing in them tells the number of heads or the activation."""
    encoder = ClipTextEncoder(width, 2, heads, 4 * width, activation, projection=width)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4), jnp.int32))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), nn.meta.unbox(shapes)["params"])
    assert clip_encoder(encoder_tensors(encoder, zeros, layout)) == encoder


def test_files_of_the_whole_model_are_read_for_their_text_encoder():
    tensors, encoder = published("clip")
    whole = tensors | {"vision_model.post_layernorm.bias": np.zeros(3), "logit_scale": np.float32(1)}
    whole |= {"visual_projection.weight": np.zeros((2, 2))}
    assert_same_params(encoder_params(encoder, whole), encoder_params(encoder, tensors))
    tensors, encoder = published("t5")
    whole = tensors | {"decoder.final_layer_norm.weight": np.zeros(3), "lm_head.weight": np.zeros((2, 2))}
    assert t5_encoder(whole, T5) == encoder
    assert_same_params(encoder_params(encoder, whole), encoder_params(encoder, tensors))


def test_t5s_table_has_either_name_or_both():
    tensors, encoder = published("t5")
    table = tensors["shared.weight"]
    both = tensors | {"encoder.embed_tokens.weight": table}
    other = {name: array for name, array in both.items() if name != "shared.weight"}
    for given in (both, other):
        assert t5_encoder(given, T5) == encoder
        assert_same_params(encoder_params(encoder, given), encoder_params(encoder, tensors))


def test_t5_without_a_config_is_of_a_published_version():
    for kind in ("gated-gelu", "relu"):
        tensors = numbers(t5_peer(feed_forward_proj=kind))
        known = t5_encoder(tensors, T5 | {"feed_forward_proj": kind})
        assert t5_encoder(tensors).clone(max_distance=20, eps=1e-3) == known


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("clip", {"encoder.layers.1.mlp.fc1.bias": None}, r"missing +encoder.layers.1.mlp.fc1.bias"),
        ("clip", {"final_layer_norm.bias": np.zeros(5)}, r"other shape +final_layer_norm.bias"),
        ("clip", {"encoder.stray": np.zeros(5)}, r"not read +encoder.stray"),
        ("clip", {"final_layer_norm.bias": np.full(32, np.nan)}, "NaN or infinite"),
        (
            "t5",
            {"encoder.block.1.layer.0.SelfAttention.k.weight": None},
            "missing .*1.layer.0.SelfAttention.k",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(layout, change, message):
    tensors, encoder = published(layout)
    tensors = {name.removeprefix("text_model."): array for name, array in tensors.items()} | change
    given = {name: array for name, array in tensors.items() if array is not None}
    with pytest.raises(UserError, match=message):
        encoder_params(encoder, given)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: clip_encoder({"conv_in.weight": np.zeros(3)}),
            "expected those of a text encoder, .*got conv_in",
        ),
        (lambda: clip_encoder(published("t5")[0]), "expected those of a text encoder"),
        (lambda: t5_encoder(published("clip")[0]), "with shared.weight, got embeddings"),
        (lambda: clip_encoder(published("clip")[0], CONFIG, "model."), "got none"),
        (
            lambda: clip_encoder({"token_embedding.weight": np.zeros(3)}),
            r"a matrix token_embedding.weight, got shape",
        ),
        (lambda: clip_encoder({"token_embedding.weight": np.zeros((3, 64))}), "got no such tensor"),
        (lambda: clip_encoder(published("clip")[0], CONFIG | {"hidden_act": "relu"}), "activation='relu'"),
        (
            lambda: clip_encoder(published("clip")[0], CONFIG | {"num_attention_heads": 5}),
            "width=32: .*heads=5",
        ),
        (
            lambda: t5_encoder(published("t5")[0], T5 | {"feed_forward_proj": "gated-silu"}),
            "activation='silu'",
        ),
        (lambda: encoder_tensors(published("t5")[1], {}, "clip"), "layout='clip': expected t5"),
    ],
)
def test_other_files_and_configs_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
