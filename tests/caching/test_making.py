"""A cache is completed after an interruption, stays once it is complete, and refuses other makers by name."""

import dataclasses
import shutil
import signal

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdiff.caching.making import Request, make
from jaxdiff.caching.reading import training_data
from jaxdiff.cli.app import override
from jaxdiff.config import build, describe, spec
from jaxdiff.data.arrays import Arrays
from jaxdiff.data.sources import Example
from jaxdiff.data.transforms import CentreCrop, RandomCrop
from jaxdiff.errors import RunFailure, UserError
from jaxdiff.models.lora import Lora
from jaxdiff.runs.weights import FileWeights, load
from tests import commands
from tests.caching.model import COUNT, SIZE, TEXT, a_config, write_files, write_weights

CONFIG = """
import pathlib

from tests.caching.model import a_config


def get_config():
    config = a_config(pathlib.Path(__file__).parent)
    config.batch_size = 1
    return config
"""


def quiet(done, count):
    pass


def built(folder, **changes):
    return build(changed(a_config(folder), changes))


def changed(config, changes):
    for path, text in changes.items():
        override(config, path.replace("__", "."), text)
    return config


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture
def own(tmp_path):
    """A folder with images and weights of a test's own, and a cache of them."""
    write_files(tmp_path)
    make(built(tmp_path), Request(str(tmp_path / "cache")), quiet)
    return tmp_path


def test_an_interrupted_cache_is_completed_with_the_same_files(files, tmp_path):
    """An error in the third of four shards, and the draft that a killed process leaves behind."""
    experiment, whole, broken = built(files), tmp_path / "whole", tmp_path / "broken"
    make(experiment, Request(str(whole), shards=4), quiet)

    def stop(done, count):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(experiment, Request(str(broken), shards=4), stop)
    assert len(list(broken.glob("*.array_record"))) == 2
    (broken / ".examples-00002-of-00004.array_record.partial").write_bytes(b"half a record")
    seen = []
    make(experiment, Request(str(broken)), lambda done, count: seen.append((done, count)))
    assert seen == [(3, 4), (4, 4)]
    assert contents(broken) == contents(whole)


def test_a_complete_cache_stays_as_it_is(own):
    before = contents(own / "cache")
    make(built(own), Request(str(own / "cache")), lambda done, count: pytest.fail("a shard was written"))
    assert contents(own / "cache") == before


@pytest.mark.slow
def test_a_killed_command_is_completed_by_the_same_command(own):
    """With SIGKILL, as a machine that goes away."""
    (own / "config.py").write_text(CONFIG)
    words = ["--config", str(own / "config.py"), "--shards", str(COUNT), "--out"]
    process = commands.start("cache", *words, str(own / "killed"), devices=1)
    assert process.stdout is not None
    assert process.stdout.readline() == f"shard 1 of {COUNT}\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    out, _ = commands.run("cache", *words, str(own / "killed"), devices=1)
    assert f"{COUNT} examples with image, text encoded" in out
    commands.run("cache", *words, str(own / "whole"), devices=1)
    assert contents(own / "killed") == contents(own / "whole")
    _, error = commands.run("cache", *words, str(own / "whole"), "--dtype=float16", devices=1, code=2)
    assert error.startswith("error: --dtype='float16': expected 'float32'")


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


@pytest.mark.parametrize("change", FILES, ids=lambda change: change.__name__)
def test_other_files_are_refused_by_name_in_making_and_in_training(own, change):
    change(own)
    assert_refused(own, built(own), FILES[change])


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
    from tests.caching.model import save

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
        UserError, match=r"config\.task\.pretrained='conditioner/parts_text/.*: expected shape"
    ):
        make(experiment, Request(str(own / "other")), quiet)
    assert not (own / "other").exists()


def test_a_damaged_file_is_named_and_made_again(own):
    """A file that ends too early, and one with another byte."""
    (file,) = (own / "cache").glob("*.array_record")
    before = file.read_bytes()
    at = before.index(b"text.tokens")
    for damaged in (before[: len(before) // 2], before[:at] + b"!" + before[at + 1 :]):
        file.write_bytes(damaged)
        with pytest.raises(
            RunFailure, match=r"cache: expected records as they were written, got damaged ones"
        ):
            make(built(own), Request(str(own / "cache")), quiet)
    file.unlink()
    make(built(own), Request(str(own / "cache")), quiet)
    assert file.read_bytes() == before


def test_a_cache_without_a_shard_binds_nothing(files, tmp_path):
    """A first attempt that was refused, here for its random crop, is not in the way of the next."""
    config = a_config(files)
    config.data.transforms = (spec(RandomCrop, size=SIZE),)
    with pytest.raises(UserError):
        make(build(config), Request(str(tmp_path)), quiet)
    assert [file.name for file in tmp_path.iterdir()] == ["cache.json"]
    make(built(files), Request(str(tmp_path)), quiet)


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


def test_arrays_in_memory_are_known_by_their_hash(files, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    experiment = built(files)

    def of(images):
        source = Arrays(image=images, text=["a", "b", "c"])
        return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, source=source))

    make(of(images), Request(str(tmp_path)), quiet)
    with pytest.raises(UserError, match=r"data\.source\.contents\.sha256"):
        make(of(images[::-1]), Request(str(tmp_path)), quiet)


def test_equal_values_are_encoded_and_stored_once(own):
    """Two captions and two orientations are four results with two images and two texts."""
    from jaxdiff.caching.checks import transformed

    experiment = built(own)
    inputs, counts = transformed(experiment.data, experiment.data.source.open(), 0)
    assert counts == (2, 2)
    assert {name: len(each.values) for name, each in inputs.items()} == {
        "image": 2,
        "text": 2,
        "index": 1,
        "label": 1,
    }
