"""Buckets of a folder of images: sizes, broken and replaced files, and refusals."""

import json

import pytest
from PIL import Image

from jaxdiff.config import build, describe, from_json, to_json
from jaxdiff.config.overrides import override
from jaxdiff.data.buckets import Buckets, sizes_of
from jaxdiff.data.classes import Labelled
from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.mixture import Mixture
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.errors import UserError
from tests.data.many_shapes import SMALL, take
from tests.data.pixels import noise


@pytest.fixture
def folder(tmp_path):
    """Images of three shapes, one of them turned by its EXIF data, in two classes."""
    for i, (height, width) in enumerate([(40, 80), (80, 40), (50, 50), (40, 80)]):
        file = tmp_path / "ab"[i % 2] / f"{i}.{('png', 'jpg', 'webp')[i % 3]}"
        file.parent.mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 1 else 1
        Image.fromarray(noise(height, width, seed=i)).save(file, exif=exif)
    return tmp_path


def test_sizes_of_a_folder_are_those_of_the_decoded_images_also_if_wrapped(folder):
    source = ImageFolder(str(folder), None)
    examples = source.open()
    assert examples.image_shape == (None, None, 3)
    decoded = [examples[i]["image"].shape[:2] for i in range(4)]
    assert decoded[examples.files.index("b/1.jpg")] == (40, 80)
    assert list(map(tuple, examples.sizes())) == decoded
    labelled = Labelled(source, ("b", "a")).open()
    assert list(map(tuple, sizes_of(labelled))) == decoded
    mixed = Mixture((source, source), (1.0, 2.0)).open()
    assert list(map(tuple, sizes_of(mixed))) == [mixed[i]["image"].shape[:2] for i in range(len(mixed))]
    batches = take(Pipeline(source, buckets=SMALL), 2, 4, 0)
    assert {batch["image"].shape[1:3] for batch in batches} == {(12, 20), (16, 16)}


def test_an_unreadable_file_is_named_or_left_out(folder):
    (folder / "a" / "9.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a/9\.png: expected a readable image, got other data"):
        ImageFolder(str(folder), None).open().sizes()
    source = ImageFolder(str(folder), None, broken="skip", max_broken=0.5)
    examples = source.open()
    wrong = examples.files.index("a/9.png")
    assert examples.sizes()[wrong].tolist() == [0, 0]
    assert examples.broken == {"a/9.png"}
    batches = take(Pipeline(source, buckets=SMALL), 2, 8, 0)
    assert wrong not in {int(i) for batch in batches for i in batch["index"]}


def test_a_replaced_file_is_measured_anew(folder):
    file = folder / "a" / "0.png"
    examples = ImageFolder(str(folder), None).open()
    before = examples.sizes()[0].tolist()
    Image.fromarray(noise(31, 77)).save(file)
    assert before == [40, 80]
    assert examples.sizes()[0].tolist() == [31, 77]


def test_whole_images_without_buckets_are_refused_in_a_batch(folder):
    with pytest.raises(UserError, match="Fix: use a data set of one image size"):
        next(Pipeline(ImageFolder(str(folder), None)).batches(4, seed=0))


@pytest.mark.parametrize("source", [Tfds("digits"), "folder"])
def test_images_of_one_shape_are_refused(folder, source):
    source = ImageFolder(str(folder), 32) if source == "folder" else source
    with pytest.raises(UserError, match=r"expected images of many shapes, got all of .*source\.size=None"):
        next(Pipeline(source, buckets=SMALL).batches(4, seed=0))


def test_a_config_takes_buckets_on_the_command_line(folder):
    config = describe(Pipeline(ImageFolder(str(folder), 32)))
    for path, text in (("buckets", "jaxdiff.data.buckets:Buckets(size=32, step=8)"), ("source.size", "None"),
                       ("buckets.max_ratio", "3")):  # fmt: skip
        override(config, path, text)
    expected = Pipeline(ImageFolder(str(folder), None), buckets=Buckets(32, 8, 3.0))
    assert build(config) == expected
    assert build(from_json(to_json(config))) == expected
    assert json.loads(to_json(config))["buckets"]["step"] == 8
    assert build(describe(expected)) == expected
