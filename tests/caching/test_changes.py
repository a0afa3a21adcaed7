"""A cache of other weights, data, configs or options is refused, in making and in training, by what has changed."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxdiff.caching.making import Request, make
from jaxdiff.caching.reading import training_data
from jaxdiff.config import build, spec
from jaxdiff.data.arrays import Arrays
from jaxdiff.data.sources import Example
from jaxdiff.errors import UserError
from jaxdiff.runs.weights import load
from tests.caching.model import (
    COUNT,
    SIZE,
    a_config,
    built,
    changed,
    quiet,
    write_weights,
)


def of_autoencoder(folder):
    write_weights(folder, autoencoder=5)


def of_text_encoder(folder):
    write_weights(folder, text=5)


def of_caption(folder):
    (folder / "images/class_1/3.txt").write_text("another\n")


def of_image(folder):
    Image.fromarray(np.full((SIZE, SIZE, 3), 7, np.uint8)).save(folder / "images/class_0/0.png")


def of_files(folder):
    for suffix in ("png", "txt"):
        shutil.copy(folder / f"images/class_0/0.{suffix}", folder / f"images/class_0/new.{suffix}")


def of_classes(folder):
    (folder / "images/class_1").rename(folder / "images/class_2")


FILES = {
    of_autoencoder: r"task\.frozen\.autoencoder: '[0-9a-f]+",
    of_text_encoder: r"task\.frozen\.conditioner/parts_text: '[0-9a-f]+",
    of_caption: r"data\.source\.contents\.sha256: .*; example 6: text\)",
    of_image: r"data\.source\.contents\.sha256: .*; example 0: image\)",
    of_files: rf"data\.source\.contents\.files: {COUNT} -> {COUNT + 1}; ",
    of_classes: r"data\.source\.contents\.classes\.class_1: 4 -> 'absent'",
}


CONFIGS = {
    "task.codec.network.groups=1": r"task\.codec\.network\.groups: 2 -> 1\)",
    "task.denoiser.conditioner.conditions.text.encoder.activation=gelu": r"\.activation: 'quick_gelu' -> 'g",
    "data.transforms=()": r"data\.transforms: .* -> \[\]\)",
    "data.source.background=(0,0,0)": r"data\.source\.background\[0\]: 255 -> 0; ",
}


@pytest.mark.spread(1)
@pytest.mark.parametrize("change", FILES, ids=lambda change: change.__name__)
def test_other_files_are_refused_by_name_in_making_and_in_training(own, change):
    change(own)
    assert_refused(own, built(own), FILES[change])


@pytest.mark.spread(1)
@pytest.mark.parametrize("change", CONFIGS)
def test_another_config_is_refused_by_name_in_making_and_in_training(own, change):
    path, _, text = change.partition("=")
    experiment = build(changed(a_config(own), {path: text}))
    assert_refused(own, experiment, CONFIGS[change])


def assert_refused(folder, experiment, message):
    with pytest.raises(
        UserError, match=rf"^--out=.*: expected a cache that was made with this config.*{message}.*Fix"
    ):
        make(experiment, Request(str(folder / "cache")), quiet)
    encoded = dataclasses.replace(experiment.data, encoded=str(folder / "cache"))
    load(experiment.task.frozen, experiment.mesh.make(), folder, record=True)
    with pytest.raises(UserError, match=rf"^config\.data\.encoded=.*{message}"):
        training_data(dataclasses.replace(experiment, data=encoded), folder)


def test_another_tokenizer_is_refused_by_name(own):
    tokenizers = (
        "data__conditions[0]__tokenizer__length",
        "task__denoiser__conditioner__conditions__text__tokenizer__length",
    )
    experiment = built(own, **dict.fromkeys(tokenizers, "7"))
    assert_refused(
        own, experiment, r"data\.conditions\[0\]\.tokenizer\.length: 8 -> 7; .*text\.tokenizer\.length"
    )


def test_weights_at_another_place_are_the_same(own):
    shutil.move(own / "autoencoder.safetensors", own / "moved.safetensors")
    make(
        built(own, task__codec__weights__path=str(own / "moved.safetensors")),
        Request(str(own / "cache")),
        quiet,
    )


@dataclasses.dataclass(frozen=True)
class Darken:
    """A transform whose code changes while its config stays."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return {**example, "image": example["image"] // DIVISOR}


DIVISOR = 2


def test_what_configs_and_files_do_not_say_is_seen_in_the_examples(files, tmp_path, monkeypatch):
    """The pixels of arrays in memory, and the code of a transform."""
    config = a_config(files)
    config.data.transforms = (spec(Darken),)
    make(build(config), Request(str(tmp_path)), quiet)
    monkeypatch.setattr(f"{__name__}.DIVISOR", 3)
    with pytest.raises(UserError, match=r"got changes \(example 0: image\)"):
        make(build(config), Request(str(tmp_path)), quiet)


def test_arrays_in_memory_are_known_by_their_hash(files, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    experiment = built(files)

    def of(images):
        source = Arrays(image=images, text=["a", "b", "c"])
        return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, source=source))

    make(of(images), Request(str(tmp_path)), quiet)
    with pytest.raises(UserError, match=r"data\.source\.contents\.sha256"):
        make(of(images[::-1]), Request(str(tmp_path)), quiet)


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dtype": "float16"}, "--dtype='float16': expected 'float32' as the cache in"),
        ({"shards": 2}, "--shards=2: expected 1 as the cache in"),
        ({"fields": ("image",)}, r"--fields=\('image',\): expected \('image', 'text'\)"),
        (
            {"fields": ("label",)},
            "--fields='label': expected fields that a frozen network reads, image, text",
        ),
    ],
)
def test_other_options_are_refused_by_name(own, option, message):
    with pytest.raises(UserError, match=message):
        make(built(own), Request(str(own / "cache"), **option), quiet)
