import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.base import errors, shard, tree
from ldm_jax.engine import checkpoint


def make_state(step):
    key = jax.random.key(step)
    w = jax.random.normal(key, (64, 96))
    return {
        "step": jnp.int32(step),
        "params": {"a": {"w": w, "b": w[0]}, "d": {"w": -w}},
        "opt": {"a": ({"mu": {"w": w * 2}}, {}), "d": ()},
        "ema": {"a": {"w": w / 2, "b": w[0] / 2}},
    }


def place(state, mesh):
    abstract = jax.eval_shape(lambda: state)
    sharding = jax.tree.map(
        lambda s, h: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=h),
        abstract,
        shard.infer(abstract, mesh),
    )
    return sharding


@pytest.fixture
def mesh(monkeypatch):
    monkeypatch.setattr(shard, "MIN_SHARD_SIZE", 8)
    return shard.make_mesh(data=1, devices=jax.devices()[:1])


@pytest.fixture
def directory(tmp_path, mesh):
    """A run with checkpoints of steps 1 and 2."""
    directory = tmp_path / "checkpoints"
    checkpoints = checkpoint.Checkpoints(directory, keep=3)
    for step in (1, 2):
        state = make_state(step)
        spread = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), state, place(state, mesh))
        checkpoints.save(step, spread, {"pending": [[step, {"loss": 0.1}]], "seconds": 1.5})
    checkpoints.wait()
    checkpoints.close()
    return directory


def restore(directory, mesh, state=None):
    checkpoints = checkpoint.Checkpoints(directory)
    try:
        return checkpoints.restore(place(state or make_state(0), mesh))
    finally:
        checkpoints.close()


def steps(directory) -> list[int]:
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())


def flip_a_bit(folder):
    """In the middle of the largest data file of a step."""
    flip(max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size))


def flip(file, every=None):
    """A bit in the middle of a file; or one in each `every` bytes of it."""
    data = bytearray(file.read_bytes())
    for position in range(every, len(data), every) if every else [len(data) // 2]:
        data[position] ^= 1
    file.write_bytes(data)


def test_what_was_saved_comes_back_on_any_mesh(directory, mesh):
    for other in (mesh, shard.make_mesh(data=2, fsdp=4)):
        state, meta = restore(directory, other)
        jax.tree.map(np.testing.assert_array_equal, state, make_state(2))
        assert jax.tree.structure(state) == jax.tree.structure(make_state(2))
        assert meta["pending"] == [[2, {"loss": 0.1}]] and meta["seconds"] == 1.5
        assert not other.size > 1 or not state["params"]["a"]["w"].sharding.is_fully_replicated


def test_a_flipped_bit_walks_back_to_the_step_before_and_is_set_aside(directory, mesh):
    flip_a_bit(directory / "2")
    state, _ = restore(directory, mesh)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(1))
    assert (directory / "2.corrupt").is_dir() and not (directory / "2").exists()
    checkpoints = checkpoint.Checkpoints(directory)
    assert steps(directory) == [1]
    checkpoints.save(2, make_state(2), {})
    checkpoints.wait()
    checkpoints.close()
    assert checkpoint.read_params(directory.parent)[1] == 2, "the number is free again"


def test_any_file_may_be_lost_or_cut(directory, mesh):
    files = [f for f in (directory / "2").rglob("*") if f.is_file()]
    victim = max(files, key=lambda f: f.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:100])
    assert int(restore(directory, mesh)[0]["step"]) == 1


def test_missing_metadata_is_damage_not_a_crash(directory, mesh):
    (directory / "2" / "meta" / "metadata").unlink()
    assert int(restore(directory, mesh)[0]["step"]) == 1


def test_where_all_are_damaged_there_is_none(directory, mesh):
    for step in ("1", "2"):
        flip_a_bit(directory / step)
    assert restore(directory, mesh) is None
    assert {p.name for p in directory.iterdir()} >= {"1.corrupt", "2.corrupt"}
    with pytest.raises(errors.UsageError, match="no readable checkpoint"):
        checkpoint.read_params(directory.parent)


def test_an_empty_directory_is_not_a_checkpoint(directory, mesh):
    (directory / "99").mkdir()
    assert int(restore(directory, mesh)[0]["step"]) == 2
    (directory / "99").mkdir(exist_ok=True)
    assert checkpoint.read_params(directory.parent)[1] == 2


