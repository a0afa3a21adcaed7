"""DoRA, LoCon, LoHa and LoKr against their formulas, written out here element by element; alpha in all its places."""

import json

import numpy as np
import pytest

from jaxdiff.interop.lora.merging import merged
from jaxdiff.interop.lora.reading import read_lora
from jaxdiff.interop.lora.writing import write_lora
from jaxdiff.interop.safetensors_files import write_safetensors
from jaxdiff.interop.tensors import read_tensors

SHAPES = {
    "a.linear.weight": (6, 4),
    "a.square.weight": (4, 4),
    "a.conv.weight": (6, 4, 3, 3),
    "a.point.weight": (6, 4, 1, 1),
}
LINEAR, CONV = ("linear", "square", "point"), "conv"


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def weight(layer):
    return draw(*SHAPES[f"a.{layer}.weight"], seed=9)


def read(tmp_path, layer, parts, metadata=None, stem="lora_unet_a_{}"):
    tensors = {f"{stem.format(layer)}.{end}": np.asarray(array) for end, array in parts.items()}
    path = tmp_path / "adapter_model.safetensors"
    write_safetensors(path, tensors, metadata)
    return read_lora(path, {"unet": SHAPES})["unet"]


def after(tmp_path, layer, parts, scale=1.0, **options):
    """The merged weight of a layer."""
    adapters = read(tmp_path, layer, parts, **options)
    return merged({f"a.{layer}.weight": weight(layer)}, adapters, scale)[f"a.{layer}.weight"]


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def plain(layer, rank=2):
    out, width, *kernel = SHAPES[f"a.{layer}.weight"]
    return {
        "lora_down.weight": draw(rank, width, *kernel),
        "lora_up.weight": draw(out, rank, *[1] * len(kernel)),
    }


def change(parts):
    down, up = (parts[f"lora_{name}.weight"] for name in ("down", "up"))
    product = np.einsum("or,ri->oi", up.reshape(len(up), -1), down.reshape(len(down), -1))
    return product.reshape(len(up), *down.shape[1:])


@pytest.mark.parametrize(("axis", "norm_axes"), [("out", (1, 2, 3)), ("in", (0, 2, 3))])
@pytest.mark.parametrize("layer", ["linear", "square", "conv"])
def test_dora_has_magnitudes_per_output_or_per_input(layer, axis, norm_axes, tmp_path):
    shape = SHAPES[f"a.{layer}.weight"]
    form = [1] * len(shape)
    form[axis == "in"] = -1
    values = 1 + np.abs(draw(shape[axis == "in"], seed=3))
    parts = plain(layer) | {"alpha": np.float32(3), "dora_scale": values.reshape(form)}
    changed = weight(layer).astype(float) + -0.6 * 3 / 2 * change(parts)
    norm = np.sqrt((changed**2).sum(axis=norm_axes[: len(shape) - 1], keepdims=True))
    close(after(tmp_path, layer, parts, -0.6), values.reshape(form) * changed / norm)


def test_dora_undone_by_its_own_norms_is_lora(tmp_path):
    parts = plain("conv")
    changed = weight("conv") + change(parts)
    for axes in ((1, 2, 3), (0, 2, 3)):
        norms = np.sqrt((changed**2).sum(axis=axes, keepdims=True))
        close(after(tmp_path, "conv", parts | {"dora_scale": norms}), changed)


@pytest.mark.parametrize("end", ["lora_magnitude_vector", "lora_magnitude_vector.weight",
                                 "lora_magnitude_vector.default.weight", "magnitude"])  # fmt: skip
@pytest.mark.parametrize("layer", ["linear", "square", "conv", "point"])
def test_magnitudes_of_peft_are_per_output(layer, end, tmp_path):
    """For a convolution PEFT stores them as [1, out, 1, 1], which LyCORIS would read as magnitudes per input."""
    parts, out = plain(layer), SHAPES[f"a.{layer}.weight"][0]
    values = 1 + np.abs(draw(out, seed=3))
    stored = values if layer in ("linear", "square") else values.reshape(1, out, 1, 1)
    named = {
        "lora_A.weight": parts["lora_down.weight"],
        "lora_B.weight": parts["lora_up.weight"],
        end: stored,
    }
    changed = weight(layer).astype(float) + change(parts)
    rows = changed.reshape(out, -1)
    expected = (values[:, None] * rows / np.linalg.norm(rows, axis=1, keepdims=True)).reshape(changed.shape)
    close(after(tmp_path, layer, named, stem="unet.a.{}"), expected)


