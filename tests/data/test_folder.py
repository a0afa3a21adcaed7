"""Image folders return the pixels that an image viewer shows; errors name unreadable files."""

import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxdiff.config import build, from_json, spec, to_json
from jaxdiff.data.decoding import square
from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.text import ByteTokenizer, Tokenize
from jaxdiff.errors import UserError


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two classes of four images, 8 x 8 pixels, in names that sort differently as text and as paths."""
    for name in ("cat", "cat.2"):
        (tmp_path / name).mkdir()
        for i in (0, 1, 2, 10):
            Image.fromarray(noise(8, 8, seed=i + 100 * len(name))).save(tmp_path / name / f"{i}.png")
    return tmp_path


def read(path, size=8, **options):
    return ImageFolder(str(path), size, label=None, **options).open()[0]["image"]


def test_classes_are_subfolders_in_the_order_of_their_names(folder):
    examples = ImageFolder(str(folder), 8).open()
    assert examples.classes == ("cat", "cat.2")
    assert examples.num_classes == 2
    assert examples.image_shape == (8, 8, 3)
    assert examples.files == tuple(f"{c}/{i}.png" for c in ("cat", "cat.2") for i in ("0", "1", "10", "2"))
    for i, file in enumerate(examples.files):
        with Image.open(folder / file) as opened:
            stored = np.asarray(opened)
        example = examples[i]
        assert np.array_equal(example["image"], stored)
        assert (example["index"], example["label"]) == (i, i // 4)
        assert {name: value.dtype for name, value in example.items()} == {
            "image": np.uint8,
            "index": np.int32,
            "label": np.int32,
        }


def test_without_classes_there_are_no_labels_and_files_may_lie_anywhere(folder):
    Image.new("RGB", (8, 8)).save(folder / "loose.PNG")
    (folder / ".hidden").mkdir()
    Image.new("RGB", (8, 8)).save(folder / ".hidden" / "a.png")
    Image.new("RGB", (8, 8)).save(folder / "cat" / "._a.png")
    (folder / "notes.txt").write_text("no image")
    examples = ImageFolder(str(folder), 8, label=None).open()
    assert len(examples) == 9
    assert set(examples[0]) == {"image", "index"}
    with pytest.raises(UserError, match=r"got loose\.PNG outside of them"):
        ImageFolder(str(folder), 8).open()


def test_splits_are_a_partition_that_new_files_do_not_disturb(folder):
    (folder / "dog").mkdir()
    Image.new("L", (1, 1)).save(folder / "dog" / "0.png")
    for i in range(300):
        Image.new("L", (1, 1)).save(folder / "cat" / f"x{i}.png")
    block = {
        split: ImageFolder(str(folder), 8, split=split, test_fraction=0.3)
        for split in ("train", "test", "all")
    }
    before = {split: one.open() for split, one in block.items()}
    train, test = set(before["train"].files), set(before["test"].files)
    assert not train & test
    assert train | test == set(before["all"].files)
    assert 0.2 < len(test) / 309 < 0.4
    for i in range(50):
        Image.new("L", (1, 1)).save(folder / "cat" / f"a{i}.png")
    after = {split: set(one.open().files) for split, one in block.items()}
    assert train <= after["train"]
    assert test <= after["test"]
    # Although the only dog is in one of them.
    assert before["train"].classes == before["test"].classes == ("cat", "cat.2", "dog")


def test_fingerprint_depends_on_names_and_sizes(folder):
    def found():
        return ImageFolder(str(folder), 8).fingerprint()["sha256"]

    block = ImageFolder(str(folder), 8)
    assert block.fingerprint() == {"name": str(folder), "split": "all", "length": 8, "sha256": found()}
    first = found()
    (folder / "cat" / "0.png").rename(folder / "cat" / "3.png")
    second = found()
    with open(folder / "cat" / "3.png", "ab") as file:
        file.write(b"0")
    assert len({first, second, found()}) == 3


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 90), (90, 40), (16, 16), (9, 20), (4, 4)])
@pytest.mark.parametrize("fit", ["halving", "area", "bicubic"])
def test_a_linear_ramp_stays_itself_in_the_middle(height, width, fit):
    # Every low-pass filter keeps a linear ramp: its centre stays, and its slope grows with the pixels.
    y, x = np.mgrid[:height, :width] + 0.5
    slope = 200 / max(height, width)
    ramp = np.stack([128 + slope * (x - width / 2), 128 + slope * (y - height / 2)] * 2, axis=-1)[..., :3]
    image = square(np.rint(ramp).astype(np.uint8), 8, fit)
    v, u = (np.mgrid[:8, :8] - 3.5) * slope * min(height, width) / 8
    middle = slice(2, 6) if fit != "area" or height > 16 else slice(3, 5)
    off = np.stack([u, v, u], axis=-1)[middle, middle] + 128 - image[middle, middle]
    assert image.shape == (8, 8, 3)
    assert np.abs(off).max() < 2 + slope * min(height, width) / 16


def test_halving_is_means_of_squares():
    image = noise(32, 32)
    first = np.rint(image.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3)))
    second = np.rint(first.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3)))
    assert np.array_equal(square(image, 8, "halving"), second)


def test_an_image_of_the_target_size_is_only_cropped_to_its_middle():
    image = noise(8, 14)
    assert np.array_equal(square(image, 8, "halving"), image[:, 3:11])
    assert np.array_equal(square(image.transpose(1, 0, 2), 8, "area"), image.transpose(1, 0, 2)[3:11])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_of_png_has_its_colours(tmp_path, mode, channels):
    grey = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
    alpha = np.linspace(255, 0, 64).round().astype(np.uint8).reshape(8, 8)
    rgb = noise(8, 8)
    expected = grey[..., None].repeat(3, axis=-1).astype(float)
    if mode == "1":
        image = Image.fromarray(grey > 100)
        expected = np.where(grey > 100, 255.0, 0)[..., None].repeat(3, axis=-1)
    elif mode == "I;16":
        image = Image.fromarray(np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8))
        expected = np.linspace(0, 255, 64).reshape(8, 8, 1).repeat(3, axis=-1)
    elif mode == "P":
        image = Image.fromarray(rgb).quantize(64, method=Image.Quantize.FASTOCTREE)
        expected = np.asarray(image.getpalette()).reshape(-1, 3)[np.asarray(image)].astype(float)
    elif mode == "L":
        image = Image.fromarray(grey)
    elif mode == "LA":
        image = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))
    else:
        image, expected = Image.fromarray(rgb), rgb.astype(float)
        if mode == "RGBA":
            image.putalpha(Image.fromarray(alpha))
    if mode in ("LA", "RGBA"):
        opacity = alpha[..., None] / 255
        expected = opacity * expected + (1 - opacity) * np.array((10, 200, 90))
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as written:
        assert written.mode == mode
    found = read(tmp_path, channels=channels, background=(10, 200, 90))
    if channels == 1:
        expected = (expected @ (0.299, 0.587, 0.114))[..., None]
    assert found.shape == (8, 8, channels)
    rounding = 1.01 if mode in ("LA", "RGBA") or channels == 1 else 0.51
    assert np.abs(found - expected).max() <= rounding


def test_a_palette_may_have_a_transparent_entry(tmp_path):
    image = Image.fromarray(np.array([[0, 1]] * 2, np.uint8), mode=None).convert("P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=1)
    assert read(tmp_path, 2, background=(1, 2, 3)).tolist() == [[[255, 0, 0], [1, 2, 3]]] * 2


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.webp"])
def test_other_formats_are_read(tmp_path, name):
    y, x = np.mgrid[:16, :16] * 8
    image = np.stack([x + 60, y + 60, 200 - x], axis=-1).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / name, quality=95)
    assert np.abs(read(tmp_path, 16).astype(int) - image).mean() < 6


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read(tmp_path).astype(int) - (255, 0, 0)).max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path, orientation):
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4, :4], upright[:4, 4:], upright[4:, :4] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    # The stored image of each EXIF orientation; applying the orientation gives the upright image.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path), upright)


def bomb(width, height):
    """A PNG of a few bytes whose header declares many pixels."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + crc

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def cut(fraction, kind):
    file = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(file, kind)
    return file.getvalue()[: int(len(file.getvalue()) * fraction)]


