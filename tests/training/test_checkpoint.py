import collections
import errno
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxdiff.errors import RunFailure, UserError
from jaxdiff.process.time_sampling import Importance
from jaxdiff.training import storage
from jaxdiff.training.checkpoint import Checkpoints
from jaxdiff.training.integrity import Damaged
from jaxdiff.training.retention import Retention
from jaxdiff.training.state import abstract_state
from jaxdiff.training.step import TrainState
from tests.training import toy


def state(step, scale=1.0, task_state=()):
    """A state whose values depend on the step."""
    params = {"kernel": scale * (step + jnp.arange(6.0).reshape(2, 3)), "bias": jnp.full((3,), scale)}
    ema = jax.tree.map(lambda x: x / 2, params)
    return TrainState(jnp.int32(step), params, ema, optax.adam(1e-3).init(params), task_state)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@pytest.fixture
def checkpoints(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=2) as opened:
        yield opened


def saved(checkpoints, *steps):
    for step in steps:
        assert checkpoints.save(step, state(step))
    checkpoints.wait()
    return checkpoints


def test_restore_is_the_inverse_of_save_and_the_latest_are_kept(checkpoints):
    assert checkpoints.latest() is None
    saved(checkpoints, 1, 2, 3)
    assert checkpoints.steps() == [2, 3]
    assert toy.sha(checkpoints.restore(3, abstract(state(0)))) == toy.sha(state(3))
    assert toy.sha(checkpoints.restore_part(2, "ema", abstract(state(0).ema))) == toy.sha(state(2).ema)
    assert toy.sha(checkpoints.restore_part(2, "params", abstract(state(0).ema))) == toy.sha(state(2).params)


@pytest.mark.parametrize(
    "memory",
    [(), Importance(bins=4, history=3).init_history()._replace(counts=jnp.arange(4, dtype=jnp.int32))],
    ids=["none", "history"],
)
def test_task_state_is_saved_and_restored(tmp_path, memory):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1, task_state=memory))
        checkpoints.wait()
        restored = checkpoints.restore(1, abstract(state(0, task_state=memory)))
    assert toy.sha(restored) == toy.sha(state(1, task_state=memory))
    assert type(restored.task_state) is type(memory)


def test_multiples_of_every_steps_are_kept(tmp_path):
    with Checkpoints(tmp_path, 1, Retention(every_steps=2)) as checkpoints:
        assert saved(checkpoints, 1, 2, 3, 4, 5).steps() == [2, 4, 5]


def test_state_may_be_donated_after_save_returns(checkpoints):
    given = jax.tree.map(lambda x: jnp.tile(x[None], (2**16,) + (1,) * x.ndim), state(1)).replace(
        step=jnp.int32(1)
    )
    expected = toy.sha(given)
    checkpoints.save(1, given)
    jax.block_until_ready(jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(given))
    checkpoints.wait()
    assert toy.sha(checkpoints.restore(1, abstract(jax.eval_shape(lambda: given)))) == expected


def test_restored_onto_another_mesh(tmp_path):
    made, _ = toy.train(1, mesh=toy.mesh(2, fsdp=2), task=toy.WIDE)
    other = abstract_state(toy.WIDE, toy.ADAM, toy.mesh(8, fsdp=4))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, made)
        checkpoints.wait()
        restored = checkpoints.restore(1, other)
    assert toy.sha(restored) == toy.sha(made)
    assert restored.params["kernel"].sharding == other.params["kernel"].sharding


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", ["9", "9/state", "9/default"])
def test_stray_numeric_directory_is_not_a_checkpoint_and_is_not_deleted(tmp_path, name, caplog):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        saved(checkpoints, 2, 3)
    (tmp_path / name).mkdir(parents=True)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest() == 3
        assert toy.sha(checkpoints.restore(3, abstract(state(0)))) == toy.sha(state(3))
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert saved(checkpoints, 4, 9).steps() == [4, 9]
    assert (tmp_path / "9.corrupt").is_dir()
    assert "not a complete checkpoint" in caplog.text


