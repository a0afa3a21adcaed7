"""Sources return the stored examples; errors name what exists instead of what is missing."""

import importlib.util
import io
import logging

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxdiff.config import build, from_json, spec, to_json
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.data.text import ByteTokenizer, Tokenize
from jaxdiff.data.transforms import HorizontalFlip
from jaxdiff.errors import UserError


def test_opened_examples_have_their_shape_and_classes():
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


class Captioned(tfds.core.GeneratorBasedBuilder):
    """Images with a mask, and with captions in each form that TFDS data sets use."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features
        image = {"shape": (4, 6, 1), "dtype": np.uint8, "encoding_format": "png"}
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "image": features.Image(**image),
                    "mask": features.Image(**image),
                    "title": features.Text(),
                    "titles": features.Sequence(features.Text()),
                    "captions": features.Sequence({"text": features.Text(), "id": np.int64}),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(3):
            files = [io.BytesIO(), io.BytesIO()]
            for file, level in zip(files, (i, 100 + i), strict=True):
                Image.new("L", (6, 4), level).save(file, "PNG")
                file.seek(0)
            captions = [{"text": f"é{i}{j}", "id": j} for j in range(i)]
            yield i, {
                "image": files[0], "mask": files[1], "title": f"é{i}", "captions": captions, "titles": ["a"] * i,
            }  # fmt: skip


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    builder = Captioned(data_dir=tmp_path_factory.mktemp("captioned"), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_path)


def test_captions_are_str_and_several_captions_are_all_returned(captioned):
    examples = Tfds(captioned, label_key=None, text_key="title").open()
    assert [str(examples[i]["text"]) for i in range(3)] == ["é0", "é1", "é2"]
    for key, expected in (("captions/text", ["é20", "é21"]), ("titles", ["a", "a"])):
        examples = Tfds(captioned, label_key=None, text_key=key).open()
        index = next(i for i in range(3) if examples.records[i]["title"].decode() == "é2")
        assert examples[index]["text"].tolist() == expected


def test_several_captions_become_the_ids_of_one(captioned):
    source = Tfds(captioned, split="train[-2:]", label_key=None, text_key="title")
    batch = Pipeline(source, conditions=(Tokenize(ByteTokenizer(8)),)).all()
    texts = {ByteTokenizer(8).decode(row) for row in batch["text"]}
    assert texts < {"é0", "é1", "é2"}


def test_further_features_keep_their_names(captioned):
    batch = Pipeline(Tfds(captioned, label_key=None, fields=("mask",))).all()
    assert set(batch) == {"image", "index", "mask"}
    assert np.array_equal(batch["mask"], batch["image"] + 100)


@pytest.mark.parametrize(
    ("fields", "phrases"),
    [
        ({"text_key": "caption"}, ("text_key='caption'", "captions", "or None")),
        ({"text_key": "captions/txt"}, ("text_key='txt'", "text", "or None")),
        ({"text_key": "mask"}, ("expected a feature of text, got Image",)),
        ({"text_key": "captions"}, ("expected a feature of text", "FeaturesDict")),
        ({"text_key": "captions/id"}, ("expected a feature of text", "got Tensor")),
        ({"text_key": "title/text"}, ("expected a nested feature before /text, got Text",)),
        ({"fields": ("masks",)}, ("fields='masks'", "mask")),
    ],
    ids=str,
)
def test_a_missing_feature_is_named_with_the_present_ones(captioned, fields, phrases):
    with pytest.raises(UserError) as error:
        Tfds(captioned, label_key=None, **fields).open()
    for phrase in phrases:
        assert phrase in str(error.value)


def test_a_field_cannot_have_the_name_of_another():
    with pytest.raises(UserError, match="image, text"):
        Tfds("digits", fields=("text", "image"))


def test_preparing_a_built_in_data_set_leaves_no_other_files(tmp_path, capfd, caplog):
    with caplog.at_level(logging.WARNING):
        Tfds("digits", data_dir=str(tmp_path)).open()[0]
        first = capfd.readouterr()
        Tfds("digits", data_dir=str(tmp_path)).open()[0]
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    assert (first.out, first.err) == ("", f"preparing digits/1.0.0 in {tmp_path} (once)\n")
    assert capfd.readouterr() == ("", "")
    assert caplog.messages == []


def test_other_messages_of_absl_still_come_through(caplog):
    Tfds("digits").open()
    logging.getLogger("absl").warning("another")
    assert caplog.messages == ["another"]


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
    assert batch["image"].dtype == np.uint8


@pytest.mark.parametrize(
    ("block", "phrases"),
    [
        (
            Tfds("cifar10"),
            ("cifar10", "tfds build cifar10 --file_format=array_record", "pip install tensorflow-cpu"),
        ),
        (Tfds("imagenet_resized/64x64"), ("tfds build imagenet_resized/64x64 --file_format=array_record",)),
        (Tfds("cifar11"), ("cifar11", "did you mean cifar1")),
        (Tfds("digit"), ("did you mean digits",)),
        (Tfds("qqqqqqqq"), ("prepared are digits, photos, scenes",)),
        (Tfds("photos/33"), ("photos/33", "photos/32, photos/64")),
        (Tfds("scenes/32"), ("scenes/32", "expected scenes, got")),
        (Tfds("not a name"), ("not a name",)),
        (Tfds("imagenet_resized/11x11"), ("11x11",)),
        (Tfds("/no/such/folder"), ("/no/such/folder", "dataset_info.json")),
        (Tfds("digits", split="validation"), ("validation", "train", "test")),
        (Tfds("digits", split="train[:"), ("train[:",)),
        (Tfds("digits", image_key="picture"), ("picture", "image, label")),
        (Tfds("digits", image_key="label"), ("image_key", "uint8 images", "got ClassLabel")),
        (Tfds("digits", label_key="class"), ("class", "image, label", "None")),
        (Tfds("digits", label_key="image"), ("label_key", "class labels", "got Image")),
        (Tfds("digits", data_dir="/proc/nowhere"), ("/proc/nowhere", "TFDS_DATA_DIR")),
    ],
    ids=str,
)
def test_an_unknown_name_is_an_error_with_the_known_ones(block, phrases):
    with pytest.raises(UserError) as error:
        block.open()
    assert "Fix: " in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    for phrase in phrases:
        assert phrase in str(error.value)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="shows what happens without TensorFlow"
)
def test_a_data_set_that_needs_tensorflow_is_an_error_with_instructions():
    with pytest.raises(UserError, match="tfds build coco_captions/2014"):
        Tfds("coco_captions/2014").open()


def test_blocks_survive_json():
    block = Pipeline(Tfds("digits", split="test"), transforms=(HorizontalFlip(0.25),), cache=True)
    written = spec(
        Pipeline,
        source=spec(Tfds, name="digits", split="test"),
        transforms=(spec(HorizontalFlip, probability=0.25),),
        cache=True,
    )
    assert build(written) == block
    assert build(from_json(to_json(written)), packages=("jaxdiff",)) == block
    assert repr(build(written)) == repr(block)
