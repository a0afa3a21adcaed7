"""Outputs: a place is tried before the work, nothing foreign is deleted, and nothing that was made is lost."""

import errno
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxdiff import posthoc_ema, sample
from jaxdiff.cli import limits, output, pictures
from jaxdiff.errors import RunFailure, UserError

IMAGES = np.arange(3 * 8 * 6 * 3, dtype=np.uint8).reshape(3, 8, 6, 3)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("precious")
    (tmp_path / "d.png").mkdir()
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "notes.txt").write_text("precious")
    (tmp_path / "keep" / "000000.png").write_text("an image")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path


def everything(folder):
    return {path: path.read_text() if path.is_file() else None for path in folder.rglob("*")}


def parse(*words):
    return sample.parse(["--workdir", "run", *words])


PLACES = {
    "in a file": ("file/x.png", "got a file where a folder is needed"),
    "in a file deeper": ("file/a/b/x.npz", "got a file where a folder is needed"),
    "a folder for a file": ("d.png", "expected a file, got an existing folder"),
    "a file for a folder": ("file", "expected a folder, got an existing file"),
    "a pipe": ("pipe.png", "expected a file, got an existing device or pipe"),
    "a device": ("/dev/null", "got an existing device or pipe"),
    "no files there": ("/proc/x.png", "expected a place that can be written, got no such file or directory"),
    "no folders there": ("/proc/self/a/x.npz", "expected a place that can be written"),
    "here": (".", "expected the name of a file or folder, got '.'"),
    "above": ("keep/..", "expected the name of a file or folder"),
    "root": ("/", "expected the name of a file or folder"),
    "nothing": ("", "expected the name of a file or folder, got ''"),
    "loop": ("loop/x.png", "--out=loop/x.png: expected a path"),
    "long": (f"{'n' * 300}.png", "got file name too long"),
    "foreign": ("keep", "expected a folder of this command's outputs, got one with 'notes.txt'"),
    "other pictures": ("x.gif", "expected .png .jpg .jpeg .webp .npz .npy, or a folder"),
    "other arrays": ("x.h5", "got the suffix .h5"),
    "a typo": ("x.pngg", "got the suffix .pngg"),
    "a space": ("x.png ", "got the suffix .png "),
}


@pytest.mark.parametrize(("text", "message"), PLACES.values(), ids=PLACES)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(folder, text, message):
    before = everything(folder)
    with pytest.raises(UserError) as error:
        parse("--out", text, "--overwrite")
    assert message in str(error.value)
    assert "Fix: " in str(error.value)
    assert "\n" not in str(error.value)
    assert everything(folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(folder):
    (folder / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="expected a place that can be written, got permission denied"):
        parse("--out", "closed/x.png")


def test_an_earlier_output_is_replaced_only_with_the_flag(folder):
    for name in ("old.png", "old"):
        (folder / "old.png").touch()
        (folder / "old").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=r"expected a new .*, got an existing .* or --overwrite"):
            parse("--out", name)
        assert parse("--out", name, "--overwrite").out.path == folder / name


@pytest.mark.parametrize("argv", [["--out", "keep"], ["--out", "file"], ["--out", "d.png"]])
def test_other_commands_replace_nothing(folder, argv):
    before = everything(folder)
    with pytest.raises(UserError, match="--out="):
        posthoc_ema.main(["--workdir", "run", "--std", "0.1", *argv])
    assert everything(folder) == before


FORMS = {"x.png": "PNG", "x.PNG": "PNG", "x.jpg": "JPEG", "x.Jpeg": "JPEG", "x.webp": "WEBP"}


@pytest.mark.parametrize(("name", "form"), FORMS.items())
def test_the_suffix_is_the_format_of_a_picture(folder, name, form):
    pictures.write(parse("--out", f"new/{name}").out, IMAGES, {}, None)
    with Image.open(folder / "new" / name) as image:
        assert (image.format, image.mode) == (form, "RGB")
    assert os.listdir(folder / "new") == [name]


def test_the_suffix_is_the_format_of_arrays(folder):
    for name in ("x.npy", "x.NPZ"):
        pictures.write(parse("--out", name).out, IMAGES, {"label": np.arange(3)}, None)
    np.testing.assert_array_equal(np.load("x.npy"), IMAGES)
    assert set(np.load("x.NPZ")) == {"images", "label"}


@pytest.mark.parametrize("text", ["images", "images/", "images.jpg/", "digits-0.08", "a b: ü"])
def test_other_names_are_folders(folder, text):
    pictures.write(parse("--out", text).out, IMAGES, {}, None)
    assert sorted(os.listdir(text)) == [f"{i:06}.png" for i in range(3)]
    pictures.write(parse("--out", text, "--overwrite").out, IMAGES[:1], {}, None)
    assert os.listdir(text) == ["000000.png"]
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
    assert pathlib.Path(text).stat().st_mode & 0o777 == (folder / "keep").stat().st_mode & 0o777


def test_a_link_stays_and_its_target_is_replaced(folder):
    (folder / "store").mkdir()
    for name in ("latest.npy", "latest"):
        (folder / name).symlink_to(folder / "store" / name)
        for count in (3, 2):  # first the target is absent
            pictures.write(parse("--out", name, "--overwrite").out, IMAGES[:count], {}, None)
        assert (folder / name).is_symlink()
    assert len(np.load("store/latest.npy")) == len(os.listdir("store/latest")) == 2


