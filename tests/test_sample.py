"""`jaxdiff.sample` from its words to images, with models whose images are the sum of their conditions."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdiff import sample
from jaxdiff.cli import values as words
from jaxdiff.conditioning.conditioner import Conditioner
from jaxdiff.conditioning.continuous import Continuous
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.conditioning.vector import ClassLabel, NoiseLevel
from jaxdiff.denoiser import Denoiser
from jaxdiff.distributed import runtime
from jaxdiff.embeddings import Embeddings
from jaxdiff.errors import UserError
from jaxdiff.generation.generator import Generator
from jaxdiff.models.blocks import ResidualMiddle
from jaxdiff.models.unet import Level, UNet
from jaxdiff.runs import workdir as workdirs
from jaxdiff.sampling.guidance.per_condition import PerCondition
from tests.generation.test_inputs import LEVELS, WEIGHTS, a_generator, constant, noisy


class Length(nn.Module):
    """A text, of which a hundredth of its length is seen."""

    drop_rate: float = 0.0
    null: str = "zero"

    def __call__(self, lengths, drop):
        return Embeddings(vector=jnp.where(drop, 0.0, lengths)[:, None])

    @nn.nowrap
    def read(self, value):
        if isinstance(value, str):
            return np.float32(len(value) / 100)
        return np.array([len(text) / 100 for text in value], np.float32)

    @nn.nowrap
    def example(self, batch, image_shape=None):
        return jnp.zeros(batch)

    @nn.nowrap
    def check(self, values, name="text"):
        pass


SIZE = Continuous(2, 1, default=(0.5, 0.0))
LABEL = ClassLabel(3, 1, null="zero")
PARTS = {"label": LABEL, "text": Length(), "crop": SIZE}
PARAMS = {"label": WEIGHTS["label"], "text": {}, "crop": WEIGHTS["size"]}
LOW = {"low": ImageCondition(1, factor=2.0, method="nearest")}
PHOTO = np.arange(60, 84, dtype=np.uint8).reshape(4, 6)


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Runs the command on a generator; gives what it has stored."""
    monkeypatch.setattr(workdirs, "read_config", lambda workdir: {})
    monkeypatch.setattr(runtime, "start", lambda: None)

    def run(generator, *arguments):
        monkeypatch.setattr(Generator, "load", lambda workdir, **options: generator)
        out = tmp_path / "out.npz"
        sample.main(["--workdir", "run", "--out", str(out), "--overwrite", *map(str, arguments)])
        return dict(np.load(out))

    return run


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def enlarged(pixels):
    return np.repeat(np.repeat(pixels, 2, axis=-2), 2, axis=-1)[..., None]


def test_every_condition_has_its_words(call):
    generator = a_generator(PARTS, PARAMS)
    found = call(generator, "--label", "2", "--text", "a red three", "--condition", "crop=[1, 0.5]")
    np.testing.assert_array_equal(found["images"], constant([LEVELS[2] + 0.11 + 0.5]))
    assert found["label"].tolist() == [2]
    assert found["text"] == "a red three"
    np.testing.assert_array_equal(found["crop"], [1, 0.5])
    without = call(generator, "--label", "none", "--condition", "text=none", "--n", "2")
    np.testing.assert_array_equal(without["images"], constant([0.2, 0.2]))
    assert set(without) == {"images"}


def test_values_of_one_name_are_taken_in_turn(call):
    generator = a_generator(PARTS, PARAMS)
    texts = ("--text", "abc", "--text", "defgh", "--text", "i")
    found = call(generator, "--label", "0,1", *texts, "--n", "4")
    expected = LEVELS[[0, 1, 0, 1]] + np.array([0.03, 0.05, 0.01, 0.03]) + 0.2
    np.testing.assert_array_equal(found["images"], constant(expected))
    assert len(call(generator, "--label", "1", *texts)["images"]) == 3


def test_a_scale_for_each_condition_is_guidance_by_each(call):
    generator = a_generator(PARTS, PARAMS, scale=3.0)
    asked = ("--label", "0", "--text", "x" * 10, "--condition", "crop=0")
    plain = call(generator, *asked, "--guidance", "2")
    np.testing.assert_array_equal(plain["images"], constant([2 * (LEVELS[0] + 0.1)]))
    each = call(generator, *asked, "--guidance", "text=4,label=0.5")
    np.testing.assert_array_equal(each["images"], constant([4 * 0.1 + 0.5 * LEVELS[0]]))
    alone = dataclasses.replace(generator, recipe=dataclasses.replace(
        generator.recipe, guidance=PerCondition(("text", "label"), (1.0, 1.0), chained=False)))  # fmt: skip
    assert alone._recipe({"label": 2.0}, None).guidance == PerCondition(("label",), (2.0,), chained=False)
    for text, message in {
        "text=much": "--guidance text=much: it is no number",
        "texts=4": r"--guidance='texts': .*it has: crop \(Continuous\), label \(ClassLabel\), text \(Length\)",
        "much": "--guidance=much: it is no scale",
    }.items():
        with pytest.raises(UserError, match=message):
            call(generator, *asked, "--guidance", text)
    with pytest.raises(UserError, match="guidance='low': the model cannot do without it"):
        a_generator(LOW, {"low": {}}, (8, 8, 1))(low=np.zeros((4, 4, 1), np.uint8), guidance={"low": 2.0})