def test_dora_of_a_weight_without_length_stays_zero(tmp_path):
    parts = plain("linear") | {"dora_scale": np.ones((6, 1), np.float32)}
    parts["lora_up.weight"] = parts["lora_up.weight"] * np.float32(0)
    adapters = read(tmp_path, "linear", parts)
    found = merged({"a.linear.weight": np.zeros((6, 4), np.float32)}, adapters)
    assert not found["a.linear.weight"].any()


def test_a_core_between_the_factors(tmp_path):
    """LoCon's Tucker form: three convolutions after each other, 1x1, 3x3 and 1x1."""
    down, mid, up = draw(2, 4, 1, 1), draw(2, 2, 3, 3), draw(6, 2, 1, 1)
    expected = weight("conv").astype(float)
    for o, i, first, second in np.ndindex(6, 4, 2, 2):
        expected[o, i] += 0.5 / 2 * up[o, first, 0, 0] * mid[first, second] * down[second, i, 0, 0]
    parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": np.float32(0.5)}
    close(after(tmp_path, "conv", parts), expected)


@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_loha(layer, tmp_path):
    shape = SHAPES[f"a.{layer}.weight"]
    flat = int(np.prod(shape[1:]))
    sizes = {"hada_w1_a": (6, 3), "hada_w1_b": (3, flat), "hada_w2_a": (6, 3), "hada_w2_b": (3, flat)}
    parts = {name: draw(*size, seed=i) for i, (name, size) in enumerate(sizes.items())}
    first, second = parts["hada_w1_a"] @ parts["hada_w1_b"], parts["hada_w2_a"] @ parts["hada_w2_b"]
    expected = weight(layer) + 2 / 3 * (first * second).reshape(shape)
    close(after(tmp_path, layer, parts | {"alpha": np.float32(2)}), expected)


def test_loha_with_cores(tmp_path):
    sizes = {
        "w1_a": (3, 6),
        "w1_b": (3, 4),
        "w2_a": (3, 6),
        "w2_b": (3, 4),
        "t1": (3, 3, 3, 3),
        "t2": (3, 3, 3, 3),
    }
    parts = {f"hada_{name}": draw(*size, seed=i) for i, (name, size) in enumerate(sizes.items())}
    sums = np.zeros((2, 6, 4, 3, 3))
    for n, o, i, left, right in np.ndindex(2, 6, 4, 3, 3):
        core, rows, columns = (parts[f"hada_{name}"] for name in (f"t{n + 1}", f"w{n + 1}_a", f"w{n + 1}_b"))
        sums[n, o, i] += rows[left, o] * core[left, right] * columns[right, i]
    close(after(tmp_path, "conv", parts), weight("conv") + sums[0] * sums[1])


def kronecker(first, second):
    """out = (row of the first) (rows of the second) + row of the second; columns alike."""
    (a, b), (c, d, *kernel) = first.shape, second.shape
    found = np.zeros((a * c, b * d, *kernel))
    for i, j, k, m in np.ndindex(a, b, c, d):
        found[i * c + k, j * d + m] = first[i, j] * second[k, m]
    return found