def test_what_a_killed_save_left_is_ignored_and_tidied(directory, mesh):
    stale = directory / "3.orbax-checkpoint-tmp"
    (stale / "state").mkdir(parents=True)
    (stale / "state" / "half").write_bytes(b"x")
    assert checkpoint.read_params(directory.parent)[1] == 2
    assert stale.exists(), "a reader tidies nothing: a trainer may be writing there"
    assert int(restore(directory, mesh)[0]["step"]) == 2
    assert not stale.exists()


def test_other_shapes_are_a_usage_error_and_nothing_is_set_aside(directory, mesh):
    other = make_state(0)
    other["params"]["a"]["w"] = jnp.zeros((64, 97))
    with pytest.raises(errors.UsageError, match="other parameters than this config"):
        restore(directory, mesh, other)
    more = make_state(0)
    more["params"]["a"]["more"] = jnp.zeros(3)
    with pytest.raises(errors.UsageError, match="other parameters than this config"):
        restore(directory, mesh, more)
    fewer = make_state(0)
    del fewer["params"]["a"]["b"]
    with pytest.raises(errors.UsageError, match="other parameters than this config"):
        restore(directory, mesh, fewer)
    assert not list(directory.glob("*.corrupt"))


def test_read_params_takes_the_average_where_one_is_kept(directory):
    wanted = make_state(2)
    params, step = checkpoint.read_params(directory.parent)
    assert step == 2 and set(params) == {"a", "d"}
    jax.tree.map(np.testing.assert_array_equal, params["a"], wanted["ema"]["a"])
    jax.tree.map(np.testing.assert_array_equal, params["d"], wanted["params"]["d"])
    raw, _ = checkpoint.read_params(directory.parent, ("a",), ema=False)
    assert set(raw) == {"a"}
    jax.tree.map(np.testing.assert_array_equal, raw["a"], wanted["params"]["a"])


def test_read_params_walks_back_too(directory):
    for file in (directory / "2" / "state").rglob("d/*"):
        flip(file, every=256)  # it reads a part, and one bit may lie elsewhere
    before = sorted(p.name for p in directory.iterdir())
    params, step = checkpoint.read_params(directory.parent)
    assert step == 1
    jax.tree.map(np.testing.assert_array_equal, params["a"], make_state(1)["ema"]["a"])
    assert sorted(p.name for p in directory.iterdir()) == before, "reading changes nothing"


def test_old_steps_go_and_milestones_stay(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2, every=2)
    for step in range(1, 6):
        checkpoints.save(step, {"w": jnp.full(4, step)}, {})
    checkpoints.wait()
    checkpoints.close()
    kept = sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit())
    assert kept == [2, 4, 5]


def test_the_meta_carries_a_checksum_per_leaf(directory):
    meta = json.loads((directory / "2" / "meta" / "metadata").read_text())
    assert meta["checksums"] == tree.checksums(make_state(2))


def test_a_save_that_fails_is_an_alarm_and_costs_nothing_finished(
    directory, mesh, monkeypatch, caplog
):
    checkpoints = checkpoint.Checkpoints(directory, keep=3)
    manager = type(checkpoints._manager)

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(manager, "save", full)
        checkpoints.save(3, make_state(3), {})
        assert "No space" in checkpoints.wait()
    assert "ALARM" in caplog.text
    assert steps(directory) == [2], "the older of two made room"
    checkpoints.save(4, make_state(4), {})
    assert checkpoints.wait() == "" and steps(directory) == [2, 4]
    checkpoints.close()
    assert int(restore(directory, mesh)[0]["step"]) == 4


def test_a_save_that_fails_in_the_background_is_noticed(directory, mesh, monkeypatch, caplog):
    checkpoints = checkpoint.Checkpoints(directory, keep=3)

    def failed(self):
        raise ValueError("EROFS: read-only file system")

    checkpoints.save(3, make_state(3), {})
    with monkeypatch.context() as broken:
        broken.setattr(type(checkpoints._manager), "check_for_errors", failed)
        assert "read-only" in checkpoints.check()
    assert "ALARM" in caplog.text
    assert (directory / "1").exists(), "room is made only on a full disk"
    checkpoints.close()


def _pipe(file):
    file.unlink()
    os.mkfifo(file)


def _other_key(file):
    file.write_text(file.read_text().replace("init_", "x_").replace("{}}", '{"a": 1}}'))


@pytest.mark.parametrize(("damage", "left"), [(_pipe, 1), (_other_key, 2)])
def test_damaged_metadata_cost_a_step_at_most(damage, left, directory, mesh):
    damage(directory / "2" / "_CHECKPOINT_METADATA")
    assert checkpoint.read_params(directory.parent)[1] == left
    assert int(restore(directory, mesh)[0]["step"]) == left == max(steps(directory))