def test_the_size_of_a_photo_is_the_size_of_what_is_made_of_it(call, photo):
    generator = a_generator(LOW, {"low": {}}, (8, 8, 1))
    found = call(generator, "--image", f"low={photo}")
    np.testing.assert_array_equal(found["images"], enlarged(PHOTO)[None])
    np.testing.assert_array_equal(found["low"], PHOTO[..., None])
    assert call(generator, "--image", f"low={photo}", "--size", "8x12", "--n", "2")["images"].shape[0] == 2
    with pytest.raises(UserError, match=r"low='8x12': image_size is for images of 8x8"):
        call(generator, "--image", f"low={photo}", "--size", "8x8")
    with pytest.raises(UserError, match="--size=8: it is no size"):
        call(generator, "--image", f"low={photo}", "--size", "8")
    both = a_generator({**LOW, "guide": ImageCondition(1)}, {"low": {}, "guide": {}}, (8, 8, 1))
    with pytest.raises(UserError, match=r"guide='8x8': low is for images of 8x12"):
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
    with pytest.raises(UserError, match=r"6x2 pixels, not 4x4. Fix: .*--size 2x6"):
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


def test_a_size_that_the_network_cannot_make_is_told_before_anything_is_computed():
    """The parameters are shapes only: whatever computed with them would fail."""
    generator = a_unet()
    assert generator.of_size(10, 24).image_shape == (10, 24, 1)
    assert generator.of_size(8, 8) is generator
    with pytest.raises(UserError, match=r"size=9x8: .*factor=.*: it makes 9 pixels to 4.5"):
        generator.of_size(9, 8)
    with pytest.raises(UserError, match="size='0x8': there would be no image"):
        generator(image_size=(0, 8), low=None)
    whole = a_unet()
    parts = Conditioner(NoiseLevel(8))
    plain = dataclasses.replace(whole, denoiser=whole.denoiser.clone(conditioner=parts))
    with pytest.raises(UserError, match=r"size=16x16: the network makes images of 8x8 alone"):
        plain.of_size(
            16, 16
        )  # its stem misses a channel: what a network does not say, it still says readably