@pytest.mark.parametrize("layer", ["linear", "conv"])
@pytest.mark.parametrize("whole", ["both", "first", "second", "none"])
def test_lokr(layer, whole, tmp_path):
    kernel, flat = ((3, 3), 9) if layer == "conv" else ((), 1)
    thin = (
        {"lokr_w1_a": draw(2, 5), "lokr_w1_b": draw(5, 2)},
        {"lokr_w2_a": draw(3, 5), "lokr_w2_b": draw(5, 2 * flat)},
    )
    full = {"lokr_w1": draw(2, 2)}, {"lokr_w2": draw(3, 2, *kernel)}
    first = full[0] if whole in ("both", "first") else thin[0]
    second = full[1] if whole in ("both", "second") else thin[1]
    products = [
        parts.get(f"lokr_w{n}", parts.get(f"lokr_w{n}_a", np.eye(1)) @ parts.get(f"lokr_w{n}_b", np.eye(1)))
        if f"lokr_w{n}" not in parts
        else parts[f"lokr_w{n}"]
        for n, parts in ((1, first), (2, second))
    ]
    product = kronecker(products[0], products[1].reshape(3, 2, *kernel))
    factor = 1.0 if whole == "both" else 2 / 5  # two whole factors have no rank, and no alpha
    found = after(tmp_path, layer, first | second | {"alpha": np.float32(2)})
    close(found, weight(layer) + factor * product)


def test_lokr_with_a_core(tmp_path):
    first, left, right, core = draw(2, 2), draw(5, 3), draw(5, 2), draw(5, 5, 3, 3)
    second = np.zeros((3, 2, 3, 3))
    for o, i, row, column in np.ndindex(3, 2, 5, 5):
        second[o, i] += left[row, o] * core[row, column] * right[column, i]
    parts = {"lokr_w1": first, "lokr_w2_a": left, "lokr_w2_b": right, "lokr_t2": core, "alpha": np.float32(1)}
    close(after(tmp_path, "conv", parts), weight("conv") + kronecker(first, second) / 5)


@pytest.mark.parametrize("layer", ["linear", "point"])
def test_a_linear_layer_and_a_1x1_convolution_are_the_same(layer, tmp_path):
    """Stable Diffusion 1 projects by convolutions, XL by linear layers; files do not always follow."""
    for ones in ((), (1, 1)):
        parts = {
            "lora_down.weight": draw(2, 4).reshape(2, 4, *ones),
            "lora_up.weight": draw(6, 2).reshape(6, 2, *ones),
        }
        expected = weight(layer) + (draw(6, 2) @ draw(2, 4)).reshape(weight(layer).shape)
        close(after(tmp_path, layer, parts), expected)


PEFT = {"lora_A.weight": draw(4, 4), "lora_B.weight": draw(6, 4)}
CASES = {
    "no alpha is the rank": (None, None, 1.0),
    "one for all": ({"unet.lora_alpha": 12, "unet.r": 4}, None, 3.0),
    "a pattern": ({"unet.lora_alpha": 12, "unet.alpha_pattern": {"near": 1, "linear": 2}}, None, 0.5),
    "a pattern of the whole name": (
        {"unet.lora_alpha": 12, "unet.alpha_pattern": {"^a.linear": 2}},
        None,
        0.5,
    ),
    "of another component": ({"text_encoder.lora_alpha": 12}, None, 1.0),
    "of a model by itself": ({"lora_alpha": 12, "text_encoder.lora_alpha": 7}, None, 3.0),
    "of a model and a component": ({"unet.lora_alpha": 12, "lora_alpha": 7}, None, 3.0),
    "by the root of the rank": ({"unet.lora_alpha": 6, "unet.use_rslora": True}, None, 3.0),
    "beside the file": (None, {"peft_type": "LORA", "lora_alpha": 20, "r": 4}, 5.0),
    "both": ({"unet.lora_alpha": 12}, {"lora_alpha": 20}, 3.0),
}


@pytest.mark.parametrize("case", CASES)
def test_alpha_of_peft(case, tmp_path):
    metadata, config, factor = CASES[case]
    if config:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    given = None if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
    found = after(tmp_path, "linear", PEFT, metadata=given, stem="unet.a.{}")
    close(found, weight("linear") + factor * PEFT["lora_B.weight"] @ PEFT["lora_A.weight"])
    if config:
        assert read_lora(tmp_path, {"unet": SHAPES})["unet"]["a.linear.weight"].alpha == 4 * factor


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int64])
def test_alpha_in_the_file_may_be_an_integer_and_counts_before_settings(kind, tmp_path):
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 77})}
    parts = plain("linear") | {"alpha": np.array([8], kind)}
    close(after(tmp_path, "linear", parts, metadata=metadata), weight("linear") + 8 / 2 * change(parts))