BROKEN = {
    "empty": b"",
    "text": b"this is no image",
    "header only": cut(0.005, "PNG"),
    "cut PNG": cut(0.5, "PNG"),
    "cut JPEG": cut(0.5, "JPEG"),
    "cut WebP": cut(0.5, "WEBP"),
    "other format": b"BM" + bytes(60),
    "large": bomb(20_000, 4_001),
    "huge": bomb(60_000, 60_000),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_named_or_skipped_and_counted(folder, content):
    (folder / "cat" / "1.png").write_bytes(content)
    examples = ImageFolder(str(folder), 8).open()
    with pytest.raises(UserError, match=r"cat/1\.png.*Fix: .*broken='skip'") as error:
        examples[1]
    assert len(str(error.value).splitlines()) == 1
    skipping = ImageFolder(str(folder), 8, broken="skip", max_broken=0.2).open()
    assert np.array_equal(skipping[1]["image"], examples[2]["image"])
    assert skipping[1]["index"] == 2, "the index is that of the returned file"
    assert skipping.broken == {"cat/1.png"}
    with pytest.raises(UserError, match=r"max_broken=0\.1: .*got 1 of 8 files.*cat/1\.png"):
        ImageFolder(str(folder), 8, broken="skip", max_broken=0.1).open()[1]


def test_max_pixels_limits_the_stored_image(tmp_path):
    Image.new("RGB", (9, 10)).save(tmp_path / "a.png")
    assert read(tmp_path, max_pixels=90).shape == (8, 8, 3)
    with pytest.raises(
        UserError, match=r"a\.png='9x10': .*at most max_pixels=89 pixels, got 90.*raise the limit"
    ):
        read(tmp_path, max_pixels=89)


def test_an_error_if_all_files_are_unreadable(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(UserError, match="2 of 2 files"):
        ImageFolder(str(tmp_path), 8, label=None, broken="skip", max_broken=1.0).open()[0]


def test_the_last_file_is_followed_by_the_first(folder):
    (folder / "cat.2" / "2.png").write_bytes(b"")
    examples = ImageFolder(str(folder), 8, broken="skip", max_broken=0.2).open()
    assert examples[7]["index"] == 0


def table(folder, name, rows):
    if name.endswith(".jsonl"):
        (folder / name).write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    else:
        lines = ["text,other,file_name", *(f'"{row["text"]}",1,{row["file_name"]}' for row in rows)]
        (folder / name).write_text("\n".join(lines), encoding="utf-8-sig")


@pytest.mark.parametrize("name", ["metadata.jsonl", "captions.csv"])
def test_captions_of_a_table(folder, name):
    files = ImageFolder(str(folder), 8).open().files
    rows = [{"file_name": file, "text": f"a cat, {i} \u4e09"} for i, file in enumerate(reversed(files))]
    table(folder, name, [*rows, {"file_name": files[0], "text": "another"}])
    examples = ImageFolder(str(folder), 8, captions=name).open()
    assert str(examples[5]["text"]) == "a cat, 2 \u4e09"
    assert examples[0]["text"].tolist() == ["a cat, 7 \u4e09", "another"]


def test_captions_in_text_files_become_ids(folder):
    for file in ImageFolder(str(folder), 8).open().files:
        (folder / file).with_suffix(".txt").write_text(f"{file[4:6]}\n\n  second \n")
    source = ImageFolder(str(folder), 8, captions="txt")
    assert source.open()[7]["text"].tolist() == ["2/", "second"]
    batch = next(Pipeline(source, conditions=(Tokenize(ByteTokenizer(10)),), threads=0).batches(8, seed=0))
    assert {ByteTokenizer(10).decode(row) for row in batch["text"]} > {"second"}


def test_lists_in_a_table_are_several_captions(folder):
    files = ImageFolder(str(folder), 8).open().files
    table(folder, "x.jsonl", [{"image": file, "captions": ["one", "two"]} for file in files])
    source = ImageFolder(str(folder), 8, captions="x.jsonl", file_column="image", text_column="captions")
    assert source.open()[3]["text"].tolist() == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"file_name": "cat/0.png", "text": "a"}\n',
            "got none for 7 of 8, such as cat/1.png",
        ),
        (
            '\n{"file_name": "cat/0.png"}\n',
            "'x.jsonl:2': expected a column text, got file_name. Fix: use one of file_name",
        ),
        ('{"file_name": "../secret.png", "text": "a"}', "expected the path of an image, got '../secret.png'"),
        (
            '{"file_name": "cat/0.png", "text": " "}',
            "'x.jsonl:1': expected a caption that is not empty, got ' '",
        ),
        ('{"file_name": "cat/0.png", "text": 3}', "got 3"),
        ('{"file_name": ', "'x.jsonl:1': expected JSON"),
        ("[]", "expected a JSON object, got list"),
        (b'{"text": "\xff"}', "expected UTF-8, got other bytes at byte 10"),
        (None, "got no such file"),
    ],
)
def test_missing_captions_are_named(folder, content, message):
    if content is not None:
        (folder / "x.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        ImageFolder(str(folder), 8, captions="x.jsonl").open()
    assert message in str(error.value)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="expected a folder of images, got no such path"):
        ImageFolder(str(tmp_path / "x"), 8).open()
    with pytest.raises(UserError, match=r"expected .png, .*, got none"):
        ImageFolder(str(tmp_path), 8).open()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0), ("test_fraction", 1.5), ("max_broken", -0.1), ("background", (0, 0, 256)), ("max_pixels", 0),
        ("captions", "captions.xml"),
    ],
)  # fmt: skip
def test_fields_out_of_range_are_refused(field, value):
    with pytest.raises(UserError, match=field):
        ImageFolder(**{"path": "x", "size": 8, field: value})


def test_blocks_survive_json():
    written = spec(ImageFolder, path="x", size=64, captions="txt", background=(0, 0, 0), fit="lanczos")
    expected = ImageFolder("x", 64, captions="txt", background=(0, 0, 0), fit="lanczos")
    assert build(from_json(to_json(written)), packages=("jaxdiff",)) == expected
