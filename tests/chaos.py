"""Small jobs under random faults; what they leave is held byte by byte against undisturbed ones.

    python tests/chaos.py --minutes=10 --seed=3 [--jobs=train,sample] [--faults=kill,flip]
    mount -t tmpfs -o size=400M tmpfs /mnt/small && python tests/chaos.py --place=/mnt/small

Each round takes a job, starts it, disturbs it a few times, lets it end, and compares. Where a byte
differs, a command ends in a way that it may not, shows a traceback or hangs, the whole story of the
round is printed, its folder is kept, and the exit code is 1 at the end. The same seed makes the
same choices, but when a fault strikes is a matter of time. A small file system at --place gets
full. Jobs in a bucket, which is a server of Google's API (fake_gcs.py), and those of several
processes are held against lone ones on a disk.
"""

import abc
import argparse
import contextlib
import fnmatch
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import fake_gcs
import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).resolve().parent.parent
HANG = 300.0  # seconds of its own after which a command that does not end counts as stuck, or
HANGS = 10  # times what it takes undisturbed
IDLE = 0.05  # share of a core up to which a command waits; see `ended`
DISTURBED = 4  # faults of a round at most
LIMIT = 40_000  # bytes beyond which no file grows on a "full" disk
STEPS = dict(total=30, log=5, eval=15, checkpoint=6)
REFUSED, RESTART = 2, 42
TERMINATED = {RESTART, -signal.SIGTERM, 128 + signal.SIGTERM}  # the latter before it can save
# Python reads the clock through this once PYTHONPATH has its folder: after a while it jumps.
JUMP = """import random, time
_time, _begin = time.time, time.time()
_by = random.Random({seed}).choice((-86400, 86400, -3600, 600))
time.time = lambda: _time() + (_by if _time() - _begin > 6 else 0)
"""
# As JUMP: each change of a file or a folder takes up to a second, the most of them little.
SLOW = """import builtins, io, os, random, time
_random = random.Random({seed})
def slow(call):
    def later(*args, **kwargs):
        time.sleep(min(1.0, _random.expovariate(50)))
        return call(*args, **kwargs)
    return later
for _name in ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir", "truncate", "link"):
    setattr(os, _name, slow(getattr(os, _name)))
_open, _opened_late = builtins.open, slow(builtins.open)
def open(file, mode="r", *args, **kwargs):
    how = _opened_late if set(mode) & set("wax+") else _open
    return how(file, mode, *args, **kwargs)
builtins.open = io.open = open
"""
# Runs the module after it; soon after two copies of the state were found equal, one bit of what a
# device holds of it is flipped. Not before a save, which would be between two instructions.
FLIPPED = """import ctypes, random, runpy, sys
import jax
from ldm_jax.engine import replicas
_random, _compare, _left = random.Random(sys.argv[1]), replicas.Replicas.__call__, [1]
def compare(self, step, arrays):
    _compare(self, step, arrays)
    if _left and step % {checkpoint} and step < {total} and _random.random() < 0.2:
        _left.pop()
        leaves = [leaf for leaf in jax.tree.leaves(arrays) if leaf.sharding.is_fully_replicated]
        part = _random.choice(_random.choice(leaves).addressable_shards).data
        address = part.unsafe_buffer_pointer() + _random.randrange(part.nbytes)
        ctypes.c_ubyte.from_address(address).value ^= 1 << _random.randrange(8)
        print("chaos: a bit was flipped at step", step, flush=True)
replicas.Replicas.__call__ = compare
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
# A sweep as a job for each cell, and one that reports.
CELLS = """import subprocess, sys
sweep = [sys.executable, "-m", "ldm_jax.sweep", *sys.argv[2:]]
cells = [subprocess.Popen([*sweep, f"--cell={cell}"]) for cell in sys.argv[1].split(",")]
codes = [cell.wait() for cell in cells]
sys.exit(max(codes, key=abs) % 256 or subprocess.call(sweep))
"""
# Becomes the command after it, whose files may not grow beyond a number of bytes.
LIMITED = """import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Job(abc.ABC):
    """A command that writes a folder and goes on where it was; `made` is what jobs start from.

    Attributes:
      alike: the name of the lone job on a disk that leaves the same; "": itself.
      devices: how many JAX sees in each process.
      bucket: whether the folder is a gs:// URL.
      needs: the names of the jobs whose folders it reads.
      kinds: of faults that only some jobs can have.
    """

    alike, devices, bucket, needs, kinds = "", 1, False, (), ()

    def __init__(self, made: pathlib.Path):
        self.made = made

    @abc.abstractmethod
    def argv(self, folder) -> list[str]:
        """Arguments of the interpreter. folder: a path, or a URL."""

    @abc.abstractmethod
    def left(self, folder) -> dict[str, str]:
        """{what is compared: digest}. folder: a path."""