@pytest.mark.parametrize("name", ["new/x.npy", "new/images"])
def test_an_output_that_cannot_be_written_after_all_is_kept_elsewhere(
    folder, name, monkeypatch, tmp_path_factory
):
    monkeypatch.setattr(output.tempfile, "gettempdir", lambda: str(tmp_path_factory.mktemp("elsewhere")))
    out, full = parse("--out", name).out, {"left": 1}

    def fill(draft):
        if full["left"]:
            full["left"] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        (draft / "a" if out.is_folder else draft).write_text("made")

    with pytest.raises(RunFailure, match=r"no space left on device\. Fix: .* kept as ") as error:
        out.write(fill)
    kept = pathlib.Path(str(error.value).rpartition(" ")[2])
    assert (kept / "a" if out.is_folder else kept).read_text() == "made"
    assert not (folder / "new").exists()


def test_nothing_is_replaced_that_appeared_during_the_work(folder):
    out = parse("--out", "x.npy").out
    (folder / "x.npy").write_text("of another command")
    with pytest.raises(UserError, match=r"made there meanwhile.* kept as ") as error:
        pictures.write(out, IMAGES, {}, None)
    pathlib.Path(str(error.value).rpartition(" ")[2]).unlink()
    assert (folder / "x.npy").read_text() == "of another command"


def test_an_earlier_folder_comes_back_if_the_new_one_cannot_take_its_place(folder, monkeypatch):
    (folder / "old").mkdir()
    (folder / "old" / "000000.png").write_text("old")
    out, rename = parse("--out", "old", "--overwrite").out, pathlib.Path.rename

    def fails_for_the_new_one(path, target):
        if path.suffix == ".partial" and (path / "000001.png").exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", fails_for_the_new_one)
    with pytest.raises(RunFailure, match=r"input/output error\. Fix: .* kept as "):
        out.write(lambda draft: (draft / "000001.png").write_text("new"))
    assert [path.name for path in (folder / "old").iterdir()] == ["000000.png"]


def test_an_address_is_no_place_on_this_machine(folder):
    with pytest.raises(UserError, match=r"--out=gs://b/x\.png: expected a place on this machine"):
        parse("--out", "gs://b/x.png")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interruption_leaves_no_draft(folder, error):
    before = everything(folder)

    def fill(draft):
        raise error

    for name in ("new/x.npy", "new/images"):
        with pytest.raises(error):
            parse("--out", name).out.write(fill)
    assert everything(folder) == before


TOO_LARGE = {
    "many": (10**9, (1000, 1000, 3), "--n=1000000000: expected images that fit into"),
    "large": (
        2,
        (10**6, 10**6, 1),
        "--size='1000000x1000000': expected images that fit into .* of free memory",
    ),
}


@pytest.mark.parametrize(("n", "shape", "message"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_request_beyond_the_memory_is_refused(folder, n, shape, message):
    with pytest.raises(UserError, match=message):
        limits.check(parse("--out", "x.npz").out, n, shape)


def test_a_request_beyond_the_disk_is_refused(folder, monkeypatch):
    usage = output.shutil.disk_usage(folder)._replace(free=40_000)
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: usage)
    limits.check(parse("--out", "x.npz").out, 100, (8, 8, 1))
    with pytest.raises(UserError, match="expected 426 kB of free space, got 40 kB"):
        limits.check(
            parse("--out", "images").out, 100, (8, 8, 1)
        )  # a file takes a block of the disk at least


GRIDS = {
    "webp": ("x.webp", 10**6, (64, 64, 3), "at most 16,383 pixels a side in WEBP"),
    "two channels": ("x.png", 1, (8, 8, 2), "images of 1, 3 channels"),
    "five channels": ("images", 1, (8, 8, 5), "images of 1, 2, 3, 4 channels"),
}


@pytest.mark.parametrize(("name", "n", "shape", "message"), GRIDS.values(), ids=GRIDS)
def test_images_that_a_format_cannot_hold_are_refused(folder, name, n, shape, message):
    with pytest.raises(UserError, match=message):
        pictures.check(parse("--out", name).out, n, shape, None)


NUMBERS = {
    "n": (["--n", "0"], "--n=0"),
    "many": (["--n", str(2**32)], "--n=4294967296"),
    "seed": (["--seed", "-1"], "--seed=-1"),
    "strength": (["--strength", "nan"], "--strength='nan'"),
    "strength above": (["--strength", "1.5"], "--strength=1.5"),
    "guidance": (["--guidance", "nan"], "--guidance=nan: expected a scale, finite"),
    "guidance of a name": (["--guidance", "label=inf"], "--guidance label=inf: expected a number, finite"),
    "overflow": (["--guidance", "1e400"], "--guidance=1e400"),
    "level": (["--level", "low_res=nan"], "--level low_res=nan"),
    "size": (["--size", "8x²"], "--size=8x²: expected HEIGHTxWIDTH"),
    "no size": (["--size", "0x8"], "--size=0x8: expected HEIGHTxWIDTH"),
    "no file": (["--lora", "missing.safetensors"], "--lora='missing.safetensors': expected an existing file"),
    "strength alone": (["--strength", "0.5"], "--strength=0.5: expected --edit as well"),
    "strength of a refiner": (
        ["--refiner", "r", "--strength", "0.5"],
        "--strength=0.5: expected --edit as well",
    ),
    "edit of a refiner": (
        ["--refiner", "r", "--edit", "x.png"],
        "--edit='x.png': expected a flag for a base",
    ),
    "source alone": (["--source", "text=a"], "--source=['text=a']: expected --edit as well"),
    "field alone": (["--cascade-field", "low"], "--cascade-field='low': expected --cascade as well"),
    "encoder alone": (["--image-encoder", "x"], "--image-encoder='x': expected --ip-adapter as well"),
}


@pytest.mark.parametrize(("words", "message"), NUMBERS.values(), ids=NUMBERS)
def test_a_number_that_cannot_be_meant_is_refused(folder, words, message):
    with pytest.raises(UserError) as error:
        parse(*words)
    assert message in str(error.value)
