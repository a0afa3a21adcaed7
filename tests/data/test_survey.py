"""`python -m jaxdiff.data`: what it counts, names and draws."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data import __main__ as command
from jaxdiff.data.buckets import Buckets, sizes_of
from jaxdiff.data.contact_sheet import SIDE, contact_sheet
from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.joined_tokenizer import JoinedTokenizer
from jaxdiff.data.listing import listing_of
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.published_tokenizers import ClipTokenizer
from jaxdiff.data.sources import Tfds
from jaxdiff.data.survey import survey
from jaxdiff.data.text import ByteTokenizer, Tokenize
from jaxdiff.errors import RunFailure, UserError
from tests import commands
from tests.data.clip_vocabulary import write_tokenizer
from tests.data.pixels import noise

SIZES = [(14, 40), (16, 16), (60, 20), (8, 8), (16, 18), (24, 70)]
TEXTS = ["a wide one", None, "a tall one with a long caption", "  \n", "ä" * 9, "a wide one"]
LENGTH = 16


@pytest.fixture
def photos(tmp_path):
    """Six images with captions of all kinds, and two files that cannot be read, one of them behind its header."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, (size, text) in enumerate(zip(SIZES, TEXTS, strict=True)):
        Image.fromarray(noise(*size, seed=i)).save(folder / f"{i}.png")
        if text is not None:
            (folder / f"{i}.txt").write_text(text)
    (folder / "cut.png").write_bytes((folder / "2.png").read_bytes()[:1000])
    (folder / "web.jpg").write_text("<html>")
    return folder


def pipeline(photos, **options):
    source = ImageFolder(str(photos), None, label=None, captions="txt")
    options = {"buckets": Buckets(16, 8, 4.0)} | options
    return Pipeline(source, conditions=(Tokenize(ByteTokenizer(LENGTH)),), **options)


def report(data, batch_size=2, whole=False):
    return survey(data, listing_of(data, whole), batch_size, whole).report


def test_damage_is_found_in_headers_and_behind_them(photos):
    found = report(pipeline(photos))
    assert (found["examples"], found["examined"]) == (8, 8)
    assert found["broken"] == {"web.jpg": "a web page"}
    assert report(pipeline(photos), whole=True)["broken"] == {
        "cut.png": "a PNG file that is cut short",
        "web.jpg": "a web page",
    }


def test_sizes_and_buckets_are_those_of_training(photos):
    for name in ("cut.png", "web.jpg"):
        (photos / name).unlink()
    for i in (1, 3):
        (photos / f"{i}.txt").write_text("now with a caption")
    data = pipeline(photos)
    found = report(data)
    assert found["sizes"] == {"distinct": 6, "smallest": [8, 8], "middle": [14, 40], "largest": [24, 70]}
    assignment = data.buckets.assign(sizes_of(data.source.open()))
    for each, group in zip(found["buckets"]["each"], assignment.groups(), strict=True):
        assert (tuple(each["shape"]), each["images"]) == (group.shape, len(group.indices))
        assert each["largest_cut"] == max(assignment.cut[group.indices])
        assert each["batches_per_epoch"] == len(group.indices) / 2
    assert found["buckets"]["enlarged"]["worst"] == {"3.png": 2.0}
    assert sum(each["enlarged"] for each in found["buckets"]["each"]) == 1
    strict = dataclasses.replace(data, buckets=Buckets(16, 8, 4.0, small="leave_out", max_cut=0.1))
    out = report(strict)["buckets"]["left_out"]
    assert out["images"] == sum(strict.buckets.assign(sizes_of(data.source.open())).bucket < 0)
    assert "3.png" in out["worst"]


def test_captions_are_counted_and_the_longest_loss_is_shown(photos):
    found = report(pipeline(photos))["captions"]
    assert (found["captions"], found["distinct"]) == (4, 3)
    assert found["missing"] == {"images": 2, "names": ["1.png", "cut.png"]}
    assert found["empty"] == {"images": 1, "names": ["3.png"]}
    tokens = found["tokens"]
    assert (tokens["length"], tokens["least"], tokens["most"], tokens["cut"]) == (LENGTH, 11, 31, 2)
    text = TEXTS[2]
    assert tokens["example"] == {"name": "2.png", "text": text, "lost": text[LENGTH - 1 :]}