class Train(Job):
    """The first stage of configs/debug.py."""

    variant, more = "first_stage", ()

    def argv(self, folder):
        steps = [f"--config.steps.{key}={value}" for key, value in STEPS.items()]
        config = f"--config={ROOT}/configs/debug.py:{self.variant}"
        return ["-m", "ldm_jax.train", config, f"--workdir={folder}", *steps, *self.more]

    def left(self, folder):
        return files(folder, "metrics.jsonl", "images/*") | leaves(folder)


class SecondStage(Train):
    variant, needs = "ldm", ("train",)

    @property
    def more(self):
        return [f"--config.first_stage={self.made / 'train'}"]


class TwoHosts(Train):
    """Two processes; launch.local starts them again by itself after a signal."""

    kinds = ("one",)

    def argv(self, folder):
        return ["-m", "launch.local", "--hosts=2", *super().argv(folder)[2:]]


class Replicated(Train):
    """Four devices that hold the same weights, and compare them."""

    devices, more, kinds = 4, ("--config.check_replicas=2", "--config.mesh.fsdp=1"), ("memory",)


class Encode(Job):
    needs = ("train",)

    def argv(self, folder):
        first = self.made / "train"
        how = [f"--run={first}", f"--config={first}/config.json", f"--out={folder}"]
        return ["-m", "ldm_jax.encode", *how, "--shard_size=64", "--config.data.count=6000"]

    def left(self, folder):
        return files(folder, "manifest.json", "images/*", "shards/*.json")


class Sample(Job):
    needs = ("second_stage",)

    def argv(self, folder):
        how = [f"--run={self.made / 'second_stage'}", f"--out={folder}", "--steps=4"]
        how += ["--format=npz", "--num=120", "--batch_size=8", "--shard_size=8"]
        return ["-m", "ldm_jax.sample", *how]

    def left(self, folder):
        return files(folder, "manifest.json", "samples.npz", "images/*", "shards/*.json")


class Workers(Sample):
    """Two that share the work; the last one merges."""

    alike, kinds = "sample", ("one",)

    def argv(self, folder):
        return ["-m", "launch.local", "--hosts=2", "--command=sample", *super().argv(folder)[2:]]


class Sweep(Job):
    def argv(self, folder):
        how = ["--sweep=sweeps/downsampling:debug", f"--workdir={folder}", "--config.f=(2,)"]
        how += ["--config.seeds=(0,1)", "--config.points=1", "--config.sampling.steps=(2,)"]
        return ["-m", "ldm_jax.sweep", *how]

    def left(self, folder):
        cells, text = "cells/*", (folder / "summary.json").read_text()
        found = files(folder, "first_stages/*/metrics.jsonl", f"{cells}/run/metrics.jsonl")
        found |= files(folder, f"{cells}/samples-*/*/images/*", "latents/*/images/*")
        return found | {"values": str(json.loads(text)["values"])}


class Cells(Sweep):
    """A job for each cell, at the same time, then one that reports."""

    alike, kinds = "sweep", ("one",)

    def argv(self, folder):
        return ["-c", CELLS, "f2_kl_c2_s0,f2_kl_c2_s1", *super().argv(folder)[2:]]


def in_bucket(job: type[Job], alike: str) -> type[Job]:
    how = {"bucket": True, "alike": alike, "kinds": (*job.kinds, "answers")}
    return type(f"{job.__name__}InBucket", (job,), how)


JOBS = dict(train=Train, second_stage=SecondStage, two_hosts=TwoHosts, replicated=Replicated)
JOBS |= dict(encode=Encode, sample=Sample, workers=Workers, sweep=Sweep, cells=Cells)
JOBS |= dict(bucket_train=in_bucket(Train, "train"), bucket_encode=in_bucket(Encode, "encode"))
JOBS |= dict(bucket_workers=in_bucket(Workers, "sample"), bucket_cells=in_bucket(Cells, "sweep"))


