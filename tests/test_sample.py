"""`jaxdiff.sample` from a command line to images, with models whose images are the sum of their conditions."""

import dataclasses
import json
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff import sample
from jaxdiff.cli import sampling
from jaxdiff.conditioning.condition import Condition
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.nulls import Null
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.data.image_files import read_image
from jaxdiff.denoiser import Denoiser
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError
from jaxdiff.generation import checks
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.unet import Level, UNet
from jaxdiff.sampling.guidance.classifier_free import Interval
from jaxdiff.sampling.guidance.per_condition import PerCondition
from tests.generation.test_inputs import LEVELS, WEIGHTS, a_generator, constant, noisy


class Length(Condition):
    """A text, with an effect of a hundredth of its length."""

    flag: ClassVar[str | None] = "text"
    null: ClassVar[Null] = "zero"

    def __call__(self, lengths, drop):
        return Embeddings(vector=jnp.where(drop, 0.0, lengths)[:, None])

    @nn.nowrap
    def read(self, value, name="text"):
        if isinstance(value, str):
            return np.float32(len(value) / 100)
        return np.array([len(text) / 100 for text in value], np.float32)

    @nn.nowrap
    def example(self, batch, data_shape=None):
        return jnp.zeros(batch)


SIZE = Continuous(2, 1, default=(0.5, 0.0))
LABEL = ClassLabel(3, 1, null="zero")
CONDITIONS = {"label": LABEL, "text": Length(), "crop": SIZE}
PARAMS = {"label": WEIGHTS["label"], "text": {}, "crop": WEIGHTS["size"]}
LOW = {"low": ImageCondition(1, factor=2.0, method="nearest")}
PHOTO = np.arange(60, 84, dtype=np.uint8).reshape(4, 6)


@pytest.fixture
def call(tmp_path):
    """Runs the command on a generator; returns the arrays that it stores."""

    def run(generator, *arguments):
        out = tmp_path / "out.npz"
        words = ["--workdir", "run", "--out", str(out), "--overwrite", *map(str, arguments)]
        sampling.run(sample.parse(words), load=lambda workdir, **options: generator)
        return dict(np.load(out))

    return run


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def enlarged(pixels):
    return np.repeat(np.repeat(pixels, 2, axis=-2), 2, axis=-1)[..., None]


def test_every_condition_has_its_flag(call):
    generator = a_generator(CONDITIONS, PARAMS)
    found = call(generator, "--label", "2", "--text", "a red three", "--condition", "crop=[1, 0.5]")
    np.testing.assert_array_equal(found["images"], constant([LEVELS[2] + 0.11 + 0.5]))
    assert found["label"].tolist() == [2]
    assert found["text"] == "a red three"
    np.testing.assert_array_equal(found["crop"], [1, 0.5])
    without = call(generator, "--label", "none", "--condition", "text=none", "--n", "2")
    np.testing.assert_array_equal(without["images"], constant([0.2, 0.2]))
    assert set(without) == {"images"}


def test_values_of_one_name_are_taken_in_turn(call):
    generator = a_generator(CONDITIONS, PARAMS)
    texts = ("--text", "abc", "--text", "defgh", "--text", "i")
    found = call(generator, "--label", "0,1", *texts, "--n", "4")
    expected = LEVELS[[0, 1, 0, 1]] + np.array([0.03, 0.05, 0.01, 0.03]) + 0.2
    np.testing.assert_array_equal(found["images"], constant(expected))
    assert len(call(generator, "--label", "1", *texts)["images"]) == 3


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


def test_label_and_text_find_their_conditions_by_kind(call):
    conditions, params = {"digit": LABEL, "caption": Length()}, {"digit": WEIGHTS["label"], "caption": {}}
    generator = a_generator(conditions, params)
    found = call(generator, "--label", "2,0", "--text", "abc")
    np.testing.assert_array_equal(found["images"], constant(LEVELS[[2, 0]] + 0.03))
    assert found["digit"].tolist() == [2, 0]
    assert found["caption"] == "abc"
    same = call(generator, "--condition", "digit=2,0", "--condition", "caption=abc")
    np.testing.assert_array_equal(same["images"], found["images"])
    every = call(generator, "--text", "")
    np.testing.assert_array_equal(every["images"], constant(LEVELS))
    assert every["digit"].tolist() == [0, 1, 2]