ROUND_TRIPS = {
    "dora per output": ("conv", plain("conv") | {"dora_scale": draw(6, 1, 1, 1)}),
    "dora per input": ("linear", plain("linear") | {"dora_scale": draw(1, 4)}),
    "core": (
        "conv",
        {"lora_down.weight": draw(2, 4, 1, 1), "lora_mid.weight": draw(2, 2, 3, 3), "lora_up.weight": draw(6, 2, 1, 1)},
    ),
    "loha": (
        "linear",
        {f"hada_w{n}_{end}": draw(*size) for n in (1, 2) for end, size in (("a", (6, 3)), ("b", (3, 4)))},
    ),
    "lokr": ("linear", {"lokr_w1": draw(2, 2), "lokr_w2_a": draw(3, 5), "lokr_w2_b": draw(5, 2)}),
    "half": ("linear", {name: array.astype(np.float16) for name, array in plain("linear").items()}),
}  # fmt: skip


@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_every_method_comes_back_from_kohyas_layout(case, tmp_path):
    layer, parts = ROUND_TRIPS[case]
    adapters = read(tmp_path, layer, parts | {"alpha": np.float32(0.1)})
    write_lora(tmp_path / "again.safetensors", {"unet": adapters}, "kohya")
    found = read_tensors(tmp_path / "again.safetensors").tensors
    assert found.keys() == {f"lora_unet_a_{layer}.{end}" for end in (*parts, "alpha")}
    for end, array in (parts | {"alpha": np.float32(0.1)}).items():
        again = found[f"lora_unet_a_{layer}.{end}"]
        assert (again.dtype, again.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_dora_comes_back_from_the_layout_of_diffusers(layer, tmp_path):
    parts = plain(layer) | {"dora_scale": draw(6, *[1] * (weight(layer).ndim - 1)), "alpha": np.float32(0.3)}
    adapters = read(tmp_path, layer, parts)
    write_lora(tmp_path / "again.safetensors", {"unet": adapters}, "diffusers")
    again = read_lora(tmp_path / "again.safetensors", {"unet": SHAPES})["unet"]
    stored = read_tensors(tmp_path / "again.safetensors").tensors[f"unet.a.{layer}.lora_magnitude_vector"]
    assert stored.shape == ((6,) if layer == "linear" else (1, 6, 1, 1))
    name = f"a.{layer}.weight"
    np.testing.assert_array_equal(again[name].magnitude.values, parts["dora_scale"].reshape(-1))
    before = {name: weight(layer)}
    np.testing.assert_array_equal(merged(before, again)[name], merged(before, adapters)[name])


def test_alpha_keeps_its_digits(tmp_path):
    """JSON has more of them than float32."""
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 0.1})}
    adapters = read(tmp_path, "linear", PEFT, metadata, "unet.a.{}")
    write_lora(tmp_path / "again.safetensors", {"unet": adapters}, "kohya")
    assert read_lora(tmp_path / "again.safetensors", {"unet": SHAPES})["unet"]["a.linear.weight"].alpha == 0.1


@pytest.mark.parametrize("core", [False, True])
def test_a_merged_convolution_is_the_sum_of_both_paths(core, tmp_path):
    """What training computes: the layer, plus the convolutions of the adapter after each other."""
    torch = pytest.importorskip("torch")
    conv = torch.nn.functional.conv2d
    parts = {"lora_down.weight": draw(2, 4, 3, 3), "lora_up.weight": draw(6, 2, 1, 1)}
    if core:
        parts |= {"lora_down.weight": draw(2, 4, 1, 1), "lora_mid.weight": draw(2, 2, 3, 3)}
    names = [f"lora_{name}.weight" for name in ("down", "mid", "up") if f"lora_{name}.weight" in parts]
    x, path = torch.tensor(draw(1, 4, 5, 5)), torch.tensor(draw(1, 4, 5, 5))
    for name in names:
        path = conv(path, torch.tensor(parts[name]), padding=parts[name].shape[-1] // 2)
    expected = conv(x, torch.tensor(weight("conv")), padding=1) - 0.5 * path
    found = conv(x, torch.tensor(after(tmp_path, "conv", parts, -0.5)), padding=1)
    close(found.numpy(), expected.numpy())
