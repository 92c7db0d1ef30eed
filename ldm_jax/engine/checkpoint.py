"""Checkpoints that are complete or absent: orbax saves, we checksum, verify and walk back.

Orbax restores a flipped bit without a word and takes an empty directory for the newest step
(measured), so each step carries a checksum per leaf and a restore goes to the newest step whose
leaves carry them. A step that fails is set aside as `N.corrupt`, never deleted. A step that an
earlier version wrote is read under today's names of its parameters (base/upgrade.py).
"""

import contextlib
import itertools
import logging
import pathlib
import tempfile

import jax
import orbax.checkpoint as ocp
from etils import epath

from ldm_jax.base import disk, errors, remote, shard, tree, upgrade
from ldm_jax.base.record import Record
from ldm_jax.engine import hosts, meetings, published

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"  # of a run
# Orbax lets each replica write a slice of an array, and each slice is a program to be compiled, on
# the first save: large arrays alone are worth that.
ocp.type_handlers.register_type_handler(
    jax.Array,
    ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20),
    override=True,
)
_numbers = itertools.count()  # of those that a process opens, which is alike on all hosts


class Checkpoints:
    """The steps under one directory.

    Args:
      directory: made if absent; one folder per step.
      keep: newest steps to keep.
      every: additionally keep each step divisible by this for good; 0 keeps none.
    """

    def __init__(self, directory, *, keep: int = 2, every: int = 0):
        self.directory = remote.place(directory)
        self._names = Record(pathlib.Path(directory).parent).parameter_names
        # Hosts meet under these names: those of two directories must not be mistaken.
        prefix = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=self.directory.name)
        self._meetings = meetings.Meetings(f"{self.directory.name}/{next(_numbers)}")
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=every or None,
            cleanup_tmp_directories=True,
            lightweight_initialize=True,  # a step whose metadata are damaged is one of several
            multiprocessing_options=prefix,
            async_options=ocp.options.AsyncOptions(
                barrier_sync_fn=self._meetings if hosts.several() else None
            ),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=self._options)
        self._problem = ""  # why the newest save failed
        self.damaged = []  # steps that `restore` found to be so

    def save(self, step: int, state, meta: dict, before=lambda: None):
        """Starts an asynchronous save of `state` (arrays) and `meta` (JSON) as `step`.

        Storage that fails gives an alarm and no error: what is finished stays, training goes on.
        before: () -> None writes what a run that goes on from this step does not come by again.
        """
        self.check()
        if step in self._manager.all_steps():
            return
        meta = meta | {"checksums": tree.checksums(state)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))

        remote.push()  # what has been logged up to here, before the step that stands for it

        def start():
            if not self._manager.save(step, args=args):
                raise errors.RunError(f"step {step} was refused by orbax")

        self._problem = ""
        if not self._attempt(lambda: (before(), self._probe())):
            self._attempt(start)

    def _probe(self):
        """Writes a little: where host 0 cannot make a folder, orbax lets the others wait for it."""
        folder = pathlib.Path(self.directory)
        if hosts.several() and not hosts.index() and folder.is_dir():
            with tempfile.TemporaryDirectory(prefix=".probe", dir=folder) as probe:
                pathlib.Path(probe, "probe").write_bytes(bytes(2**16))

    def restore(self, abstract, until: int | None = None):
        """The newest sound checkpoint as `(state, meta)`, or None where there is none.

        abstract: tree of ShapeDtypeStructs with shardings, for any number of devices.
        until: the newest step that will do, unless all are newer: then the oldest. The later ones
          are set aside as `N.bad`.
        """
        steps = self.steps()
        for step in reversed(steps):
            if until is not None and step > max(until, min(steps)):
                self._set_aside(step, "bad", f"the run goes back to step {until} or before")
                continue
            restored, problem = None, ""
            try:
                found = _saved_shapes(self.directory, step, self._names)
                whole = lambda _: abstract
                restored = _read_step(self._manager, step, found, whole, ocp.args.StandardRestore)
            except Exception as e:  # orbax reports damage with whatever its storage raises
                if self._shapes_differ(step, abstract):
                    raise errors.UsageError(
                        f"{self.directory}/{step} holds other parameters than this config makes; "
                        "take a fresh --workdir."
                    ) from e
                problem = errors.reason(e)
            # One host's damage is everybody's: all go on from the same step.
            problems = [p for p in hosts.exchange(problem) if p]
            if not problems:
                return restored
            self._set_aside(step, "corrupt", problems[0])
            self.damaged.append(step)
        return None

    def steps(self) -> list[int]:
        """The finished steps, in ascending order; the same on all hosts."""
        return sorted(hosts.on_first(lambda: list(self._manager.all_steps())))

    def forget_after(self, step: int):
        """Deletes the steps after `step`, for a run that takes other ones from there."""
        if late := [later for later in self.steps() if later > step]:
            hosts.on_first(lambda: [(self.directory / str(later)).rmtree() for later in late])
            self._reopen()

    def _shapes_differ(self, step, abstract) -> bool:
        try:
            saved, _ = _saved_shapes(self.directory, step, self._names)
            return tree.shapes(saved) != tree.shapes(abstract)
        except Exception:
            return False  # damaged beyond reading: not a question of shapes

    def _set_aside(self, step, kind, reason):
        logger.error("Checkpoint %d is %s (%s); trying the one before.", step, kind, reason)
        folder = self.directory / str(step)
        hosts.on_first(lambda: str(folder.rename(_free(folder.with_suffix(f".{kind}")))))
        self._reopen()

    def _reopen(self):
        """Looks at the directory anew."""
        self._manager.close()
        self._manager = ocp.CheckpointManager(self.directory, options=self._options)

    def check(self) -> str:
        """Why the newest save failed, if that is known by now; "" otherwise."""
        return self._attempt(self._manager.check_for_errors)

    def wait(self) -> str:
        """Blocks until the running save is on disk; why the newest save failed, or ""."""
        return self._attempt(self._manager.wait_until_finished)

    def _attempt(self, action) -> str:
        problem = ""
        try:
            action()
        except Exception as e:  # storage fails with whatever it likes, here or in the background
            problem = errors.reason(e)
            self._meetings.give_up()
        problems = filter(None, hosts.exchange(problem))
        problem = min(problems, key=lambda told: meetings.GAVE_UP in told, default="")
        if problem:
            logger.error("ALARM: a checkpoint was NOT saved (%s). Training goes on.", problem)
            self._problem = problem
            hosts.on_first(lambda: self._make_room(problem))
            # Orbax counts the failed step as saved until it looks at the directory anew.
            with contextlib.suppress(Exception):
                self._manager.close()
            self._meetings.renew()
            self._manager = ocp.CheckpointManager(self.directory, options=self._options)
        return self._problem

    def _make_room(self, problem):
        """On a full disk: away with half-written steps, and with the oldest of several."""
        if not any(word in problem for word in ("No space", "RESOURCE_EXHAUSTED", "quota")):
            return
        for litter in self.directory.glob("*.orbax-checkpoint-tmp*"):
            _remove(litter)
        keep_period = self._options.keep_period
        finished = sorted(ocp.utils.checkpoint_steps(self.directory))
        spare = [s for s in finished[:-1] if not keep_period or s % keep_period]
        for step in spare[:1]:
            logger.error("Checkpoint %d is deleted to make room.", step)
            _remove(self.directory / str(step))

    def close(self):
        self._manager.close()