class Disk:
    """The files of a job's folder."""

    def __init__(self, folder: pathlib.Path):
        self.folder = self.url = folder

    def names(self) -> list[str]:
        return [str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file()]

    def read(self, name) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name, data: bytes | None):
        """None deletes it."""
        if data is None:
            return (self.folder / name).unlink()
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(data)


class Bucket(Disk):
    """The same in a bucket. folder: where `copied` puts what is compared."""

    def __init__(self, folder, server):
        self.folder, self._server, self.url = folder, server, f"gs://chaos/{folder.name}"

    def names(self):
        begin = f"{self.folder.name}/"
        return [n.removeprefix(begin) for _, n in [*self._server.objects] if n.startswith(begin)]

    def read(self, name):
        return self._server.objects["chaos", f"{self.folder.name}/{name}"]

    def write(self, name, data):
        with self._server.lock:
            if data is None:
                del self._server.objects["chaos", f"{self.folder.name}/{name}"]
            else:
                self._server.put("chaos", f"{self.folder.name}/{name}", data)

    def copy(self):
        for name in self.names():
            super().write(name, self.read(name))


def files(folder, *patterns) -> dict[str, str]:
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def leaves(folder) -> dict[str, str]:
    """Of every leaf of the last checkpoint."""
    last = max(steps(folder), key=lambda path: int(path.name))
    with ocp.PyTreeCheckpointer() as checkpointer:
        shapes = checkpointer.metadata(last / "state").item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        state = checkpointer.restore(last / "state", restore_args=plain)
    found = {"last checkpoint": last.name}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        found[jax.tree_util.keystr(path)] = hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
    return found


def steps(folder) -> list[pathlib.Path]:
    return [path for path in (folder / "checkpoints").glob("[0-9]*") if path.name.isdecimal()]


def start(argv, error, limit: int = 0, **environ):
    """A process group of its own, so that a fault strikes it whole."""
    command = [sys.executable, *argv]
    if limit:
        command = [sys.executable, "-c", LIMITED, str(limit), *command]
    own = dict(cwd=ROOT, env=os.environ | environ, stdout=error, stderr=error)
    return subprocess.Popen(command, start_new_session=True, **own)


def strike(process, number):
    with contextlib.suppress(ProcessLookupError):  # it ended by itself
        os.killpg(process.pid, number)


def ended(process, duration: float = HANG) -> int:
    """The exit code. duration: seconds that it takes undisturbed; as long as HANG if unknown.

    A command's own seconds are those of its processors while it computes and those of the clock
    while it waits, so that it is no slower on a machine that others keep busy.
    """
    limit, spent = max(HANG, HANGS * duration), 0.0
    clock, used = time.monotonic(), 0.0
    while spent < limit:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(1.0)
        passed, clock = time.monotonic() - clock, time.monotonic()
        before, used = used, processor_seconds(process.pid)
        spent += used - before if used - before > IDLE * passed else passed
    strike(process, signal.SIGKILL)
    process.wait()
    raise Broken(f"it did not end within {limit:.0f} s of its own")


def processor_seconds(group: int) -> float:
    """That a process group has used, with its children that ended; 0 without Linux's /proc."""
    ticks = 0
    for file in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            fields = file.read_text().rpartition(")")[2].split()  # see proc_pid_stat(5)
            if int(fields[2]) == group:
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


class Broken(Exception):
    """A promise that was not kept."""


