"""Conditions of `jaxdiff.sample`, from flags and files of JSON lines to the images of models that add them up."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jaxdiff.cli import values
from jaxdiff.conditioning.continuous import ImageSize
from jaxdiff.conditioning.image import ImageCondition
from jaxdiff.errors import UserError
from tests.cli.models import CONDITIONS, LABEL, LOW, PARAMS, PHOTO, Length, enlarged
from tests.generation.test_inputs import LEVELS, WEIGHTS, a_generator, constant, noisy


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
        ('{"label": "x", "text": "a"}', r"label=x: expected classes, got .x"),
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
        (
            ("--image", "text=x.png"),
            "--image='text': expected a condition that is an image, got .*use --text",
        ),
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


def test_images_of_a_batch_have_one_size(call, photo):
    Image.fromarray(PHOTO[:, :4]).save(photo.with_name("small.png"))
    with pytest.raises(UserError, match=r"low: expected images of one size, got 4x4 and 6x4 pixels"):
        call(a_generator(LOW, {"low": {}}, (8, 8, 1)),
             "--image", f"low={photo}", "--image", f"low={photo.with_name('small.png')}")  # fmt: skip


def test_a_text_is_taken_literally(call):
    found = call(a_generator({"text": Length()}, {"text": {}}), "--text", "12", "--text", "none")
    np.testing.assert_array_equal(found["images"], constant([0.02, 0.04]))


def test_a_size_follows_that_of_the_images(call):
    size = {"original_size": ImageSize(width=1, frequencies=0, scale=0.01)}
    generator = a_generator(size, {"original_size": {"kernel": [[3.0], [1.0]]}})
    found = call(generator, "--size", "8x10")
    np.testing.assert_array_equal(found["images"], constant([0.34], (8, 10, 1)))
    given = ("--condition", "original_size=[2, 3]", "--negative", "original_size=[1, 1]", "--guidance", "3")
    np.testing.assert_array_equal(call(generator, *given)["images"], constant([0.27 - 0.08]))


def test_empty_files_are_refused(tmp_path):
    np.save(tmp_path / "none.npy", np.zeros((0, 4), np.float32))
    with pytest.raises(
        UserError, match=r"--noise=.*none.npy.: expected an array of finite floats, got float32\[0, 4\]"
    ):
        values.noise("--noise", str(tmp_path / "none.npy"))
    conditions = {"image": SimpleNamespace(parse=lambda text, flag: [], classes=None)}
    with pytest.raises(UserError, match=r"--image image='none.npy': expected at least one value, got none"):
        values.values("--image", ["image=none.npy"], conditions)