def _remove(folder: epath.Path):
    with contextlib.suppress(OSError):
        folder.rmtree()


def _free(path: epath.Path) -> epath.Path:
    candidates = (path.with_name(f"{path.name}{i or ''}") for i in range(1000))
    return next(p for p in candidates if not p.exists())


def saved(run) -> dict:
    """Shapes and dtypes of a run's newest state, as nested dicts: nothing else is read.

    Raises:
      UsageError: no checkpoint there, or one that cannot be read.
    """
    if weights := published.of(run):
        return weights.saved()
    directory, steps = _steps(run)
    try:
        return _saved_shapes(directory, max(steps), Record(run).parameter_names)[0]
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
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def weights(saved):
        wanted = {"params": {}, "ema": {}}
        for player in players or saved["params"]:
            kind = "ema" if ema and player in saved["ema"] else "params"
            wanted[kind][player] = shard.abstract(saved[kind][player], place)
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
    if weights := published.of(run):
        return weights.read(select)
    _, steps = _steps(run)
    with reading(run) as part:
        for step in sorted(steps, reverse=True):
            if (found := part(step, select)) is not None:
                return found, step
    raise _unreadable(run)


@contextlib.contextmanager
def reading(run, folder: str = FOLDER, alike: bool = False):
    """part(step, select) -> what `select` wants of a step (see `read`), or None: it is damaged.

    alike: all steps have the same shapes, which are then read only once.
    """
    directory, known, shapes = place(run, folder), Record(run).parameter_names, None

    def part(step, select):
        nonlocal shapes
        try:
            found = shapes or _saved_shapes(directory, step, known)
            shapes = found if alike else None
            return _read_step(manager, step, found, select, _part)[0]
        except errors.UsageError:
            raise
        except Exception as e:  # orbax reports damage with whatever its storage raises
            logger.error("%s/%d cannot be read (%s).", directory, step, errors.reason(e))
            return None

    # Read only: tidying up would delete what a trainer is writing at this moment.
    options = ocp.CheckpointManagerOptions(read_only=True, lightweight_initialize=True)
    with ocp.CheckpointManager(directory, options=options) as manager:
        yield part


