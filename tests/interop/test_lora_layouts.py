"""One random LoRA in every published layout merges to the same weights, those of the formula."""

import json

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.interop.lora.merging import merged, merged_all
from jaxdiff.interop.lora.names import Modules
from jaxdiff.interop.lora.original import original_names
from jaxdiff.interop.lora.reading import read_lora
from jaxdiff.interop.lora.writing import write_lora
from jaxdiff.interop.safetensors_files import write_safetensors
from jaxdiff.interop.tensors import read_tensors
from tests.interop import lora_files

LAYOUTS = [(kind, layout) for kind in ("sd1", "sdxl") for layout in lora_files.LAYOUTS
           if not (kind == "sd1" and layout == "kohya_original")]  # fmt: skip


def written(tmp_path, kind, layout):
    path = tmp_path / f"{layout}.safetensors"
    write_safetensors(path, *lora_files.LAYOUTS[layout](kind))
    return path


def close(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-5 * np.abs(array).max(), err_msg=name)


@pytest.mark.parametrize(("kind", "layout"), LAYOUTS)
def test_every_layout_merges_to_the_formula(kind, layout, tmp_path):
    networks = lora_files.networks(kind)
    adapters = read_lora(written(tmp_path, kind, layout), networks)
    assert {(component, name) for component, own in adapters.items() for name in own} == {
        (component, f"{module}.weight") for component, module in lora_files.targets(kind)
    }
    before = lora_files.weights(kind)
    for component, expected in lora_files.by_formula(kind, -0.7).items():
        close(merged(before[component], adapters[component], -0.7), expected)
    for component, own in lora_files.weights(kind).items():  # nothing was changed in place
        for name, array in own.items():
            np.testing.assert_array_equal(before[component][name], array)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_names_of_latent_diffusion_are_those_that_diffusers_converts(kind):
    module = pytest.importorskip("diffusers.loaders.single_file_utils")
    shapes = lora_files.networks(kind)["unet"]
    layers = {name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) > 1}
    names = original_names({name.removesuffix(".weight") for name in shapes if name.endswith(".weight")})
    assert layers <= names.keys()
    assert len(set(names.values())) == len(names)
    ends = ("weight", "bias")
    checkpoint = {
        f"model.diffusion_model.{names[layer]}.{end}": f"{layer}.{end}" for layer in layers for end in ends
    }
    config = (lora_files.SD1 if kind == "sd1" else lora_files.SDXL) | {"num_class_embeds": None}
    converted = module.convert_ldm_unet_checkpoint(checkpoint, config)
    assert all(converted[f"{layer}.weight"] == f"{layer}.weight" for layer in layers)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_every_layer_has_one_name_in_each_layout(kind):
    networks = lora_files.networks(kind)
    modules, te = Modules(networks), "lora_te" if kind == "sd1" else "lora_te1"
    prefixes = {"unet": "lora_unet", "text_encoder": te, "text_encoder_2": "lora_te2"}
    for component, shapes in networks.items():
        for name in (name for name, shape in shapes.items() if len(shape) > 1):
            module = name.removesuffix(".weight")
            underscored = f"{prefixes[component]}_{module.replace('.', '_')}"
            for spelling in (underscored, f"{component}.{module}", f"{component}.base_model.model.{module}"):
                assert modules.find(spelling) == [(component, name)]


def test_text_encoders_without_their_prefix(tmp_path):
    """Some folders of transformers leave out ``text_model.``; LoRA files never do."""
    shapes = lora_files.networks("sd1")["text_encoder"]
    bare = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    for layout in ("kohya", "diffusers", "old_diffusers"):
        path = written(tmp_path, "sd1", layout)
        found = read_lora(path, lora_files.networks("sd1") | {"text_encoder": bare})["text_encoder"]
        assert found.keys() == {f"{name.removeprefix('text_model.')}.weight" for name in lora_files.TEXT}
        again = tmp_path / "again.safetensors"
        write_lora(again, {"text_encoder": found}, "kohya")
        assert all(
            key.startswith("lora_te_text_model_encoder_layers_") for key in read_tensors(again).tensors
        )
        assert read_lora(again, {"text_encoder": shapes})["text_encoder"].keys() == {
            f"{name}.weight" for name in lora_files.TEXT
        }


def test_files_of_torch_and_folders(tmp_path):
    torch = pytest.importorskip("torch")
    tensors, _ = lora_files.kohya("sd1")
    path = tmp_path / "pytorch_lora_weights.bin"
    torch.save({name: torch.tensor(array).to(torch.bfloat16) for name, array in tensors.items()}, path)
    for found in (read_lora(place, lora_files.networks("sd1")) for place in (path, tmp_path)):
        for (component, module), (down, _, alpha) in lora_files.adapter("sd1").items():
            adapter = found[component][f"{module}.weight"]
            assert adapter.alpha == alpha
            np.testing.assert_allclose(adapter.factors.down.astype(np.float32), down, rtol=0.01)