def test_one_of_several_labels_must_be_named(call):
    conditions = {"digit": LABEL, "style": LABEL}
    generator = a_generator(conditions, dict.fromkeys(conditions, WEIGHTS["label"]))
    with pytest.raises(
        UserError, match=r"--label='1': expected one .* label, got digit, style. Fix: .*digit=VALUE"
    ):
        call(generator, "--label", "1")
    with pytest.raises(
        UserError, match="--condition style=: expected a value for this condition of the model"
    ):
        call(generator, "--condition", "digit=1")
    found = call(generator, "--condition", "digit=1", "--condition", "style=0")["images"]
    np.testing.assert_array_equal(found, constant([LEVELS[1] + LEVELS[0]]))
    with pytest.raises(UserError, match=r"--text='a': expected a model with a text, got digit"):
        call(generator, "--text", "a")


def test_a_grid_has_a_row_for_each_class(tmp_path):
    generator = a_generator({"digit": LABEL}, {"digit": WEIGHTS["label"]})
    for words, shape in (((), (3, 2)), (("--label", "all"), (3, 2)), (("--label", "1"), (2, 3))):
        out = tmp_path / "grid.png"
        flags = ["--workdir", "run", "--out", str(out), "--overwrite", "--n", "6", *words]
        sampling.run(sample.parse(flags), load=lambda workdir, **options: generator)
        grid = np.asarray(Image.open(out))
        rows, columns = shape
        assert grid.shape == (34 * rows - 2, 34 * columns - 2)
        cells = grid[16::34, 16::34]
        levels = (
            [LEVELS[[row] * columns] for row in range(3)] if rows == 3 else [LEVELS[[1] * columns]] * rows
        )
        np.testing.assert_array_equal(cells, constant(np.concatenate(levels))[:, 0, 0, 0].reshape(shape))


def test_the_size_of_an_image_condition_sets_that_of_the_images(call, photo):
    generator = a_generator(LOW, {"low": {}}, (8, 8, 1))
    found = call(generator, "--image", f"low={photo}")
    np.testing.assert_array_equal(found["images"], enlarged(PHOTO)[None])
    np.testing.assert_array_equal(found["low"], PHOTO[..., None])
    assert call(generator, "--image", f"low={photo}", "--size", "8x12", "--n", "2")["images"].shape[0] == 2
    with pytest.raises(UserError, match=r"low='8x12': expected 8x8, the size of image_size"):
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
    found = call(generator, "--label", "1", "--size", "2x6")
    np.testing.assert_array_equal(found["images"], constant([LEVELS[1]], (2, 6, 1)))
    known = np.arange(12, dtype=np.uint8).reshape(2, 6)
    Image.fromarray(known).save(tmp_path / "known.png")
    Image.fromarray(np.uint8([[255] * 3 + [0] * 3] * 2)).save(tmp_path / "mask.png")
    pair = ("--known", tmp_path / "known.png", "--mask", tmp_path / "mask.png", "--label", "1")
    found = call(generator, *pair, "--size", "2x6")["images"][0, ..., 0]
    np.testing.assert_array_equal(found[:, 3:], known[:, 3:])
    np.testing.assert_array_equal(found[:, :3], constant([LEVELS[1]], (2, 3, 1))[0, ..., 0])
    with pytest.raises(UserError, match=r"expected an image of 4x4 pixels, got 6x2. Fix: .*--size 2x6"):
        call(generator, *pair)


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
    with pytest.raises(UserError, match=r"size=16x16: expected 8x8, the only size of this network"):
        plain.of_size(16, 16)  # its stem lacks a channel, which Flax reports


