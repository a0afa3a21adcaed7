"""Every LoRA file that does not fit is refused by name, with its keys; and the flag ``--lora``."""

import json
import re

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.interop.lora.flag import parse_flag
from jaxdiff.interop.lora.merging import merged, shapes
from jaxdiff.interop.lora.reading import read_lora
from jaxdiff.interop.lora.writing import write_lora
from jaxdiff.interop.safetensors_files import write_safetensors

SHAPES = {
    "mid_block.to_q.weight": (6, 4),
    "mid_block.to_k.weight": (6, 4),
    "mid_block.conv.weight": (6, 4, 3, 3),
}
Q, K, CONV = "lora_unet_mid_block_to_q", "lora_unet_mid_block_to_k", "lora_unet_mid_block_conv"


def ones(*shape):
    return np.ones(shape, np.float32)


def pair(stem=Q):
    return {f"{stem}.lora_down.weight": ones(2, 4), f"{stem}.lora_up.weight": ones(6, 2)}


def lokr(first, second):
    return {f"{Q}.lokr_w1": ones(*first), f"{Q}.lokr_w2": ones(*second)}


DOWN, UP, DORA = f"{Q}.lora_down.weight", f"{Q}.lora_up.weight", f"{Q}.dora_scale"
REFUSED = {
    "stray key": (
        pair() | pair("lora_unet_mid_block_to_x"),
        "expected keys that name layers of the networks, got 2 of 4 that do not: "
        "'lora_unet_mid_block_to_x.lora_down.weight' (nearest known: 'lora_unet_mid_block_to_",
    ),
    "every key": (
        {"transformer.blocks.0.lora_A.weight": ones(2, 4)},
        "got none that does: 'transformer.blocks.0.lora_A.weight' (no known key is near)",
    ),
    "dotted key": (
        {"unet.mid_block.to_w.lora_A.weight": ones(2, 4)},
        "'unet.mid_block.to_w.lora_A.weight' (nearest known: 'unet.mid_block.to_",
    ),
    "unknown part": (pair() | {f"{Q}.diff_b": ones(6)}, f"1 of 3 that do not: '{Q}.diff_b' (no known part of a layer)"),
    "bias": (pair() | {"unet.mid_block.to_q.lora_B.bias": ones(6)}, "'unet.mid_block.to_q.lora_B.bias' (no known part"),
    "another network": (
        pair() | pair("lora_te_text_model_encoder_layers_0_mlp_fc1"),
        "'lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight'",
    ),
    "missing up": ({DOWN: ones(2, 4)}, f"expected lora_up.weight (lora_B) beside '{DOWN}', got none"),
    "missing down": ({UP: ones(6, 2)}, f"expected lora_down.weight (lora_A) beside '{UP}', got none"),
    "alpha alone": ({f"{Q}.alpha": ones()}, f"beside '{Q}.alpha', got none"),
    "missing factor": ({f"{Q}.hada_w1_a": ones(6, 2), f"{Q}.hada_w1_b": ones(2, 4), f"{Q}.hada_w2_a": ones(6, 2)},
                       "expected hada_w2_b beside"),
    "two methods": (pair() | {f"{Q}.lokr_w1": ones(2, 2)}, f"one method for a weight, got '{Q}.lokr_w1' too"),
    "two keys": (
        pair() | {"unet.mid_block.to_q.lora_A.weight": ones(2, 4)},
        f"expected one key per factor of a weight, got two: '{DOWN}' and 'unet.mid_block.to_q.lora_A.weight'",
    ),
    "wrong width": (
        pair() | {DOWN: ones(2, 5)},
        f"expected shape (2, 4) of '{DOWN}', for a weight of shape (6, 4) and rank 2, got (2, 5)",
    ),
    "wrong height": (pair() | {UP: ones(7, 2)}, f"expected shape (6, 2) of '{UP}', for a weight of shape (6, 4)"),
    "ranks that differ": (pair() | {UP: ones(6, 3)}, f"expected shape (6, 2) of '{UP}'"),
    "another kernel": (pair(CONV), f"expected shape (2, 4, 3, 3) of '{CONV}.lora_down.weight'"),
    "no rank": ({DOWN: ones(0, 4), UP: ones(6, 0)}, f"expected a rank > 0, got 0 in '{DOWN}'"),
    "a vector": (pair() | {UP: ones(6)}, f"expected a matrix in '{UP}', got shape (6,)"),
    "integers": (pair() | {UP: ones(6, 2).astype(np.int32)}, f"floating-point numbers in '{UP}', got int32"),
    "not a number": (pair() | {UP: ones(6, 2) * np.float32(np.nan)}, f"finite numbers in '{UP}', got NaN or infinity"),
    "several alphas": (pair() | {f"{Q}.alpha": ones(2)}, f"expected one number in '{Q}.alpha', got shape (2,)"),
    "dora of another size": (pair() | {DORA: ones(1, 5)}, f"expected shape (6, 1) or (1, 4) of '{DORA}', got (1, 5)"),
    "dora of no axis": (pair() | {DORA: ones(4)}, f"expected shape (6, 1) or (1, 4) of '{DORA}', got (4,)"),
    "magnitude of another size": (pair() | {f"{Q}.lora_magnitude_vector": ones(4)}, "expected shape (6, 1) or (1, 6)"),
    "magnitude per input": (pair() | {f"{Q}.magnitude": ones(1, 4)}, "expected shape (6, 1) or (1, 6)"),
    "two magnitudes": (pair() | {DORA: ones(6, 1), f"{Q}.magnitude": ones(6)}, f"'{DORA}' and '{Q}.magnitude'"),
    "no divisor": (lokr((4, 2), (2, 2)), f"expected shape (2, 2) of '{Q}.lokr_w1'"),
    "no quotient": (lokr((2, 2), (4, 2)), f"expected shape (3, 2) of '{Q}.lokr_w2', for a weight of shape (6, 4), got"),
    "core of another rank": (
        {f"{CONV}.lora_down.weight": ones(2, 4), f"{CONV}.lora_mid.weight": ones(3, 2, 3, 3),
         f"{CONV}.lora_up.weight": ones(6, 2)},
        f"expected shape (2, 2, 3, 3) of '{CONV}.lora_mid.weight'",
    ),
    "empty": ({}, "expected the keys of a LoRA, got no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_does_not_fit_is_named_with_its_key(case, tmp_path):
    tensors, text = REFUSED[case]
    write_safetensors(tmp_path / "style.safetensors", tensors)
    with pytest.raises(UserError, match=re.escape(text)) as caught:
        read_lora(tmp_path / "style.safetensors", {"unet": SHAPES})
    message = str(caught.value)
    assert message.startswith("path=")
    assert "style.safetensors" in message
    assert ". Fix: " in message
    assert "\n" not in message


def test_all_unbound_keys_are_listed_up_to_twenty(tmp_path):
    path = tmp_path / "style.safetensors"
    write_safetensors(path, {f"strange.{i:02}.lora_A.weight": ones(2, 2) for i in range(23)})
    with pytest.raises(UserError) as caught:
        read_lora(path, {"unet": SHAPES})
    for i in range(20):
        assert f"'strange.{i:02}.lora_A.weight'" in str(caught.value)
    assert "'strange.20" not in str(caught.value)
    assert "and 3 more" in str(caught.value)


SETTINGS = {
    "not json": ("{", "malformed data"),
    "a list": ("[]", "expected a JSON object as lora_adapter_metadata of PEFT"),
    "alpha": (json.dumps({"unet.lora_alpha": "8"}), "expected a number as lora_alpha of PEFT, got '8'"),
    "pattern": (
        json.dumps({"unet.alpha_pattern": {"to_[qk]": 3}}),
        "expected names of modules as alpha_pattern",
    ),
    "pattern's alpha": (
        json.dumps({"unet.alpha_pattern": {"to_q": None}}),
        "expected numbers as alpha_pattern",
    ),
    "patterns": (json.dumps({"unet.alpha_pattern": [3]}), "expected a JSON object as alpha_pattern"),
    "method": (json.dumps({"unet.peft_type": "OFT"}), "expected 'LORA' as peft_type of PEFT, got 'OFT'"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_cannot_be_followed_are_refused(case, tmp_path):
    stated, text = SETTINGS[case]
    write_safetensors(tmp_path / "style.safetensors", pair(), {"lora_adapter_metadata": stated})
    with pytest.raises(UserError, match=re.escape(text)):
        read_lora(tmp_path / "style.safetensors", {"unet": SHAPES})


def test_names_whose_underscores_can_be_read_in_two_ways_are_refused(tmp_path):
    write_safetensors(tmp_path / "style.safetensors", pair("lora_unet_a_b_c"))
    with pytest.raises(
        UserError, match=r"one weight per key, got .* for unet's a\.b_c\.weight or unet's a_b\.c"
    ):
        read_lora(tmp_path / "style.safetensors", {"unet": {"a.b_c.weight": (6, 4), "a_b.c.weight": (6, 4)}})


def test_a_missing_file_an_empty_folder_and_an_unknown_component(tmp_path):
    with pytest.raises(UserError, match="expected a readable file"):
        read_lora(tmp_path / "none", {"unet": SHAPES})
    with pytest.raises(UserError, match=r"expected a file such as pytorch_lora_weights\.safetensors in it"):
        read_lora(tmp_path, {"unet": SHAPES})
    with pytest.raises(UserError, match="networks='vae': expected components unet or text_encoder"):
        read_lora(tmp_path, {"vae": SHAPES})


def adapters(tmp_path, tensors=None):
    write_safetensors(tmp_path / "a.safetensors", tensors or pair())
    return read_lora(tmp_path / "a.safetensors", {"unet": SHAPES})


def test_merging_into_other_weights_is_refused(tmp_path):
    own = adapters(tmp_path)["unet"]
    with pytest.raises(
        UserError, match=r"adapters='mid_block\.to_q\.weight': expected names of the network's weights"
    ):
        merged({"other": ones(1)}, own)
    with pytest.raises(UserError, match=r"expected the weight's shape \(6, 5\)"):
        merged({"mid_block.to_q.weight": ones(6, 5)}, own)
    with pytest.raises(UserError, match="scale=nan: expected a finite number"):
        merged({"mid_block.to_q.weight": ones(6, 4)}, own, float("nan"))
    half = {"mid_block.to_q.weight": ones(6, 4).astype(np.float16)}
    assert shapes(half) == {"mid_block.to_q.weight": (6, 4)}
    with pytest.raises(UserError, match=r"got mid_block\.to_q\.weight beyond the range of float16"):
        merged(half, own, 1e6)


def test_a_layout_that_cannot_hold_an_adapter_is_refused(tmp_path):
    path = tmp_path / "b.safetensors"
    for tensors, text in (
        (lokr((2, 2), (3, 2)), "'Kronecker': expected LoRA without a core for diffusers"),
        (pair() | {DORA: ones(1, 4)}, "'in': expected DoRA per output for diffusers"),
    ):
        with pytest.raises(UserError, match=text):
            write_lora(path, adapters(tmp_path, tensors), "diffusers")
    with pytest.raises(UserError, match="expected adapters of at least one weight"):
        write_lora(path, {"unet": {}}, "kohya")
    assert not path.exists()


def test_the_flag_has_a_scale_behind_the_last_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "C:drive.safetensors", "v:2"):
        (tmp_path / name).touch()
    assert parse_flag("a.safetensors") == ("a.safetensors", 1.0)
    assert parse_flag("a.safetensors:0.8") == ("a.safetensors", 0.8)
    assert parse_flag("a.safetensors:-1") == ("a.safetensors", -1.0)
    assert parse_flag("C:drive.safetensors") == ("C:drive.safetensors", 1.0)
    assert parse_flag("C:drive.safetensors:1e-1") == ("C:drive.safetensors", 0.1)
    assert parse_flag("v:2") == ("v:2", 1.0)
    assert parse_flag("v:2:3") == ("v:2", 3.0)
    assert parse_flag(f"{tmp_path}/a.safetensors:2") == (f"{tmp_path}/a.safetensors", 2.0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("none.safetensors", "expected an existing file, got none of that name"),
        ("none.safetensors:2", "expected an existing file, got none of that name"),
        ("C:none.safetensors", "expected an existing file"),
        ("a.safetensors:strong", "expected a number after the last colon, got 'strong'"),
        ("a.safetensors:", "expected a number after the last colon, got ''"),
        ("a.safetensors:nan", "expected a finite scale, got nan"),
        ("a.safetensors:inf", "expected a finite scale, got inf"),
    ],
)
def test_flags_that_name_nothing_are_refused(text, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(UserError, match=why):
        parse_flag(text)
