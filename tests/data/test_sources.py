"""Sources read what was stored, and say what is there when something is not."""

import importlib.util

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxdiff.config import build, from_json, spec, to_json
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.data.transforms import HorizontalFlip
from jaxdiff.errors import UserError


def test_opened_examples_know_their_shape_and_classes():
    examples = Tfds("digits", split="test").open()
    assert len(examples) == 297
    assert examples.image_shape == (8, 8, 1)
    assert examples.num_classes == 10
    example = examples[41]
    dtypes = {name: value.dtype for name, value in example.items()}
    assert dtypes == {"image": np.uint8, "label": np.int32, "index": np.int32}
    assert example["index"] == 41


def test_a_part_of_a_split_is_that_part():
    whole, part = Tfds("digits").open(), Tfds("digits", split="train[100:150]").open()
    assert len(part) == 50
    assert np.array_equal(part[7]["image"], whole[107]["image"])


def test_a_folder_is_the_same_data_set(data_dir):
    by_name = Tfds("digits").open()
    by_folder = Tfds(str(data_dir / "digits" / "1.0.0")).open()
    assert len(by_folder) == len(by_name)
    assert np.array_equal(by_folder[3]["image"], by_name[3]["image"])
    assert by_folder.num_classes == 10


def test_labels_may_be_left_out():
    examples = Tfds("digits", label_key=None).open()
    assert set(examples[0]) == {"image", "index"}
    assert examples.num_classes is None


def test_fingerprint_names_what_was_read():
    found = Tfds("digits", split="test").fingerprint()
    assert found == {"name": "digits", "version": "1.0.0", "split": "test", "length": 297}


def test_stock_data_sets_read_through_the_same_block():
    with tfds.testing.mock_data(num_examples=5):
        examples = Tfds("cifar10").open()
        assert len(examples) == 5
        assert examples.image_shape == (32, 32, 3)
        assert examples.num_classes == 10
        batch = next(Pipeline(Tfds("cifar10"), threads=0).batches(4, seed=0))
    assert batch["image"].shape == (4, 32, 32, 3)
    assert batch["image"].dtype == np.float32


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (
            Tfds("cifar10"),
            ("cifar10", "tfds build cifar10 --file_format=array_record", "pip install tensorflow-cpu"),
        ),
        (Tfds("imagenet_resized/64x64"), ("tfds build imagenet_resized/64x64 --file_format=array_record",)),
        (Tfds("cifar11"), ("cifar11", "did you mean cifar1")),
        (Tfds("digit"), ("did you mean digits",)),
        (Tfds("qqqqqqqq"), ("prepared are digits",)),
        (Tfds("not a name"), ("not a name",)),
        (Tfds("imagenet_resized/11x11"), ("11x11",)),
        (Tfds("/no/such/folder"), ("/no/such/folder", "dataset_info.json")),
        (Tfds("digits", split="validation"), ("validation", "train", "test")),
        (Tfds("digits", split="train[:"), ("train[:",)),
        (Tfds("digits", image_key="picture"), ("picture", "image, label")),
        (Tfds("digits", image_key="label"), ("image_key", "no uint8 image")),
        (Tfds("digits", label_key="class"), ("class", "image, label", "None")),
        (Tfds("digits", label_key="image"), ("label_key", "no class")),
        (Tfds("digits", data_dir="/proc/nowhere"), ("/proc/nowhere", "TFDS_DATA_DIR")),
    ],
    ids=str,
)
def test_what_is_not_there_is_told_with_what_is(block, words):
    with pytest.raises(UserError) as error:
        block.open()
    assert "Fix: " in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    for word in words:
        assert word in str(error.value)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="asks what happens without TensorFlow"
)
def test_a_data_set_whose_code_needs_tensorflow_gets_the_recipe():
    with pytest.raises(UserError, match="tfds build coco_captions/2014"):
        Tfds("coco_captions/2014").open()


def test_blocks_survive_json():
    block = Pipeline(Tfds("digits", split="test"), transforms=(HorizontalFlip(0.25),), cache=True)
    written = spec(
        Pipeline, source=spec(Tfds, name="digits", split="test"),
        transforms=(spec(HorizontalFlip, probability=0.25),), cache=True,
    )  # fmt: skip
    assert build(written) == block
    assert build(from_json(to_json(written)), packages=("jaxdiff",)) == block
    assert repr(build(written)) == repr(block)