def place(run, folder: str = FOLDER) -> epath.Path:
    """Where the steps of a run lie."""
    return remote.place(pathlib.Path(remote.local(run)) / folder)


def finished(run, folder: str = FOLDER) -> list[int]:
    """The finished steps of a run, in ascending order."""
    directory = place(run, folder)
    return sorted(ocp.utils.checkpoint_steps(directory)) if directory.is_dir() else []


def _steps(run):
    """The directory of a run's checkpoints, and their steps, at least one."""
    steps = finished(run)
    if not steps:
        raise _unreadable(run)
    return place(run), steps


def _unreadable(run):
    run = remote.shown(run)
    return errors.UsageError(f"{run}: no readable checkpoint in {run}/checkpoints; train it first.")


def _read_step(manager, step, shapes, select, restoring):
    """`(state, meta)` of one step, whose checksums are right.

    shapes: what `_saved_shapes` says of it.
    select: the saved state (shapes and dtypes) -> what is wanted of it, as ShapeDtypeStructs.
    restoring: what is wanted -> the arguments with which orbax restores it.
    """
    found, names = shapes
    wanted = upgrade.renamed(select(found), {new: old for old, new in names.items()})
    args = ocp.args.Composite(state=restoring(wanted), meta=ocp.args.JsonRestore())
    restored = manager.restore(step, args=args)
    checksums = tree.checksums(restored["state"])
    wrong = [k for k, v in checksums.items() if v != restored["meta"]["checksums"].get(k)]
    if wrong:
        raise ValueError(f"checksum of {len(wrong)} leaves differs, first {wrong[0]}")
    return upgrade.renamed(restored["state"], names), restored["meta"]


def _part(wanted):
    restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
    return ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args, partial_restore=True)


def _check_files(folder: epath.Path):
    """Raises OSError for what would keep orbax waiting, or take all memory: it reads whole files.

    Arrays lie in folders `d`, and are read by their ranges. Storage of objects has only objects.
    """
    local = pathlib.Path(folder)
    for path in local.rglob("*") if local.is_dir() else ():
        if not path.is_dir():
            disk.check_regular(path, None if path.parent.name == "d" else disk.MOST)


def _saved_shapes(directory, step, known: dict):
    """A saved state's shapes and dtypes, nested, and those of the `known` old names that it has."""
    _check_files(directory / str(step))
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.metadata(directory / str(step) / "state").item_metadata.tree
    parts = {part for name, _ in tree.named_leaves(found) for part in name.split("/")}
    names = {old: new for old, new in known.items() if old in parts}
    return upgrade.renamed(found, names), names