def test_a_file_has_a_line_for_each_image(call, tmp_path):
    parts = {**CONDITIONS, **LOW}
    generator = a_generator(parts, {**PARAMS, "low": {}}, (8, 8, 1))
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(PHOTO[:, :4] + 10 * np.uint8(i)).save(tmp_path / "photos" / f"{i}.png")
    rows = [
        {"label": 2, "text": "abc", "low": "0.png"},
        {"label": None, "text": "abcde", "low": "1.png"},
        {"label": 0, "text": None, "low": "2.png"},
    ]
    file = tmp_path / "photos" / "many.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = call(generator, "--conditions", file)["images"].astype(int)
    colours = [LEVELS[2] + 0.03 + 0.2, 0.05 + 0.2, LEVELS[0] + 0.2]
    for i, colour in enumerate(colours):
        expected = enlarged(PHOTO[:, :4] + 10 * i) + 127.5 * colour
        np.testing.assert_allclose(found[i], np.clip(expected, 0, 255), atol=0.51)
    assert len(call(generator, "--conditions", file, "--n", "5")["images"]) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"label": 1}\n{"labl": 1}',
            r"line 2='labl': expected a condition .* choose from crop \(Continuous\), label",
        ),
        ('{"label": 1}\n{"label": 1, "text": "a"}', r"line 2='text': expected the names of the lines before"),
        ('{"label": 1, "text": "a"}\n\n{"label": 1}', r"line 3=.*expected a value for text"),
        ("label 1", r"line 1: expected JSON, got Expecting value"),
        ("[1]", r"line 1: expected a JSON object"),
        ("", r"expected a JSON object per line, got no lines"),
        ('{"label": 1}', r"--condition text=: expected a value .*Fix: give text; the model has: crop"),
        ('{"label": "x", "text": "a"}', r"label=x: expected an integer class"),
        ('{"label": 1, "text": "a", "low": 3}', r"low=3: expected the path of an image"),
        ('{"label": 1, "text": "a", "low": "x.png"}', r"low=.*x.png: expected an image, got No such file"),
    ],
)
def test_a_mistake_in_a_file_names_its_line(call, tmp_path, text, message):
    (tmp_path / "many.jsonl").write_text(text)
    parts = (
        {**CONDITIONS, "low": ImageCondition(1, factor=2.0, null="learned")} if "low" in text else CONDITIONS
    )
    with pytest.raises(UserError, match=message):
        call(a_generator(parts, PARAMS), "--conditions", tmp_path / "many.jsonl")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--text", "a", "--condition", "text=b"), "--condition='text': expected text once"),
        (("--text", "a", "--condition", "label=1", "--label", "2"), "--label='label': expected label once"),
        (("--image", "low=x.png"), r"--image='low': expected a condition .* choose from crop"),
        (("--label", "1"), "--condition text=: expected a value"),
        (("--text", "a", "--level", "text"), "--level='text': expected NAME=VALUE"),
        (("--text", "a", "--level", "crop=0.1"), "--level='crop': expected a condition that is given"),
        (("--text", "a", "--conditions", "absent.jsonl"), "--conditions=absent.jsonl: expected a text file"),
        (("--text", "a", "--condition", "crop"), "--condition='crop': expected NAME=VALUE"),
    ],
)
def test_a_mistake_in_a_flag_names_it(call, flags, message):
    with pytest.raises(UserError, match=message):
        call(a_generator(CONDITIONS, PARAMS), *flags)


