"""Small jobs under random faults; what they leave is held byte by byte against undisturbed ones.

    python tests/chaos.py --minutes=10 --seed=3 [--jobs=train,sample] [--faults=kill,flip]

Each round takes a job, starts it, disturbs it a few times, lets it end, and compares. It ends with
exit code 1 and the whole story of the round where a byte differs, a command ends in a way that it
may not, or hangs. The same seed makes the same choices, but when a fault strikes is a matter of
time.
"""

import abc
import argparse
import contextlib
import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).resolve().parent.parent
HANG = 300.0  # seconds after which a command that does not end counts as stuck
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
# Becomes the command after it, whose files may not grow beyond a number of bytes.
LIMITED = """import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Job(abc.ABC):
    """A command that writes a folder and goes on where it was; `made` is what jobs start from."""

    def __init__(self, made: pathlib.Path):
        self.made = made

    @abc.abstractmethod
    def argv(self, folder) -> list[str]:
        """The module that is run and its arguments."""

    @abc.abstractmethod
    def left(self, folder) -> dict[str, str]:
        """{what is compared: digest}."""


class Train(Job):
    """The first stage of configs/debug.py."""

    variant, more = "first_stage", ()

    def argv(self, folder):
        steps = [f"--config.steps.{key}={value}" for key, value in STEPS.items()]
        config = f"--config={ROOT}/configs/debug.py:{self.variant}"
        return ["ldm_jax.train", config, f"--workdir={folder}", *steps, *self.more]

    def left(self, folder):
        return files(folder, "metrics.jsonl", "images/*") | leaves(folder)


class SecondStage(Train):
    variant = "ldm"

    @property
    def more(self):
        return [f"--config.first_stage={self.made / 'train'}"]


class TwoHosts(Train):
    """Two processes; launch.local starts them again by itself after a signal."""

    def argv(self, folder):
        return ["launch.local", "--hosts=2", *super().argv(folder)[1:]]


class Encode(Job):
    def argv(self, folder):
        first = self.made / "train"
        how = [f"--run={first}", f"--config={first}/config.json", f"--out={folder}"]
        return ["ldm_jax.encode", *how, "--shard_size=64", "--config.data.count=6000"]

    def left(self, folder):
        return files(folder, "manifest.json", "images/*", "shards/*.json")


class Sample(Job):
    def argv(self, folder):
        how = [f"--run={self.made / 'second_stage'}", f"--out={folder}", "--steps=4"]
        return ["ldm_jax.sample", *how, "--num=120", "--batch_size=8", "--shard_size=8"]

    def left(self, folder):
        return files(folder, "manifest.json", "images/*", "shards/*.json")


JOBS = dict(train=Train, second_stage=SecondStage, two_hosts=TwoHosts, encode=Encode, sample=Sample)


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
    command = [sys.executable, "-m", *argv]
    if limit:
        command = [sys.executable, "-c", LIMITED, str(limit), *command]
    own = dict(cwd=ROOT, env=os.environ | environ, stdout=error, stderr=error)
    return subprocess.Popen(command, start_new_session=True, **own)


def strike(process, number):
    with contextlib.suppress(ProcessLookupError):  # it ended by itself
        os.killpg(process.pid, number)


def ended(process) -> int:
    try:
        return process.wait(HANG)
    except subprocess.TimeoutExpired:
        strike(process, signal.SIGKILL)
        process.wait()
        raise Broken(f"it did not end within {HANG:.0f} s") from None


class Broken(Exception):
    """A promise that was not kept."""


class Round:
    """One job from nothing to its end. duration: seconds that it takes undisturbed."""

    def __init__(self, job: Job, folder: pathlib.Path, duration: float, random_):
        self.job, self.folder, self.duration, self.random = job, folder, duration, random_
        self.log, self.story = folder.with_suffix(".log"), []

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
            if (code := ended(self._start())) == 0:
                return
            self.story.append(f"undisturbed: {code}")
            if code != RESTART:
                raise Broken(f"an undisturbed start ended with {code}")
        raise Broken("three undisturbed starts did not end it")

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
        process, marker = self._started(), self.folder / ".owner"
        while not marker.exists() and process.poll() is None:
            time.sleep(0.05)
        before = process.poll()
        code = ended(self._start())
        if code not in (0, REFUSED) or (code == 0 and before is None and process.poll() is None):
            raise Broken(f"the second process ended with {code} beside the first")
        return self._code(process, {RESTART})

    def full(self):
        """No file grows beyond LIMIT bytes."""
        return self._code(self._start(LIMIT), {1, REFUSED, RESTART})

    def clock(self):
        folder = self.folder.with_suffix(".clock")
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(JUMP.format(seed=self.random.random()))
        return self._code(self._start(PYTHONPATH=f"{folder}:{ROOT}"), {RESTART})

    def flip(self):
        """A bit of a checkpoint, or of a finished shard."""
        if file := self._one("checkpoints/*/**/*", "images/*"):
            data = bytearray(file.read_bytes())
            if data:
                data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
                file.write_bytes(data)

    def lose(self):
        if file := self._one("checkpoints/*/**/*", "images/*", "shards/*.json"):
            file.unlink()

    def tear(self):
        """The end of a file of lines, as a machine that lost its power leaves it."""
        if file := self._one("timing.jsonl", "goodput.jsonl", "shards/*.json"):
            data = file.read_bytes()
            file.write_bytes(data[: self.random.randrange(len(data) + 1)])

    def litter(self):
        """What a killed save leaves."""
        folder = self.folder / "checkpoints" / "999.orbax-checkpoint-tmp-7"
        if folder.parent.exists():
            folder.mkdir(exist_ok=True)
            (folder / "half").write_bytes(b"half")

    def _one(self, *patterns):
        found = [p for pattern in patterns for p in self.folder.glob(pattern) if p.is_file()]
        file = self.random.choice(sorted(found)) if found else None
        self.story[-1] += f" {file.relative_to(self.folder)}" if file else " nothing"
        return file

    def _start(self, limit=0, **environ):
        with open(self.log, "ab") as log:
            return start(self.job.argv(self.folder), log, limit, **environ)

    def _started(self):
        process = self._start()
        time.sleep(self.random.uniform(0.2, 1.0) * self.duration)
        return process

    def _struck(self, number, allowed):
        process = self._started()
        strike(process, number)
        return self._code(process, allowed)

    def _code(self, process, allowed) -> int:
        code = ended(process)
        self.story[-1] += f" -> {code}"
        if code != 0 and code not in allowed:
            raise Broken(f"a start ended with {code}")
        return code


AT_REST = ("flip", "lose", "tear", "litter")
FAULTS = ("kill", "term", "stop", "twin", "full", "clock", *AT_REST)


def differences(found: dict, wanted: dict) -> list[str]:
    return [name for name in sorted(found | wanted) if found.get(name) != wanted.get(name)]


def chaos(seed: int, minutes: float, jobs, faults) -> int:
    """The number of rounds that kept every promise; raises Broken for the first that did not."""
    random_, begin, rounds, struck = random.Random(seed), time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(prefix="chaos") as place:
        place = pathlib.Path(place)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(place / "compiled"))
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
        wanted, durations = {}, {}
        needed = {
            "second_stage": ["train"],
            "encode": ["train"],
            "sample": ["train", "second_stage"],
        }
        for name in dict.fromkeys([n for job in jobs for n in (*needed.get(job, ()), job)]):
            own = Round(JOBS[name](place), place / name, 0.0, random_)
            if code := ended(own._start()):
                raise Broken(f"{name}, undisturbed, ends with {code}:\n{own.log.read_text()}")
            clock = time.monotonic()
            warm = Round(own.job, place / f"{name}_warm", 0.0, random_)
            ended(warm._start())
            durations[name] = time.monotonic() - clock
            wanted[name] = own.job.left(own.folder)
            if apart := differences(own.job.left(warm.folder), wanted[name]):
                raise Broken(f"{name} is not repeatable without any fault: {', '.join(apart[:5])}")
            shutil.rmtree(warm.folder)
            print(f"{name}: {len(wanted[name])} results, {durations[name]:.0f} s", flush=True)
        while time.monotonic() - begin < 60 * minutes:
            name = random_.choice(jobs)
            own = Round(JOBS[name](place), place / f"round{rounds}", durations[name], random_)
            try:
                own.run(faults)
                if apart := differences(own.job.left(own.folder), wanted[name]):
                    raise Broken(f"{len(apart)} results differ: {', '.join(apart[:5])}")
            except Broken as e:
                said = own.log.read_text(errors="replace")[-4000:]
                told = "; ".join(own.story)
                raise Broken(
                    f"seed {seed}, round {rounds}, {name}: {e}\nstory: {told}\n{said}"
                ) from None
            struck += len(own.story)
            rounds += 1
            print(f"{name}: {'; '.join(own.story)}: equal", flush=True)
            shutil.rmtree(own.folder)
    print(f"seed {seed}: {rounds} rounds, {struck} faults, 0 bytes differ", flush=True)
    return rounds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    names = lambda known: lambda text: [k for k in text.split(",") if k in known or known[k]]
    parser.add_argument("--jobs", type=names(JOBS), default=[*JOBS])
    parser.add_argument("--faults", type=names(dict.fromkeys(FAULTS, 1)), default=[*FAULTS])
    args = parser.parse_args()
    print(f"chaos: seed {args.seed}", flush=True)
    try:
        chaos(args.seed, args.minutes, args.jobs, args.faults)
    except Broken as e:
        sys.exit(f"chaos: {e}")


if __name__ == "__main__":
    main()
