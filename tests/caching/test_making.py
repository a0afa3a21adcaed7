"""A cache is completed after an interruption, stays once it is complete, and names damaged files."""

import signal

import pytest

from jaxdiff.caching.checks import transformed
from jaxdiff.caching.making import Request, make
from jaxdiff.config import build, spec
from jaxdiff.data.transforms import RandomCrop
from jaxdiff.errors import RunFailure, UserError
from tests import commands
from tests.caching.model import COUNT, SIZE, a_config, built, quiet

CONFIG = """
import pathlib

from tests.caching.model import a_config


def get_config():
    config = a_config(pathlib.Path(__file__).parent)
    config.batch_size = 1
    return config
"""


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


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


def test_equal_values_are_encoded_and_stored_once(own):
    """Two captions and two orientations are four results with two images and two texts."""
    experiment = built(own)
    inputs, counts = transformed(experiment.data, experiment.data.source.open(), 0)
    assert counts == (2, 2)
    assert {name: len(each.values) for name, each in inputs.items()} == {
        "image": 2,
        "text": 2,
        "index": 1,
        "label": 1,
    }
