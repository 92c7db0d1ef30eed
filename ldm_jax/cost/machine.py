"""The checks of a machine before a job; see `doctor`. A check returns what it found, or raises."""

import importlib.metadata
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp

from ldm_jax.base import errors, remote, tree, watch
from ldm_jax.cost import programs
from ldm_jax.engine import hosts, optim
from ldm_jax.engine import step as step_lib
from ldm_jax.runs import check as check_lib
from ldm_jax.runs import data as data_lib
from ldm_jax.runs import mesh as mesh_lib

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
STEPS_KEPT = 4  # checkpoints at a time: those kept, the one being written, and one to spare


def checks(config, workdir: str | None, expected: str) -> dict:
    """{name: check}. config, workdir: of the job, or None; expected: devices, or ""."""
    found = {"versions": versions, "devices": lambda: devices(expected)}
    if workdir:
        found["workdir"] = lambda: writable(workdir)
    if config:
        found |= {"record": lambda: record(config), "step": lambda: step(config, workdir)}
    return found


def passes(name: str, check) -> bool:
    """Prints what `check` returns or why it failed."""
    try:
        word, text = "ok", check()
    except Exception as e:  # whatever is wrong here would be wrong in the job
        word, text = "FAILED", str(e) or type(e).__name__
    print(f"{word:6}  {name:8}  {' '.join(text.split())}", flush=True)
    return word == "ok"


def versions() -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)


def devices(expected: str) -> str:
    """The devices that JAX finds; each has to compute a sum."""
    hosts.connect()
    hosts.check_devices(expected)
    for device in jax.local_devices():
        total = float(jnp.sum(jax.device_put(jnp.arange(8.0), device)))
        if total != 28.0:
            raise errors.RunError(f"{device} adds 0 to 7 up to {total}: take it out of service.")
    kind = jax.devices()[0].device_kind
    return f"{jax.device_count()} {kind} on {jax.process_count()} host(s)"


def writable(workdir: str) -> str:
    """Writes, renames and reads a file in the workdir; in a bucket, writes an object."""
    folder = remote.local(workdir, write=True)
    if folder != workdir:
        return f"{workdir} can be read and written"
    workdir = pathlib.Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".doctor", dir=workdir) as folder:
            pathlib.Path(folder, "one").write_bytes(b"x" * 2**20)
            renamed = pathlib.Path(folder, "one").rename(pathlib.Path(folder, "two"))
            if renamed.read_bytes() != b"x" * 2**20:
                raise errors.RunError(f"{workdir} does not give back what was written.")
    except OSError as e:
        raise errors.RunError(f"{workdir} cannot be written: {e.strerror}.") from e
    return f"{workdir} can be written, {tree.size(shutil.disk_usage(workdir).free)} free"


def record(config) -> str:
    """Reads one batch as the training would."""
    source = data_lib.open_source(config.data)
    data_lib.resolve(config, source)
    check_lib.check(config, source)
    with data_lib.make(config, source, ("image",)).train(0) as batches:
        image = next(batches)["image"]
    return f"{len(source)} records; a batch of images {image.shape}"


def step(config, workdir) -> str:
    """Compiles the training step, and reports its memory and the size of a checkpoint."""
    seconds = watch.stopwatch()
    data_lib.resolve(config, data_lib.open_source(config.data))
    lengths = {name: own for name, one in config.optim.items() if (own := optim.lengths(one))}
    program = programs.training(config, mesh_lib.make_mesh(config))
    memory = program.lower().compile().memory_analysis()
    state = program.arguments["state"]
    snapshots = config.checkpoints.snapshots * tree.nbytes(step_lib.averages(state, lengths))
    disk = disk_for(tree.nbytes(state), workdir, snapshots)
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes if memory else 0
    return f"compiled in {seconds():.0f} s, {tree.size(used)} of a device's memory; {disk}"


def disk_for(size: int, workdir, snapshots: int = 0) -> str:
    """Raises RunError where the checkpoints would fill the disk.

    size: bytes of a checkpoint; snapshots: of all snapshots of averages together.
    """
    wanted = STEPS_KEPT * size + snapshots
    if workdir and (free := shutil.disk_usage(workdir).free) < wanted:
        what = f"{STEPS_KEPT} checkpoints" + " and all snapshots of averages" * (snapshots > 0)
        raise errors.RunError(
            f"{workdir} has {tree.size(free)} free; {what} take {tree.size(wanted)}."
        )
    both = f"a checkpoint takes {tree.size(size)}"
    return both + (f", all snapshots of averages {tree.size(snapshots)}" if snapshots else "")