def test_a_checkpoint_without_one_of_its_files_is_ignored(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        saved(checkpoints, 2, 3)
        (tmp_path / "3" / "state" / "manifest.ocdbt").unlink()
        assert checkpoints.latest() == 2


def test_state_that_is_not_finite_is_not_saved(checkpoints, caplog):
    saved(checkpoints, 1, 2)
    assert not checkpoints.save(3, state(3, scale=np.nan))
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
    assert "not finite" in caplog.text


PARTS = {
    "params": lambda state, value: state.replace(params={**state.params, "bias": value}),
    "ema": lambda state, value: state.replace(ema={**state.ema, "bias": value}),
    "extra_emas": lambda state, value: state.replace(extra_emas=({"bias": value},)),
    "opt_state": lambda state, value: state.replace(
        opt_state=(state.opt_state[0]._replace(nu={**state.opt_state[0].nu, "bias": value}), *state.opt_state[1:])
    ),
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_nan_in_any_part_is_not_saved(checkpoints, part):
    good = PARTS[part](state(2), jnp.zeros(3))
    assert checkpoints.save(2, good)
    assert not checkpoints.save(3, PARTS[part](state(3), jnp.array([0.0, jnp.nan, 0.0])))
    checkpoints.wait()
    assert checkpoints.steps() == [2]


@pytest.mark.spread(3)
@pytest.mark.parametrize("part", PARTS)
def test_nan_that_an_earlier_version_has_saved_is_not_read(checkpoints, part, monkeypatch, caplog):
    good, bad = (PARTS[part](state(step), jnp.full(3, value)) for step, value in ((1, 0.0), (2, jnp.nan)))
    checkpoints.save(1, good)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "is_sound", lambda *trees: True)
        checkpoints.save(2, bad)
        checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
    step, found = checkpoints.newest(lambda step: checkpoints.restore(step, abstract(good)))
    assert (step, toy.sha(found)) == (1, toy.sha(good))
    assert "2: expected finite numbers" in caplog.text
    assert (checkpoints.directory / "2.corrupt").is_dir()


def test_nan_in_the_part_that_is_read_is_an_error(checkpoints, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(storage, "is_sound", lambda *trees: True)
        checkpoints.save(1, PARTS["ema"](state(1), jnp.full(3, jnp.inf)))
        checkpoints.wait()
    assert checkpoints.restore_part(1, "params", abstract(state(0).params))
    with pytest.raises(Damaged, match="1: expected finite numbers"):
        checkpoints.restore_part(1, "ema", abstract(state(0).ema))


def test_infinities_of_an_optimizer_and_any_numbers_of_a_task_are_kept(checkpoints):
    """As optax's reduction on plateaus has them before the first loss."""
    given = PARTS["opt_state"](state(1, task_state=(jnp.full(2, jnp.nan),)), jnp.full(3, jnp.inf))
    assert checkpoints.save(1, given)
    checkpoints.wait()
    assert toy.sha(checkpoints.restore(1, abstract(given))) == toy.sha(given)


def test_an_existing_step_is_not_overwritten(checkpoints):
    saved(checkpoints, 1)
    assert not checkpoints.save(1, state(1, scale=5.0))
    checkpoints.wait()
    assert toy.sha(checkpoints.restore(1, abstract(state(0)))) == toy.sha(state(1))


def test_a_failed_background_save_loses_no_other_checkpoint(checkpoints, monkeypatch, caplog):
    def full(self, directory):
        raise OSError("no space left on device")

    saved(checkpoints, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.PyTreeCheckpointHandler, "finalize", full)
        checkpoints.save(3, state(3))
        with pytest.raises(RunFailure, match=r"step 3 was not saved .*: no space .*there: 1, 2"):
            checkpoints.wait()
        assert sorted(path.name for path in checkpoints.directory.iterdir()) == ["1", "2"]
        checkpoints.save(4, state(4))
        checkpoints.save(5, state(5))  # logs that 4 was lost
        assert "no space" in caplog.text
        with pytest.raises(RunFailure, match="no space"):
            checkpoints.wait()
    assert saved(checkpoints, 6).steps() == [2, 6]
    assert toy.sha(checkpoints.restore(6, abstract(state(0)))) == toy.sha(state(6))


def test_an_old_checkpoint_that_cannot_be_deleted_stops_nothing(checkpoints, monkeypatch, caplog):
    rename = type(checkpoints.directory).rename

    def busy(self, target):
        if ".deleted" in str(target):
            raise OSError(errno.ENOTEMPTY, "directory not empty")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(checkpoints.directory), "rename", busy)
        saved(checkpoints, 1, 2, 3)
    assert "not deleted" in caplog.text
    assert saved(checkpoints, 4).steps() == [3, 4]


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_passed_over(checkpoints):
    saved(checkpoints, 1, 2)

    def read(step):
        if step == 2:
            (checkpoints.directory / "2").rename(checkpoints.directory / "2.deleted")
        return int(checkpoints.restore(step, abstract(state(0))).step)

    assert checkpoints.newest(read) == (1, 1)


def test_the_only_checkpoint_may_be_deleted_while_it_is_read(checkpoints):
    saved(checkpoints, 1)

    def read(step):
        (checkpoints.directory / "1").rename(checkpoints.directory / "1.deleted")
        raise Damaged("a file is missing")

    assert checkpoints.newest(read) is None


LACKS = (
    MemoryError(),
    OSError(errno.EMFILE, "files"),
    OSError(errno.ENFILE, "files"),
    PermissionError(errno.EACCES, ""),
)


@pytest.mark.parametrize("lack", LACKS, ids=repr)
def test_lack_of_memory_handles_or_access_is_no_damage(tmp_path, monkeypatch, lack):
    def exhausted(*arguments, **options):
        raise lack

    with Checkpoints(tmp_path, verify=False) as checkpoints:
        saved(checkpoints, 1)
        monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", exhausted)
        with pytest.raises(type(lack)):
            checkpoints.newest(lambda step: checkpoints.restore(step, abstract(state(0))))
        assert checkpoints.steps() == [1]


def test_only_a_checkpoint_is_rated_and_by_the_present_metric(tmp_path):
    with Checkpoints(tmp_path, 2, Retention(best="fid")) as checkpoints:
        saved(checkpoints, 1)
        checkpoints.rate(1, 0.5)
        checkpoints.rate(7, 0.1)  # its save has failed
        assert checkpoints.would_stay(2, 0.2)
        assert not checkpoints.would_stay(2, 0.6)
    with Checkpoints(tmp_path, 2, Retention(best="loss")) as checkpoints:
        assert checkpoints.would_stay(2, 0.6)


def test_a_step_whose_save_is_not_under_way_or_has_failed_is_not_rated(tmp_path, monkeypatch):
    def full(self, directory):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Checkpoints(tmp_path, 2, Retention(best="fid")) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.rate(7, 0.1)
        assert checkpoints.would_stay(2, 0.2)
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(ocp.PyTreeCheckpointHandler, "finalize", full)
            checkpoints.save(3, state(3))
            checkpoints.rate(3, 0.1)
            assert not checkpoints.would_stay(4, 0.2)
            with pytest.raises(RunFailure):
                checkpoints.wait()
        assert checkpoints.would_stay(4, 0.2)


def test_a_rating_that_finds_no_room_is_stored_with_the_next_checkpoint(tmp_path, monkeypatch):
    def full(self, folder, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Checkpoints(tmp_path, 2, Retention(best="fid")) as checkpoints:
        saved(checkpoints, 1)
        with monkeypatch.context() as patch:
            patch.setattr(Retention, "write", full)
            checkpoints.rate(1, 0.5)
        saved(checkpoints, 2)
    with Checkpoints(tmp_path, 2, Retention(best="fid")) as checkpoints:
        assert not checkpoints.would_stay(3, 0.6)
        assert checkpoints.would_stay(3, 0.4)


def test_other_shapes_types_and_names_are_errors(checkpoints):
    saved(checkpoints, 1)
    wanted = abstract(state(0))
    wanted.params["bias"] = jax.ShapeDtypeStruct((3,), jnp.bfloat16, sharding=wanted.params["bias"].sharding)
    wanted.params["scale"] = wanted.params.pop("kernel")
    with pytest.raises(UserError) as error:
        checkpoints.restore(1, wanted)
    for line in (
        "params/bias: float32[3] in the checkpoint, bfloat16[3] in the config",
        "params/kernel: float32[2, 3] in the checkpoint, absent in the config",
        "params/scale: absent in the checkpoint, float32[2, 3] in the config",
    ):
        assert line in str(error.value)


def test_a_field_that_is_empty_may_be_newer_than_the_checkpoint(checkpoints):
    Older = collections.namedtuple("Older", ["step", "params", "ema", "opt_state"])
    now = state(1)
    checkpoints.save(1, Older(now.step, now.params, now.ema, now.opt_state))
    checkpoints.wait()
    assert toy.sha(checkpoints.restore(1, abstract(state(0)))) == toy.sha(now)


def test_a_missing_step_is_an_error_that_lists_the_steps(checkpoints):
    with pytest.raises(UserError, match=r"step=7: .* choose from: 1, 2"):
        saved(checkpoints, 1, 2).restore_part(7, "ema", abstract(state(0).ema))


def test_orbax_is_quiet(tmp_path, caplog, capfd):
    with caplog.at_level(logging.WARNING), Checkpoints(tmp_path) as checkpoints:
        saved(checkpoints, 1).restore(1, abstract(state(0)))
    assert capfd.readouterr() == ("", "")
