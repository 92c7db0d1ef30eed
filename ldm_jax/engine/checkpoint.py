"""Checkpoints that are complete or absent: orbax saves, we checksum, verify and walk back.

Orbax restores a flipped bit without a word and takes an empty directory for the newest step
(measured), so each step carries a checksum per leaf and a restore goes to the newest step whose
leaves carry them. A step that fails is set aside as `N.corrupt`, never deleted.
"""

import logging
import pathlib

import jax
import orbax.checkpoint as ocp

from ldm_jax.base import errors, tree

logger = logging.getLogger(__name__)


class Checkpoints:
    """The steps under one directory.

    Args:
      directory: made if absent; one folder per step.
      keep: newest steps to keep.
      every: additionally keep each step divisible by this for good; 0 keeps none.
    """

    def __init__(self, directory, *, keep: int = 2, every: int = 0):
        self.directory = pathlib.Path(directory).resolve()
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=every or None,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=self._options)

    def save(self, step: int, state, meta: dict):
        """Starts an asynchronous save of `state` (arrays) and `meta` (JSON) as `step`."""
        if step in self._manager.all_steps():
            return
        meta = meta | {"checksums": tree.checksums(state)}
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            ),
        )
        if not saved:
            raise errors.RunError(f"Checkpoint of step {step} was refused by orbax; nothing saved.")

    def restore(self, abstract):
        """The newest sound checkpoint as `(state, meta)`, or None where there is none.

        abstract: tree of ShapeDtypeStructs with shardings, for any number of devices.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._restore_step(step, abstract)
            except _Corrupt as e:
                self._set_aside(step, e)
            except Exception as e:  # orbax reports damage with whatever its storage raises
                if self._shapes_differ(step, abstract):
                    raise errors.UsageError(
                        f"{self.directory}/{step} holds other parameters than this config makes; "
                        "take a fresh --workdir."
                    ) from e
                self._set_aside(step, e)
        return None

    def _restore_step(self, step, abstract):
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
            ),
        )
        _verify(restored["state"], restored["meta"])
        return restored["state"], restored["meta"]

    def _shapes_differ(self, step, abstract) -> bool:
        try:
            saved = _saved_tree(self.directory, step)
            shapes = lambda t: {name: tuple(x.shape) for name, x in tree.named_leaves(t)}
            return shapes(saved) != shapes(abstract)
        except Exception:
            return False  # damaged beyond reading: not a question of shapes

    def _set_aside(self, step, reason):
        reason = str(reason).strip().splitlines()[0][:200]
        logger.error("Checkpoint %d is damaged (%s); trying the one before.", step, reason)
        if jax.process_index() == 0:
            folder = self.directory / str(step)
            folder.rename(_free(folder.with_suffix(".corrupt")))
        self._manager.close()
        self._manager = ocp.CheckpointManager(self.directory, options=self._options)

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def check(self):
        """Raises what a save in the background failed with."""
        self._manager.check_for_errors()

    def wait(self):
        """Blocks until the running save is on disk; raises if it failed."""
        self._manager.wait_until_finished()

    def close(self):
        self._manager.close()


class _Corrupt(Exception):
    """A checkpoint that reads well and holds wrong values."""


def _free(path: pathlib.Path) -> pathlib.Path:
    candidates = (path.with_name(f"{path.name}{i or ''}") for i in range(1000))
    return next(p for p in candidates if not p.exists())


def saved(run) -> dict:
    """Shapes and dtypes of a run's newest state, as nested dicts: nothing else is read.

    Raises:
      UsageError: no checkpoint there, or one that cannot be read.
    """
    directory, steps = _steps(run)
    try:
        return _saved_tree(directory, max(steps))
    except Exception as e:
        raise _unreadable(run) from e


def read_params(run, players: tuple[str, ...] | None = None, *, ema: bool = True):
    """The weights of the newest sound checkpoint of a run, without building its model.

    Args:
      run: a workdir.
      players: the players wanted; None for all.
      ema: take the moving average of the players that keep one.

    Returns:
      `({player: tree}, step)`, the leaves on the default device.

    Raises:
      UsageError: no checkpoint there, or none that can be read.
    """
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def weights(saved):
        wanted = {"params": {}, "ema": {}}
        for player in players or saved["params"]:
            kind = "ema" if ema and player in saved["ema"] else "params"
            wanted[kind][player] = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
                saved[kind][player],
            )
        return {kind: trees for kind, trees in wanted.items() if trees}

    state, step = read(run, weights)
    return state.get("params", {}) | state.get("ema", {}), step


def read(run, select):
    """A part of the newest sound state of a run.

    Args:
      select: the saved state (shapes and dtypes, nested) -> the part wanted, its leaves
        ShapeDtypeStructs with shardings. Its UsageErrors are the caller's.

    Returns:
      `(that part, step)`.

    Raises:
      UsageError: no checkpoint there, or none that can be read.
    """
    directory, steps = _steps(run)
    # Read only: tidying up would delete what a trainer is writing at this moment.
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(directory, options=options) as manager:
        for step in sorted(steps, reverse=True):
            try:
                return _read_step(manager, step, select(_saved_tree(directory, step))), step
            except errors.UsageError:
                raise
            except Exception as e:
                reason = str(e).strip().splitlines()[0][:200]
                logger.error("%s/%d cannot be read (%s).", directory, step, reason)
    raise _unreadable(run)


def _steps(run):
    """The directory of a run's checkpoints, and their steps, at least one."""
    directory = (pathlib.Path(run) / "checkpoints").resolve()
    steps = ocp.utils.checkpoint_steps(directory) if directory.is_dir() else []
    if not steps:
        raise _unreadable(run)
    return directory, steps


def _unreadable(run):
    where = pathlib.Path(run) / "checkpoints"
    return errors.UsageError(f"{run}: no readable checkpoint in {where}; train it first.")


def _read_step(manager, step, wanted):
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            ),
            meta=ocp.args.JsonRestore(),
        ),
    )
    _verify(restored["state"], restored["meta"])
    return restored["state"]


def _saved_tree(directory, step):
    """Shapes and dtypes of a saved state, as nested dicts."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.metadata(directory / str(step) / "state").item_metadata.tree


def _verify(state, meta):
    found = tree.checksums(state)
    wrong = [name for name in found if found[name] != meta["checksums"].get(name)]
    if wrong:
        raise _Corrupt(f"checksum of {len(wrong)} leaves differs, first {wrong[0]}")