def test_a_model_of_its_own_needs_no_component_in_its_names(tmp_path):
    """``unet.save_attn_procs`` and PEFT's own files of one model."""
    shapes = lora_files.networks("sd1")["text_encoder"]
    for stem in ("base_model.model.", ""):
        down, up = np.ones((2, 12), np.float32), np.ones((12, 2), np.float32)
        layer = f"{stem}text_model.encoder.layers.0.self_attn.q_proj"
        path = tmp_path / "adapter_model.safetensors"
        write_safetensors(path, {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up})
        assert len(read_lora(path, {"text_encoder": shapes})["text_encoder"]) == 1
        with pytest.raises(
            UserError, match=r"expected one weight per key, got .* for text_encoder's .* or text_enc"
        ):
            read_lora(path, {"text_encoder": shapes, "text_encoder_2": shapes})


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_round_trip_keeps_every_bit(kind, layout, tmp_path):
    networks, first, second = lora_files.networks(kind), tmp_path / "first", tmp_path / "second"
    write_lora(first, read_lora(written(tmp_path, kind, "kohya"), networks), layout)
    write_lora(second, read_lora(first, networks), "kohya")
    same(read_tensors(second).tensors, lora_files.kohya(kind)[0])
    write_lora(second, read_lora(first, networks), layout)
    same(read_tensors(second).tensors, read_tensors(first).tensors)
    assert read_tensors(second).metadata == read_tensors(first).metadata


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


def test_former_names_of_the_output_of_attention(tmp_path):
    """With a processor in front or not, and the magnitudes of PEFT where the factors have the current name."""
    layer = "up_blocks.1.attentions.2.transformer_blocks.0.attn2"
    down, up = np.ones((2, 8), np.float32), np.ones((8, 2), np.float32)
    path, networks = tmp_path / "a.safetensors", lora_files.networks("sd1")
    for stem in (
        f"unet.{layer}.to_out_lora",
        f"{layer}.processor.to_out_lora",
        f"unet.{layer}.to_out.0.lora",
    ):
        tensors = {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
        write_safetensors(
            path, tensors | {f"unet.{layer}.to_out.lora_magnitude_vector": np.ones(8, np.float32)}
        )
        (found,) = read_lora(path, networks)["unet"].items()
        assert found[0] == f"{layer}.to_out.0.weight"
        assert found[1].magnitude is not None


def test_alpha_of_a_layer_whose_name_ends_anothers(tmp_path):
    """PEFT's patterns fit ends of names, and the first one counts."""
    tensors, names = {}, {"lora_unet_conv": 1, "lora_unet_b_conv": 2, "lora_unet_a_b_conv": 3}
    for stem, alpha in names.items():
        down, up = np.ones((4, 6), np.float32), np.ones((6, 4), np.float32)
        tensors |= {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": np.array([alpha]),
        }
    networks = {"unet": {"conv.weight": (6, 6), "b.conv.weight": (6, 6), "a.b.conv.weight": (6, 6)}}
    write_safetensors(tmp_path / "kohya", tensors)
    write_lora(tmp_path / "peft", read_lora(tmp_path / "kohya", networks), "diffusers")
    found = read_lora(tmp_path / "peft", networks)["unet"]
    assert {name: adapter.alpha for name, adapter in found.items()} == dict(
        zip(networks["unet"], (1, 2, 3), strict=True)
    )


def test_settings_of_peft_name_each_layer(tmp_path):
    path = tmp_path / "a.safetensors"
    write_lora(path, read_lora(written(tmp_path, "sd1", "kohya"), lora_files.networks("sd1")), "diffusers")
    settings = json.loads(read_tensors(path).metadata["lora_adapter_metadata"])
    for (component, module), (down, _, alpha) in lora_files.adapter("sd1").items():
        assert settings[f"{component}.rank_pattern"][module] == len(down)
        assert settings[f"{component}.alpha_pattern"][module] == alpha
    assert settings["unet.target_modules"] == sorted(lora_files.UNET["sd1"])
    assert settings["unet.use_dora"] is False


def test_several_files_add_up_and_a_negative_scale_takes_one_back(tmp_path):
    adapters = read_lora(written(tmp_path, "sd1", "kohya"), lora_files.networks("sd1"))["unet"]
    before = lora_files.weights("sd1")["unet"]
    there_and_back = merged(merged(before, adapters, 1.5), adapters, -1.5)
    close(there_and_back, before)
    close(merged_all(before, [(adapters, 2.0), (adapters, -0.5)]), lora_files.by_formula("sd1", 1.5)["unet"])
    assert merged_all(before, []).keys() == before.keys()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_merged_in_float32(dtype, tmp_path):
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    adapters = read_lora(written(tmp_path, "sd1", "kohya"), lora_files.networks("sd1"))["unet"]
    before = {name: array.astype(kind) for name, array in lora_files.weights("sd1")["unet"].items()}
    after = merged(before, adapters, 0.3)
    wide = merged({name: array.astype(np.float32) for name, array in before.items()}, adapters, 0.3)
    for name, array in after.items():
        assert array.dtype == kind
        np.testing.assert_array_equal(array, wide[name].astype(kind))
