"""Labels are numbers of a class table: they follow the names of classes, in every kind of source."""

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data.arrays import Arrays
from jaxdiff.data.classes import Labelled, listed, natural, numbered, numbers
from jaxdiff.data.folder import ImageFolder
from jaxdiff.data.mixture import Mixture
from jaxdiff.data.pipeline import Pipeline
from jaxdiff.data.sources import Tfds
from jaxdiff.errors import UserError

LEVELS = {"ant": 10, "bee": 120, "cat": 240, "dog": 60}
TRAINED = ("ant", "bee", "cat")


def folder(root, *classes, images=2):
    """Images whose grey level is that of their class in `LEVELS`, or else 0."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(images):
            Image.new("L", (2, 2), LEVELS.get(name, 0)).save(root / name / f"{i}.png")
    return ImageFolder(str(root), 2, channels=1)


def arrays(*classes, given=None):
    level = np.array([LEVELS[name] for name in classes], np.uint8)
    image = np.broadcast_to(level[:, None, None, None], (len(classes), 2, 2, 1))
    return Arrays(image=image, label=np.arange(len(classes)), classes=given)


def meanings(source):
    """The label of each grey level."""
    batch = Pipeline(source).all()
    return {
        int(image.mean()): int(label) for image, label in zip(batch["image"], batch["label"], strict=True)
    }


@pytest.mark.parametrize("name", ["tul\udcffip", "two\nlines"])
def test_names_that_cannot_be_shown_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="expected class folders with printable names") as error:
        folder(tmp_path, "ant", name).open()
    assert str(error.value).isascii()


def test_numbers_in_names_sort_by_value_and_the_rest_as_text(tmp_path):
    names = ["a", "a-", "a1b", "a2", "a10", "b", "1", "2", "10", "01", "cat.2", "cat"]
    assert sorted(["10", "2", "1"], key=natural) == ["1", "2", "10"]
    assert sorted(names, key=natural) == [
        "01",
        "1",
        "2",
        "10",
        "a",
        "a-",
        "a1b",
        "a2",
        "a10",
        "b",
        "cat",
        "cat.2",
    ]
    examples = folder(tmp_path, "1", "10", "2").open()
    assert examples.classes == ("1", "2", "10")
    assert [int(examples[i]["label"]) for i in (0, 2, 4)] == [0, 2, 1], "the order of files is that of text"
    assert examples.classes_of_old_runs == ("1", "10", "2")


@pytest.mark.parametrize("held_out", [("ant", "cat"), ("cat",), ("ant", "bee", "cat")])
def test_labels_follow_the_names_where_classes_are_missing(tmp_path, held_out):
    own = folder(tmp_path, *held_out)
    source = Labelled(own, TRAINED)
    assert meanings(source) == {LEVELS[name]: TRAINED.index(name) for name in held_out}
    assert Pipeline(source).num_classes() == 3
    assert source.fingerprint() == own.fingerprint()
    assert source.contents() == own.contents()
    assert meanings(Labelled(arrays(*held_out, given=held_out), TRAINED)) == meanings(source)


def test_a_class_that_training_lacks_is_an_error_with_both_lists(tmp_path):
    source = Labelled(folder(tmp_path, "bee", "cat", "dog"), TRAINED)
    with pytest.raises(
        UserError, match=r"classes=dog: .*training data \(ant, bee, cat\), got bee, cat, dog\. Fix"
    ):
        source.open()


def test_classes_without_names_keep_their_numbers():
    unnamed = arrays("ant", "bee")
    assert meanings(Labelled(unnamed, TRAINED)) == {10: 0, 120: 1}
    with pytest.raises(UserError, match=r"classes=1: .*\(ant\), got 0, 1"):
        Labelled(unnamed, ("ant",)).open()
    with pytest.raises(UserError, match=r"classes=ant, bee: .*\(0, 1\)"):
        Labelled(arrays("ant", "bee", given=("ant", "bee")), numbers(2)).open()


def test_data_without_labels_stay_without(tmp_path):
    folder(tmp_path, "ant")
    assert set(Labelled(ImageFolder(str(tmp_path), 2, label=None), TRAINED).open()[0]) == {"image", "index"}


def test_a_missing_label_is_no_class():
    """Sources write -1 for it; as a position it would be the last class."""

    class Missing:
        image_shape, num_classes, classes = (1, 1, 1), 2, ("b", "a")

        def open(self):
            return self

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return {"image": np.zeros((1, 1, 1), np.uint8), "label": np.int32(-1), "index": np.int32(0)}

    with pytest.raises(UserError, match="expected a label in"):
        Pipeline(Labelled(Missing(), ("a", "b"))).all()


def test_sources_of_a_mixture_share_the_classes_of_the_first(tmp_path):
    first = folder(tmp_path / "a", *TRAINED)
    assert meanings(Mixture((first, folder(tmp_path / "b", "cat", "ant")))) == {10: 0, 120: 1, 240: 2}
    with pytest.raises(UserError, match=r"classes=dog: .*first source \(ant, bee, cat\), got bee, cat, dog"):
        Mixture((first, folder(tmp_path / "c", "bee", "cat", "dog"))).open()


def test_names_of_arrays_are_checked_and_recorded():
    source = arrays("ant", "bee", given=["ant", "bee"])
    assert source.recorded().classes == source.classes == ("ant", "bee")
    for wrong, message in ((("a", "a"), "distinct names"), (("a",), "label=1: expected classes from 0 to 0")):
        with pytest.raises(UserError, match=message):
            arrays("ant", "bee", given=wrong)
    with pytest.raises(UserError, match=r"classes=.*expected None without a field label"):
        Arrays(image=np.zeros((1, 2, 2, 1), np.uint8), classes=("a",))


def test_data_sets_of_tfds_have_the_names_of_their_label(tmp_path):
    assert Tfds("photos/32").open().classes == ("china", "flower")
    assert Tfds("digits").open().classes == numbers(10)
    with pytest.raises(UserError, match="classes=china, flower"):
        Labelled(Tfds("photos/32"), TRAINED).open()


def test_folders_without_images_are_named_and_are_no_classes(tmp_path):
    source = folder(tmp_path, "ant", "cat")
    for name in ("bee10", "bee9", ".hidden"):
        (tmp_path / name).mkdir()
    assert source.open().classes == ("ant", "cat")
    assert source.open().empty_classes == ("bee9", "bee10")


def test_links_to_folders_are_classes_and_loops_end(tmp_path):
    folder(tmp_path / "elsewhere", "bee")
    source = folder(tmp_path / "data", "ant")
    (tmp_path / "data" / "bee").symlink_to(tmp_path / "elsewhere" / "bee", target_is_directory=True)
    (tmp_path / "data" / "ant" / "loop").symlink_to(tmp_path / "data", target_is_directory=True)
    assert source.open().classes == ("ant", "bee")
    assert len(source.open()) == 4


def test_contents_do_not_depend_on_the_place(tmp_path):
    source = folder(tmp_path / "a", *TRAINED)
    contents = source.contents()
    (tmp_path / "a").rename(tmp_path / "b")
    moved = ImageFolder(str(tmp_path / "b"), 2, channels=1)
    assert moved.contents() == contents
    assert contents["classes"] == {"ant": 2, "bee": 2, "cat": 2}
    Image.new("L", (2, 2), 11).save(tmp_path / "b" / "ant" / "0.png")
    assert moved.contents() != contents, "other bytes of as many"


def test_tables_are_listed_in_one_line():
    assert listed(TRAINED) == "ant=0, bee=1, cat=2"
    assert listed(("1", "2", "10")) == "1=0, 2=1, 10=2"
    assert listed(numbers(10)) == "0 to 9"
    many = [f"n{i}" for i in range(1000)]
    assert listed(many).endswith("n10=10, ..., n999=999 (1,000 classes)")
    assert numbered([f"n{i}" for i in range(11)])[9:] == [" 9  n9", "10  n10"]
