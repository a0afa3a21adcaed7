"""What cannot be cached is refused by name."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxdiff.caching.making import Request, make
from jaxdiff.caching.reading import training_data
from jaxdiff.config import build, describe, spec
from jaxdiff.data.sources import Example
from jaxdiff.data.transforms import CentreCrop, RandomCrop
from jaxdiff.errors import UserError
from jaxdiff.models.lora import Lora
from jaxdiff.runs.weights import FileWeights, load
from tests.caching.model import (
    SIZE,
    TEXT,
    a_config,
    built,
    quiet,
    save,
    write_weights,
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype='int8': expected one of"),
        ({"shards": 0}, "shards=0: expected a number > 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Request("cache", **options)


def test_a_random_crop_is_refused_by_name(files, tmp_path):
    config = a_config(files)
    config.data.transforms = (spec(CentreCrop, size=SIZE), spec(RandomCrop, size=SIZE))
    with pytest.raises(
        UserError,
        match=r"config\.data\.transforms\[1\]=RandomCrop\(size=8\): expected a transform that draws nothing",
    ):
        make(build(config), Request(str(tmp_path / "cache")), quiet)


def trained(config):
    config.task.pretrained = {}


def adapted(config):
    config.task.lora = spec(Lora, rank=1, targets=(f"{TEXT}/*",))


@pytest.mark.parametrize("change", [trained, adapted])
def test_embeddings_of_a_trained_encoder_are_refused(files, tmp_path, change):
    """Not its latents."""
    config = a_config(files)
    change(config)
    with pytest.raises(
        UserError, match=r"config\.task\.pretrained=.*the encoder of the condition 'text' .*is trained"
    ):
        make(build(config), Request(str(tmp_path / "cache")), quiet)
    make(build(config), Request(str(tmp_path / "cache"), fields=("image",)), quiet)


def test_a_cache_is_no_longer_read_once_its_encoder_is_trained(own):
    config = a_config(own)
    adapted(config)
    config.data.encoded = str(own / "cache")
    experiment = build(config)
    load(experiment.task.frozen, experiment.mesh.make(), own, record=True)
    with pytest.raises(UserError, match="which is trained"):
        training_data(experiment, own)


def test_numbers_beyond_float16_are_refused(files, tmp_path):
    write_weights(tmp_path)
    large = jax.tree.map(lambda leaf: leaf * 1e5, FileWeights(str(tmp_path / "text.safetensors")).read())
    save(tmp_path / "text.safetensors", large)
    config = a_config(files)
    config.task.pretrained[TEXT] = describe(FileWeights(str(tmp_path / "text.safetensors")))
    with pytest.raises(
        UserError, match=r"text: expected finite numbers in float16, got .* Fix: use --dtype=float32"
    ):
        make(build(config), Request(str(tmp_path / "cache"), dtype="float16"), quiet)


def test_a_task_without_frozen_networks_is_refused(files, tmp_path):
    config = a_config(files)
    config.task.codec = describe(build(config).task.codec.__class__.__mro__[1]())
    trained(config)
    config.task.denoiser.conditioner.conditions = {}
    with pytest.raises(
        UserError, match=r"config\.task\.codec='Pixels': expected a task with a frozen network"
    ):
        make(build(config), Request(str(tmp_path / "cache")), quiet)


def test_weights_of_another_encoder_are_refused_before_anything_is_written(own):
    experiment = built(own, task__denoiser__conditioner__conditions__text__encoder__vocabulary="300")
    with pytest.raises(
        UserError,
        match=r"config\.task\.pretrained=conditioner/parts_text/.*: expected \[300, 8\], got \[259, 8\]",
    ):
        make(experiment, Request(str(own / "other")), quiet)
    assert not (own / "other").exists()


@dataclasses.dataclass(frozen=True)
class Smaller:
    """All images but the first lose a row."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return {**example, "image": example["image"][: SIZE - (example["index"] > 0)]}


def test_images_of_several_sizes_are_refused(files, tmp_path):
    config = a_config(files)
    config.data.transforms = (spec(Smaller),)
    with pytest.raises(
        UserError, match=r"index=1: expected image of uint8\[8, 8, 3\] as before, got uint8\[7, 8, 3\]"
    ):
        make(build(config), Request(str(tmp_path)), quiet)


def test_fields_that_are_no_numbers_are_refused(files, tmp_path):
    config = a_config(files)
    config.data.source.captions = None
    config.data.conditions = ()
    config.task.denoiser.conditioner.conditions = {}
    make(build(config), Request(str(tmp_path / "images"), fields=("image",)), quiet)
    config.data.source.captions = "txt"
    with pytest.raises(UserError, match=r"config\.data\.text=.*: expected an array of numbers"):
        make(build(config), Request(str(tmp_path / "texts"), fields=("image",)), quiet)


def test_several_processes_are_refused(files, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES=2: expected one process"):
        make(built(files), Request(str(tmp_path)), quiet)


def test_an_address_is_refused(files):
    with pytest.raises(UserError, match=r"--out='gs://bucket/cache': expected a folder on this machine"):
        make(built(files), Request("gs://bucket/cache"), quiet)
