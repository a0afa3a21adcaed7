"""Damaged checkpoints: every flipped bit and missing byte is found, and the checkpoint before is used."""

import json
import mmap
import pathlib
import shutil
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath

from jaxdiff.errors import RunFailure, UserError
from jaxdiff.training import integrity
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.integrity import Damaged
from jaxdiff.training.retention import Retention
from jaxdiff.training.step import TrainState
from tests.training import toy


def state(step):
    params = {"kernel": jnp.sin(step + jnp.arange(4096.0)).reshape(64, 64), "bias": jnp.full((3,), 2.0)}
    return TrainState(
        jnp.int32(step), params, jax.tree.map(lambda x: x / 2, params), optax.adam(1e-3).init(params)
    )


ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("good")
    with Checkpoints(folder, files={"config.json": '{"seed": 0}\n'}) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step))
        checkpoints.wait()
    return folder


@pytest.fixture
def copy(good, tmp_path):
    return pathlib.Path(shutil.copytree(good, tmp_path / "copy"))


def newest(folder, **options):
    with Checkpoints(folder, **options) as checkpoints:
        return checkpoints.newest(lambda step: checkpoints.restore(step, ABSTRACT))


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damages(path, rng, count):
    """The bytes of a file with single flipped bits, cut short, or emptied."""
    content = path.read_bytes()
    for bit in rng.integers(0, 8 * len(content), count):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)
    yield content[: len(content) // 2]
    yield b""


@pytest.mark.parametrize("count", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_every_damage_is_found_or_harmless(copy, count):
    """Whatever is damaged, what is read is one of the two states that were saved."""
    rng, found = np.random.default_rng(0), 0
    for path in files(copy / "2"):
        for content in damages(path, rng, count):
            broken = shutil.copytree(copy, copy.with_name("broken"))
            (broken / path.relative_to(copy)).write_bytes(content)
            step, restored = newest(broken)
            assert toy.sha(restored) == toy.sha(state(step))
            found += step == 1
            shutil.rmtree(broken)
    assert found > 30


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{}", "[]", "3", '{"format": 1, "step": 2, "time": 0.0, "files": []}']
)
def test_a_manifest_of_other_json_is_damage(copy, text, caplog):
    (copy / "2" / integrity.MANIFEST).write_text(text)
    assert newest(copy)[0] == 1
    assert "manifest.json: not " in caplog.text


@pytest.mark.parametrize("name", ["state/_METADATA", "state/manifest.ocdbt", "manifest.json", "config.json"])
def test_a_missing_file_is_found(copy, name, caplog):
    (copy / "2" / name).unlink()
    assert newest(copy)[0] == 1
    assert name in caplog.text
    assert (copy / "2.corrupt").is_dir()
    assert len(caplog.records) == 1


def stopped(folder, monkeypatch, where):
    """What a save of step 3 that is killed at some point leaves in a bucket, which has no temporary names."""
    reached, kept = getattr(*where), folder / "3"

    def killed(*arguments):
        if where[0] is ocp.CompositeCheckpointHandler:
            reached(*arguments)
        draft = next(path for path in folder.iterdir() if path.name.startswith("3."))
        shutil.copytree(draft, kept)
        raise OSError("killed")

    with monkeypatch.context() as patch, Checkpoints(folder) as checkpoints:
        patch.setattr(*where, killed)
        checkpoints.save(3, state(3))
        with pytest.raises(RunFailure):
            checkpoints.wait()
    return kept


def test_a_manifest_with_crc_32_is_still_compared(copy, caplog):
    """Format 1, of earlier versions."""
    step = copy / "2"
    manifest = json.loads((step / "manifest.json").read_text())
    sums = {name: (step / name).read_bytes() for name in manifest["files"]}
    sums = {name: [len(data), zlib.crc32(data)] if data else [0] for name, data in sums.items()}
    (step / "manifest.json").write_text(json.dumps(manifest | {"format": 1, "files": sums}))
    assert newest(copy)[0] == 2
    (step / "config.json").write_text('{"seed": 1}\n')
    assert newest(copy)[0] == 1
    assert "config.json: not as it was saved" in caplog.text


def test_checksums_cover_every_block(tmp_path, monkeypatch):
    monkeypatch.setattr(integrity, "BLOCK", mmap.ALLOCATIONGRANULARITY)
    folder = tmp_path / "3"
    folder.mkdir()
    content = np.random.default_rng(0).bytes(2 * integrity.BLOCK + 5)
    (folder / "data").write_bytes(content)
    integrity.write_manifest(epath.Path(folder), 3)
    assert len(json.loads((folder / "manifest.json").read_text())["files"]["data"]) == 4
    assert integrity.verify(epath.Path(folder))
    for place in (0, integrity.BLOCK, len(content) - 1):
        (folder / "data").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(Damaged, match="data: not as it was saved"):
            integrity.verify(epath.Path(folder))


@pytest.mark.parametrize(
    "where",
    [(ocp.CompositeCheckpointHandler, "finalize"), (integrity, "write_manifest")],
    ids=["state", "manifest"],
)
@pytest.mark.parametrize("verify", [True, False])
def test_a_save_interrupted_in_a_bucket_is_not_a_checkpoint(copy, monkeypatch, where, verify):
    kept = stopped(copy, monkeypatch, where)
    assert (kept / "state" / "manifest.ocdbt").exists(), "the state itself is complete"
    with Checkpoints(copy, verify=verify, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1, 2]
    assert newest(copy, verify=verify)[0] == 2
    assert (copy / "3.corrupt").is_dir()


def test_reading_changes_no_folder(copy, caplog):
    largest = max(files(copy / "2"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    before = files(copy)
    assert newest(copy, read_only=True)[0] == 1
    assert files(copy) == before
    assert str(largest.relative_to(copy)) in caplog.text


def test_a_copy_under_another_step_is_not_that_step(copy):
    shutil.copytree(copy / "2", copy / "5000")
    step, restored = newest(copy)
    assert (step, int(restored.step)) == (2, 2)
    assert (copy / "5000.corrupt").is_dir()


def test_an_old_copy_under_another_step_is_not_that_step(copy):
    for step in (1, 2):  # as an earlier version wrote them
        (copy / str(step) / integrity.MANIFEST).unlink()
        (copy / str(step) / integrity.FORMAT_FILE).unlink()
    shutil.copytree(copy / "2", copy / "5000")
    assert newest(copy)[0] == 2


def test_all_damaged_is_an_error_that_changes_nothing(copy):
    for step in (1, 2):
        (copy / str(step) / "state" / "_METADATA").unlink()
    before = files(copy)
    for _ in range(2):
        with pytest.raises(
            RunFailure, match=r"got 2 damaged.*2/state/_METADATA.*1/state/_METADATA.*--restart"
        ):
            newest(copy)
        assert files(copy) == before


def test_damaged_ones_alone_are_not_a_new_run(copy):
    (copy / "1").rename(copy / "1.corrupt")
    shutil.rmtree(copy / "2")
    with pytest.raises(RunFailure, match=r"1\.corrupt"):
        newest(copy)


def test_no_checkpoint_is_no_error(tmp_path):
    assert newest(tmp_path) is None


def test_a_chosen_step_that_is_damaged_is_named(copy):
    (copy / "2" / "state" / "_sharding").write_bytes(b"x")
    with Checkpoints(copy) as checkpoints, pytest.raises(Damaged, match="_sharding"):
        checkpoints.verify(2)
    with Checkpoints(copy) as checkpoints, pytest.raises(UserError, match=r"step=3: .* choose from: 1, 2"):
        checkpoints.verify(3)


def test_without_verification_other_bytes_are_believed(copy, monkeypatch):
    (copy / "2" / "config.json").write_text("{}")
    assert newest(copy, verify=False)[0] == 2
    monkeypatch.setenv(integrity.VERIFY, "0")
    assert newest(copy)[0] == 2
    monkeypatch.setenv(integrity.VERIFY, "1")
    assert newest(copy)[0] == 1


def test_files_are_stored_with_each_checkpoint(good):
    assert (good / "1" / "config.json").read_text() == '{"seed": 0}\n'
    manifest = json.loads((good / "2" / integrity.MANIFEST).read_text())
    assert manifest["step"] == 2
    assert {"config.json", "format.json", "state/_METADATA"} < set(manifest["files"])


def test_drafts_and_half_deleted_checkpoints_are_removed(copy):
    (copy / "3.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (copy / "1").rename(copy / "1.deleted")
    (copy / "mine.deleted").mkdir()
    assert newest(copy)[0] == 2
    assert sorted(path.name for path in copy.iterdir()) == ["2", "mine.deleted"]


def test_the_best_by_a_metric_stay(tmp_path):
    with Checkpoints(tmp_path, 1, Retention(best="recall", better="higher")) as checkpoints:
        for step, value in ((1, 0.2), (2, 0.9), (3, 0.5), (4, 0.7)):
            stays = checkpoints.would_stay(step, value)
            checkpoints.save(step, state(step))
            checkpoints.rate(step, value)
            assert stays == (step in (1, 2))
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4]
    with Checkpoints(tmp_path, 1, Retention(best="recall", better="higher")) as checkpoints:
        assert not checkpoints.would_stay(5, 0.8)
        checkpoints.save(6, state(6))
        checkpoints.wait()
        assert checkpoints.steps() == [2, 6]