class Round:
    """One job from nothing to its end.

    duration: seconds that it takes undisturbed; log: the file for what it says.
    """

    def __init__(self, job: Job, folder: pathlib.Path, duration: float, log, random_, server):
        self.job, self.folder, self.duration, self.random = job, folder, duration, random_
        self.log, self.story, self.server = log, [], server
        self.files = Bucket(folder, server) if job.bucket else Disk(folder)

    def left(self) -> dict[str, str]:
        if self.job.bucket:
            self.files.copy()
        try:
            return self.job.left(self.folder)
        except Exception as e:  # files that are not there, or not what they should be
            raise Broken(f"what it left cannot be read ({e!r})") from e

    def run(self, faults):
        """Faults, then undisturbed starts until the job has ended."""
        for _ in range(self.random.randint(1, DISTURBED)):
            fault = self.random.choice(faults)
            # What strikes files has to find some: a start that is cut makes them.
            for name in ["kill", fault] if fault in AT_REST else [fault]:
                self.story.append(name)
                if getattr(self, name)() == 0:
                    return
        for _ in range(3):
            if (code := ended(self._start(), self.duration)) == 0:
                return
            self.story.append(f"undisturbed: {code}")
            if code != RESTART:
                raise Broken(f"an undisturbed start ended with {code}")
        raise Broken("three undisturbed starts did not end it")

    def said(self) -> str:
        """The end of what the job said."""
        return self.log.read_text(errors="replace")[-4000:]

    def clear(self):
        """Deletes what the job left."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in self.files.names() if self.job.bucket else ():
            self.files.write(name, None)

    def kill(self):
        return self._struck(signal.SIGKILL, {-signal.SIGKILL})

    def term(self):
        return self._struck(signal.SIGTERM, TERMINATED)

    def stop(self):
        """Frozen for some seconds, then killed or left alone."""
        process = self._started()
        strike(process, signal.SIGSTOP)
        time.sleep(self.random.uniform(0.5, 5))
        strike(process, signal.SIGCONT)
        if self.random.random() < 0.5:
            return self._code(process, {RESTART})
        time.sleep(self.random.uniform(0, 1))
        strike(process, signal.SIGKILL)
        return self._code(process, {-signal.SIGKILL})

    def twin(self):
        """The same command once more, which is to be refused, or comes after the end."""
        process = self._started()
        while not self._owned() and process.poll() is None:
            time.sleep(0.05)
        before = process.poll()
        code = ended(self._start(), self.duration)
        if code not in (0, REFUSED) or (code == 0 and before is None and process.poll() is None):
            raise Broken(f"the second process ended with {code} beside the first")
        return self._code(process, {RESTART})

    def full(self):
        """No file grows beyond LIMIT bytes."""
        return self._code(self._start(LIMIT), {1, REFUSED, RESTART})

    def fill(self):
        """The disk fills while it runs; one of several processes may die then."""
        process = self._started()
        with filled(self.folder.parent, self.random.randrange(2 * LIMIT)):
            if (others := children(process.pid)) and self.random.random() < 0.5:
                time.sleep(self.random.uniform(0.0, 1.0) * self.duration)
                self._shoot(others)
            return self._code(process, {1, REFUSED, RESTART, 256 - signal.SIGKILL})

    def clock(self):
        return self._code(self._start(PYTHONPATH=self._imported(JUMP)), {RESTART})

    def slow(self):
        """Storage that takes its time, until a kill or to the end."""
        process = self._start(PYTHONPATH=self._imported(SLOW))
        if self.random.random() < 0.5:
            return self._code(process, {RESTART})
        time.sleep(self.random.uniform(0.2, 2.0) * self.duration)
        strike(process, signal.SIGKILL)
        return self._code(process, {-signal.SIGKILL})

    def one(self):
        """Of several processes one dies, and whoever started them does what it does then."""
        process = self._started()
        self._shoot(children(process.pid))
        return self._code(process, {RESTART, 256 - signal.SIGKILL})

    def answers(self):
        """Of the bucket get lost, or it refuses, before or after it did what it was asked for."""
        share, kinds = self.random.choice((0.01, 0.05, 0.15)), [*fake_gcs.TROUBLES]
        fate = random.Random(self.random.random())
        self.server.trouble = lambda: fate.choice(kinds) if fate.random() < share else ""
        self.story[-1] += f" of {share:.0%}"
        try:
            return self._code(self._start(), {RESTART}) if fate.random() < 0.5 else self.kill()
        finally:
            self.server.trouble = lambda: ""

    def memory(self):
        """One bit of what a device holds of the state."""
        module, *argv = self.job.argv(self.files.url)[1:]
        program = FLIPPED.format(**STEPS)
        with open(self.log, "ab") as log:
            own = ["-c", program, str(self.random.random()), module, *argv]
            return self._code(start(own, log, **self._environ()), {RESTART})

    def flip(self):
        """A bit of a checkpoint, or of a finished shard."""
        if name := self._one("checkpoints/*/*", "images/*"):
            data = bytearray(self.files.read(name))
            if data:
                data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
                self.files.write(name, bytes(data))

    def lose(self):
        if name := self._one("checkpoints/*/*", "images/*", "shards/*.json"):
            self.files.write(name, None)

    def tear(self):
        """The end of a file of lines, as a machine that lost its power leaves it."""
        if name := self._one("timing.jsonl", "goodput.jsonl", "shards/*.json"):
            data = self.files.read(name)
            self.files.write(name, data[: self.random.randrange(len(data) + 1)])

    def litter(self):
        """What a killed save leaves."""
        if any(name.startswith("checkpoints/") for name in self.files.names()):
            self.files.write("checkpoints/999.orbax-checkpoint-tmp-7/half", b"half")

    def _one(self, *patterns) -> str:
        """The name of a file; a star of a pattern also stands for folders."""
        every = (p for p in patterns for p in fnmatch.filter(self.files.names(), p))
        found = sorted(every)
        name = self.random.choice(found) if found else ""
        self.story[-1] += f" {name or 'nothing'}"
        return name

    def _shoot(self, processes: list[int]):
        with contextlib.suppress(ProcessLookupError, IndexError):  # there may be none any more
            os.kill(self.random.choice(processes), signal.SIGKILL)

    def _owned(self) -> bool:
        return any(pathlib.PurePath(name).name.startswith(".owner") for name in self.files.names())

    def _imported(self, code: str) -> str:
        """PYTHONPATH with code that every interpreter runs first."""
        folder = self.folder.with_suffix(".first")
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(code.format(seed=self.random.random()))
        return f"{folder}:{ROOT}"

    def _environ(self) -> dict[str, str]:
        fast = os.environ["XLA_FLAGS"]
        return {"XLA_FLAGS": f"{fast} --xla_force_host_platform_device_count={self.job.devices}"}

    def _start(self, limit=0, **environ):
        with open(self.log, "ab") as log:
            return start(self.job.argv(self.files.url), log, limit, **self._environ(), **environ)

    def _started(self):
        process = self._start()
        time.sleep(self.random.uniform(0.2, 1.0) * self.duration)
        return process

    def _struck(self, number, allowed):
        process = self._started()
        strike(process, number)
        return self._code(process, allowed)

    def _code(self, process, allowed) -> int:
        code = ended(process, self.duration)
        self.story[-1] += f" -> {code}"
        if "Traceback (most recent" in self.log.read_text(errors="replace"):
            raise Broken("a traceback")
        if code != 0 and code not in allowed:
            raise Broken(f"a start ended with {code}")
        return code


@contextlib.contextmanager
def filled(folder: pathlib.Path, left: int):
    """The disk of a folder has so many bytes left."""
    filler = folder / "filler"
    try:
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while file.write(bytes(2**20)):
                pass
        size = filler.stat().st_size
        os.truncate(filler, max(0, size - left))
        yield
    finally:
        filler.unlink()


AT_REST = ("flip", "lose", "tear", "litter")
SOME = ("one", "answers", "memory", "fill")  # faults that a job, or a place, has to be made for
SMALL = 2**30  # bytes of a file system that is filled
FAULTS = ("kill", "term", "stop", "twin", "full", "clock", "slow", *SOME, *AT_REST)


def children(pid: int) -> list[int]:
    """Of a process, on Linux."""
    try:
        return [*map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    except OSError:
        return []


class Chaos:
    """Rounds of jobs in the folder `place`; what they start from and are held against is there.

    logs: a folder for what they say, where the disk does not get full.
    """

    def __init__(self, place: pathlib.Path, logs: pathlib.Path, random_, server):
        self.place, self.logs, self.random, self.server = place, logs, random_, server
        self.wanted, self.durations, self.struck = {}, {}, 0
        self._kinds = ("fill",) if shutil.disk_usage(place).total < SMALL else ()

    def prepare(self, name):
        """Makes what a job needs and wants, and runs it undisturbed."""
        job = JOBS[name](self.place)
        for other in (*job.needs, *filter(None, [job.alike])):
            if other not in self.wanted:
                self.prepare(other)
        folders = [f"{name}_warm"] if job.alike else [name, f"{name}_warm"]
        self.wanted[name] = self.wanted.get(job.alike)
        for folder in folders:
            clock, own = time.monotonic(), self.round(name, folder)
            try:
                if code := ended(own._start()):
                    raise Broken(f"it ended with {code}")
                found = own.left()
                self.wanted[name] = self.wanted[name] or found
                if apart := differences(found, self.wanted[name]):
                    raise Broken(f"{len(apart)} results differ: {', '.join(apart[:5])}")
            except Broken as e:
                raise Broken(f"{name}, undisturbed: {e}\n{own.said()}") from None
            self.durations[name] = time.monotonic() - clock
        own.clear()
        print(f"{name}: {len(self.wanted[name])} results, {self.durations[name]:.0f} s", flush=True)

    def round(self, name, folder) -> Round:
        duration = self.durations.get(name, 0.0)
        job, log = JOBS[name](self.place), self.logs / f"{folder}.log"
        return Round(job, self.place / folder, duration, log, self.random, self.server)

    def disturb(self, name, number: int, faults):
        """One round; raises Broken where a promise is."""
        own = self.round(name, f"round{number}")
        kinds = (*own.job.kinds, *self._kinds)
        try:
            own.run([fault for fault in faults if fault not in SOME or fault in kinds])
            if apart := differences(own.left(), self.wanted[name]):
                raise Broken(f"{len(apart)} results differ: {', '.join(apart[:5])}")
        except Broken as e:
            told = f"story: {'; '.join(own.story)}\n{own.said()}"
            raise Broken(f"round {number}, {name}: {e}\n{told}") from None
        finally:
            self.struck += sum(map(struck, own.story))
        print(f"{name}: {'; '.join(own.story)}: equal", flush=True)
        own.clear()


def struck(told: str) -> bool:
    """Whether a fault of a story met something: files that were there, a process that lived."""
    late = told.endswith("-> 0") and told.split()[0] in ("kill", "term", "one")
    return not (late or told.endswith("nothing") or told.startswith("undisturbed"))


def differences(found: dict, wanted: dict) -> list[str]:
    return [name for name in sorted(found | wanted) if found.get(name) != wanted.get(name)]


def chaos(seed: int, minutes: float, jobs, faults, place=None) -> int:
    """The number of rounds that broke a promise, in so many minutes of rounds.

    place: the folder to work in; by default the system's for temporary files.
    """
    rounds, broken, spent, logs = 0, 0, 0.0, tempfile.mkdtemp(prefix="chaos_logs")
    place, server = tempfile.mkdtemp(prefix="chaos", dir=place), fake_gcs.serve()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{place}/compiled")
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    os.environ |= fake_gcs.environment(server) | {"XDG_CACHE_HOME": f"{place}/cache"}
    os.environ["TMPDIR"] = place  # where those that are killed leave their mirrors
    own = Chaos(pathlib.Path(place), pathlib.Path(logs), random.Random(seed), server)
    while spent < 60 * minutes:
        name = own.random.choice(jobs)
        if name not in own.wanted:
            own.prepare(name)
        clock = time.monotonic()
        try:
            own.disturb(name, rounds, faults)
        except Broken as e:
            broken += 1
            print(f"BROKEN: {e}", flush=True)
        rounds, spent = rounds + 1, spent + time.monotonic() - clock
    print(f"seed {seed}: {rounds} rounds, {own.struck} faults, {broken} broken", flush=True)
    if broken:
        print(f"what they left is in {place}, what they said in {logs}")
    else:
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(logs, ignore_errors=True)
    return broken


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of disturbed rounds")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    names = lambda known: lambda text: [k for k in text.split(",") if k in known or known[k]]
    parser.add_argument("--jobs", type=names(JOBS), default=[*JOBS])
    parser.add_argument("--faults", type=names(dict.fromkeys(FAULTS, 1)), default=[*FAULTS])
    parser.add_argument("--place", type=pathlib.Path, help="where to work; if small, it gets full")
    args = parser.parse_args()
    print(f"chaos: seed {args.seed}", flush=True)
    try:
        sys.exit(chaos(args.seed, args.minutes, args.jobs, args.faults, args.place) > 0)
    except Broken as e:  # before anything was disturbed
        sys.exit(f"chaos: {e}")


if __name__ == "__main__":
    main()