def test_a_file_has_a_line_for_each_image(call, tmp_path):
    parts = {**PARTS, **LOW}
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
        ('{"label": 1}\n{"labl": 1}', r"line 2='labl': .*no such condition. Fix: it has: crop \(Continuous\), label"),
        ('{"label": 1}\n{"label": 1, "text": "a"}', r"line 2='text': the lines before do not have it"),
        ('{"label": 1, "text": "a"}\n\n{"label": 1}', r"line 3=.*it lacks text"),
        ("label 1", r"line 1: Expecting value"),
        ("[1]", r"line 1: it is no object"),
        ("", r"it has no lines"),
        ('{"label": 1}', r"--condition text: the model needs it. Fix: give text; it has: crop"),
        ('{"label": "x", "text": "a"}', r"label=x: a class is an integer"),
        ('{"label": 1, "text": "a", "low": 3}', r"low=3: it is no path"),
        ('{"label": 1, "text": "a", "low": "x.png"}', r"low=.*x.png: No such file"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said_with_its_line(call, tmp_path, text, message):
    (tmp_path / "many.jsonl").write_text(text)
    parts = {**PARTS, "low": ImageCondition(1, factor=2.0, null="learned")} if "low" in text else PARTS
    with pytest.raises(UserError, match=message):
        call(a_generator(parts, PARAMS), "--conditions", tmp_path / "many.jsonl")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--text", "a", "--condition", "text=b"), "--condition='text': it is given twice"),
        (("--text", "a", "--condition", "label=1", "--label", "2"), "--label='2': it is given twice"),
        (("--image", "low=x.png"), r"--image='low': the model has no such condition. Fix: it has: crop"),
        (("--label", "1"), "--condition text: the model needs it"),
        (("--text", "a", "--level", "text"), "--level='text': it names no value"),
        (("--text", "a", "--level", "crop=0.1"), "--level='crop': the condition is not given"),
        (("--text", "a", "--conditions", "absent.jsonl"), "--conditions=absent.jsonl: No such file"),
        (("--text", "a", "--condition", "crop"), "--condition='crop': it names no value"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_words_is_said_with_what_there_is(call, flags, message):
    with pytest.raises(UserError, match=message):
        call(a_generator(PARTS, PARAMS), *flags)


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
    with pytest.raises(UserError, match=r"low.level=.*levels from 0 to 0.5"):
        call(generator, *given, "--level", "low=0.9")


def test_pictures_of_every_kind_are_read(tmp_path):
    rng = np.random.default_rng(0)
    rgb, grey = rng.integers(0, 256, (3, 5, 3), np.uint8), rng.integers(0, 256, (3, 5), np.uint8)

    def read(array, channels, name="x.png", mode=None, **options):
        picture = Image.fromarray(array)
        (picture.convert(mode) if mode else picture).save(tmp_path / name, **options)
        return words.picture("--image", str(tmp_path / name), channels)

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
    with pytest.raises(UserError, match="no picture has 5 channels"):
        words.picture("--image", str(tmp_path / "x.png"), 5)
    whole = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(whole[: len(whole) - 30])
    with pytest.raises(UserError, match=r"--image=.*x.png: it is no picture. Fix: give a PNG, JPEG or WEBP"):
        words.picture("--image", str(tmp_path / "x.png"), 3)


def test_pictures_of_several_sizes_do_not_make_one_batch(call, photo):
    Image.fromarray(PHOTO[:, :4]).save(photo.with_name("small.png"))
    with pytest.raises(UserError, match=r"low: pictures of 4x4 and of 6x4 pixels"):
        call(a_generator(LOW, {"low": {}}, (8, 8, 1)),
             "--image", f"low={photo}", "--image", f"low={photo.with_name('small.png')}")  # fmt: skip


def test_a_cascade_is_sampled_as_one(call, monkeypatch, capsys):
    small = a_generator({"label": LABEL}, {"label": WEIGHTS["label"]})
    large = a_generator({"label": LABEL, **LOW}, {"label": WEIGHTS["label"], "low": {}}, (8, 8, 1))
    runs = {"base": small, "large": large}
    asked = []

    def load(workdir, *, step, **options):
        asked.append((workdir, step))
        return runs[workdir]

    def run(*arguments):
        monkeypatch.setattr(Generator, "load", load)
        sample.main([*map(str, arguments), "--out", out, "--overwrite"])
        return dict(np.load(out))

    call(small, "--label", "0")
    out = capsys.readouterr().out.split(" in ")[1].strip()
    found = run("--cascade", "base:300,large", "--label", "0,1")
    assert asked == [("base", 300), ("large", None)]
    np.testing.assert_allclose(found["images"].astype(int), constant(2 * LEVELS[:2], (8, 8, 1)), atol=1)
    assert found["label"].tolist() == [0, 1]
    moved = np.sqrt(np.mean((127.5 * LEVELS[:2]) ** 2))
    said = capsys.readouterr().out
    assert said.startswith("stage 1: 8x8, ")
    np.testing.assert_allclose(float(said.split()[3]), moved, atol=0.6)
    for flags, message in {
        ("--workdir", "base"): "--workdir='base': --cascade names the runs",
        ("--size", "8x8"): "--size='8x8': a cascade has no use for it",
        ("--image", "low=x.png"): r"--image='low': the model has no such condition. Fix: it has: label",
        ("--level", "lov=0.1"): r"--level='lov': the model has no such condition. Fix: it has: label .*low",
    }.items():
        with pytest.raises(UserError, match=message):
            run("--cascade", "base,large", "--label", "0", *flags)
    with pytest.raises(UserError, match="--workdir=: a run is needed"):
        run("--label", "0")


def test_a_picture_is_edited(call, tmp_path):
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
        (*edit, "--strength", "0"): "strength=0.0: it is a share",
        (*edit, "--known", "x.png"): "--known='x.png': --edit names the picture",
        (*edit, "--source", "labl=1"): "--source='labl': the model has no such condition",
        ("--label", "1", "--source", "label=1"): "--source=.*: no picture is edited",
    }.items():
        with pytest.raises(UserError, match=message):
            call(generator, *flags)


def test_a_text_is_taken_literally(call):
    found = call(a_generator({"text": Length()}, {"text": {}}), "--text", "12", "--text", "none")
    np.testing.assert_array_equal(found["images"], constant([0.02, 0.04]))
