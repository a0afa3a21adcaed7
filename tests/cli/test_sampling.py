"""`jaxdiff.sample` from a command line to images: guidance, grids, sizes, masks, cascades and edits."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff import sample
from jaxdiff.cli import sampling
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.vector import NoiseLevel
from jaxdiff.denoiser import Denoiser
from jaxdiff.errors import UserError
from jaxdiff.generation import checks
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.unet import Level, UNet
from jaxdiff.sampling.guidance.classifier_free import Interval
from jaxdiff.sampling.guidance.per_condition import PerCondition
from tests.cli.models import CONDITIONS, LABEL, LOW, PARAMS, PHOTO, enlarged
from tests.generation.test_inputs import LEVELS, WEIGHTS, a_generator, constant


def test_a_scale_per_condition_is_per_condition_guidance(call):
    generator = a_generator(CONDITIONS, PARAMS, scale=3.0)
    given = ("--label", "0", "--text", "x" * 10, "--condition", "crop=0")
    plain = call(generator, *given, "--guidance", "2")
    np.testing.assert_array_equal(plain["images"], constant([2 * (LEVELS[0] + 0.1)]))
    each = call(generator, *given, "--guidance", "text=4,label=0.5")
    np.testing.assert_array_equal(each["images"], constant([4 * 0.1 + 0.5 * LEVELS[0]]))
    for text, message in {
        "text=much": "--guidance text=much: expected a number",
        "texts=4": r"--guidance='texts': .*choose from crop \(Continuous\), label \(ClassLabel\), text \(Length\)",
        "much": "--guidance=much: expected a scale",
    }.items():
        with pytest.raises(UserError, match=message):
            call(generator, *given, "--guidance", text)
    with pytest.raises(UserError, match="guidance='low': expected a condition with a null"):
        a_generator(LOW, {"low": {}}, (8, 8, 1))(low=np.zeros((4, 4, 1), np.uint8), guidance={"low": 2.0})


def test_scales_by_name_keep_the_form_of_the_recipes_guidance():
    conditioner = a_generator(CONDITIONS, PARAMS).denoiser.conditioner
    rule = PerCondition(("text", "label"), (1.0, 1.0), chained=False, interval=Interval(0.1, 1.0))
    expected = PerCondition(("label",), (2.0,), chained=False, interval=Interval(0.1, 1.0))
    assert checks.per_condition(rule, {"label": 2.0}, conditioner) == expected


def test_a_grid_has_a_row_for_each_class(tmp_path, capsys):
    generator = a_generator({"digit": LABEL}, {"digit": WEIGHTS["label"]})
    for words, shape in (((), (3, 2)), (("--label", "all"), (3, 2)), (("--label", "1"), (2, 3))):
        out = tmp_path / "grid.png"
        flags = ["--workdir", "run", "--out", str(out), "--overwrite", "--n", "6", *words]
        sampling.run(sample.parse(flags), load=lambda workdir, **options: generator)
        assert capsys.readouterr().out.strip().endswith("class: 0 to 2" if shape == (3, 2) else ".png")
        grid = np.asarray(Image.open(out))
        rows, columns = shape
        assert grid.shape == (34 * rows - 2, 34 * columns - 2)
        cells = grid[16::34, 16::34]
        levels = (
            [LEVELS[[row] * columns] for row in range(3)] if rows == 3 else [LEVELS[[1] * columns]] * rows
        )
        np.testing.assert_array_equal(cells, constant(np.concatenate(levels))[:, 0, 0, 0].reshape(shape))


def test_a_grid_of_fewer_images_than_classes_names_the_classes_that_it_shows(tmp_path, capsys):
    generator = a_generator({"digit": LABEL}, {"digit": WEIGHTS["label"]})
    flags = ["--workdir", "run", "--out", str(tmp_path / "grid.png"), "--n", "2", "--label", "all"]
    sampling.run(sample.parse(flags), load=lambda workdir, **options: generator)
    assert capsys.readouterr().out.strip().endswith("a row for each class: 0 to 1")


def test_the_size_of_an_image_condition_sets_that_of_the_images(call, photo):
    generator = a_generator(LOW, {"low": {}}, (8, 8, 1))
    found = call(generator, "--image", f"low={photo}")
    np.testing.assert_array_equal(found["images"], enlarged(PHOTO)[None])
    np.testing.assert_array_equal(found["low"], PHOTO[..., None])
    assert call(generator, "--image", f"low={photo}", "--size", "8x12", "--n", "2")["images"].shape[0] == 2
    with pytest.raises(UserError, match=r"low='8x12': expected 8x8, the size of --size"):
        call(generator, "--image", f"low={photo}", "--size", "8x8")
    with pytest.raises(UserError, match="--size=8: expected HEIGHTxWIDTH"):
        call(generator, "--image", f"low={photo}", "--size", "8")
    both = a_generator({**LOW, "guide": ImageCondition(1)}, {"low": {}, "guide": {}}, (8, 8, 1))
    with pytest.raises(UserError, match=r"guide='8x8': expected 8x12, the size of low"):
        call(both, "--image", f"low={photo}", "--condition", f"guide={enlarged_file(photo)}")


def enlarged_file(photo):
    Image.fromarray(enlarged(PHOTO)[:, :8, 0]).save(photo.with_name("guide.png"))
    return photo.with_name("guide.png")


def test_images_of_another_size_without_a_condition_and_with_a_mask(call, tmp_path):
    generator = a_generator({"label": LABEL}, {"label": WEIGHTS["label"]})
    for height, width in ((2, 6), (7, 9), (1, 1)):
        found = call(generator, "--label", "1", "--size", f"{height}x{width}")
        np.testing.assert_array_equal(found["images"], constant([LEVELS[1]], (height, width, 1)))
    known = np.arange(12, dtype=np.uint8).reshape(2, 6)
    Image.fromarray(known).save(tmp_path / "known.png")
    Image.fromarray(np.uint8([[255] * 3 + [0] * 3] * 2)).save(tmp_path / "mask.png")
    pair = ("--known", tmp_path / "known.png", "--mask", tmp_path / "mask.png", "--label", "1")
    found = call(generator, *pair, "--size", "2x6")["images"][0, ..., 0]
    np.testing.assert_array_equal(found[:, 3:], known[:, 3:])
    np.testing.assert_array_equal(found[:, :3], constant([LEVELS[1]], (2, 3, 1))[0, ..., 0])
    with pytest.raises(UserError, match=r"expected an image of 4x4 pixels, got 6x2. Fix: .*--size 2x6"):
        call(generator, *pair)


def test_an_empty_text_is_a_text(call):
    generator = a_generator(CONDITIONS, PARAMS, scale=1.0)
    found = call(generator, "--label", "0", "--text", "", "--condition", "crop=0")
    np.testing.assert_array_equal(found["images"], constant([LEVELS[0]]))


def test_errors_of_python_arguments_name_the_flag_that_was_typed(call, tmp_path):
    generator = a_generator({"label": LABEL}, {"label": WEIGHTS["label"]})
    np.save(tmp_path / "noise.npy", np.zeros((1, 3, 3, 1), np.float32))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "mask.png")
    for words, message in {
        (
            "--label",
            "1",
            "--noise",
            tmp_path / "noise.npy",
        ): r"^--noise=float32\[1, 3, 3, 1\]: expected floats",
        ("--label", "1", "--mask", tmp_path / "mask.png"): "^--mask=.*: expected an image as well, got none",
        (
            "--label",
            "1",
            "--guidance",
            "1",
            "--negative",
            "label=2",
        ): "^--negative={'label': .*}: expected no",
    }.items():
        with pytest.raises(UserError, match=message):
            call(generator, *words)
    with pytest.raises(UserError, match=r"^--size=9x8: expected a size that .* Fix: use 8x8$"):
        call(a_unet(), "--size", "9x8", "--condition", "low=none")


def a_unet():
    network = UNet(levels=(Level(8, 1), Level(8, 1)), out_channels=1, middle=ResidualMiddle(None))
    conditioner = Conditioner(NoiseLevel(8), {"low": ImageCondition(1, factor=2.0)})
    small = a_generator({}, {})
    denoiser = Denoiser(network, conditioner, small.denoiser.process, small.denoiser.parameterization)
    arguments = (
        jnp.zeros((1, 8, 8, 1)),
        jnp.ones(1),
        conditioner.example(1, (8, 8, 1)),
        {"low": jnp.zeros(1, bool)},
    )
    params = jax.eval_shape(lambda: nn.meta.unbox(denoiser.init(jax.random.key(0), *arguments, train=False)))
    return dataclasses.replace(small, denoiser=denoiser, params=params["params"], image_shape=(8, 8, 1))


def test_an_impossible_size_raises_before_any_computation():
    """The parameters are shapes only, so that any computation with them would fail."""
    generator = a_unet()
    assert generator.of_size(10, 24).image_shape == (10, 24, 1)
    assert generator.of_size(8, 8) is generator
    with pytest.raises(UserError, match=r"size=9x8: .*factor=.*side of 9, got 4.5"):
        generator.of_size(9, 8)
    with pytest.raises(UserError, match="size='0x8': expected at least 1x1"):
        generator(image_size=(0, 8), low=None)
    unet = a_unet()
    parts = Conditioner(NoiseLevel(8))
    plain = dataclasses.replace(unet, denoiser=unet.denoiser.clone(conditioner=parts))
    with pytest.raises(UserError, match=r"size=16x16: .* the network has one size. Fix: use 8x8"):
        plain.of_size(16, 16)  # its stem lacks a channel, which Flax reports


def test_a_cascade_is_sampled_as_one(tmp_path, capsys):
    small = a_generator({"label": LABEL}, {"label": WEIGHTS["label"]})
    large = a_generator({"label": LABEL, **LOW}, {"label": WEIGHTS["label"], "low": {}}, (8, 8, 1))
    runs = {"base": small, "large": large}
    loaded, out = [], str(tmp_path / "out.npz")

    def load(workdir, *, step, with_weights=True, **options):
        loaded.extend([(workdir, step)] if with_weights else [])
        return runs[workdir]

    def run(*arguments):
        sampling.run(sample.parse([*arguments, "--out", out, "--overwrite"]), load)
        return dict(np.load(out))

    found = run("--cascade", "base:300,large", "--label", "0,1")
    assert loaded == [("base", 300), ("large", None)]
    np.testing.assert_allclose(found["images"].astype(int), constant(2 * LEVELS[:2], (8, 8, 1)), atol=1)
    assert found["label"].tolist() == [0, 1]
    moved = np.sqrt(np.mean((127.5 * LEVELS[:2]) ** 2))
    printed = capsys.readouterr().out
    assert printed.startswith("stage 1: 8x8, ")
    np.testing.assert_allclose(float(printed.split()[3]), moved, atol=0.6)
    for flags, message in {
        ("--workdir", "base"): "--workdir='base': expected either --workdir or --cascade",
        ("--size", "8x8"): "--size='8x8': expected a flag for cascades",
        ("--image", "low=x.png"): r"--image='low': expected a condition .* choose from label",
        ("--level", "lov=0.1"): r"--level='lov': expected a condition .* choose from label .*low",
    }.items():
        with pytest.raises(UserError, match=message):
            run("--cascade", "base,large", "--label", "0", *flags)
    with pytest.raises(UserError, match="--workdir=: expected a run, got none"):
        run("--label", "0")


def test_an_image_is_edited(call, tmp_path):
    generator = a_generator({"label": LABEL}, {"label": WEIGHTS["label"]})
    Image.fromarray(np.full((4, 4), 90, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.uint8([[255, 255, 0, 0]] * 4)).save(tmp_path / "mask.png")
    edit = ("--edit", tmp_path / "grey.png", "--label", "0,2", "--strength", "0.5")
    found = call(generator, *edit, "--mask", tmp_path / "mask.png")["images"]
    np.testing.assert_array_equal(found[:, :, 2:], np.full((2, 4, 2, 1), 90))
    np.testing.assert_array_equal(found[:, :, :2], constant(LEVELS[[0, 2]], (4, 2, 1)))
    np.testing.assert_array_equal(
        call(generator, *edit, "--source", "label=1")["images"], constant(LEVELS[[0, 2]])
    )
    for flags, message in {
        (*edit, "--strength", "0"): "strength=0.0: expected a fraction",
        (*edit, "--known", "x.png"): "--known='x.png': expected either --known or --edit",
        (*edit, "--source", "labl=1"): "--source='labl': expected a condition of the model",
        ("--label", "1", "--source", "label=1"): "--source=.*: expected --edit as well",
    }.items():
        with pytest.raises(UserError, match=message):
            call(generator, *flags)