def test_a_table_lacks_a_row(photos):
    rows = [{"file_name": f"{i}.png", "text": f"number {i}"} for i in range(5)]
    (photos / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = pipeline(photos)
    data = dataclasses.replace(data, source=dataclasses.replace(data.source, captions="captions.jsonl"))
    found = report(data)["captions"]
    assert found["captions"] == 5
    assert found["missing"] == {"images": 2, "names": ["5.png", "cut.png"]}


def test_a_folder_cut_to_squares_is_one_bucket(photos):
    square = report(dataclasses.replace(pipeline(photos), buckets=None,
                                        source=ImageFolder(str(photos), 16, label=None)))  # fmt: skip
    (each,) = square["buckets"]["each"]
    assert each["shape"] == [16, 16]
    assert each["largest_cut"] == 1 - 20 / 60
    assert square["captions"] is None


def test_other_sources_are_read():
    found = report(Pipeline(Tfds("digits", split="test")))
    assert found["examined"] == found["examples"]
    assert found["sizes"]["distinct"] == 1
    assert (found["buckets"], found["captions"], found["broken"]) == (None, None, {})


def test_the_sheet_shows_each_image_as_it_is_cut(photos):
    data = pipeline(photos)
    listing = listing_of(data, False)
    found = survey(data, listing, 2)
    sheet = contact_sheet(data, listing, found, 24)
    widest = data.buckets.cover((8, 32))(
        {"image": listing.image(0), "index": np.int32(0)}, np.random.default_rng(0)
    )
    top = (SIDE - SIDE // 4) // 2
    shown = sheet[top : top + SIDE // 4, :SIDE]
    assert np.array_equal(shown[3::6, 3::6], widest["image"])
    few = contact_sheet(data, listing, found, 3)
    assert 3 * SIDE <= few.shape[1] < 4 * SIDE < 6 * SIDE <= sheet.shape[1]


def test_lengths_are_those_of_encoding(tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    clip = ClipTokenizer(str(tmp_path / "tokenizer"), window=8)
    texts = ["", "a cat", "a cat and a dog and a cow", "ünïcödé 😀 words", "aa" * 30]
    for tokenizer in (ByteTokenizer(12), clip, JoinedTokenizer((clip, clip))):
        for text in texts:
            found = tokenizer.measure(text)
            assert (found.needed > found.length) == bool(found.lost)
            assert text.endswith(found.lost)
            if isinstance(tokenizer, ByteTokenizer):  # a part of a word has other byte pairs
                kept = text.removesuffix(found.lost)
                np.testing.assert_array_equal(tokenizer.encode(kept), tokenizer.encode(text))
            elif not found.lost:
                padding = np.sum(tokenizer.encode(text).reshape(-1, 8) == clip.padding, axis=1)
                assert set(padding) == {8 - found.needed + (clip.padding == tokenizer.encode("")[1])}


CONFIG = """
from jaxdiff import config as configs
from jaxdiff.config import spec
from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.text import ByteTokenizer, Tokenize


def get_config():
    config = configs.load({scenes!r})
    source = spec(ImageFolder, path={photos!r}, size=24, label=None, captions="txt")
    config.data = spec(Pipeline, source=source, conditions=(spec(Tokenize, tokenizer=spec(ByteTokenizer, length=16)),))
    return config
"""


@pytest.fixture
def config(photos, tmp_path):
    path = tmp_path / "photos.py"
    path.write_text(CONFIG.format(scenes=str(commands.ROOT / "configs/scenes_text.py"), photos=str(photos)))
    return str(path)


BUCKETED = (
    "--config.data.source.size=None",
    "--config.data.buckets=jaxdiff.data.buckets:Buckets(size=24,step=8)",
)


def test_the_command_prints_draws_and_says_by_its_status_that_files_are_broken(photos, config, tmp_path):
    sheet = tmp_path / "sheet.png"
    request = ("--config", config, *BUCKETED, "--out", str(sheet), "--n", "4")
    out, err = commands.run("data", *request, "--verify", code=1)
    assert "8 in" in out
    assert "cut.png: a PNG file that is cut short" in out
    assert "2 of 8 images cannot be read" in err
    with Image.open(sheet) as opened:
        assert opened.format == "PNG"


def test_status_is_0_without_damage_and_earlier_sheets_are_kept(photos, config, tmp_path, capsys):
    for name in ("cut.png", "web.jpg"):
        (photos / name).unlink()
    sheet = tmp_path / "sheet.png"
    request = ["--config", config, *BUCKETED, "--out", str(sheet)]
    command.main(request)
    assert "2.png loses ' a long caption'" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--out=.*sheet\.png: expected a new file"):
        command.main(request)
    command.main([*request, "--overwrite", "--json"])
    assert json.loads(capsys.readouterr().out)["captions"]["empty"]["names"] == ["3.png"]


def test_headers_alone_tell_the_status(config, capsys):
    with pytest.raises(RunFailure, match="1 of 8 images cannot be read"):
        command.main(["--config", config, *BUCKETED])
    assert "headers only" in capsys.readouterr().out


def test_what_the_command_refuses(config):
    with pytest.raises(UserError, match="expected images of many shapes, got all of 24 x 24"):
        command.main(["--config", config, BUCKETED[1]])
    with pytest.raises(UserError, match=r"--out='sheet\.jpg': expected a name that ends with \.png"):
        command.main(["--config", config, "--out", "sheet.jpg"])
    with pytest.raises(UserError, match="--n=0"):
        command.main(["--config", config, "--n", "0"])