def test_a_noisy_condition_is_given_a_level(call, tmp_path):
    pixels = np.full((4, 4), 90, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    generator, given = noisy(level=0.3, max_level=0.5), ("--image", f"low={tmp_path}/grey.png")
    clean = call(generator, *given, "--level", "low=0")
    np.testing.assert_array_equal(clean["images"][0, ..., 0], pixels)
    assert clean["low_level"] == 0
    assert np.any(call(generator, *given)["images"][0, ..., 0] != pixels)
    (tmp_path / "levels.jsonl").write_text(
        "\n".join(json.dumps({"low": {"value": "grey.png", "level": level}}) for level in (0.0, 0.4))
    )
    found = call(generator, "--conditions", tmp_path / "levels.jsonl")["images"]
    np.testing.assert_array_equal(found[0, ..., 0], pixels)
    assert found[1].std() > 10
    with pytest.raises(UserError, match=r"low.level=.*from 0 to 0.5"):
        call(generator, *given, "--level", "low=0.9")


def test_images_of_every_kind_are_read(tmp_path):
    rng = np.random.default_rng(0)
    rgb, grey = rng.integers(0, 256, (3, 5, 3), np.uint8), rng.integers(0, 256, (3, 5), np.uint8)

    def read(array, channels, name="x.png", mode=None, **options):
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(tmp_path / name, **options)
        return read_image("--image", str(tmp_path / name), channels)

    np.testing.assert_array_equal(read(rgb, 3), rgb)
    np.testing.assert_array_equal(read(grey, 3), grey[..., None].repeat(3, axis=-1))
    np.testing.assert_array_equal(read(grey, 1), grey[..., None])
    np.testing.assert_array_equal(read(rgb, 3, "x.webp", lossless=True), rgb)
    np.testing.assert_array_equal(read(grey.astype(np.uint16) * 257, 1), grey[..., None])
    np.testing.assert_array_equal(read(grey > 127, 1)[..., 0], np.uint8(255) * (grey > 127))
    assert (
        np.abs(
            read(rgb // 4 + 100, 3, "x.jpg", quality=100, subsampling=0).astype(int) - rgb // 4 - 100
        ).mean()
        < 6
    )
    clear = np.dstack([rgb, np.where(np.arange(5) < 2, 0, 255)[None].repeat(3, axis=0).astype(np.uint8)])
    np.testing.assert_array_equal(read(clear, 4), clear)
    np.testing.assert_array_equal(read(np.dstack([grey, clear[..., 3]]), 2), np.dstack([grey, clear[..., 3]]))
    np.testing.assert_array_equal(read(grey, 2), np.dstack([grey, np.full_like(grey, 255)]))
    np.testing.assert_array_equal(read(clear, 3), np.where(clear[..., 3:] == 0, 255, rgb))
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was on its side: the first row is the right-hand column
    np.testing.assert_array_equal(read(rgb, 3, exif=turned), np.rot90(rgb, -1))
    with pytest.raises(
        UserError, match="expected an image of 1 to 4 channels, got a condition of 5 channels"
    ):
        read_image("--image", str(tmp_path / "x.png"), 5)
    complete = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(complete[:-30])
    with pytest.raises(
        UserError, match=r"--image=.*x.png: expected an image, got a PNG file that is cut short. Fix: give a PNG, JPEG or WEBP"
    ):
        read_image("--image", str(tmp_path / "x.png"), 3)


def test_images_of_a_batch_have_one_size(call, photo):
    Image.fromarray(PHOTO[:, :4]).save(photo.with_name("small.png"))
    with pytest.raises(UserError, match=r"low: expected images of one size, got 4x4 and 6x4 pixels"):
        call(a_generator(LOW, {"low": {}}, (8, 8, 1)),
             "--image", f"low={photo}", "--image", f"low={photo.with_name('small.png')}")  # fmt: skip


def test_a_cascade_is_sampled_as_one(tmp_path, capsys):
    small = a_generator({"label": LABEL}, {"label": WEIGHTS["label"]})
    large = a_generator({"label": LABEL, **LOW}, {"label": WEIGHTS["label"], "low": {}}, (8, 8, 1))
    runs = {"base": small, "large": large}
    loaded, out = [], str(tmp_path / "out.npz")

    def load(workdir, *, step, **options):
        loaded.append((workdir, step))
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


def test_a_text_is_taken_literally(call):
    found = call(a_generator({"text": Length()}, {"text": {}}), "--text", "12", "--text", "none")
    np.testing.assert_array_equal(found["images"], constant([0.02, 0.04]))
