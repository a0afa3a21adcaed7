"""Real-world image files: each is read as a viewer shows it, or named in an error; none is read in part."""

import io
import os
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.errors import UserError

SIDE = 8
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def noise(seed=0, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, channels), np.uint8)


def folder(path, **options):
    return ImageFolder(str(path), SIDE, **{"label": None, **options})


def read(path, **options):
    return folder(path, **options).open()[0]["image"]


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "options"), [
    ("PNG", {}), ("JPEG", {"quality": 95}), ("JPEG", {"progressive": True}), ("WEBP", {"lossless": True}),
    ("WEBP", {"quality": 90}),
], ids=str)  # fmt: skip
def test_a_truncated_file_is_named_or_read_completely(tmp_path, kind, options):
    """Decoders may not need a file's last bytes, but must never invent pixels."""
    content = encoded(Image.fromarray(noise()), kind, **options)
    (tmp_path / "a.png").write_bytes(content)
    whole, broken, complete = read(tmp_path), 0, 0
    sizes = sorted({*range(0, len(content), 3), *range(max(0, len(content) - 30), len(content))})
    for size in sizes:
        (tmp_path / "a.png").write_bytes(content[:size])
        try:
            found = read(tmp_path)
        except UserError as error:
            broken += str(error).startswith("a.png: expected a readable image")
        else:
            np.testing.assert_array_equal(found, whole, err_msg=f"{size} of {len(content)} bytes")
            complete += 1
    assert broken + complete == len(sizes)
    assert broken > 0.8 * len(sizes)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_format_follows_the_content_and_not_the_name(tmp_path, kind):
    image = noise()
    (tmp_path / "a.jpeg").write_bytes(encoded(Image.fromarray(image), kind, lossless=True))
    np.testing.assert_array_equal(read(tmp_path), image)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_unsupported_formats_are_refused_under_any_name(tmp_path, kind):
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(noise()), kind))
    with pytest.raises(UserError, match=r"^a\.png: expected a readable image"):
        read(tmp_path)
    (tmp_path / "a.png").rename(tmp_path / f"a.{kind.lower()}")
    with pytest.raises(UserError, match=r"expected \.png, \.jpg.*files, got none"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(tmp_path, kind):
    first, *others = (Image.new("RGB", (SIDE, SIDE), colour) for colour in COLOURS.values())
    moving = encoded(first, kind, save_all=True, append_images=others, duration=50, lossless=True)
    (tmp_path / "a.png").write_bytes(moving)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.n_frames == 3
    assert np.all(read(tmp_path) == COLOURS["red"])


def test_a_multi_picture_file_gives_its_first_image(tmp_path):
    first, other = (Image.new("RGB", (SIDE, SIDE), COLOURS[name]) for name in ("blue", "red"))
    (tmp_path / "a.jpg").write_bytes(encoded(first, "MPO", save_all=True, append_images=[other], quality=95))
    assert np.abs(read(tmp_path).astype(int) - COLOURS["blue"]).max() < 6


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_images_of_every_format_are_upright(tmp_path, kind):
    stored = np.zeros((SIDE, SIDE, 3), np.uint8)
    stored[:, : SIDE // 2] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # the first stored column is the top row
    (tmp_path / "a.jpg").write_bytes(encoded(Image.fromarray(stored), kind, exif=exif, quality=95))
    found = read(tmp_path).astype(int)
    assert found[: SIDE // 2].min() > 180
    assert found[SIDE // 2 :].max() < 20


@pytest.mark.parametrize("exif", [0, 9, 77, "garbage"])
def test_an_invalid_orientation_is_ignored(tmp_path, exif):
    tags: Image.Exif | bytes = b"Exif\0\0 this is no EXIF"
    if exif != "garbage":
        tags = Image.Exif()
        tags[0x0112] = exif
    image = noise()
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(image), "PNG", exif=tags))
    np.testing.assert_array_equal(read(tmp_path), image)


@pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGB", (7, 8, 9)), ("1", 0)])
def test_a_colour_may_mean_transparent(tmp_path, mode, colour):
    image = Image.new(mode, (SIDE, SIDE), 1 if mode == "1" else 200 if mode == "L" else (200, 200, 200))
    image.putpixel((2, 3), colour)
    image.save(tmp_path / "a.png", transparency=colour)
    found = read(tmp_path, background=(10, 20, 30))
    clear = np.all(found == (10, 20, 30), axis=-1)
    assert clear[3, 2]
    assert clear.sum() == 1
    assert np.all(found[~clear] == (255 if mode == "1" else 200))


def test_sixteen_bits_of_colour_keep_their_first_eight(tmp_path):
    """Pillow cannot write such a PNG, so the test writes one, without filters."""
    levels = np.random.default_rng(0).integers(0, 2**16, (SIDE, SIDE, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    (tmp_path / "a.png").write_bytes(png(16, 2, rows))
    np.testing.assert_array_equal(read(tmp_path), levels >> 8)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_of_grey_span_the_full_range(tmp_path, bits):
    levels = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 2**bits
    packed = np.packbits(
        (levels[..., None] >> np.arange(bits)[::-1]).reshape(SIDE, -1).astype(np.uint8) & 1, axis=1
    )
    (tmp_path / "a.png").write_bytes(png(bits, 0, b"".join(b"\0" + row.tobytes() for row in packed)))
    expected = (levels * 255 // (2**bits - 1))[..., None].repeat(3, axis=-1)
    np.testing.assert_array_equal(read(tmp_path), expected)


def png(bits, colour_type, rows, side=SIDE, extra=b""):
    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = 2 * side.to_bytes(4, "big") + bytes((bits, colour_type, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body + chunk(b"IEND", b"")


def test_a_decompression_bomb_in_a_text_chunk_is_refused(tmp_path):
    text = b"zTXt" + b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9)
    extra = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(png(8, 0, (b"\0" + bytes(SIDE)) * SIDE, extra=extra))
    with pytest.raises(UserError, match=r"^a\.png: expected a readable image"):
        read(tmp_path)


NAMES = (
    "\U0001f431.png",  # a cat's face
    "e\u0301.png",  # a letter and an accent
    "\u00e9.png",  # the two as one character: another file
    "\u05d7\u05ea\u05d5\u05dc \u202e.png",  # from right to left
    "a b\tc\n.png",
    "'\"%s{0}\\.png",
    "a.b.c.PNG",
    "x" * 200 + ".png",
    os.fsdecode(b"caf\xe9.png"),  # no UTF-8
)


def test_file_names_may_have_any_characters(tmp_path):
    for i, name in enumerate(NAMES):
        Image.fromarray(noise(i)).save(tmp_path / name, "PNG")
    examples = folder(tmp_path).open()
    assert sorted(examples.files) == sorted(NAMES)
    for i, name in enumerate(NAMES):
        np.testing.assert_array_equal(examples[examples.files.index(name)]["image"], noise(i))
    halves = [
        set(folder(tmp_path, split=split, test_fraction=0.5).open().files) for split in ("train", "test")
    ]
    assert halves[0] | halves[1] == set(NAMES)
    assert not halves[0] & halves[1]
    fingerprint = folder(tmp_path).fingerprint()
    assert fingerprint["length"] == len(NAMES)
    assert fingerprint["sha256"] == folder(tmp_path).fingerprint()["sha256"]


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_file_is_named_whatever_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert name in str(error.value)


def test_one_stem_may_have_several_files(tmp_path):
    """They are separate examples with the same caption file."""
    for kind, seed in (("png", 0), ("webp", 1)):
        Image.fromarray(noise(seed)).save(tmp_path / f"a.{kind}", lossless=True)
    (tmp_path / "a.txt").write_text("twice")
    examples = folder(tmp_path, captions="txt").open()
    assert examples.files == ("a.png", "a.webp")
    for seed in (0, 1):
        np.testing.assert_array_equal(examples[seed]["image"], noise(seed))
        assert str(examples[seed]["text"]) == "twice"


def test_links_to_files_are_files(tmp_path):
    (tmp_path / "far").mkdir()
    Image.fromarray(noise()).save(tmp_path / "far" / "original.png")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "link.png").symlink_to(tmp_path / "far" / "original.png")
    np.testing.assert_array_equal(read(tmp_path / "near"), noise())
    (tmp_path / "root").symlink_to(tmp_path / "far", target_is_directory=True)
    np.testing.assert_array_equal(read(tmp_path / "root"), noise())


def test_dangling_and_circular_links_are_unreadable_files(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "c.png")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    examples = folder(tmp_path).open()
    for i, name in ((1, "b"), (2, "c")):
        with pytest.raises(UserError, match=rf"^{name}\.png: expected a readable image"):
            examples[i]
    skipping = folder(tmp_path, broken="skip", max_broken=0.9).open()
    assert [int(skipping[i]["index"]) for i in range(3)] == [0, 0, 0]
    assert folder(tmp_path).fingerprint()["length"] == 3


def test_a_folder_with_the_name_of_an_image_is_named(tmp_path):
    (tmp_path / "a.png").mkdir()
    Image.fromarray(noise()).save(tmp_path / "a.png" / "b.png")
    examples = folder(tmp_path).open()
    np.testing.assert_array_equal(examples[examples.files.index("a.png/b.png")]["image"], noise())
    with pytest.raises(UserError, match=r"^a\.png: expected a readable image"):
        examples[examples.files.index("a.png")]


def test_empty_folders_are_ignored(tmp_path):
    for name in ("cat", "dog", "empty", ".hidden"):
        (tmp_path / name).mkdir()
    for name in ("cat", "dog", ".hidden"):
        Image.fromarray(noise()).save(tmp_path / name / "0.png")
    (tmp_path / "empty" / "notes.txt").write_text("nothing yet")
    (tmp_path / "dog" / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "dog" / "Thumbs.db").write_bytes(b"\0")
    examples = folder(tmp_path, label="folder").open()
    assert examples.classes == ("cat", "dog")
    assert examples.files == ("cat/0.png", "dog/0.png")


def test_files_below_a_hidden_root_are_read(tmp_path):
    (tmp_path / ".cache").mkdir()
    Image.fromarray(noise()).save(tmp_path / ".cache" / "0.png")
    np.testing.assert_array_equal(read(tmp_path / ".cache"), noise())


def test_a_file_as_path_is_refused(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "0.png")
    with pytest.raises(UserError, match="expected a folder of images, got a file"):
        folder(tmp_path / "0.png").open()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (SIDE - 1, 2 * SIDE + 1)])
@pytest.mark.parametrize("fit", ["halving", "bicubic"])
def test_images_of_any_shape_become_squares(tmp_path, height, width, fit):
    Image.new("RGB", (width, height), COLOURS["green"]).save(tmp_path / "a.png")
    found = read(tmp_path, fit=fit)
    assert found.shape == (SIDE, SIDE, 3)
    assert np.all(found == COLOURS["green"])


def test_every_number_of_processes_skips_the_same_files(tmp_path):
    """The batches of 1, 2 and 4 processes are equal, with broken files among them."""
    for i in range(12):
        (tmp_path / f"{i:02}.png").write_bytes(
            b"" if i % 5 == 2 else encoded(Image.fromarray(noise(i)), "PNG")
        )
    pipeline = Pipeline(folder(tmp_path, broken="skip", max_broken=0.5))

    def step(index, count):
        iterator = pipeline.batches(8, 0, 3, index, count)
        batch = next(iterator)
        iterator.close()
        return batch

    whole = step(0, 1)
    assert not set(whole["index"]) & {2, 7}
    for count in (2, 4):
        parts = [step(i, count) for i in range(count)]
        for name in whole:
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])
